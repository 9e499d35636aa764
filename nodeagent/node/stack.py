"""Restore what was stacked on our netdevs: children, ports, addresses, neighbours, routes, qdiscs.

Interfaces are identified by name: names are restored before, and a bond or a VLAN of another
program refers to them. The ifindex is looked up when it is used.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface
from typing import Final

from nodeagent.errors import WaitTimeout, reason
from nodeagent.kernel.events import AddressWatch, wait_until_clear
from nodeagent.kernel.rtnl import Change, Link, LinkChange
from nodeagent.kernel.stack import ADAPTERS, StackEdge, addresses, memberships
from nodeagent.kernel.stack.routes import IFA_F_NOPREFIXROUTE
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.links import link_changes
from nodeagent.node.locate import by_device, link_of
from nodeagent.node.node import Node
from nodeagent.node.sysctls import ipv6_is_ready, written
from nodeagent.plan.actions import AddStacked
from nodeagent.state.attributes import given
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import Target
from nodeagent.state.stack import KINDS, Address, Child, Membership, NexthopObject, Route, Stacked

log = logging.getLogger(__name__)

IFA_F_NODAD: Final = 0x02
PREFIX_METRIC: Final = 256
"""IP6_RT_PRIO_ADDRCONF (include/net/ip6_route.h), where an address has no metric."""
DAD_TIMEOUT: Final = 10.0
"""Seconds. DAD itself takes one or two, after the link got carrier."""
CARRIER_TIMEOUT: Final = 20.0
"""Seconds. The port of a NIC that was set up takes a few; the next plan waits again."""


def add_stacked(node: Node, actions: Sequence[AddStacked], *, at_once: bool = False) -> Failures:
    """Perform the actions of a stage. A missing interface is a failure.

    Children are added level by level, because each needs its parent's ifindex. `at_once`: add IPv6
    addresses without DAD, because no other host can have them.
    """
    with node.stack() as edge:
        children = [action for action in actions if isinstance(action.thing, Child)]
        failures: Failures = []
        for level in _levels(children):
            failures += _add(node, edge, level)
        others = [action for action in actions if action not in children]
        if at_once:
            once = _with_several_metrics(others)
            early = {action: quick for action in others if (quick := _without_dad(action, once))}
            failures += _add(node, edge, [*early.values()])
            others = [
                replace(action, anew=False) if action in early else action
                for action in others
                if action not in early or early[action].thing != action.thing
            ]
        else:
            last = [action for action in others if _follows_the_kernels(action)]
            first = [action for action in others if not _follows_the_kernels(action)]
            failures += _add(node, edge, first)
            _await_link_local(node, {action.thing.interface for action in last})
            others = last
        return failures + _add(node, edge, others)


def _with_several_metrics(actions: Iterable[AddStacked]) -> set[str]:
    """The interfaces with IPv6 addresses of one prefix whose routes to it have several metrics.

    Their addresses may not be changed. For the route of the address that it changes the kernel
    takes the first one to the prefix, and removes it if that has another metric: it was another
    address's (modify_prefix_route(), net/ipv6/addrconf.c).
    """
    metrics: dict[tuple[str, object], set[int]] = {}
    for action in actions:
        thing = action.thing
        if isinstance(thing, Address) and thing.is_v6 and not thing.flags & IFA_F_NOPREFIXROUTE:
            prefix = ip_interface(thing.address).network
            metrics.setdefault((thing.dev, prefix), set()).add(thing.metric or PREFIX_METRIC)
    return {dev for (dev, _), several in metrics.items() if len(several) > 1}


def _without_dad(action: AddStacked, once: Collection[str]) -> AddStacked | None:
    """The same address with IFA_F_NODAD. It is in use at once; then the flag is removed again.

    None for what is no such address, and for those of the interfaces of `once`.
    """
    thing = action.thing
    if not isinstance(thing, Address) or not thing.is_v6 or thing.tentative or thing.dev in once:
        return None
    return replace(action, thing=replace(thing, flags=thing.flags | IFA_F_NODAD))


def _follows_the_kernels(action: AddStacked) -> bool:
    """Whether it is an IPv6 link-local address of an interface that had carrier."""
    thing = action.thing
    return isinstance(thing, Address) and thing.is_link_local and not thing.tentative


def _await_link_local(node: Node, names: Collection[str]) -> None:
    """Wait until interfaces that are to have an IPv6 link-local address have the kernel's own.

    The kernel adds it when IPv6 becomes ready, with carrier. The one that is added last is the
    source of what is sent (ipv6_link_dev_addr()).
    """
    if not names:
        return

    def unready() -> list[str]:
        found = [link for link in node.rtnl.links().values() if link.name in names]
        return [each.name for each in found if each.up and not ipv6_is_ready(each)]

    try:
        with node.address_watch() as watch:
            wait_until_clear(
                unready, watch, *node.stops, what="IPv6 with carrier", timeout=CARRIER_TIMEOUT
            )
    except WaitTimeout as late:
        log.warning(
            "%s: the kernel's own link-local address will come after yours, and be the source",
            late.message,
        )


def _levels(children: Sequence[AddStacked]) -> Iterable[list[AddStacked]]:
    """Parents before their children."""
    left = list(children)
    while left:
        missing = {action.thing.dev for action in left if isinstance(action.thing, Child)}
        level = [a for a in left if not missing & set(a.thing.interfaces)]
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
            failures.append((target_of(action), f"cannot {action.thing.task}: {why}"))
    # only removal clears an address's dadfailed
    failed = [a.thing for a in possible if a.anew and isinstance(a.thing, Address)]
    if failed:
        edge.send([addresses.removal(address, _indexes(links)) for address in failed])
    for kind in KINDS:
        same = [action for action in possible if isinstance(action.thing, kind)]
        failures += PERFORMERS.get(kind, _send)(node, edge, same, links) if same else []
    return failures


def _missing(
    action: AddStacked, links: Mapping[str, Link], own: Mapping[Target, Link | None]
) -> str | None:
    """Why it cannot be added: an interface is missing, or its name belongs to another one by now.

    `links` by name; `own`: the interfaces of the targets of named actions.
    """
    missing = [name for name in action.thing.needs if name not in links]
    if missing:
        return f"there is no interface {', '.join(missing)}"
    if action.netdev is None:
        return None
    target = target_of(action)
    link = own[target]
    if link is not None and link.name == action.netdev:
        return None
    return f"{action.netdev} is not the interface of {target}"


def _make_children(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], links: Mapping[str, Link]
) -> Failures:
    """Create children in state down, set their attributes and sysctls, and then set them up.

    Sysctls decide which addresses an interface gets when it is set up. An existing child is changed
    in its present state.
    """
    pairs = [(action, action.thing) for action in actions if isinstance(action.thing, Child)]
    indexes = _indexes(links)
    made_by = [
        ADAPTERS[Child].message(
            child if child.dev in links else replace(child, up=False), indexes, time.time()
        )
        for _, child in pairs
    ]
    failures = _refusals(actions, retry.send(node, made_by, edge.send))
    now = {link.name: link for link in node.rtnl.links().values()}
    made = [(a, child, now[child.dev]) for a, child in pairs if child.dev in now]
    failures += _changed(
        node, [(a, change) for a, c, link in made for change in link_changes(_settings(c), link)]
    )
    values = [(target_of(a), child.dev, child.sysctls) for a, child, _ in made]
    failures += written(node, values)
    up = [(a, LinkChange(link.index, up=True)) for a, c, link in made if c.up and not link.up]
    return failures + _changed(node, up)


def _settings(child: Child) -> LinkAttributes:
    """The attributes that the message which creates the child does not set."""
    made_with = {"mac", "mtu", "up"}
    values = {name: value for name, value in given(child).items() if name not in made_with}
    return LinkAttributes(**values)


def _indexes(links: Mapping[str, Link]) -> dict[str, int]:
    return {name: link.index for name, link in links.items()}


def _changed(node: Node, changes: Sequence[tuple[AddStacked, Change]]) -> Failures:
    results = retry.send(node, [change for _, change in changes], node.rtnl.change)
    return _refusals([action for action, _ in changes], results)


def _send(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], links: Mapping[str, Link]
) -> Failures:
    """Add things of one kind. A route from a tentative IPv6 address is refused, and sent again.

    The kernel returns EINVAL for a source address whose DAD has not ended (ipv6_chk_addr()).
    """
    indexes = _indexes(links)
    by_thing = {action.thing: action for action in actions}
    adapter = ADAPTERS[type(actions[0].thing)]
    actions = [by_thing[thing] for thing in adapter.in_order(list(by_thing))]

    def messages(some: Sequence[AddStacked]) -> list[bytearray]:
        return [adapter.message(action.thing, indexes, time.time()) for action in some]

    with node.address_watch() as watch:
        results = retry.send(node, messages(actions), edge.send)
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
    retried = edge.send(messages(again))
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


def _add_nexthops(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], links: Mapping[str, Link]
) -> Failures:
    """Add nexthops, and then groups of them: all again when those have carrier that had it not."""
    indexes, adapter = _indexes(links), ADAPTERS[NexthopObject]
    by_thing = {action.thing: action for action in actions}
    things = adapter.in_order(list(by_thing))
    messages = [adapter.message(thing, indexes, time.time()) for thing in things]

    def without() -> list[str]:
        results[:] = edge.send(messages)
        return list(map(str, _without_carrier(results)))

    with node.address_watch() as watch:
        results = retry.send(node, messages, edge.send)
        if _without_carrier(results):
            with suppress(WaitTimeout):
                wait_until_clear(
                    without, watch, *node.stops, what="carrier", timeout=CARRIER_TIMEOUT
                )
    return _refusals([by_thing[thing] for thing in things], results)


def _without_carrier(results: Iterable[OSError | None]) -> list[OSError]:
    return [error for error in results if error is not None and error.errno == errno.ENETDOWN]


def _join(
    node: Node, edge: StackEdge, actions: Sequence[AddStacked], links: Mapping[str, Link]
) -> Failures:
    """Make interfaces ports, and then set what differs from what the master has set.

    VFs before PFs: a PF must be down to join a bond, and an igb VF gets no MAC meanwhile.
    """
    indexes = _indexes(links)
    joins: list[tuple[AddStacked, bytearray]] = []
    results: list[OSError | None] = []
    actions = sorted(actions, key=lambda action: action.index is None)
    for action, member in _members(actions):
        link, master = links[member.dev], links[member.master]
        if link.master != master.index:
            for error in filter(None, edge.send(list(memberships.messages_before(member, link)))):
                # igb refuses another MAC for a VF with an admin MAC (EADDRNOTAVAIL)
                log.warning(
                    "%s: cannot set the MAC that it had before it was a port of %s: %s",
                    *(member.dev, member.master, reason(error)),
                )
            join = memberships.message(member, indexes, time.time())
            joins.append((action, join))
            results += edge.send([join])
    # each once in that order; then those that were busy, because something else is on them
    # (netdev_rx_handler_register), all together
    results = retry.resend_busy([join for _, join in joins], results, edge.send, *node.stops)
    failures = _refusals([action for action, _ in joins], results)
    now = node.rtnl.links()
    tables = edge.vlans() if any(m.kind == "bridge" for _, m in _members(actions)) else {}
    settings = [
        (action, message)
        for action, member in _members(actions)
        for message in memberships.messages_after(member, now, indexes[member.dev], tables)
    ]
    results = retry.send(node, [message for _, message in settings], edge.send)
    return failures + _refusals([action for action, _ in settings], results)


def _members(actions: Iterable[AddStacked]) -> Iterable[tuple[AddStacked, Membership]]:
    return [(a, a.thing) for a in actions if isinstance(a.thing, Membership)]


def _refusals(actions: Sequence[AddStacked], results: Sequence[OSError | None]) -> Failures:
    return [
        (target_of(action), f"cannot {action.thing.task}: {reason(error)}")
        for action, error in zip(actions, results, strict=True)
        if error is not None and error.errno != errno.EEXIST
    ]


Performer = Callable[
    [Node, StackEdge, Sequence[AddStacked], Mapping[str, Link]],
    Failures,
]

PERFORMERS: Final[Mapping[type[Stacked], Performer]] = {
    Child: _make_children,
    Membership: _join,
    NexthopObject: _add_nexthops,
}
"""Kinds that need several messages; `_send` performs the others."""
