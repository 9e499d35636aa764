"""Per-interface sysctls: told in the link dump, compared against defaults, written as files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import attribute, nested
from nodeagent.plan.actions import SetSysctls
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.state.addresses import Mac
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf
from nodeagent.state.sysctls import Sysctl, missing
from tests.support.fake_sysctls import af_spec

HANDLE = DeviceHandle("pci", "0000:01:00.0")
DEFAULTS = (("ipv4.rp_filter", 0), ("ipv6.accept_ra", 1))


def node(own: tuple[Sysctl, ...] | None, defaults: tuple[Sysctl, ...] = DEFAULTS) -> NodeState:
    netdev = Netdev("ens1", mac=Mac("52:54:00:00:00:01"), mtu=1500, up=True, sysctls=own)
    return NodeState("mlx5_core", (Pf(HANDLE, netdev=netdev),), sysctls=defaults)


def wanted(want: NodeState, have: NodeState) -> list[Sysctl]:
    actions = [action for stage in plan(want, have) for action in stage.actions]
    found = [v for a in actions if isinstance(a, SetSysctls) for v in a.values]
    told = [d for d in differences(want, have) if d.attribute.startswith("net.")]
    assert [f"net.{key}" for key, _ in found] == [d.attribute for d in told]
    return found


def test_told_is_what_differs_from_the_defaults() -> None:
    spec = af_spec({"ipv4.rp_filter": 2, "ipv6.use_tempaddr": -1, "ipv6.ra_defrtr_metric": -1})
    known = (*DEFAULTS, ("ipv6.ra_defrtr_metric", 1024), ("ipv6.use_tempaddr", 0))
    assert sysctls.decoded(spec, dict(known), 1500) == (
        ("ipv4.rp_filter", 2),
        ("ipv6.ra_defrtr_metric", 0xFFFFFFFF),
        ("ipv6.use_tempaddr", -1),
    )


def test_times_are_told_in_the_files_unit() -> None:
    spec = af_spec({"ipv6.router_solicitation_interval": 4000, "ipv6.dad_transmits": 4})
    known = (("ipv6.dad_transmits", 1), ("ipv6.router_solicitation_interval", 9))
    assert sysctls.decoded(spec, dict(known), 1500) == (
        ("ipv6.dad_transmits", 4),
        ("ipv6.router_solicitation_interval", 4),
    )


def test_ipv6s_own_mtu_is_told_where_it_is_not_the_interfaces() -> None:
    assert sysctls.decoded(af_spec({"ipv6.mtu": 1400}), {}, 1500) == (("ipv6.mtu", 1400),)
    assert sysctls.decoded(af_spec({"ipv6.mtu": 1500}), {}, 1500) == ()


def test_where_the_kernel_leaves_ipv6s_mtu_alone() -> None:
    assert sysctls.keeps_mtu(af_spec({}))
    assert not sysctls.keeps_mtu(af_spec({}, ready=False))
    assert sysctls.keeps_mtu(af_spec({"ipv6.disable_ipv6": 1}, ready=False))


@pytest.mark.parametrize("spec", [b"", b"\x04\x00", struct.pack("=HHI", 8, 2, 1)])
def test_a_kernel_that_tells_less(spec: bytes) -> None:
    assert sysctls.decoded(spec, dict(DEFAULTS), 1500) == ()


def table(family: int, parameters: dict[int, int], index: int | None = None) -> bytes:
    """An RTM_NEWNEIGHTBL of one table's own parameters, or of an interface's."""
    own = b"" if index is None else attribute(1, struct.pack("=I", index))
    own += b"".join(
        attribute(number, struct.pack("=I" if number in range(8, 12) else "=Q", value))
        for number, value in parameters.items()
    )
    return bytes(16) + struct.pack("=Bxxx", family) + nested(6, own)


def test_what_interfaces_have_for_neighbours_is_told_like_the_rest(tmp_path: Path) -> None:
    """In the files' units: seconds, hundredths of a second, milliseconds, counts."""
    starts = {3: 21000, 4: 30000, 6: 60000, 9: 0, 15: 1000, 19: 5000}
    told = sysctls.tables_of(
        [
            table(2, starts),
            table(10, starts),
            table(2, {**starts, 3: 44000, 6: 77000, 15: 540, 9: 4}, 2),
            table(10, {**starts, 4: 12348}, 2),
            table(10, starts, 3),
            bytes(16) + b"\x0c\0\0\0",  # DECnet's: nothing of ours
        ],
        tmp_path,
    )
    assert ("ipv6.neigh.gc_stale_time", 60) in told.defaults
    assert told.of(2, b"", 1500) == (
        ("ipv4.neigh.app_solicit", 4),
        ("ipv4.neigh.gc_stale_time", 77),
        ("ipv4.neigh.locktime", 54),
        ("ipv6.neigh.base_reachable_time_ms", 12348),
    )
    assert told.of(3, b"", 1500) == ()
    assert told.of(4, b"", 1500) == ()


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_hundredths_of_a_second_are_told_as_they_were_written(tmp_path: Path, hz: int) -> None:
    """The kernel keeps whole ticks, and tells milliseconds of them (jiffies_to_msecs())."""
    for written in range(1, 200):
        ticks = written * hz // 100
        told = sysctls.tables_of([table(2, {15: -(-ticks * 1000 // hz)})], tmp_path)
        assert told.defaults == (("ipv4.neigh.locktime", written),)


def test_a_neighbours_sysctl_is_in_a_tree_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sys" / "net" / "ipv4" / "neigh" / "ens1" / "gc_stale_time"
    path.parent.mkdir(parents=True)
    path.write_text("60\n")
    sysctls.write("ens1", "ipv4.neigh.gc_stale_time", 77, tmp_path)
    assert path.read_text() == "77\n"
    want = node((("ipv4.neigh.gc_stale_time", 77),), (("ipv4.neigh.gc_stale_time", 60),))
    assert wanted(want, after_reload(want)) == [("ipv4.neigh.gc_stale_time", 77)]
    text = lines(plan(want, after_reload(want)), want, after_reload(want))
    assert "sysctl -qw net/ipv4/neigh/ens1/gc_stale_time=77" in text


def test_a_secret_is_not_saved_and_nothing_is_asked_that_needs_it() -> None:
    spec = af_spec({"ipv6.addr_gen_mode": 2})
    assert sysctls.decoded(spec, {"ipv6.addr_gen_mode": 0}, 1280) == ()
    assert sysctls.decoded(af_spec({"ipv6.addr_gen_mode": 1}), {"ipv6.addr_gen_mode": 0}, 1280)


def test_defaults_are_those_that_this_kernel_has(tmp_path: Path) -> None:
    directory = tmp_path / "sys" / "net" / "ipv4" / "conf" / "default"
    directory.mkdir(parents=True)
    (directory / "rp_filter").write_text("2\n")
    (directory / "tag").write_text("what\n")
    assert sysctls.defaults(tmp_path) == (("ipv4.rp_filter", 2),)


def test_written_is_the_file_and_a_refusal_names_it(tmp_path: Path) -> None:
    directory = tmp_path / "sys" / "net" / "ipv4" / "conf" / "ens1.5"
    directory.mkdir(parents=True)
    (directory / "rp_filter").write_text("0\n")
    sysctls.write("ens1.5", "ipv4.rp_filter", 2, tmp_path)
    assert (directory / "rp_filter").read_text() == "2\n"
    with pytest.raises(KernelError, match=r"cannot write '1' to .*/ipv6/conf/ens1/forwarding"):
        sysctls.write("ens1", "ipv6.forwarding", 1, tmp_path)


def test_after_a_reload_it_is_set_again() -> None:
    want = node((("ipv4.rp_filter", 2),))
    assert wanted(want, after_reload(want)) == [("ipv4.rp_filter", 2)]
    text = lines(plan(want, after_reload(want)), want, after_reload(want))
    assert "sysctl -qw net/ipv4/conf/ens1/rp_filter=2" in text


def test_what_somebody_else_set_since_is_set_back_to_the_default() -> None:
    assert wanted(node(()), node((("ipv4.rp_filter", 2),))) == [("ipv4.rp_filter", 0)]


def test_a_default_that_moved_counts_too() -> None:
    """What had the default has another one now; and what had its own value may be the default."""
    moved = (("ipv4.rp_filter", 2), ("ipv6.accept_ra", 1))
    assert wanted(node(()), node((), moved)) == [("ipv4.rp_filter", 0)]
    assert wanted(node((("ipv4.rp_filter", 2),)), node((), moved)) == []


def test_not_known_is_never_compared() -> None:
    assert wanted(node(None), node((("ipv4.rp_filter", 2),))) == []
    assert wanted(node((("ipv4.rp_filter", 2),)), node(None)) == []


def test_a_childs_are_missing_only_where_its_value_is_another() -> None:
    assert missing((("ipv4.rp_filter", 0),), (), DEFAULTS) == ()
    assert missing((("ipv4.rp_filter", 2),), (), DEFAULTS) == (("ipv4.rp_filter", 2),)


@pytest.mark.parametrize(
    "own",
    [(("rp_filter", 2),), (("ipv4.../x", 2),), (("ipv4.rp_filter", 1 << 40),)],
)
def test_what_is_no_sysctl_is_refused(own: tuple[Sysctl, ...]) -> None:
    with pytest.raises(ValueError, match=r"sysctl|within"):
        replace(node(()).pfs[0].netdev, sysctls=own)  # type: ignore[type-var] # there is one
