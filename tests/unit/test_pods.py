"""VFs in pods as values: which namespace is which, what is planned, what is told, what is saved."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nodeagent.agent import probes
from nodeagent.agent.probes import Probe
from nodeagent.cli import state_table
from nodeagent.errors import ConfigError, DataError, NoInputError, WaitTimeout
from nodeagent.kernel.netns import NamespaceGone, Namespaces
from nodeagent.kernel.rooms import CachingRtnl
from nodeagent.kernel.rtnl import Link, Rtnl
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node.attempt import Attempt
from nodeagent.node.namespaces import reachable
from nodeagent.node.pods import Arrival, Arrivals
from nodeagent.plan.actions import (
    AddStacked,
    BindVf,
    InPod,
    MoveRdma,
    MoveVf,
    SetLink,
    SetRdma,
    SetSysctls,
    SetVf,
)
from nodeagent.plan.comparison import differences
from nodeagent.plan.left_behind import without
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.remarks import unseen
from nodeagent.record.journal import Journal, Note
from nodeagent.render import Screen
from nodeagent.settings import PodInterfaces, Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.model import (
    DeviceHandle,
    Netdev,
    NodeState,
    Pf,
    PodNetdev,
    RdmaDevice,
    Snapshot,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.stack import Address, Child, Nexthop, Route, Stack
from tests.support.fake_kernel import PF1
from tests.support.fake_node import fake_node

HANDLE = DeviceHandle("pci", "0000:01:00.0")
UID = "8f3c3f0a-6e0d-4c43-9d43-0a1b2c3d4e5f"
OTHER = "77777777-6e0d-4c43-9d43-0a1b2c3d4e5f"
DEFAULTS = (("ipv4.proxy_arp", 0), ("ipv4.rp_filter", 0))

STACK = Stack(
    children=(
        Child(
            "net1.5",
            "net1",
            "vlan",
            (("id", 5),),
            mac=Mac("02:00:00:00:00:01"),
            mtu=1500,
            up=True,
        ),
    ),
    addresses=(Address("net1", "10.1.0.1/24"), Address("net2", "10.2.0.1/24")),
    routes=(Route("192.0.2.0/24", (Nexthop("net1", "10.1.0.9"), Nexthop("net2", "10.2.0.9"))),),
)
POD = Namespace(4, 4026532001, "b-1", (Holder(812, 99),), 17, "pause", UID, "5f2e", STACK, DEFAULTS)


def netdev(name: str, **facts: object) -> Netdev:
    given: dict[str, object] = {"mac": Mac("02:00:00:00:00:01"), "mtu": 1500, "up": True, **facts}
    return Netdev(name, **given)  # type: ignore[arg-type] # what a test gives


def vf(index: int, name: str, namespace: int = POD.inode, **facts: object) -> Vf:
    inside = PodNetdev(namespace, netdev(name, **facts), carrier=True)
    return Vf(index, f"0000:01:10.{2 * index}", "mlx5_core", "", inside=inside)


def state(*vfs: Vf, namespaces: tuple[Namespace, ...] = (POD,)) -> NodeState:
    pf = Pf(HANDLE, len(vfs), autoprobe=True, netdev=netdev("enp1s0"), vfs=vfs)
    return NodeState("mlx5_core", (pf,), Stack(), namespaces=namespaces)


def both(**facts: object) -> NodeState:
    """A pod with two VFs, net1 and net2."""
    return state(vf(0, "net1", POD.inode, **facts), vf(1, "net2"))


# Which namespace is which


class Tree:
    """A /proc of files. A namespace is a file whose name says its own inode."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spaces = root / "spaces"
        self.spaces.mkdir()
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text("b-1\n")
        self.process(1, 10, self.namespace("host"))
        (root / "self").symlink_to("1")
        self.mounts()

    def namespace(self, name: str) -> int:
        """Its inode."""
        file = self.spaces / name
        file.touch()
        return file.stat().st_ino

    def process(self, pid: int, started: int, inode: int) -> None:
        """Is in that namespace from now on."""
        directory = self.root / str(pid)
        (directory / "ns").mkdir(parents=True, exist_ok=True)
        link = directory / "ns/net"
        link.unlink(missing_ok=True)
        link.symlink_to(f"net:[{inode}]")
        (target,) = (each for each in self.spaces.iterdir() if each.stat().st_ino == inode)
        entry = directory / f"ns/net:[{inode}]"
        entry.unlink(missing_ok=True)
        entry.hardlink_to(target)
        rest = " ".join(["0"] * 18)
        (directory / "stat").write_text(f"{pid} (a b) c) S {rest} {started} 0\n")

    def mounts(self, *lines: tuple[str, int]) -> None:
        """In /proc/1/mountinfo."""
        text = "".join(f"40 30 0:4 net:[{n}] {path} rw - nsfs nsfs rw\n" for path, n in lines)
        (self.root / "1/mountinfo").write_text(f"30 1 0:29 / /run rw - tmpfs tmpfs rw\n{text}")

    def end(self, pid: int) -> None:
        for path in sorted((self.root / str(pid)).rglob("*"), reverse=True):
            path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
        (self.root / str(pid)).rmdir()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def opened(tree: Tree, inode: int, *holders: Holder, boot: str = "b-1") -> bool:
    device = tree.spaces.stat().st_dev
    with Namespaces(tree.root).opened(Namespace(device, inode, boot, holders)):
        return True


def test_namespaces_are_found_through_processes_and_mounts_but_our_own(tree: Tree) -> None:
    one, two = tree.namespace("one"), tree.namespace("two")
    tree.process(50, 500, one)
    tree.process(51, 510, one)
    tree.mounts(("/run/netns/a\\040b", two))
    found = Namespaces(tree.root).scan()
    assert {inode: set(holders) for inode, holders in found.items()} == {
        one: {Holder(50, 500), Holder(51, 510)},
        two: {Holder(mount="/run/netns/a b")},
    }


def test_the_same_process_in_the_same_namespace(tree: Tree) -> None:
    one = tree.namespace("one")
    tree.process(50, 500, one)
    assert opened(tree, one, Holder(50, 500))


def test_another_one_of_its_processes_is_enough(tree: Tree) -> None:
    one = tree.namespace("one")
    tree.process(51, 510, one)
    assert opened(tree, one, Holder(50, 500), Holder(51, 510))


def test_a_mount_is_enough(tree: Tree) -> None:
    one = tree.namespace("one")
    assert opened(tree, one, Holder(50, 500), Holder(mount=str(tree.spaces / "one")))


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("one")])
def test_what_is_planted_in_the_place_of_a_mount(tree: Tree, plant: Callable[[Path], None]) -> None:
    """It is not opened: a FIFO would be waited for, and a link leads to whatever it likes."""
    one = tree.namespace("one")
    plant(tree.spaces / "planted")
    with pytest.raises(NamespaceGone, match="no process and no mount holds it"):
        opened(tree, one, Holder(mount=str(tree.spaces / "planted")))


@pytest.mark.parametrize("started", [501, 499])
def test_its_number_in_the_hands_of_another_process(tree: Tree, started: int) -> None:
    one = tree.namespace("one")
    tree.process(50, started, one)
    with pytest.raises(NamespaceGone, match="no process and no mount holds it"):
        opened(tree, one, Holder(50, 500))


def test_its_process_in_another_namespace(tree: Tree) -> None:
    one, two = tree.namespace("one"), tree.namespace("two")
    tree.process(50, 500, two)
    with pytest.raises(NamespaceGone, match="another namespace"):
        opened(tree, one, Holder(50, 500))


def test_nobody_is_left(tree: Tree) -> None:
    one = tree.namespace("one")
    tree.process(50, 500, one)
    tree.end(50)
    with pytest.raises(NamespaceGone, match="no process and no mount holds it"):
        opened(tree, one, Holder(50, 500))


def test_another_boot_has_other_namespaces(tree: Tree) -> None:
    one = tree.namespace("one")
    tree.process(50, 500, one)
    with pytest.raises(NamespaceGone, match="rebooted since"):
        opened(tree, one, Holder(50, 500), boot="b-0")


def test_names_for_people() -> None:
    assert str(POD) == f"pod {UID}, container 5f2e (pause, pid 812)"
    bare = dataclasses.replace(POD, pod="", container="")
    assert str(bare) == "a namespace (pause, pid 812)"
    mount = dataclasses.replace(bare, holders=(Holder(mount="/run/netns/blue"),))
    assert str(mount) == "/run/netns/blue"


@pytest.mark.parametrize(
    "facts", [{}, {"pid": 4}, {"pid": 4, "started": 5, "mount": "/a"}, {"mount": "a"}]
)
def test_a_holder_is_a_process_or_a_mount(facts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"neither|absolute"):
        Holder(**facts)  # type: ignore[arg-type] # wrong on purpose


class OldKernel(CachingRtnl):
    """Before Linux 5.14: no interface has a parent device; drivers are asked with ethtool."""

    def __init__(self) -> None:
        self._known = None

    def bus_info(self, name: str) -> str:
        return "0000:01:10.0" if name == "net1" else ""


def test_without_a_parent_device_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Link(
        index=2,
        name="net1",
        mac=None,
        mtu=1500,
        up=True,
        carrier=True,
        bus=None,
        device=None,
        phys_port_name=None,
    )
    links = {
        1: dataclasses.replace(bare, index=1, name="lo"),
        2: bare,
        3: dataclasses.replace(bare, index=3, name="net1.5", info=b"vlan"),
    }
    monkeypatch.setattr(Rtnl, "links", lambda _: links)
    found = OldKernel().links()
    devices = {link.name: (link.bus, link.device) for link in found.values()}
    assert devices == {"lo": (None, None), "net1": ("pci", "0000:01:10.0"), "net1.5": (None, None)}


# The plan


def test_nothing_differs_from_itself() -> None:
    assert plan(both(), both()) == ()
    assert differences(both(), both()) == ()


def test_after_a_reload_each_vf_is_moved_and_set_up() -> None:
    want = both(sysctls=(("ipv4.rp_filter", 2),))
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    names = list(stages)
    assert names.index("bind VFs") < names.index("move VFs") < names.index("set up in pods")
    moves = [action for action in stages["move VFs"] if isinstance(action, MoveVf)]
    assert [(m.index, m.address, m.namespace.inode, m.name, m.carrier) for m in moves] == [
        (0, "0000:01:10.0", POD.inode, "net1", True),
        (1, "0000:01:10.2", POD.inode, "net2", True),
    ]
    inner = [each for each in stages["set up in pods"] if isinstance(each, InPod)]
    first = [each.action for each in inner if each.index == 0]
    assert first[0] == SetSysctls(HANDLE, 0, (("ipv4.rp_filter", 2),))
    assert isinstance(first[1], SetLink)
    assert (first[1].name, first[1].mac, first[1].up) == (None, "02:00:00:00:00:01", True)
    things = [each.thing for each in first if isinstance(each, AddStacked)]
    assert things == [STACK.children[0], STACK.addresses[0], STACK.routes[0]]


def test_what_is_there_already_is_not_done_again() -> None:
    """Cut off after the first VF was moved, but for its route and its MTU."""
    half = dataclasses.replace(POD, stack=dataclasses.replace(STACK, routes=()))
    now = state(vf(0, "net1", mtu=1400), vf(1, "net2"), namespaces=(half,))
    (stage,) = plan(both(), now)
    assert stage.name == "set up in pods"
    inner = [each.action for each in stage.actions if isinstance(each, InPod)]
    assert inner == [SetLink(HANDLE, 0, mtu=1500), AddStacked(HANDLE, 0, STACK.routes[0])]
    assert [(each.attribute, each.want) for each in differences(both(), now)] == [
        ("mtu", 1500),
        ("route", STACK.routes[0]),
    ]


def test_an_interface_that_is_here_by_mistake_is_moved() -> None:
    here = Vf(1, "0000:01:10.2", "mlx5_core", "", netdev=netdev("enp1s0v1"))
    now = state(vf(0, "net1"), here)
    stages = [stage.name for stage in plan(both(), now)]
    assert stages == ["move VFs", "set up in pods"]
    told = [str(each) for each in differences(both(), now)]
    assert told[0] == f"pci/0000:01:00.0 vf 1 namespace: want {POD}, have here"


def test_one_in_yet_another_namespace_is_left_there_and_named() -> None:
    other = dataclasses.replace(POD, inode=POD.inode + 1, cookie=18, pod="", stack=Stack())
    now = state(vf(0, "net1"), vf(1, "net9", other.inode), namespaces=(POD, other))
    assert plan(both(), now) == ()
    told = [str(each) for each in differences(both(), now)]
    assert told[0].startswith("pci/0000:01:00.0 vf 1 namespace: want pod")


def test_another_namespace_with_the_number_is_another_one() -> None:
    other = dataclasses.replace(POD, cookie=18)
    now = state(vf(0, "net1"), vf(1, "net2"), namespaces=(other,))
    assert plan(both(), now) == ()
    assert [each.attribute for each in differences(both(), now)][:2] == ["namespace", "namespace"]


def test_a_wrong_name_in_the_pod_is_set_and_takes_nothing_along() -> None:
    """What stands on it stands on it under its new name, too."""
    wrong = dataclasses.replace(
        POD,
        stack=Stack(
            children=(dataclasses.replace(STACK.children[0], parent="eth7"),),
            addresses=(Address("eth7", "10.1.0.1/24"), STACK.addresses[1]),
            routes=(
                Route("192.0.2.0/24", (Nexthop("eth7", "10.1.0.9"), STACK.routes[0].nexthops[1])),
            ),
        ),
    )
    now = state(vf(0, "eth7"), vf(1, "net2"), namespaces=(wrong,))
    (stage,) = plan(both(), now)
    inner = [each.action for each in stage.actions if isinstance(each, InPod)]
    assert inner == [SetLink(HANDLE, 0, up=False), SetLink(HANDLE, 0, name="net1", up=True)]
    assert [each.attribute for each in differences(both(), now)] == ["name"]


def test_a_mac_of_its_own_is_given_at_the_bind() -> None:
    """igb refuses a VF another MAC than its admin MAC, wherever the interface is going to be."""
    admin = dataclasses.replace(vf(0, "net1"), admin_mac=Mac("02:aa:00:00:00:01"))
    want = state(admin)
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    assert any(isinstance(action, BindVf) for action in stages["bind VFs"])
    own = [action.admin_mac for action in stages["set VFs"] if isinstance(action, SetVf)]
    late = [action.admin_mac for action in stages["set VFs late"] if isinstance(action, SetVf)]
    assert (own, late) == (["02:00:00:00:00:01"], ["02:aa:00:00:00:01"])


def test_lines_that_can_be_pasted() -> None:
    want = both(sysctls=(("ipv4.rp_filter", 2),))
    text = "\n".join(lines(plan(want, after_reload(want)), want, after_reload(want)))
    devices = "/sys/bus/pci/devices/0000:01:10.0/net"
    assert f'ip link set dev "$(ls {devices})" netns 812 name net1' in text
    enter = "nsenter --net=/proc/812/ns/net"
    assert f"{enter} sysctl -qw net/ipv4/conf/net1/rp_filter=2" in text
    assert f"{enter} ip address replace 10.1.0.1/24 dev net1" in text


# IPv6 addresses that DAD has ended

LINK_LOCAL = Address("net1", "fe80::ff:fe00:1/64", scope=253, proto=3)


def with_address(**facts: object) -> NodeState:
    """A pod with one VF, up, that has a link-local address; of the kernel's making."""
    address = dataclasses.replace(LINK_LOCAL, **facts)  # type: ignore[arg-type] # a test's
    pod = dataclasses.replace(POD, stack=Stack(addresses=(address,)))
    return state(vf(0, "net1"), namespaces=(pod,))


def test_an_address_that_was_used_and_failed_is_told_and_made_anew() -> None:
    want, have = with_address(), with_address(tentative=True, failed=True)
    (found,) = differences(want, have)
    assert (found.attribute, found.want) == ("address", LINK_LOCAL)
    assert "fe80::ff:fe00:1/64" in str(found.have)
    assert "never used (dadfailed)" in str(found.have)
    (stage,) = plan(want, have)
    (action,) = stage.actions
    assert isinstance(action, InPod)
    assert action.action == AddStacked(HANDLE, 0, LINK_LOCAL, anew=True)
    (line,) = [each for each in lines(plan(want, have), want, have) if "nsenter" in each]
    assert "ip address del fe80::ff:fe00:1/64 dev net1; ip address replace fe80::" in line


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"tentative": True}),
        ({"tentative": True, "failed": True}, {}),
        ({"tentative": True, "failed": True}, {"tentative": True, "failed": True}),
        ({"tentative": True}, {"tentative": True, "failed": True}),
    ],
)
def test_what_was_not_used_before_need_not_be_and_dad_may_take_its_time(
    before: dict[str, object], now: dict[str, object]
) -> None:
    want, have = with_address(**before), with_address(**now)
    assert differences(want, have) == ()
    assert plan(want, have) == ()


def test_a_link_local_address_that_was_still_tentative_is_the_kernels_to_make() -> None:
    bare = state(vf(0, "net1"), namespaces=(dataclasses.replace(POD, stack=Stack()),))
    assert differences(with_address(tentative=True), bare) == ()
    assert [each.attribute for each in differences(with_address(), bare)] == ["address"]


# Gone pods, and what is told


def test_without_what_is_gone() -> None:
    wanted, left = without(both(), {POD.inode: "nobody holds it any more"})
    assert wanted.namespaces == ()
    assert [each.inside for each in wanted.pfs[0].vfs] == [None, None]
    assert str(left[0]) == (
        f"pci/0000:01:00.0 vf 0: was net1 in pod {UID}, container 5f2e (pause, pid 812), and stays "
        "here: nobody holds it any more; no CNI has recorded what its PF held before that pod: it "
        "holds the driver's defaults"
    )
    assert without(both(), {}) == (both(), ())


@pytest.mark.parametrize(
    ("setting", "why"),
    [("restore", "the node was rebooted since"), ("report", "POD_INTERFACES=report")],
)
def test_what_is_not_put_back_and_why(
    monkeypatch: pytest.MonkeyPatch, setting: str, why: str
) -> None:
    with fake_node(monkeypatch) as fake:
        wanted, left = reachable(fake.node(Settings(pod_interfaces=PodInterfaces(setting))), both())
    assert wanted.namespaces == ()
    assert [(each.target.port, each.name, each.why) for each in left] == [
        (0, "net1", why),
        (1, "net2", why),
    ]


def test_a_vf_in_a_namespace_that_is_seen_is_not_unseen() -> None:
    nowhere = Vf(2, "0000:01:10.4", "mlx5_core")
    assert unseen(state(vf(0, "net1"), vf(1, "net2"), nowhere)) == ("pci/0000:01:00.0 vf 2",)


def test_the_table_says_where_interfaces_are() -> None:
    shown = state_table.lines(both(), Screen())
    assert shown[-2] == f"pci/0000:01:00.0 vf 0: net1 is in {POD}"
    assert "net1" in shown[-4]


# The snapshot


def snapshot(of: NodeState) -> Snapshot:
    return Snapshot("2026-01-01T00:00:00.000+00:00", "m", "b-1", "6.12", (), of)


def test_a_snapshot_holds_all_of_it() -> None:
    taken = snapshot(both(sysctls=(("ipv4.rp_filter", 2),)))
    read = snapshot_from_json(snapshot_to_json(taken), "it")
    assert read == taken
    (namespace,) = read.state.namespaces
    assert (namespace.holders, namespace.pod, namespace.stack) == (POD.holders, UID, STACK)
    assert (namespace.sysctls, namespace.process) == (DEFAULTS, "pause")
    inside = read.state.pfs[0].vfs[0].inside
    assert inside is not None
    assert inside.carrier


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"inode": 4026532001', '"inode": 4026532002'),
        ('"holders": [', '"holders": [{}, '),
        ('"pid": 812', '"pid": "812"'),
        ('"boot": "b-1"', '"boots": "b-1"'),
    ],
)
def test_a_snapshot_that_makes_no_sense_is_refused(old: str, new: str) -> None:
    text = snapshot_to_json(snapshot(both()))
    assert old in text
    with pytest.raises(DataError):
        snapshot_from_json(text.replace(old, new), "it")


def test_one_that_settles_between_two_looks_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is no longer missing has been let in: a look that says so is the one that lets it in."""
    settled = iter(("no network interface", None))
    monkeypatch.setattr(Arrivals, "_unready", lambda *_: next(settled))
    arrived: list[Arrival] = []
    monkeypatch.setattr(Arrivals, "_arrive", lambda _, arrival: arrived.append(arrival))
    with fake_node(monkeypatch) as fake, fake.node(Settings()) as node:
        fake.create_vfs(fake.add_pf(PF1), 1)
        stages = plan(state(vf(0, "net1")), after_reload(state(vf(0, "net1"))))
        arrivals = Arrivals(Attempt(node), stages, ())
        assert arrivals._missing(set(), ()) == ["no network interface"]
        assert not arrived
        assert arrivals._missing(set(), ()) == []
    assert [each.name for each in arrived] == ["net1"]


# Echoes


@pytest.mark.parametrize(
    ("text", "address", "where"),
    [
        ("192.0.2.1", "192.0.2.1", ""),
        ("2001:DB8::1@/run/netns/a", "2001:db8::1", "/run/netns/a"),
        (f"192.0.2.1@{UID}", "192.0.2.1", UID),
        ("192.0.2.1@apps/web-0", "192.0.2.1", "apps/web-0"),
    ],
)
def test_a_probe_is_an_address_and_a_place(text: str, address: str, where: str) -> None:
    assert Probe.parse(text) == Probe(address, where)


@pytest.mark.parametrize("text", ["", "web", "192.0.2.1@", "@/run/netns/a", "192.0.2.1/24"])
def test_what_is_no_probe(text: str) -> None:
    with pytest.raises(ValueError, match=r"names nothing|is not an IP address"):
        Probe.parse(text)


def test_a_pod_is_found_by_its_name_and_by_how_its_uid_begins(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet's logs tell whose UID it is; those of an earlier pod of that name, too."""
    monkeypatch.setattr(probes, "Namespaces", lambda: Namespaces(tree.root))
    for pid, uid in ((50, UID), (51, UID), (60, OTHER)):
        tree.process(pid, 500, tree.namespace(uid))
        slice_of_it = f"kubepods-pod{uid.replace('-', '_')}.slice"
        (tree.root / str(pid) / "cgroup").write_text(f"0::/{slice_of_it}/x.scope\n")
    for name in (f"apps_web-0_{UID}", f"apps_web-1_{OTHER}", "apps_web-0_0000-gone", "odd"):
        (tree.root / "1/root/var/log/pods" / name).mkdir(parents=True)
    for where in ("apps/web-0", UID, UID[:6]):
        assert probes.place_of(Probe("192.0.2.1", where)) == "/proc/50/ns/net"
    assert probes.place_of(Probe("192.0.2.1", "apps/web-1")) == "/proc/60/ns/net"
    for where, words in (
        ("apps/web-2", "have that name"),
        ("12", "have a UID"),
        ("default/web-0", ""),
    ):
        with pytest.raises(NoInputError, match=f"no pods here .*{words}"):
            probes.place_of(Probe("192.0.2.1", where))


def around_a_process(
    script: str, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> dict[str, str]:
    """What is noted of a probe whose process is a shell that runs `script`."""

    def start(_: Sequence[str]) -> tuple[int, int, int]:
        (theirs_in, requests), (answers, theirs_out) = (
            os.pipe2(os.O_CLOEXEC),
            os.pipe2(os.O_CLOEXEC),
        )
        actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
        argv = ["/bin/sh", "-c", script]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        os.close(theirs_in)
        os.close(theirs_out)
        return requests, answers, pid

    monkeypatch.setattr(probes, "_start", start)
    journal = Journal(dataclasses.replace(Settings(), state_dir=directory))
    with probes.around([Probe("192.0.2.1")], journal):
        pass
    noted = journal.last_note(Note.PROBE)
    assert noted is not None
    return dict(noted.facts)


def test_a_gap_is_noted_to_the_millisecond(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = '[{"sent": 9, "lost": 2, "gap": 0.3, "gap_at": 1796000000.123}]'
    noted = around_a_process(f"echo; read end; printf %s '{told}'", monkeypatch, tmp_path)
    assert noted == {
        "target": "192.0.2.1",
        "sent": "9",
        "lost": "2",
        "gap": "0.3",
        "at": "2026-11-30T00:53:20.123+00:00",
    }


def test_a_process_that_does_not_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says so, and only one that ended is a matter of rights."""
    with pytest.raises(ConfigError, match=r"cannot send echoes to 192\.0\.2\.1"):
        around_a_process("exit 1", monkeypatch, tmp_path)
    monkeypatch.setattr(probes, "START_TIMEOUT", 0.01)
    with pytest.raises(WaitTimeout, match=r"the start of echoes; still missing: 192\.0\.2\.1"):
        around_a_process("read end", monkeypatch, tmp_path)


# RDMA devices in exclusive mode


def with_rdma(
    here: str | None = None, there: str | None = None, *, inside: bool = True
) -> NodeState:
    """A VF with an RDMA device: with its interface in the pod, or here."""
    made = dataclasses.replace(vf(0, "net1"), rdma=None if here is None else RdmaDevice(here))
    assert made.inside is not None
    if not inside:
        return state(dataclasses.replace(made, inside=None))
    return state(dataclasses.replace(made, inside=dataclasses.replace(made.inside, rdma=there)))


@pytest.mark.parametrize(
    ("have", "wanted"),
    [
        (with_rdma(there="mlx5_3"), []),
        (with_rdma(here="mlx5_3"), [MoveRdma]),
        (with_rdma(here="rocep1s0v0"), [SetRdma, MoveRdma]),
        (with_rdma(inside=False), [SetRdma, MoveRdma]),
        (with_rdma(there="renamed-by-the-pod"), []),
    ],
)
def test_an_rdma_device_is_named_and_then_moved(have: NodeState, wanted: list[type]) -> None:
    want = with_rdma(there="mlx5_3")
    stages = plan(want, have)
    found = [a for stage in stages for a in stage.actions if isinstance(a, SetRdma | MoveRdma)]
    assert [type(each) for each in found] == wanted
    assert bool(differences(want, have)) == bool(stages)
    if wanted:
        (line,) = (
            line for line in lines(stages, want, have) if " netns " in line and "rdma" in line
        )
        assert line == "rdma dev set mlx5_3 netns ../../proc/812/ns/net"


def test_it_stays_here_under_its_name_when_the_pod_is_gone() -> None:
    left, _ = without(with_rdma(there="mlx5_3"), {POD.inode: "nobody holds it any more"})
    assert left.pfs[0].vfs[0].rdma == RdmaDevice("mlx5_3")


def test_whose_it_is_where_it_can_not_be_seen(tmp_path: Path) -> None:
    """/sys/class/infiniband is of one namespace, /sys/class/infiniband_verbs of all."""
    device = tmp_path / "devices" / "0000:01:10.0"
    device.mkdir(parents=True)
    (tmp_path / "bus" / "pci").mkdir(parents=True)
    (device / "subsystem").symlink_to("../../bus/pci")
    for number, name in enumerate(("mlx5_0", "mlx5_3")):
        entry = tmp_path / "class" / "infiniband_verbs" / f"uverbs{number}"
        entry.mkdir(parents=True)
        (entry / "ibdev").write_text(f"{name}\n")
        (entry / "device").symlink_to(device)
    (tmp_path / "class" / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert Sysfs(tmp_path).other_rdma_devices() == {("pci", "0000:01:10.0"): "mlx5_3"}
    assert Sysfs(tmp_path / "nothing").other_rdma_devices() == {}
