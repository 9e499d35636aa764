"""The model: values that cannot be wrong, and JSON that is either the same value or an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.errors import DataError
from nodeagent.record.journal import seal, unseal
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.link import check_interface_name
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Param, Pf, Snapshot, Vf
from tests.support.strategies import states

SOURCE = "open-snapshot.json"
PF = DeviceHandle("pci", "0000:01:00.0")

words = st.text(st.characters(codec="utf-8"), max_size=20)
snapshots = st.builds(
    Snapshot,
    taken_at=words,
    machine_id=words,
    boot_id=words,
    kernel=words,
    srcversions=st.dictionaries(words, words, max_size=3).map(lambda d: tuple(sorted(d.items()))),
    state=states(),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(text: str) -> Snapshot | None:
    """The snapshot, or None for the one error that may come."""
    try:
        return snapshot_from_json(text, SOURCE)
    except DataError as error:
        said = error
    assert said.message.startswith(SOURCE)
    return None


# JSON


@given(snapshots)
@relaxed
def test_json_and_back_is_the_same_value(snapshot: Snapshot) -> None:
    text = snapshot_to_json(snapshot)
    assert read(text) == snapshot
    assert text == snapshot_to_json(snapshot_from_json(text, SOURCE))


@given(snapshots)
@relaxed
def test_a_sealed_one_is_the_same_value(snapshot: Snapshot) -> None:
    """Its checksum is made of the value, and compared with what is read."""
    assert unseal(seal(snapshot).encode(), SOURCE, sealed=True) == snapshot


@given(snapshots)
@relaxed
def test_json_is_for_people_too(snapshot: Snapshot) -> None:
    text = snapshot_to_json(snapshot)
    assert text.endswith("}\n")
    assert '"schema": 3' in text
    assert "null" not in json.dumps(json.loads(text)["state"])
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


@given(snapshots, st.data())
@relaxed
def test_a_text_that_is_cut_is_an_error(snapshot: Snapshot, data: st.DataObject) -> None:
    text = snapshot_to_json(snapshot).rstrip()
    assert read(text[: data.draw(st.integers(0, len(text) - 1))]) is None


@given(snapshots, st.data())
@relaxed
def test_a_text_with_other_characters_in_it_is_the_snapshot_or_an_error(
    snapshot: Snapshot, data: st.DataObject
) -> None:
    text = snapshot_to_json(snapshot)
    at = data.draw(st.integers(0, len(text)))
    read(text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :])


@given(snapshots, anything, st.data())
@relaxed
def test_any_member_may_be_anything(snapshot: Snapshot, other: Any, data: st.DataObject) -> None:
    plain = json.loads(snapshot_to_json(snapshot))
    path = data.draw(st.sampled_from(list(_paths(plain))))
    read(json.dumps(_replaced(plain, path, other)))


@given(snapshots, st.data())
@relaxed
def test_a_member_too_many_is_an_error(snapshot: Snapshot, data: st.DataObject) -> None:
    """It may be something that a newer version restores: better refused than forgotten."""
    plain = json.loads(snapshot_to_json(snapshot))
    objects = [path for path in _paths(plain) if isinstance(_at(plain, path), dict)]
    pairs = (["srcversions"], ["sysctls"])
    path = data.draw(st.sampled_from([path for path in objects if path[-1:] not in pairs]))
    assert read(json.dumps(_replaced(plain, [*path, "mtu2"], 1))) is None


@given(st.text() | anything.map(json.dumps))
def test_what_is_no_snapshot_is_an_error(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "snapshot is not an object"),
        ("{}", "has no 'schema'"),
        ('{"schema": 4}', "its schema is 4, which is newer than this version's"),
        ('{"schema": 0}', "its schema is 0, which is older than this version's"),
        ('{"schema": true}', "True is not of type int"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 10_000, "Exceeds the limit"),
        ('{"schema": 1, "taken_at": 3}', "'taken_at' of snapshot: 3 is not of type str"),
    ],
)
def test_the_error_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"^{SOURCE} is not a snapshot") as caught:
        snapshot_from_json(text, SOURCE)
    assert says in caught.value.message


def test_the_error_is_no_larger_than_people_read() -> None:
    with pytest.raises(DataError) as caught:
        snapshot_from_json(json.dumps({"schema": "x" * 1_000_000}), SOURCE)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (0, 1),
        (7, 1),
        (200, 1),
        (1, 256),
        (3, -1),
        (4, 1 << 64),
        (1, "1"),
        (1, True),
        (5, 1),
        (6, 1),
    ],
)
def test_no_devlink_parameter(kind: int, value: bool | int | str) -> None:
    """What no attribute could carry: it would be found out in the middle of a restore."""
    with pytest.raises(ValueError, match=r"value of a devlink|not within"):
        Param("max_macs", kind, value)


def _paths(plain: Any) -> Any:
    """The way to every member of a JSON value, the value itself first."""
    yield []
    items = (
        plain.items()
        if isinstance(plain, dict)
        else enumerate(plain)
        if isinstance(plain, list)
        else ()
    )
    for key, inner in items:
        yield from ([key, *path] for path in _paths(inner))


def _at(plain: Any, path: list[Any]) -> Any:
    for key in path:
        plain = plain[key]
    return plain


def _replaced(plain: Any, path: list[Any], other: Any) -> Any:
    if not path:
        return other
    _at(plain, path[:-1])[path[-1]] = other
    return plain


# values that cannot be wrong


@pytest.mark.parametrize(
    "text",
    ["", "02:11:22:33:44", "02:11:22:33:44:55:66", "02-11-22-33-44-55", "0211.2233.4455",
     "02:11:22:33:44:5g", "02:11:22:33:44:55\n", " 02:11:22:33:44:55", "02:11:22:33:44:٣٣"],
)  # fmt: skip
def test_no_ethernet_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an Ethernet address"):
        Mac(text)


def test_addresses_compare_whatever_case_they_were_written_in() -> None:
    assert Mac("02:AB:00:00:00:FF") == Mac("02:ab:00:00:00:ff") == "02:ab:00:00:00:ff"
    assert Mac("00:00:00:00:00:00").is_zero
    assert not Mac("02:00:00:00:00:00").is_zero


@pytest.mark.parametrize("text", ["pci/0000:01:00.0", "netdevsim/netdevsim1", "virtio/virtio0"])
def test_handles_as_devlink_writes_them(text: str) -> None:
    assert str(DeviceHandle.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "pci", "pci/", "/0000:01:00.0", "pci/../../etc", "pci/a/b", "PCI/x", "pci/.", "../pci/x",
     "pci/0000:01:00.0\n", "pci/" + "a" * 64],
)  # fmt: skip
def test_no_handle(text: str) -> None:
    """A handle becomes part of a path in /sys."""
    with pytest.raises(ValueError, match="is not a device handle"):
        DeviceHandle.parse(text)


@pytest.mark.parametrize("name", ["ens1f0np0", "eth0", "a", "a" * 15, "ünïcödé", "b@c", "-"])
def test_interface_names(name: str) -> None:
    assert check_interface_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a" * 16,
        "ü" * 8,
        "a/b",
        "a:b",
        "a%d",
        "a b",
        "a\tb",
        "a\n",
        "a\0",
        "a\x1b[2J",
        "a\u2028",
    ],
)
def test_no_interface_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not an interface name"):
        check_interface_name(name)
    with pytest.raises(ValueError, match="is not an interface name"):
        Netdev(name, mac=None, mtu=None, up=None)


@pytest.mark.parametrize(
    "fields",
    [
        {"index": -1},
        {"index": 0x10000},
        {"index": 0, "vlan": 4096},
        {"index": 0, "qos": 8},
        {"index": 0, "vlan_proto": "802.1q"},
        {"index": 0, "link_state": "up"},
        {"index": 0, "min_tx_rate": -1},
        {"index": 0, "max_tx_rate": 2**32},
        {"index": 0, "address": "../../../etc"},
        {"index": 0, "address": ""},
        {"index": 0, "driver": ""},
        {"index": 0, "driver": "a/b"},
        {"index": 0, "driver": ".."},
        {"index": 0, "driver_override": "a b"},
        {"index": 0, "driver_override": "vfio-pci\n"},
    ],
)
def test_no_vf(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # each has its own words
        Vf(**fields)


def test_an_override_may_be_empty() -> None:
    assert Vf(0, driver_override="").driver_override == ""


@pytest.mark.parametrize("mtu", [-1, 2**31])
def test_no_mtu(mtu: int) -> None:
    with pytest.raises(ValueError, match="mtu"):
        Netdev("a", mac=None, mtu=mtu, up=None)


@pytest.mark.parametrize(
    "altnames", [("",), ("a" * 128,), ("a\x1b[2J",), ("a\nb",), ("b", "a"), ("a", "a")]
)
def test_no_altnames(altnames: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"altern|altnames"):
        Netdev("eth0", altnames=altnames)


def test_altnames_as_the_kernel_takes_them() -> None:
    assert Netdev("eth0", altnames=("a b", "a/b", "b" * 127)).altnames is not None


@pytest.mark.parametrize("alias", ["a" * 256, "ü" * 128, "a\x1b[2J", "a\n"])
def test_no_alias(alias: str) -> None:
    with pytest.raises(ValueError, match="alias"):
        Netdev("eth0", alias=alias)


@pytest.mark.parametrize(
    ("numvfs", "indexes"),
    [(2, (1, 0)), (2, (0, 0)), (2, (0, 2)), (None, (0,)), (0, (0,)), (-1, ()), (65536, ())],
)
def test_no_pf(numvfs: int | None, indexes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # each has its own words
        Pf(PF, numvfs, vfs=tuple(map(Vf, indexes)))


def test_no_node_with_one_name_twice() -> None:
    netdev = Netdev("eth0", mac=None, mtu=None, up=None)
    with pytest.raises(ValueError, match="two netdevs have one name"):
        NodeState("mlx5_core", (Pf(PF, 1, None, netdev, (Vf(0, netdev=netdev),)),))


def test_no_node_with_one_pf_twice_or_in_another_order() -> None:
    first, second = Pf(PF), Pf(DeviceHandle("pci", "0000:02:00.0"))
    assert NodeState("mlx5_core", (first, second)).pf(PF) is first
    for pfs in ((first, first), (second, first)):
        with pytest.raises(ValueError, match="not unique and sorted"):
            NodeState("mlx5_core", pfs)


@pytest.mark.parametrize("driver", ["", "a b", "../x", "mlx5/core", "x\n"])
def test_no_node_with_such_a_driver(driver: str) -> None:
    with pytest.raises(ValueError, match="is not a driver name"):
        NodeState(driver)


def test_looking_things_up() -> None:
    vf = Vf(3, netdev=Netdev("v3", mac=None, mtu=None, up=None))
    pf = Pf(PF, 7, True, Netdev("p0", mac=None, mtu=None, up=None), (vf,))
    state = NodeState("mlx5_core", (pf, Pf(DeviceHandle("pci", "0000:02:00.0"))))
    assert pf.vf(3) is vf
    assert pf.vf(4) is None
    assert state.pf(DeviceHandle("pci", "0000:03:00.0")) is None
    assert [netdev.name for netdev in state.netdevs()] == ["p0", "v3"]
    assert state.vf_count == 7
