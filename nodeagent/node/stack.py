"""Putting back what stood on our netdevs: children, ports, addresses, neighbours, routes.

By name and not by handle: names are restored before, and they are what a bond or a VLAN of another
program refers to. The ifindex is looked up when it is used.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nodeagent.errors import KernelError, WaitTimeout, reason
from nodeagent.kernel import stack_messages as messages
from nodeagent.kernel import sysctls
from nodeagent.kernel.events import AddressWatch, wait_until_clear
from nodeagent.kernel.qdiscs import qdisc_message
from nodeagent.kernel.rtnl import AltnameChange, Change, Link, LinkChange
from nodeagent.kernel.stack import StackEdge, membership_of
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import Target, by_device, link_of, target_name
from nodeagent.node.node import Node
from nodeagent.plan.actions import AddStacked
from nodeagent.state.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Qdisc,
    Route,
    Stacked,
    devices_of,
)

log = logging.getLogger(__name__)

IFA_F_NODAD: Final = 0x02
DAD_TIMEOUT: Final = 10.0
"""Seconds. DAD itself takes one or two, from the moment when the link has carrier."""


def add_stacked(node: Node, actions: Sequence[AddStacked], *, at_once: bool = False) -> Failures:
    """Perform the actions of a stage; what another interface's absence stops is named.

    Children go level by level, because each needs its parent's ifindex. `at_once`: IPv6 addresses
    that were nobody else's are so still, and are used without DAD.
    """
    with node.stack() as edge:
        children = [action for action in actions if isinstance(action.thing, Child)]
        failures: Failures = []
        for level in _levels(children):
            failures += _add(node, edge, level)
        others = [action for action in actions if action not in children]
        if at_once:
            failures += _add(node, edge, [each for each in map(_without_dad, others) if each])
        return failures + _add(node, edge, others)


def _without_dad(action: AddStacked) -> AddStacked | None:
    """The same address with IFA_F_NODAD. Set again without it, it is used already."""
    thing = action.thing
    if not isinstance(thing, Address) or ":" not in thing.address or thing.tentative:
        return None
    return replace(action, thing=replace(thing, flags=thing.flags | IFA_F_NODAD))


def _levels(children: Sequence[AddStacked]) -> Iterable[list[AddStacked]]:
    """Parents before what stands on them."""
    left = list(children)
    while left:
        to_come = {action.thing.dev for action in left if isinstance(action.thing, Child)}
        level = [a for a in left if not to_come & set(devices_of(a.thing))]
        yield level or left
        left = [action for action in left if level and action not in level]


def _add(node: Node, edge: StackEdge, actions: Sequence[AddStacked]) -> Failures:
    if not actions:
        return []
    now = node.rtnl.links()
    links, devices = {link.name: link for link in now.values()}, by_device(node, now)
    targets = {target_of(action) for action in actions if action.netdev is not None}
    own = {target: link_of(node, target, devices) for target in targets}
    failures: Failures = []
    possible: list[AddStacked] = []
    for action in actions:
        why = _missing(action, links, own)
        if why is None:
            possible.append(action)
        else:
            failures.append((target_of(action), f"{_title(action.thing)}: {why}"))
    members = [action for action in possible if isinstance(action.thing, Membership)]
    children = [action for action in possible if isinstance(action.thing, Child)]
    others = [action for action in possible if action not in members and action not in children]
    failures += _join(node, edge, members, links)
    indexes = {name: link.index for name, link in links.items()}
    failures += _make_children(node, edge, children, indexes)
    for group in _groups(others):
        failures += _send(node, edge, group, indexes)
    return failures


def _missing(
    action: AddStacked, links: Mapping[str, Link], own: Mapping[Target, Link | None]
) -> str | None:
    """Why it cannot be put there: no such interface, or one that is somebody else's by now.

    `links` by name; `own`: the interfaces that the targets of named actions have.
    """
    missing = [name for name in _needed(action.thing) if name not in links]
    if missing:
        return f"there is no interface {', '.join(missing)}"
    if action.netdev is None:
        return None
    target = target_of(action)
    link = own[target]
    if link is not None and link.name == action.netdev:
        return None
    return f"{action.netdev} is not the interface of {target_name(target)}"


def _make_children(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], indexes: Mapping[str, int]
) -> Failures:
    """Make children, down; give them what else they had; then up: sysctls decide what that brings.

    One that is there already is changed as it is.
    """
    pairs = [(action, action.thing) for action in actions if isinstance(action.thing, Child)]
    made_by = [
        messages.child_message(
            child if child.dev in indexes else dataclasses.replace(child, up=False), indexes
        )
        for _, child in pairs
    ]
    failures = _refusals(actions, retry.send(node, made_by, edge.send))
    links = {link.name: link for link in node.rtnl.links().values()} if pairs else {}
    made = [(a, child, links[child.dev]) for a, child in pairs if child.dev in links]
    changes = [
        (action, change) for action, child, link in made for change in _settings(child, link)
    ]
    failures += _changed(node, changes)
    with node.network():
        for action, child, _ in made:
            for key, value in child.sysctls:
                try:
                    sysctls.write(child.dev, key, value, node.proc)
                except KernelError as error:
                    failures.append((target_of(action), f"{_title(child)}: {error.message}"))
    up = [(a, LinkChange(link.index, up=True)) for a, c, link in made if c.up and not link.up]
    return failures + _changed(node, up)


def _settings(child: Child, link: Link) -> Iterator[Change]:
    """What an interface has that its kind's own message does not set."""
    wanted = {
        name: getattr(child, name)
        for name in ("alias", "txqueuelen", "group", "promisc", "allmulti")
        if getattr(child, name) not in {None, getattr(link, name)}
    }
    if wanted:
        yield LinkChange(link.index, **wanted)
    for name in sorted({*child.altnames} ^ {*(link.altnames or ())}):
        yield AltnameChange(link.index, name, add=name in child.altnames)


def _changed(node: Node, changes: Sequence[tuple[AddStacked, Change]]) -> Failures:
    results = retry.send(node, [change for _, change in changes], node.rtnl.change)
    return _refusals([action for action, _ in changes], results)


def _send(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], indexes: Mapping[str, int]
) -> Failures:
    """Send a group; a route from an IPv6 address that is tentative yet is refused and sent again.

    The kernel says EINVAL of a source address whose DAD has not ended (ipv6_chk_addr()).
    """
    with node.address_watch() as watch:
        told = [_message(action.thing, indexes, time.time()) for action in actions]
        results = retry.send(node, told, edge.send)
        pairs = list(zip(actions, results, strict=True))
        again = [
            action
            for action, error in pairs
            if error is not None
            and error.errno == errno.EINVAL
            and isinstance(action.thing, Route)
            and ":" in (action.thing.src or "")
        ]
        if not again:
            return _refusals(actions, results)
        _await_addresses(node, edge, again, indexes, watch)
    others = [(action, error) for action, error in pairs if action not in again]
    retried = edge.send([_message(action.thing, indexes, time.time()) for action in again])
    left = [action for action, _ in others] + again
    return _refusals(left, [error for _, error in others] + retried)


def _await_addresses(
    node: Node,
    edge: StackEdge,
    actions: Sequence[AddStacked],
    indexes: Mapping[str, int],
    watch: AddressWatch,
) -> None:
    sources = {a.thing.src for a in actions if isinstance(a.thing, Route)}
    ours = set(indexes.values())
    try:
        wait_until_clear(
            lambda: sorted(edge.tentative(ours) & sources),
            *(watch, *node.stops),
            what="IPv6 addresses",
            timeout=DAD_TIMEOUT,
        )
    except WaitTimeout as late:
        log.debug("%s", late.message)


def _groups(actions: Sequence[AddStacked]) -> list[list[AddStacked]]:
    """In the order in which the kernel takes them (`in_order`, `gateways_last`)."""
    by_thing = {action.thing: action for action in actions}
    addresses = [thing for thing in by_thing if isinstance(thing, Address)]
    routes = [thing for thing in by_thing if isinstance(thing, Route)]
    rest = [thing for thing in by_thing if isinstance(thing, Neighbour)]
    queues = [thing for thing in by_thing if isinstance(thing, Qdisc)]
    things = (queues, rest, messages.in_order(addresses), messages.gateways_last(routes))
    return [[by_thing[thing] for thing in group] for group in things if group]


def _message(thing: Stacked, indexes: Mapping[str, int], now: float) -> bytearray:
    match thing:
        case Address():
            return messages.address_message(thing, indexes[thing.dev], now)
        case Neighbour():
            return messages.neighbour_message(thing, indexes[thing.dev])
        case Route():
            return messages.route_message(thing, indexes, now)
        case Qdisc():
            return qdisc_message(thing, indexes[thing.dev])
        case Child() | Membership():
            raise AssertionError("these take several messages: _make_children(), _join()")


def _join(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], links: Mapping[str, Link]
) -> Failures:
    """Make ports, then look at what the master gave them, and set what is to be different.

    VFs before PFs: a bond takes a PF that is down, and an igb VF gets no MAC after that of its PF.
    """
    if not actions:
        return []
    joins: list[tuple[AddStacked, bytearray]] = []
    results: list[OSError | None] = []
    actions = sorted(actions, key=lambda action: action.index is None)
    for action, member in _members(actions):
        link, master = links[member.dev], links[member.master]
        if link.master != master.index:
            *before, join = messages.join_messages(member, link, master.index)
            for error in filter(None, edge.send(before)):
                # igb lets a VF with an admin MAC set no other (EADDRNOTAVAIL)
                log.warning(
                    "%s: the MAC that it had before it was a port of %s is not set: %s",
                    *(member.dev, member.master, reason(error)),
                )
            joins.append((action, join))
            results += edge.send([join])
    # in that order once; those that are busy, because another has put something on them
    # (netdev_rx_handler_register), then all together
    results = retry.resend_busy([join for _, join in joins], results, edge.send, *node.stops)
    failures = _refusals([action for action, _ in joins], results)
    now = node.rtnl.links()
    tables = edge.vlans() if any(m.kind == "bridge" for _, m in _members(actions)) else {}
    settings = [
        (action, message)
        for action, member in _members(actions)
        for message in _port_settings(member, now, links[member.dev].index, tables)
    ]
    results = retry.send(node, [message for _, message in settings], edge.send)
    return failures + _refusals([action for action, _ in settings], results)


def _port_settings(
    member: Membership,
    links: Mapping[int, Link],
    index: int,
    tables: Mapping[int, tuple[tuple[int, int], ...]],
) -> Iterator[bytearray]:
    """What is to be set once it is a port; nothing where it did not become one."""
    have = membership_of(links[index], links) if index in links else None
    if have is None or have.master != member.master:
        return
    master = links[links[index].master or 0]
    if member.master_mac not in {None, master.mac}:
        yield messages.mac_message(master.index, member.master_mac or "")
    yield from messages.port_messages(member, have, tables.get(index, ()), index)


def _members(actions: Iterable[AddStacked]) -> Iterable[tuple[AddStacked, Membership]]:
    return [(a, a.thing) for a in actions if isinstance(a.thing, Membership)]


def _refusals(actions: Sequence[AddStacked], results: Sequence[OSError | None]) -> Failures:
    return [
        (target_of(action), f"{_title(action.thing)}: {reason(error)}")
        for action, error in zip(actions, results, strict=True)
        if error is not None and error.errno != errno.EEXIST
    ]


def _title(thing: Stacked) -> str:
    match thing:
        case Child():
            return f"cannot make {thing.kind} {thing.dev} on {thing.parent}"
        case Membership():
            return f"cannot make {thing.dev} a port of {thing.kind} {thing.master}"
        case _:
            return f"cannot add {type(thing).__name__.lower()} {thing}"


def _needed(thing: Stacked) -> tuple[str, ...]:
    if isinstance(thing, Membership):
        return (thing.dev, thing.master)
    return devices_of(thing)
