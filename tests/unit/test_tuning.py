"""What is tuned of functions: messages, files, what is planned, and what is set on a node."""

from __future__ import annotations

import dataclasses
import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nodeagent.errors import DataError, RestoreFailed
from nodeagent.kernel.devlink import (
    CMD_PORT_NEW,
    CMD_REPORTER_RECOVER,
    Devlink,
    FatalErrors,
    HealthWatch,
    Port,
    keep_recoveries,
)
from nodeagent.kernel.genl import encoded
from nodeagent.kernel.netlink import attributes, request
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.observe import observe
from nodeagent.node.tuning import lost, set_tuning
from nodeagent.plan.actions import SetTuning
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.stages import StageName
from nodeagent.plan.tuning import no_longer_offered
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import (
    NO_DRIVER,
    DeviceHandle,
    Netdev,
    NodeState,
    Pf,
    Representor,
    Snapshot,
    Target,
    Vf,
)
from nodeagent.state.tuning import Tuned
from tests.support.fake_kernel import DRIVER, PF1, PF2
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault

PF = DeviceHandle("pci", PF1)
HANDLE = (1, b"pci\0"), (2, f"{PF1}\0".encode())


class Answered(Devlink):
    """devlink that answers with these messages, and takes what it is told."""

    def __init__(self, *bodies: bytes) -> None:
        self.family, self.name, self.bodies = 0x17, "devlink", bodies
        self.sent: list[dict[int, bytes]] = []

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        return [bytes(20) + body for body in self.bodies]

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent += [{-1: bytes(m[16:17])} | dict(attributes(bytes(m), 20)) for m in messages]
        return [None] * len(messages)


def reporter(name: str, *values: tuple[int, bytes]) -> bytes:
    return encoded(*HANDLE, (114, encoded((115, f"{name}\0".encode()), (116, b"\1"), *values)))


def test_a_reporter_has_what_its_driver_can_do() -> None:
    """As mlx5 tells them: vnic can do nothing, fw cannot recover."""
    told = Answered(
        reporter("fw", (141, b"\1")),
        reporter("fw_fatal", (120, struct.pack("=Q", 60000)), (121, b"\0"), (141, b"\1")),
        reporter("vnic"),
    ).reporters()
    fatal = {"auto_recover": False, "grace_period": 60000, "auto_dump": True}
    assert told == {Port(PF): {"fw": {"auto_dump": True}, "fw_fatal": fatal}}


def test_a_fatal_error_of_the_firmware_is_the_device_s() -> None:
    """The helper's reporters are all in error; only one of them loses the function's state."""
    assert Answered(reporter("fw", (141, b"\1")), reporter("vnic")).in_fatal_error() == frozenset()
    assert Answered(reporter("fw"), reporter("fw_fatal")).in_fatal_error() == {PF}
    count = struct.pack("=Q", 3)
    healthy = encoded(*HANDLE, (114, encoded((115, b"fw_fatal\0"), (116, b"\0"), (117, count))))
    assert Answered(healthy).in_fatal_error() == frozenset()
    assert Answered(healthy, reporter("fw")).fatal_errors() == {PF: FatalErrors(3, recovered=True)}


def test_a_fatal_error_is_heard_of_and_its_end_and_nothing_else() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.setblocking(False)
    keep_recoveries(receiver)

    def notify(body: bytes, command: int = CMD_REPORTER_RECOVER) -> set[DeviceHandle]:
        sender.send(request(20, 0, struct.pack("=BBH", command, 1, 0) + body))
        watch.drain()
        return set(watch.in_fatal_error)

    healthy = encoded(*HANDLE, (114, encoded((115, b"fw_fatal\0"), (116, b"\0"))))
    with sender, HealthWatch() as watch:
        watch._socket.close()
        watch._socket = receiver
        assert notify(reporter("fw_fatal"), CMD_PORT_NEW) == set()
        assert notify(reporter("fw")) == set()
        assert notify(reporter("fw_fatal")) == {PF}
        assert notify(reporter("fw")) == {PF}
        assert notify(healthy) == set()


def test_a_reporter_of_a_port_is_set_by_its_number() -> None:
    devlink = Answered()
    devlink.set_reporter(Port(PF, 65535), "tx", "grace_period", 700)
    devlink.set_reporter(Port(PF), "fw", "auto_dump", False)
    first, second = devlink.sent
    assert first[-1] == second[-1] == b"\x35"
    assert first[3] == struct.pack("=I", 65535)
    assert (first[115], first[120]) == (b"tx\0", struct.pack("=Q", 700))
    assert 3 not in second
    assert (second[115], second[141]) == (b"fw\0", b"\0")


def port(number: int, flavour: int, *more: tuple[int, bytes]) -> bytes:
    index = (3, struct.pack("=I", number))
    return encoded(*HANDLE, index, (77, struct.pack("=H", flavour)), *more)


def test_what_a_port_function_has() -> None:
    """A capability that the driver does not tell of is not among them."""
    caps = (4, struct.pack("=II", 0b01, 0b11))
    vf = (128, struct.pack("=H", 3)), (150, struct.pack("=I", 0))
    ports = Answered(
        port(65535, 0),
        port(4, 4, *vf, (145, encoded((1, bytes(6)), caps, (6, struct.pack("=I", 60))))),
        port(9, 4, vf[0], (150, struct.pack("=I", 1)), (145, encoded(caps))),
    ).ports()
    assert ports.own == {Port(PF, 65535)}
    values = {"roce": True, "migratable": False, "max_io_eqs": 60}
    assert ports.functions == {(PF, 3): (Port(PF, 4), values)}


def test_a_port_function_is_set_one_by_one() -> None:
    devlink = Answered()
    devlink.set_function(Port(PF, 4), {"migratable": True})
    devlink.set_function(Port(PF, 4), {"roce": False})
    devlink.set_function(Port(PF, 4), {"max_io_eqs": 8})
    nests = [dict(attributes(each[145])) for each in devlink.sent]
    assert nests == [
        {4: struct.pack("=II", 2, 2)},
        {4: struct.pack("=II", 0, 1)},
        {6: struct.pack("=I", 8)},
    ]
    assert {each[-1] for each in devlink.sent} == {b"\6"}


def config(*capabilities: bytes) -> bytes:
    """A function's configuration with a list of capabilities."""
    made = bytearray(256)
    made[0x34] = 0x60
    for at, each in zip(range(0x60, 256, 16), capabilities, strict=False):
        following = at + 16 if each is not capabilities[-1] else 0
        made[at : at + 4] = each[:1] + bytes([following]) + each[1:]
    return bytes(made)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (config(b"\x10\x02\x00", b"\x11\x0b\x80"), 12),
        (config(b"\x11\xff\x07"), 2048),
        (config(b"\x10\x02\x00"), None),
        (b"\xff" * 256, None),
        (config(b"\x11\x0b\x80")[:64], None),
    ],
)
def test_the_size_of_the_msix_table(tmp_path: Path, content: bytes, count: int | None) -> None:
    """Enabled or not; without such a capability, of a function that is gone, not as root."""
    directory = tmp_path / "bus/pci/devices" / PF1
    directory.mkdir(parents=True)
    sysfs = Sysfs(tmp_path)
    assert sysfs.msix_vectors("pci", PF1) is None
    (directory / "config").write_bytes(content)
    assert sysfs.msix_vectors("pci", PF1) == count


# ---- what differs, and what is planned -----------------------------------------------------------


def state(
    pf: tuple[Tuned, ...] | None, *vfs: tuple[Tuned, ...] | None, switchdev: bool = False
) -> NodeState:
    made = tuple(
        Vf(n, f"0000:01:10.{n}", DRIVER, netdev=Netdev(f"v{n}", up=True), tuning=each)
        for n, each in enumerate(vfs)
    )
    mode = EswitchMode.SWITCHDEV if switchdev else EswitchMode.LEGACY
    ports = (Representor(f"pf1vf{n}", Netdev(f"r{n}")) for n in range(len(vfs)))
    netdev = Netdev("p", mtu=1500, up=True)
    made_pf = Pf(PF, len(made), True, netdev, made, tuning=pf, eswitch_mode=mode)
    return NodeState(
        DRIVER,
        (dataclasses.replace(made_pf, representors=tuple(ports) if switchdev else ()),),
    )


def test_a_vf_is_unbound_for_its_msix_count_and_no_other_is() -> None:
    want, have = state((), (("msix", 12),), (("msix", 8),)), state((), *[(("msix", 8),)] * 2)
    assert [str(each) for each in differences(want, have)] == [
        f"pci/{PF1} vf 0 msix: want 12, have 8"
    ]
    stages = plan(want, have)
    text = lines(stages, want, have)
    steps = ["# unbind VFs", "# tune VFs", "# bind VFs"]
    assert [each for each in text if each in steps] == steps
    assert "echo 12 > /sys/bus/pci/devices/0000:01:10.0/sriov_vf_msix_count" in text
    assert sum("unbind" in each for each in text) == 2


def test_a_reporter_is_set_while_the_vf_is_bound() -> None:
    tx, fw = "port-reporter.tx.grace_period", "reporter.fw.auto_dump"
    want, have = state(((tx, 700),), ((fw, False),)), state(((tx, 500),), ((fw, True),))
    port = "$(devlink port show p | sed 's/: .*//;q')"
    assert lines(plan(want, have), want, have) == [
        "# set health reporters",
        f"devlink health set {port} reporter tx grace_period 700",
        "devlink health set pci/0000:01:10.0 reporter fw auto_dump false",
    ]


def test_a_port_function_is_set_by_the_port_of_the_representor() -> None:
    want = state((), (("function.max_io_eqs", 8), ("function.roce", False)), switchdev=True)
    have = state((), (("function.max_io_eqs", 60), ("function.roce", True)), switchdev=True)
    (line,) = (each for each in lines(plan(want, have), want, have) if "port function" in each)
    port = "$(devlink port show r0 | sed 's/: .*//;q')"
    assert line == (
        f"devlink port function set {port} max_io_eqs 8; "
        f"devlink port function set {port} roce disable"
    )


def test_after_a_reload_of_the_driver_its_own_values_are_not_set() -> None:
    """But for those that are different from driver to driver, or firmware's."""
    fresh = (("reporter.fw.auto_dump", True), ("reporter.fw_fatal.grace_period", 30000))
    changed = (("function.roce", False), ("msix", 8), ("reporter.fw.auto_dump", False))
    want = state(fresh, fresh, changed)
    found = [
        (stage.name, action.index, action.values)
        for stage in plan(want, after_reload(want))
        for action in stage.actions
        if isinstance(action, SetTuning)
    ]
    assert found == [
        (StageName.FUNCTIONS, 1, changed[:2]),
        (StageName.REPORTERS, 1, changed[2:]),
    ]


def test_what_a_driver_has_no_more_is_named_and_not_waited_for() -> None:
    want = state(
        (("reporter.fw.auto_dump", True),), (("msix", 12), ("reporter.fw.auto_dump", False))
    )
    have = state((), ())
    assert differences(want, have) == ()
    assert list(no_longer_offered(want, have)) == [
        f"pci/{PF1} vf 0 msix 12",
        f"pci/{PF1} vf 0 reporter.fw.auto_dump False",
    ]


def test_in_a_snapshot_it_is_an_object() -> None:
    tuned = (("function.roce", False), ("msix", 12), ("reporter.fw.auto_dump", True))
    snapshot = Snapshot("2026-01-01T00:00:00Z", "0" * 32, "b", "6.12", (), state(tuned, ()))
    text = snapshot_to_json(snapshot)
    assert '"msix": 12' in text
    assert snapshot_from_json(text, "x") == snapshot
    for wrong in ('"msx": 12', '"msix": -1', '"msix": 1.5'):
        with pytest.raises(DataError):
            snapshot_from_json(text.replace('"msix": 12', wrong), "x")


# ---- on a node -----------------------------------------------------------------------------------


REPORTERS = {"auto_dump": True, "grace_period": 60000}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF with devlink and two VFs without a driver, which share MSI-X vectors."""
    with fake_node(monkeypatch, igb=False) as node:
        (pf,) = state(None).pfs
        vfs = tuple(Vf(index, driver=NO_DRIVER, driver_override="") for index in range(2))
        node.set_up(NodeState(DRIVER, (dataclasses.replace(pf, numvfs=2, vfs=vfs, driverinit=()),)))
        node.tree.set("pci", PF1, "sriov_vf_total_msix", "64")
        for index, count in enumerate((8, 12)):
            path = node.tree.root / "bus/pci/devices" / node.function(index)
            (path / "config").write_bytes(config(bytes([0x11, count - 1, 0])))
            (path / "sriov_vf_msix_count").touch()
        node.reporters = {Port(PF): {"fw_fatal": dict(REPORTERS)}}
        yield node


def test_what_a_node_has(fake: FakeNode) -> None:
    (pf,) = observe(fake.node(Settings())).pfs
    assert pf.tuning == (
        ("reporter.fw_fatal.auto_dump", True),
        ("reporter.fw_fatal.grace_period", 60000),
    )
    assert [vf.tuning for vf in pf.vfs] == [(("msix", 8),), (("msix", 12),)]
    fake.tree.set("pci", PF1, "sriov_vf_total_msix", "0")
    (pf,) = observe(fake.node(Settings())).pfs
    assert [vf.tuning for vf in pf.vfs] == [(), ()]


def test_what_a_driver_has_yet_to_recover_is_not_verified(fake: FakeNode) -> None:
    """It answers as if all were as it was, and loses it when it recovers."""
    node = fake.node(Settings())
    want = observe(node)
    verify(node, want)
    fake.in_fatal_error = {PF1, fake.function(1)}
    probe_again(node)
    assert fake.in_fatal_error == {fake.function(1)}, "which has no driver"
    fake.in_fatal_error.add(PF1)
    fake.never_recovers = {PF1}
    probe_again(node)
    with pytest.raises(
        RestoreFailed, match=rf"{PF}: the firmware has had a fatal error.*\n.* vf 1"
    ):
        verify(node, want)


def test_a_pf_that_its_driver_cannot_recover_is_left_alone(fake: FakeNode) -> None:
    """The other one is restored, and the next restore has the driver try again."""
    fake.add_pf(PF2)
    node = fake.node(Settings())
    want = observe(node)
    for pf in (PF1, PF2):
        fake.change(fake.link(pf).index, mtu=9000)
    fake.in_fatal_error, fake.never_recovers = {PF1}, {PF1}
    with pytest.raises(RestoreFailed, match=rf"{PF1}: the firmware has had a fatal error"):
        restore(node, want)
    assert (fake.link(PF1).mtu, fake.link(PF2).mtu) == (9000, 1500)
    fake.never_recovers = set()
    restore(node, want)
    assert observe(node) == want


def auxiliary_device(fake: FakeNode, function: str, name: str) -> DeviceHandle:
    """Add one below a function."""
    device = fake.tree.root / "bus/auxiliary/devices" / name
    below = fake.tree.root / "bus/pci/devices" / function / name
    below.mkdir()
    device.parent.mkdir(parents=True)
    device.symlink_to(below.resolve())
    (below.parent / "subsystem").symlink_to(fake.tree.root / "bus/pci")
    return DeviceHandle.reported("auxiliary", name)


def test_the_reporters_of_a_subfunction_are_not_its_pf_s(fake: FakeNode) -> None:
    """It has a devlink instance of its own, with reporters of the same names."""
    of_pf, of_sf = Port(PF), Port(auxiliary_device(fake, PF1, "mlx5_core.sf.4"))
    fake.reporters = {
        of_pf: {"fw_fatal": {"grace_period": 90000}},
        of_sf: {"fw_fatal": {"grace_period": 30000}},
    }
    node = fake.node(Settings())
    name = "reporter.fw_fatal.grace_period"
    assert observe(node).pfs[0].tuning == ((name, 90000),)
    assert set_tuning(node, [SetTuning(PF, None, PF1, ((name, 5),))]) == []
    assert [fake.reporters[each]["fw_fatal"]["grace_period"] for each in (of_pf, of_sf)] == [
        5,
        30000,
    ]


def test_a_reporter_belongs_to_the_function_below_its_auxiliary_device(fake: FakeNode) -> None:
    """That of a representor's port belongs to nobody."""
    own, other = Port(auxiliary_device(fake, fake.function(1), "mlx5_core.eth.7"), 0), Port(PF, 2)
    fake.reporters = {each: {"tx": {"auto_recover": False}} for each in (own, other)}
    fake.own_ports = {own}
    (pf,) = observe(fake.node(Settings())).pfs
    found = ("port-reporter.tx.auto_recover", False)
    assert [pf.tuning, *(vf.tuning for vf in pf.vfs)] == [(), (("msix", 8),), (("msix", 12), found)]


def test_only_what_differs_is_set_and_vectors_are_given_back_first(fake: FakeNode) -> None:
    node, name = fake.node(Settings()), "reporter.fw_fatal.grace_period"
    wanted = ((0, (("msix", 12),)), (1, (("msix", 4), ("function.roce", False))))
    actions = [SetTuning(PF, index, fake.function(index), each) for index, each in wanted]
    actions.append(SetTuning(PF, None, PF1, ((name, 5), ("reporter.fw_fatal.auto_dump", True))))
    assert set_tuning(node, actions) == []
    assert fake.reporters == {Port(PF): {"fw_fatal": {"auto_dump": True, "grace_period": 5}}}
    assert [(write.target, write.value) for write in fake.written("sriov_vf_msix_count")] == [
        (fake.function(1), "4"),
        (fake.function(0), "12"),
    ]
    fake.plant(fake.function(0), "sriov_vf_msix_count", Fault(errno.EBUSY))
    ((target, text),) = set_tuning(node, actions[:1])
    assert target == Target(PF, 0)
    assert "cannot set msix to 12" in text


# ---- DOCA-OFED's files ---------------------------------------------------------------------------

FILES = {
    f"{PF1}/sriov/0/trunk": "Allowed 802.1Q VLANs: 2 3 4 10\n",
    f"{PF1}/sriov/1/trunk": "",
    f"{PF1}/sriov/0/group": "3\n",
    f"{PF1}/sriov/0/page_limit": "limit: 0\n",
    f"{PF1}/sriov/0/meters/rx/pps/rate": "1000\n",
    f"{PF1}/sriov/0/meters/rx/pps/num_dropped": "7\n",
    f"{PF1}/sriov/0/config": "VF : 0\nMAC : 02:00:00:00:00:01\n",
    f"{PF1}/net/p/settings/hfunc": "Operational hfunc: xor\nSupported hfuncs: xor toeplitz\n",
    f"{PF1}/net/p/settings/pfc_stall_prevention": "auto\n",
    f"{PF1}/net/p/settings/force_local_lb_disable": "Force local loopback disable is ON\n",
    f"{PF1}/net/p/ecn/roce_np/enable/3": "1\n",
    f"{PF1}/net/p/ecn/roce_rp/rpg_ai_rate": "5\n",
    f"{PF1}/ptp/ptp3/pins/mlx5_pps0": "2 0\n",
    f"{PF1}/ptp/ptp3/pins/mlx5_pps1": "0 1\n",
    f"{PF1}/ptp/ptp3/clock_name": "mlx5_ptp\n",
    f"{PF1}/infiniband/mlx5_0/tc/1/traffic_class": "Global tclass=106\nsrc_ip=1.2.3.4,tclass=7\n",
}


def put_files(fake: FakeNode) -> Path:
    devices = fake.tree.root / "bus/pci/devices"
    for name, text in FILES.items():
        path = devices / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return devices


def test_files_of_doca_ofed(fake: FakeNode) -> None:
    """Of a module that uses mlx_compat; what is only to be read is not among them."""
    devices, node = put_files(fake), fake.node(Settings())
    assert all("file" not in str(vf.tuning) for vf in observe(node).pfs[0].vfs)
    (fake.tree.root / "module/mlx_compat").mkdir(parents=True)
    (pf,) = observe(node).pfs
    of_vf = [[each for each in vf.tuning or () if each[0] != "msix"] for vf in pf.vfs]
    assert of_vf == [
        [
            ("file.group", "3"),
            ("file.meters/rx/pps/rate", "1000"),
            ("file.page_limit", "0"),
            ("file.trunk", "2-4 10"),
        ],
        [("file.trunk", "")],
    ]
    of_pf = tuple(each for each in pf.tuning or () if each[0].startswith("file."))
    assert of_pf == (
        ("file.ecn/roce_np/enable/3", "1"),
        ("file.ecn/roce_rp/rpg_ai_rate", "5"),
        ("file.pins/mlx5_pps0", "2 0"),
        ("file.pins/mlx5_pps1", "0 1"),
        ("file.settings/force_local_lb_disable", "ON"),
        ("file.settings/hfunc", "xor"),
        ("file.settings/pfc_stall_prevention", "auto"),
        ("file.tc/1/traffic_class", "106"),
    )
    wanted = (
        (0, (("file.group", "4"), ("file.trunk", "3-5 10"))),
        (1, (("file.trunk", "7 9-11"),)),
        (None, (("file.tc/1/traffic_class", "96"), ("file.settings/hfunc", "toeplitz"))),
    )
    assert set_tuning(node, [SetTuning(PF, n, PF1 if n is None else fake.function(n), v)
                             for n, v in wanted]) == []  # fmt: skip
    written = [(w.attribute, w.value) for w in fake.writes if w.target in {"0", "1", "settings"}]
    assert written == [
        ("group", "4"),
        ("trunk", "rem 2 2"),
        ("trunk", "add 5 5"),
        ("trunk", "add 7 7"),
        ("trunk", "add 9 11"),
        ("traffic_class", "96"),
        ("hfunc", "toeplitz"),
    ]
    assert devices.is_dir()


def test_what_doca_ofed_does_not_tell_is_named(fake: FakeNode) -> None:
    devices, node = put_files(fake), fake.node(Settings())
    (fake.tree.root / "module/mlx_compat").mkdir(parents=True)
    for group in "03":
        (devices / PF1 / "sriov/groups" / group).mkdir(parents=True)
    (tclass,) = devices.glob("*/infiniband/*/tc/1/traffic_class")
    assert list(lost(node, [PF])) == [
        f"pci/{PF1} rates of VF group 3 (sriov/groups/3), which are write-only",
        f"pci/{PF1} traffic classes by address, in {tclass}",
    ]
    tclass.write_text("Global tclass=106\n")
    (devices / PF1 / "sriov/groups/3").rmdir()
    assert list(lost(node, [PF])) == []


def test_lines_for_files_can_be_pasted() -> None:
    """What mlx5_core has by itself is not set of functions that are made anew."""
    of_vf = (("file.group", "0"), ("file.trunk", "2-4 10"))
    of_pf = (
        ("file.pins/mlx5_pps0", "2 0"),
        ("file.settings/hfunc", "xor"),
        ("file.tc/1/traffic_class", "106"),
    )
    want = state(of_pf, of_vf)
    have = after_reload(want)
    text = lines(plan(want, have), want, have)
    trunk = f"/sys/bus/pci/devices/{PF1}/sriov/0/trunk"
    assert "; ".join(f"echo {each} | tee {trunk}" for each in (
        "rem 0 4095", "add 2 4", "add 10 10")) in text  # fmt: skip
    assert (
        f"echo 2 0 | tee /sys/bus/pci/devices/{PF1}/ptp/*/pins/mlx5_pps0; "
        "echo xor | tee /sys/class/net/p/settings/hfunc; "
        f"echo 106 | tee /sys/bus/pci/devices/{PF1}/infiniband/*/tc/1/traffic_class"
    ) in text
    assert not any("group" in line for line in text)
    steps = ["# create VFs", "# set VFs", "# bind VFs", "# set health reporters"]
    assert [line for line in text if line in steps] == steps


@pytest.mark.parametrize(
    "tuned",
    [
        ("file.../../driver_override", "1"),
        ("file.trunk", "5000"),
        ("file.trunk", "2; reboot"),
        ("file.group", 3),
        ("msix", "12"),
    ],
)
def test_a_snapshot_can_name_no_other_file_and_no_other_value(tuned: Tuned) -> None:
    with pytest.raises(ValueError, match=r"is no file|is not within|neither a number"):
        state((tuned,))
