"""Move VFs into pods and set them up there, each as soon as it is settled.

A pod waits for its own VFs only: they are moved while others are still being bound, named or waited
for. The main thread does that between two events.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, Self

from nodeagent.errors import KernelError, WaitTimeout, reason
from nodeagent.kernel.announcements import IPV4, IPV6, announce
from nodeagent.kernel.events import UdevWatch, Watch, wait_until_clear
from nodeagent.kernel.netns import NamespaceGone
from nodeagent.kernel.rooms import Room
from nodeagent.kernel.rtnl import Link, LinkMove
from nodeagent.node import retry
from nodeagent.node.attempt import Attempt
from nodeagent.node.ethtool import set_ethtool
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.links import change_links
from nodeagent.node.locate import ifindex_of, link_of, links_by_device
from nodeagent.node.namespaces import within
from nodeagent.node.node import Node
from nodeagent.node.settle import finished_by_udev, is_lost, is_removed, unsettled
from nodeagent.node.stack import add_stacked
from nodeagent.node.sysctls import write_sysctls
from nodeagent.plan.actions import (
    AddStacked,
    InPod,
    MoveVf,
    SetDriverinit,
    SetEthtool,
    SetLink,
    SetSysctls,
    Stage,
)
from nodeagent.record.gaps import Moment
from nodeagent.state.model import NO_DRIVER, Target
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Child, Neighbour
from nodeagent.trace import point

log = logging.getLogger(__name__)

CARRIER_TIMEOUT: Final = 5.0
"""Seconds. An igb VF has carrier two seconds after it was set up, an mlx5 VF at once."""


@dataclass(frozen=True)
class Arrival:
    """A VF for a pod: its move, if it is not there yet, and the actions there, in order."""

    target: Target
    namespace: Namespace
    name: str
    move: MoveVf | None
    had_carrier: bool
    inner: tuple[SetLink | SetEthtool | SetSysctls | AddStacked, ...]


class Arrivals:
    """The VFs of a plan that belong into pods. A context manager: it has sockets open in pods."""

    def __init__(
        self, attempt: Attempt, stages: Sequence[Stage], watches: tuple[Watch, ...]
    ) -> None:
        self._node, self._given_up = attempt.node, attempt.given_up
        self._takings = attempt.takings
        self._waiting = {arrival.target: arrival for arrival in _arrivals(stages)}
        self._watched = any(isinstance(watch, UdevWatch) for watch in watches)
        self._finished = finished_by_udev(watches)
        self._misplaced: set[Target] = set()
        """VFs that did not get their name in the pod, or could not be moved."""
        self._rooms: dict[int, tuple[Node, Room]] = {}
        self._stacked: dict[int, list[AddStacked]] = {}
        self._devices = {
            arrival.move.address: arrival.target
            for arrival in self._waiting.values()
            if arrival.move is not None
        }
        self._looked_at: set[int] | None = None
        """The ifindexes, of those that udev has finished with, that were looked at; None: none."""
        self._to_announce: dict[Target, tuple[Namespace, list[AddStacked]]] = {}
        self._half_announced: set[Target] = set()
        """VFs whose IPv4 addresses were announced."""
        self.to_reload = {
            target_of(action)
            for stage in stages
            for action in stage.actions
            if isinstance(action, SetDriverinit)
        }
        """VFs whose instance is still to be reloaded: their interface is then made on the host."""
        self._held = ExitStack()
        self.failures: Failures = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def expected(self) -> bool:
        """Whether a VF is still to be moved or set up in a pod."""
        return bool(self._waiting)

    def put_first(self, urgent: Collection[Target]) -> None:
        """Move these first if several are settled."""
        ordered = sorted(self._waiting, key=lambda target: target not in urgent)
        self._waiting = {target: self._waiting[target] for target in ordered}

    def move_settled(self) -> None:
        """Move all settled VFs into their pods; `await_all` waits for the others.

        There are many events while VFs are bound. Therefore only VFs that udev has just finished
        with are looked at.
        """
        candidates = list(self._waiting)
        if self._looked_at is not None and self._watched:
            new = self._finished - self._looked_at
            devices = {self._node.sysfs.device_of_interface(index) for index in new}
            settled = {self._devices[name] for name in devices & self._devices.keys() if name}
            candidates = [target for target in candidates if target in settled]
        self._looked_at = set(self._finished)
        for target in candidates:
            self._move_if_settled(target)

    def _move_if_settled(self, target: Target) -> str | None:
        """Move the VF if it is settled; else return why it is not.

        Both in one look, because it may settle at any moment.
        """
        arrival = self._waiting.get(target)
        why = None if arrival is None else self._unready(arrival)
        if arrival is not None and why is None:
            del self._waiting[target]
            self._arrive(arrival)
        return why

    def await_all(self, watches: tuple[Watch, ...], lost: set[Target]) -> Failures:
        """Wait until all VFs are moved, except for those that cannot be; return the failures.

        `lost`: targets whose failure is known.
        """
        seconds = self._node.settings.vf_timeout
        with suppress(WaitTimeout):
            wait_until_clear(
                lambda: self._missing(lost, watches),
                *watches,
                what="pods",
                timeout=seconds,
                progress=True,
            )
        for target in list(self._waiting):
            why = self._move_if_settled(target)
            if why is not None:
                self._given_up[target] = why
                self.failures.append((target, f"{why} after {seconds:g} s"))
        self._waiting.clear()
        for inode in list(self._stacked):
            self._stack(inode, everything=True)
        failures, self.failures = self.failures, []
        return failures

    def announce(self) -> Failures:
        """Announce the addresses of VFs that had carrier before, as soon as they have it again.

        IPv4 addresses at once, IPv6 addresses when the kernel uses all of them: if the NIC sends
        back an advertisement of an address that is still optimistic (RFC 4429), the kernel takes it
        for a duplicate and gives the address up for good. Waits up to CARRIER_TIMEOUT, and returns
        the failures.
        """
        with ExitStack() as held:
            rooms = [self._rooms[each.inode][1] for each, _ in self._to_announce.values()]
            watches: list[Watch] = list(self._node.stops)
            for room in dict.fromkeys(rooms):
                watches += (
                    held.enter_context(room.link_watch()),
                    held.enter_context(room.address_watch()),
                )
            with suppress(WaitTimeout):
                wait_until_clear(
                    self._unannounced, *watches, what="carrier", timeout=CARRIER_TIMEOUT
                )
        return self.failures

    def _unannounced(self) -> list[str]:
        """Announce VFs with carrier; return those that are not, or only half, announced.

        The kernel removes permanent neighbours when a MAC is set (neigh_changeaddr()): they are
        added again.
        """
        for target, (namespace, neighbours) in list(self._to_announce.items()):
            inside, room = self._rooms[namespace.inode]
            room.rtnl.forget()
            own = link_of(inside, target, links_by_device(inside))
            if own is None:
                del self._to_announce[target]
            if own is None or not own.carrier:
                continue
            family = descendants(room.rtnl.links(), own.index)
            links = [link for link in family if link.carrier and link.mac]
            with room.stack() as edge:
                families = IPV4 if edge.tentative({link.index for link in links}) else IPV6
            if families is IPV6:
                del self._to_announce[target]
            if families is IPV6 or target not in self._half_announced:
                self._half_announced.add(target)
                announce(room.fd, room.rtnl, links, families)
                self.failures += add_stacked(inside, neighbours) if neighbours else []
        return list(map(str, self._to_announce))

    def _missing(self, lost: set[Target], watches: tuple[Watch, ...]) -> list[str]:
        for target in [t for t in self._waiting if is_lost(self._node, t, lost, {})]:
            del self._waiting[target]
        reasons = {target: self._move_if_settled(target) for target in list(self._waiting)}
        missing = {target: why for target, why in reasons.items() if why is not None}
        for target in list(missing):
            if is_removed(self._node, target) or self._takings.is_taken(
                self._node, target, watches
            ):
                del self._waiting[target], missing[target]
        return list(missing.values())

    def _unready(self, arrival: Arrival) -> str | None:
        if arrival.move is None:
            return None
        if arrival.target in self.to_reload:
            return f"{arrival.target}: its devlink instance is not reloaded yet"
        bus, function = arrival.move.pf.bus, arrival.move.address
        # a single sysfs link, because this is called at each event for each VF that is missing
        if self._node.sysfs.driver(bus, function) == NO_DRIVER:
            return f"{arrival.target} ({function}): bound to no driver"
        return unsettled(self._node, arrival.target, self._finished)

    def _arrive(self, arrival: Arrival) -> None:
        """Move the VF and set it up. Failures are collected."""
        try:
            inside, room = self._room(arrival.namespace)
            if arrival.move is not None:
                self._node.vf_times.note(arrival.target, Moment.SETTLED)
                self._move(arrival.move, room)
                self._node.vf_times.note(arrival.target, Moment.IN_POD)
        except NamespaceGone as gone:
            self._fail(arrival.target, f"{arrival.namespace} is gone: {gone.message}")
            return
        except KernelError as error:
            self._fail(arrival.target, error.message)
            return
        for action in arrival.inner:
            match action:
                case SetEthtool():
                    self.failures += set_ethtool(inside, [action])
                case SetLink():
                    self.failures += change_links(Attempt(inside, self._takings), [action])
                case SetSysctls():
                    self.failures += write_sysctls(inside, [action])
                case AddStacked():
                    pass  # all together, below
        own = list(self._renamed(inside, arrival))
        self._stacked.setdefault(arrival.namespace.inode, []).extend(own)
        self._stack(arrival.namespace.inode)
        if arrival.inner:
            self._node.vf_times.note(arrival.target, Moment.SET_UP)
        if arrival.had_carrier:
            neighbours = [each for each in own if isinstance(each.thing, Neighbour)]
            self._to_announce[arrival.target] = arrival.namespace, neighbours

    def _move(self, action: MoveVf, room: Room) -> None:
        """Name and namespace in one message. KernelError when the kernel refuses."""
        target = Target(action.pf, action.index)
        index = ifindex_of(self._node, target)
        if index is None:
            raise KernelError("has no interface in the host's namespace any more")
        point("move", f"{target} to {action.namespace.inode}")
        move = LinkMove(index, room.fd, action.name)
        (refused,) = retry.send(self._node, [move], self._node.rtnl.change)
        room.rtnl.forget()
        if refused is not None:
            self._misplaced.add(target)
            self._fail(target, f"cannot be {action.name} in {action.namespace}: {reason(refused)}")

    def _room(self, namespace: Namespace) -> tuple[Node, Room]:
        if namespace.inode not in self._rooms:
            entered = self._held.enter_context(within(self._node, namespace))
            self._rooms[namespace.inode] = entered
        return self._rooms[namespace.inode]

    def _stack(self, inode: int, *, everything: bool = False) -> None:
        """Add what is stacked on the VFs of a namespace, if the interfaces that it needs exist."""
        actions = self._stacked.pop(inode, [])
        if not actions:
            return
        inside, room = self._rooms[inode]
        there = {link.name for link in room.rtnl.links().values()}
        there |= {each.thing.dev for each in actions if isinstance(each.thing, Child)}
        now = [each for each in actions if everything or there >= {*each.thing.interfaces}]
        later = [each for each in actions if each not in now]
        if later:
            self._stacked[inode] = later
        if now:
            self.failures += add_stacked(inside, now, at_once=True)

    def _renamed(self, inside: Node, arrival: Arrival) -> Iterator[AddStacked]:
        """What is stacked on a VF, with its present name: its own may be taken."""
        stacked = [action for action in arrival.inner if isinstance(action, AddStacked)]
        if arrival.move is not None and arrival.target not in self._misplaced:
            yield from stacked
            return
        link = link_of(inside, arrival.target, links_by_device(inside))
        for action in stacked if link is not None else ():
            names = {arrival.name: link.name if link else ""}
            yield replace(action, thing=action.thing.renamed(names))

    def _fail(self, target: Target, text: str) -> None:
        self.failures.append((target, f"{target}: {text}"))


def _arrivals(stages: Iterable[Stage]) -> Iterator[Arrival]:
    moves: dict[Target, MoveVf] = {}
    inner: dict[Target, list[InPod]] = {}
    for action in (action for stage in stages for action in stage.actions):
        if isinstance(action, MoveVf):
            moves[Target(action.pf, action.index)] = action
        elif isinstance(action, InPod):
            inner.setdefault(Target(action.pf, action.index), []).append(action)
    for target in {**moves, **inner}:
        own = inner.get(target, [])
        move = moves.get(target)
        first = own[0] if move is None else move
        carrier = move is not None and move.carrier
        actions = tuple(each.action for each in own)
        yield Arrival(target, first.namespace, first.name, move, carrier, actions)


def descendants(links: Mapping[int, Link], index: int) -> list[Link]:
    """An interface, and all interfaces on top of it."""
    found = {index}
    while more := {n for n, link in links.items() if link.parent in found} - found:
        found |= more
    return [link for n, link in links.items() if n in found]
