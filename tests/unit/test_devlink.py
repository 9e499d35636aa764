"""devlink: messages recorded on the emulated node (netdevsim, Linux 6.12), and what we say."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import KernelError
from nodeagent.kernel.devlink import Cmode, Devlink, Port
from nodeagent.kernel.netlink import attribute, attributes
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.model import DeviceHandle, Param, Subfunction

DEVICE = DeviceHandle("netdevsim", "netdevsim1")
FAMILY = 0x17
LEGACY = (
    "3c0000001700000005000000cc0000001d0100000e0001006e657464657673696d0000000f0002006e65746465"
    "7673696d3100000600190000000000"
)
SWITCHDEV = LEGACY.replace("0600190000000000", "0600190001000000")
MAX_MACS = (
    "6c0000001700020004000000cc000000260100000e0001006e657464657673696d0000000f0002006e65746465"
    "7673696d310000380050000d0051006d61785f6d616373000000000400520005005300030000001800540014"
    "00550005005700010000000800560020000000"
)
TEST1 = (
    "600000001700020004000000cc000000260100000e0001006e657464657673696d0000000f0002006e65746465"
    "7673696d3100002c0050000a005100746573743100000005005300060000001400540010005500050057000100"
    "000004005600"
)


def at_runtime(recorded: str) -> str:
    """netdevsim's parameters are for the next reload (cmode 1); ours are for now (0)."""
    assert "0500570001000000" in recorded
    return recorded.replace("0500570001000000", "0500570000000000")


class Answered(Devlink):
    """devlink that answers with recorded messages, and keeps what it was asked."""

    def __init__(self, *messages: str, error: int = 0, family: int | None = FAMILY) -> None:
        self.family = family
        self.name = "devlink"
        self.messages = [bytes.fromhex(message) for message in messages]
        self.error = error
        self.sent: list[bytes] = []

    def ask(self, message: bytearray) -> list[bytes]:
        self.sent.append(bytes(message))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self.messages

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        return self.ask(message)

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent += map(bytes, messages)
        return [OSError(self.error, os.strerror(self.error)) if self.error else None]


@pytest.mark.parametrize(("recorded", "mode"), [(LEGACY, "legacy"), (SWITCHDEV, "switchdev")])
def test_the_eswitch_as_recorded(recorded: str, mode: str) -> None:
    assert Answered(recorded).eswitch(DEVICE) == EswitchAttributes(eswitch_mode=EswitchMode(mode))


def test_the_question_names_the_device() -> None:
    devlink = Answered(LEGACY)
    devlink.eswitch(DEVICE)
    (message,) = devlink.sent
    assert struct.unpack_from("=IHH", message) == (len(message), FAMILY, 1)
    assert message[16] == 29
    said = dict(attributes(message, 20))
    assert said == {1: b"netdevsim\0", 2: b"netdevsim1\0"}


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM, errno.EINVAL])
def test_a_pf_that_does_not_manage_its_eswitch_has_none(number: int) -> None:
    assert Answered(error=number).eswitch(DEVICE) == EswitchAttributes()


def test_an_eswitch_that_cannot_be_read_is_not_taken_for_none() -> None:
    with pytest.raises(KernelError, match="eswitch of netdevsim/netdevsim1: EIO: ") as caught:
        Answered(error=errno.EIO).eswitch(DEVICE)
    assert caught.value.errno == errno.EIO


def test_a_mode_of_a_newer_kernel_is_not_known() -> None:
    newer = LEGACY.replace("0600190000000000", "0600190009000000")
    assert Answered(newer).eswitch(DEVICE) == EswitchAttributes()


def test_only_parameters_of_now_count() -> None:
    assert Answered(MAX_MACS, TEST1).params()[Cmode.RUNTIME] == {}


def test_parameters_by_device_and_name() -> None:
    both = {DEVICE: (Param("max_macs", 3, 32), Param("test1", 6, True))}
    at_once = Answered(at_runtime(TEST1), at_runtime(MAX_MACS)).params()
    assert at_once == {Cmode.RUNTIME: both, Cmode.DRIVERINIT: {}}
    assert Answered(TEST1, MAX_MACS).params() == {Cmode.RUNTIME: {}, Cmode.DRIVERINIT: both}


def test_a_flag_that_is_off_is_an_attribute_that_is_not_there() -> None:
    off = at_runtime(TEST1)
    assert off.endswith("04005600")
    (found,) = Answered(off[:-8]).params()[Cmode.RUNTIME][DEVICE]
    assert found == Param("test1", 6, False)


@pytest.mark.parametrize(
    ("param", "data"),
    [
        (Param("a", 1, 7), b"\x07"),
        (Param("a", 2, 7), struct.pack("=H", 7)),
        (Param("a", 3, 7), struct.pack("=I", 7)),
        (Param("a", 4, 7), struct.pack("=Q", 7)),
        (Param("a", 5, "smfs"), b"smfs\0"),
        (Param("a", 6, True), b""),
        (Param("a", 6, False), None),
    ],
)
def test_a_parameter_goes_out_as_its_type_has_it(param: Param, data: bytes | None) -> None:
    devlink = Answered()
    devlink.set_param(DEVICE, param)
    said = dict(attributes(devlink.sent[0], 20))
    assert (said[81], said[83], said[87]) == (b"a\0", bytes([param.kind]), b"\0")
    assert said.get(86) == data


@given(
    st.builds(
        EswitchAttributes,
        eswitch_mode=st.sampled_from((None, *EswitchMode)),
        inline_mode=st.sampled_from((None, *InlineMode)),
        encap_mode=st.sampled_from((None, *EncapMode)),
    )
)
def test_an_eswitch_reads_back_as_what_is_set(wanted: EswitchAttributes) -> None:
    """The kernel answers with the attributes that it is given."""
    devlink = Answered()
    devlink.set_eswitch(DEVICE, wanted)
    assert Answered(devlink.sent[0].hex()).eswitch(DEVICE) == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        Subfunction("pf0sf88", 16809984, Mac("02:00:00:00:00:88"), active=True, roce=False),
        Subfunction("c1pf1sf0", 3, max_io_eqs=8),
    ],
)
def test_a_subfunction_reads_back_as_what_is_set(wanted: Subfunction) -> None:
    """The kernel answers with the attributes that it is given, and tells an external controller."""
    devlink = Answered()
    devlink.add_subfunction(DEVICE, wanted)
    values = {name: getattr(wanted, name) for name in ("hw_addr", "active", "roce", "max_io_eqs")}
    known = {name: value for name, value in values.items() if value is not None}
    devlink.set_function(Port(DEVICE, wanted.index), known)
    made, set_ = devlink.sent
    external = b"" if wanted.is_local else attribute(149, b"\x01")
    answer = set_ + made[20:] + external
    assert Answered(answer.hex()).ports().subfunctions == {DEVICE: (wanted,)}


@pytest.mark.parametrize(
    ("error", "makes"), [(errno.EINVAL, True), (errno.EOPNOTSUPP, False), (errno.ENODEV, False)]
)
def test_whether_a_driver_makes_subfunctions(error: int, makes: bool) -> None:
    """A port without flavour is refused in either case, by another error."""
    assert Answered(error=error).makes_subfunctions(DEVICE) is makes


def test_a_refusal_is_the_callers_to_word() -> None:
    with pytest.raises(OSError, match="busy") as caught:
        Answered(error=errno.EBUSY).set_eswitch(
            DEVICE, EswitchAttributes(eswitch_mode=EswitchMode.SWITCHDEV)
        )
    assert caught.value.errno == errno.EBUSY


def test_a_kernel_without_devlink() -> None:
    devlink = Answered(family=None)
    assert devlink.instances() == {}
    assert not any(devlink.params().values())
    with pytest.raises(OSError, match="no devlink") as caught:
        devlink.set_param(DEVICE, Param("a", 6, True))
    assert caught.value.errno == errno.EOPNOTSUPP
    assert devlink.sent == []


def test_this_kernel_whatever_it_has() -> None:
    with Devlink() as devlink:
        assert isinstance(devlink.instances(), dict)
        assert devlink.eswitch(DeviceHandle("pci", "ffff:ff:1f.7")) == EswitchAttributes()
