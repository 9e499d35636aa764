"""LAG: what debugfs reports, what differs, when PFs join their bond, and the wait for it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import RestoreFailed
from nodeagent.kernel import lag as debugfs
from nodeagent.node import lag as waiting
from nodeagent.node import perform
from nodeagent.node.attempt import Attempt
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.settle import watching
from nodeagent.plan import lag
from nodeagent.plan.actions import AddStacked, AwaitLag, BindVf, SetParam, Stage, UnbindVf
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.stack import without_stacked
from nodeagent.plan.stages import StageName
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.lag import ESW_MULTIPORT, MULTIPATH, Lag
from nodeagent.state.model import (
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    RdmaDevice,
    Snapshot,
    Target,
    Vf,
)
from nodeagent.state.stack import Child, Membership, Stack
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node
from tests.support.simulate import MULTIPORT

ONE, TWO = (DeviceHandle("pci", f"0000:01:00.{n}") for n in range(2))
HASH = Lag(True, "switchdev", "hash")
NONE = Lag()


def pf(handle: DeviceHandle = ONE, lag: Lag | None = HASH, **facts: Any) -> Pf:
    mode = facts.pop("eswitch_mode", EswitchMode.SWITCHDEV)
    vf = Vf(0, f"{handle.name[:-1]}7", driver="mlx5_core", driver_override="")
    return Pf(
        handle,
        1,
        True,
        Netdev(f"p{handle.name[-1]}", up=True),
        (vf,),
        eswitch_mode=mode,
        lag=lag,
        **facts,
    )


def node(*pfs: Pf, kind: str = "bond", stack: Stack | None = None) -> NodeState:
    ports = tuple(Membership(each.netdev.name, "bond9", kind) for each in pfs if each.netdev)
    return NodeState("mlx5_core", pfs, stack or Stack(memberships=ports))


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def actions(stages: tuple[Stage, ...], kind: type[Any]) -> list[tuple[str, Any]]:
    return [(s.name, each) for s in stages for each in s.actions if isinstance(each, kind)]


# ---- debugfs


def write(root: Path, name: str, **words: str) -> None:
    directory = root / "kernel/debug/mlx5" / name / "lag"
    directory.mkdir(parents=True, exist_ok=True)
    for each in directory.iterdir():
        each.unlink()
    for file, word in words.items():
        (directory / file).write_text(f"{word}\n")


ACTIVE = {"state": "active", "type": "switchdev", "port_sel_mode": "hash"}


def test_what_the_files_say(tmp_path: Path) -> None:
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    assert debugfs.read(ONE, sys, proc) is None
    write(sys, ONE.name, **ACTIVE)
    assert debugfs.read(ONE, sys, proc) == HASH
    write(sys, ONE.name, state="disabled")
    assert debugfs.read(ONE, sys, proc) == NONE
    write(sys, ONE.name, state="active")  # gone since the first file was read
    assert debugfs.read(ONE, sys, proc) == NONE
    assert debugfs.read(DeviceHandle("netdevsim", ONE.name), sys, proc) is None


def test_a_container_finds_it_in_the_root_of_the_hosts_init(tmp_path: Path) -> None:
    write(tmp_path / "proc/1/root/sys", ONE.name, **ACTIVE)
    assert debugfs.read(ONE, tmp_path / "sys", tmp_path / "proc") == HASH


@pytest.mark.parametrize("word", ["", "a b", "\x1b[2J", "x" * 40])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is not a type or mode of LAG"):
        Lag(True, word)


# ---- what differs


def test_a_lag_that_is_lost_differs_and_one_that_is_not_known_does_not() -> None:
    (found,) = differences(node(pf()), node(pf(lag=NONE)))
    assert str(found) == f"{ONE} lag: want active switchdev hash, have disabled"
    assert not found.is_drivers
    assert differences(node(pf()), node(pf(lag=None))) == ()
    assert differences(node(pf(lag=None)), node(pf())) == ()
    assert list(lag.no_longer_offered(node(pf()), node(pf(lag=None)))) == [
        f"{ONE} lag (active switchdev hash; debugfs would report it)"
    ]


@pytest.mark.parametrize(
    ("want", "have"),
    [
        (HASH, Lag(True, "switchdev", "queue_affinity")),
        (NONE, HASH),
        (Lag(True, MULTIPATH, "queue_affinity"), NONE),
    ],
)
def test_what_the_driver_chooses_is_named_and_left(want: Lag, have: Lag) -> None:
    (found,) = differences(node(pf(lag=want)), node(pf(lag=have)))
    assert found.is_drivers
    assert plan(node(pf(lag=want)), node(pf(lag=have))) == ()


# ---- the plan


def test_pfs_join_between_the_eswitch_and_the_bind() -> None:
    want = node(pf(ONE), pf(TWO))
    have = after_reload(want)
    assert {each.lag for each in have.pfs} == {NONE}
    stages = plan(want, have)
    order = [StageName.ESWITCH, StageName.LAG, StageName.AWAIT_LAG, StageName.BIND_VFS]
    assert [name for name in names(stages) if name in order] == order
    assert "join masters" not in names(stages)
    assert [stage for stage, _ in actions(stages, AddStacked)] == [StageName.LAG] * 2
    assert actions(stages, AwaitLag) == [
        (StageName.AWAIT_LAG, AwaitLag(handle, HASH, want.stack.memberships[n]))  # type: ignore[union-attr] # it is there
        for n, handle in enumerate((ONE, TWO))
    ]
    text = lines(stages, want, have)
    assert "ip link set dev p0 down; ip link set dev p0 master bond9" in text
    state = f"/sys/kernel/debug/mlx5/{ONE.name}/lag/state"
    assert f"timeout 60 sh -c 'until grep -q active {state}; do sleep 1; done'" in text


@pytest.mark.parametrize(
    "each",
    [
        pf(lag=NONE),
        pf(lag=NONE, eswitch_mode=EswitchMode.LEGACY),
        pf(lag=None, eswitch_mode=EswitchMode.LEGACY),
        pf(lag=Lag(True, MULTIPATH, "queue_affinity")),
    ],
)
def test_a_bond_that_is_no_lag_is_joined_last_and_not_waited_for(each: Pf) -> None:
    stages = plan(node(each), after_reload(node(each)))
    assert [stage for stage, _ in actions(stages, AddStacked)] == ["join masters"]
    assert actions(stages, AwaitLag) == []


def test_where_it_is_not_known_a_pf_in_switchdev_mode_joins_early() -> None:
    want = node(pf(lag=None))
    stages = plan(want, after_reload(want))
    assert [stage for stage, _ in actions(stages, AddStacked)] == [StageName.LAG]
    assert actions(stages, AwaitLag) == []
    assert list(lag.unknown(want)) == [f"{ONE}: whether its card makes a LAG of bond bond9"]
    assert list(lag.unknown(node(pf(lag=None), kind="bridge"))) == []
    assert list(lag.unknown(node(pf(lag=NONE)))) == []


def test_only_the_pf_itself_joins_early() -> None:
    child = Child("p0.7", "p0", "vlan", (("id", 7),), mtu=1500, up=False)
    for stack in (
        Stack(children=(child,), memberships=(Membership("p0.7", "bond9", "bond"),)),
        Stack(memberships=(Membership("p0", "br9", "bridge"),)),
    ):
        want = node(pf(), stack=stack)
        stages = plan(want, after_reload(want))
        assert StageName.LAG not in names(stages)


def test_vfs_that_are_bound_are_bound_anew_where_it_is_lost() -> None:
    stages = plan(node(pf()), node(pf(lag=NONE)))
    assert names(stages) == [
        StageName.UNBIND_VFS,
        StageName.AWAIT_LAG,
        StageName.BIND_VFS,
    ]
    assert len(actions(stages, UnbindVf)) == len(actions(stages, BindVf)) == 1


def test_it_is_waited_for_where_vfs_are_made_anew() -> None:
    have = dataclasses.replace(pf(), numvfs=0, vfs=())
    stages = plan(node(pf()), node(have))
    assert [each.pf for _, each in actions(stages, AwaitLag)] == [ONE]


def test_multiport_is_set_in_the_place_of_a_bond() -> None:
    on = Param(ESW_MULTIPORT, 6, True)
    other = Param("flow_steering_mode", 5, "smfs")
    want = node(pf(lag=Lag(True, MULTIPORT, "mpesw"), params=(on, other)), stack=Stack())
    off = dataclasses.replace(on, value=False)
    have = node(pf(lag=NONE, params=(off,)), stack=Stack())
    stages = plan(want, have)
    assert actions(stages, SetParam) == [
        (StageName.PARAMETERS, SetParam(ONE, other)),
        (StageName.LAG, SetParam(ONE, on)),
    ]
    order = [StageName.UNBIND_VFS, StageName.LAG, StageName.AWAIT_LAG, StageName.BIND_VFS]
    assert [name for name in names(stages) if name in order] == order
    unknown = node(pf(lag=None, params=(off,)), stack=Stack())
    assert StageName.UNBIND_VFS in names(plan(want, unknown))
    # off again is a parameter as any other
    assert [stage for stage, _ in actions(plan(have, want), SetParam)] == [StageName.PARAMETERS]


def test_a_network_managers_ports_are_left_to_it_at_first() -> None:
    want = node(pf(ONE), pf(TWO))
    stages = without_stacked(plan(want, after_reload(want)), {Target(ONE)})
    assert [each.pf for _, each in actions(stages, AddStacked)] == [TWO]
    assert len(actions(stages, AwaitLag)) == 2
    stages = without_stacked(plan(want, after_reload(want)), {Target(ONE), Target(TWO)})
    assert StageName.LAG not in names(stages)
    assert StageName.AWAIT_LAG in names(stages)


# ---- the wait


class Edge:
    """rtnetlink for bonds: what leaves one, and what joins one."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __enter__(self) -> Edge:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def send(self, messages: list[bytes]) -> list[OSError | None]:
        self.said += ["leaves" for _ in messages]
        return [None] * len(messages)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        yield made


PORT = Membership("ens1np0", "bond9", "bond")


def awaited(
    fake: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    lag: Lag = HASH,
    port: Membership | None = PORT,
    on_join: Callable[[], None] = lambda: None,
    *,
    pfs: tuple[str, ...] = (PF1,),
) -> tuple[list[str], Edge, Attempt]:
    edge = Edge()
    there: Any = lambda: edge  # noqa: E731 # a factory of what the node asks for
    attempt = Attempt(dataclasses.replace(fake.node(Settings()), stack=there))

    def join(_: Node, joins: list[AddStacked]) -> list[tuple[Target, str]]:
        edge.said += [f"joins {each.thing}" for each in joins]
        on_join()
        return []

    monkeypatch.setattr(waiting, "add_stacked", join)
    actions = [AwaitLag(DeviceHandle("pci", each), lag, port) for each in pfs]
    with watching(attempt.node) as watches:
        failures = waiting.await_lags(attempt, actions, watches)
    return [text for _, text in failures], edge, attempt


def test_it_comes_by_itself(fake: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    write(fake.tree.root, PF1, state="disabled")
    fake.later(3, lambda: write(fake.tree.root, PF1, **ACTIVE))
    failures, edge, attempt = awaited(fake, monkeypatch)
    assert (failures, edge.said, attempt.without_lag) == ([], [], set())


def test_another_mode_is_the_drivers_choice_and_unknown_is_not_waited_for(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert awaited(fake, monkeypatch)[0] == []
    write(fake.tree.root, PF1, **ACTIVE | {"port_sel_mode": "queue_affinity"})
    assert awaited(fake, monkeypatch)[0] == []


@pytest.mark.parametrize("is_port", [False, True])
def test_one_that_does_not_come_has_its_bond_joined_anew(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, is_port: bool
) -> None:
    write(fake.tree.root, PF1, state="disabled")
    if is_port:
        bond = fake.add_link("bond9")
        fake.change(fake.link(PF1).index, master=bond.index)
    made = lambda: write(fake.tree.root, PF1, **ACTIVE)  # noqa: E731 # what a join leads to
    failures, edge, attempt = awaited(fake, monkeypatch, on_join=made)
    assert (failures, attempt.without_lag) == ([], set())
    assert edge.said == ["leaves"] * is_port + ["joins port of bond bond9"]


@pytest.mark.parametrize(("port", "by"), [(PORT, "ens1np0 in bond bond9"), (None, "esw_multiport")])
def test_one_that_never_comes_is_named(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, port: Membership | None, by: str
) -> None:
    write(fake.tree.root, PF1, state="disabled")
    (text,), _, attempt = awaited(fake, monkeypatch, port=port)
    assert text.startswith(
        f"pci/{PF1}: LAG by {by} is disabled, and was active switchdev hash after 60 s: firmware "
        "makes one while no VF of the card is bound"
    )
    assert attempt.without_lag == {DeviceHandle("pci", PF1)}


def test_one_without_a_port_of_the_card_is_not_waited_for(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "0000:01:00.1"
    fake.add_pf(other)
    fake.tree.undrive("pci", other)
    write(fake.tree.root, PF1, state="disabled")
    before = fake.monotonic()
    (text,), edge, attempt = awaited(fake, monkeypatch, pfs=(PF1, other))
    assert text == (
        f"pci/{PF1}: LAG by ens1np0 in bond bond9 is disabled, and was active switchdev hash: "
        f"pci/{other} of the same card has no driver"
    )
    assert (edge.said, attempt.without_lag) == ([], {DeviceHandle("pci", PF1)})
    assert fake.monotonic() < before + 1


def test_one_whose_port_has_a_fatal_error_is_not_waited_for_any_longer(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "0000:01:00.1"
    fake.add_pf(other)
    for pf in (PF1, other):
        write(fake.tree.root, pf, state="disabled")
    fake.later(3, lambda: fake.in_fatal_error.add(other))
    before = fake.monotonic()
    failures, edge, attempt = awaited(fake, monkeypatch, pfs=(PF1, other))
    assert [text.rpartition(": ")[2] for text in failures] == [
        f"the firmware of pci/{other} has had a fatal error"
    ] * 2
    assert edge.said == []
    assert len(attempt.without_lag) == 2
    assert fake.monotonic() < before + waiting.JOINED_TIMEOUT


# ---- the end


def test_verify_fails_for_a_lag_that_is_lost_and_names_what_the_driver_chose(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    write(fake.tree.root, PF1, **ACTIVE)
    with fake.node(Settings()) as node:
        want = observe(node)
        assert want.pfs[0].lag == HASH
        write(fake.tree.root, PF1, **ACTIVE | {"port_sel_mode": "queue_affinity"})
        verify(node, want)
        said = f"pci/{PF1} lag: want active switchdev hash, have active switchdev queue_affinity"
        assert f"chosen by the driver, left as it is: {said}" in caplog.text
        (fake.tree.root / "kernel/debug").rename(fake.tree.root / "kernel/unmounted")
        verify(node, want)
        assert "the driver no longer has it: " in caplog.text
        assert f"pci/{PF1} lag (active switchdev hash; debugfs would report it)" in caplog.text
        write(fake.tree.root, PF1, state="disabled")
        with pytest.raises(RestoreFailed) as failed:
            verify(node, want)
    assert f"pci/{PF1} lag: want active switchdev hash, have disabled" in failed.value.message


def test_a_restore_waits_once_for_a_lag_that_does_not_come(
    fake: FakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of RDMA that is not the LAG's keeps its name, and counts as missing."""
    caplog.set_level(logging.INFO)
    named: list[object] = []
    monkeypatch.setattr(perform, "name_rdma_devices", lambda *given: named.append(given))
    write(fake.tree.root, PF1, **ACTIVE)
    with fake.node(Settings()) as node:
        want = observe(node)
        rdma = RdmaDevice("mlx5_bond_0")
        want = dataclasses.replace(want, pfs=(dataclasses.replace(want.pfs[0], rdma=rdma),))
        write(fake.tree.root, PF1, state="disabled")
        with pytest.raises(RestoreFailed) as failed:
            restore(node, want)
    assert caplog.text.count("await LAG: 1 actions, 1 FAILED") == 1
    assert named == []
    first, *others = failed.value.message.splitlines()[1:]
    assert first.strip().startswith(f"pci/{PF1}: LAG by esw_multiport is disabled, and was active")
    assert [line.strip() for line in others] == [
        f"pci/{PF1} lag: want active switchdev hash, have disabled",
        f"pci/{PF1} rdma: want mlx5_bond_0, have missing",
    ]


def test_a_snapshot_of_an_older_schema_does_not_know_it() -> None:
    snapshot = Snapshot("2026-11-29T00:00:00.000+00:00", "", "", "", (), node(pf(lag=None)))
    text = snapshot_to_json(snapshot).replace('"schema": 3', '"schema": 2')
    assert '"lag"' not in text
    assert snapshot_from_json(text, "old").state.pfs[0].lag is None
