"""Objects that interfaces lack, in the host's network namespace and in pods'. Pure.

Objects that are not wanted stay: another program may have added them since.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from nodeagent.plan.actions import Action, AddStacked, Stage
from nodeagent.plan.stages import AnyStage
from nodeagent.state.model import NodeState, Target
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Address, NexthopObject, Route, Stack, Stacked, StackStage
from nodeagent.state.sysctls import Sysctl


@dataclass(frozen=True)
class Lacking:
    """An object that is wanted and is missing; `instead` is another one with the same key.

    `owner`: the PF, VF or representor on whose interface it is; where it is on several, the first.
    """

    owner: Target
    thing: Stacked
    instead: Stacked | None

    @property
    def anew(self) -> bool:
        """Whether the present one must be removed first: an address that failed DAD."""
        return isinstance(self.instead, Address) and bool(self.instead.failed)


@dataclass(frozen=True)
class Place:
    """One network namespace, as wanted and at present.

    `owners` are our interfaces in it, by wanted names; `names` maps present names to wanted ones.
    `absent`: targets whose interfaces do not exist, so that nothing is on them. `defaults`: the
    default sysctls of new interfaces there. `namespace` is None for the host's.
    """

    want: Stack
    have: Stack
    owners: Mapping[str, Target]
    names: Mapping[str, str]
    defaults: tuple[Sysctl, ...]
    absent: Collection[Target] = field(default=())
    namespace: Namespace | None = None

    def lacking(self) -> Iterator[Lacking]:
        """Missing objects, in the order in which they can be added.

        Interfaces are compared by their wanted names: a rename does not remove what is on them.
        """
        there: dict[Hashable, list[Stacked]] = {}
        for thing in self.have.things():
            now = thing.renamed(self.names)
            there.setdefault(now.key, []).append(now)
        owners = dict(self.owners) | {
            child: self.owners[root]
            for child, root in self.want.roots.items()
            if root in self.owners
        }
        sources = self.want.sources
        for thing in _with_carrier(self.want):
            if thing.is_the_kernels:
                continue
            below = thing.removed_with(sources)
            owner = next((owners[name] for name in below if name in owners), None)
            found = () if owner in self.absent else there.get(thing.key, ())
            if owner is not None and not any(
                thing.is_met_by(each, self.defaults) for each in found
            ):
                yield Lacking(owner, thing, found[0] if found else None)

    def __str__(self) -> str:
        """` in pod …`, and nothing for the host's."""
        return "" if self.namespace is None else f" in {self.namespace}"


def _with_carrier(want: Stack) -> Iterator[Stacked]:
    """All but nexthops that had no carrier, which the kernel would refuse, and routes by them."""
    silent = {each.id for each in want.nexthops if not each.carrier}
    for thing in want.things():
        match thing:
            case NexthopObject():
                if (left := thing.with_carrier(silent)) is not None:
                    yield left
            case Route() if thing.nhid in silent:
                pass
            case _:
                yield thing


def host(want: NodeState, have: NodeState) -> Place:
    """The host's network namespace."""
    owners, now = (dict(owners_of_netdevs(state)) for state in (want, have))
    wanted = {owner: name for name, owner in owners.items()}
    names = {name: wanted.get(owner, name) for name, owner in now.items()}
    return Place(want.stack or Stack(), have.stack or Stack(), owners, names, have.sysctls)


def pod(want: NodeState, have: NodeState, namespace: Namespace) -> Place:
    """A network namespace of VFs of `want`."""
    owners = dict(_inside(want, namespace))
    now = dict(_inside(have, namespace))
    is_known = namespace in have.namespaces
    there = have.namespace(namespace.inode) if is_known else namespace
    wanted = {owner: name for name, owner in owners.items()}
    return Place(
        want=namespace.stack,
        have=there.stack if is_known else Stack(),
        owners=owners,
        names={name: wanted[owner] for name, owner in now.items() if owner in wanted},
        defaults=there.sysctls,
        absent=set(owners.values()) - set(now.values()),
        namespace=namespace,
    )


def places(want: NodeState, have: NodeState) -> Iterator[Place]:
    """The host's network namespace, and all those of VFs of `want`."""
    yield host(want, have)
    yield from (pod(want, have, namespace) for namespace in want.namespaces)


def stack_actions(want: NodeState, have: NodeState) -> Iterator[tuple[AnyStage, AddStacked]]:
    """Stage and action for each object that is missing in the host's namespace."""
    called = {owner: name for name, owner in owners_of_netdevs(want)}
    for each in host(want, have).lacking():
        name = called[each.owner]
        yield each.thing.stage, AddStacked(*each.owner, each.thing, name, each.anew)


def without_stacked(stages: Iterable[Stage], managed: Collection[Target]) -> tuple[Stage, ...]:
    """The stages that do not put anything on interfaces, but for a LAG's on those not managed."""
    kept = (
        replace(stage, actions=tuple(a for a in stage.actions if not _is_on(a, managed)))
        for stage in stages
        if not isinstance(stage.name, StackStage)
    )
    return tuple(stage for stage in kept if stage.actions)


def _is_on(action: Action, targets: Collection[Target]) -> bool:
    return isinstance(action, AddStacked) and Target(action.pf, action.index) in targets


def owners_of_netdevs(state: NodeState) -> Iterator[tuple[str, Target]]:
    """The name of each netdev in the host's namespace, and its PF, VF or representor."""
    return ((netdev.name, on) for on, netdev in state.targets())


def _inside(state: NodeState, namespace: Namespace) -> Iterator[tuple[str, Target]]:
    """The same of VFs in a network namespace."""
    for on, vf in state.vfs():
        if vf.inside is not None and state.namespace_of(vf) == namespace:
            yield vf.inside.netdev.name, on
