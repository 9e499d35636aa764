"""Performing a plan: each action an ensure, each stage to its end, every failure collected.

Blocking sysfs writes of a stage run side by side; netlink changes go out in batches. A failed
action does not hold up the others: what is left over is found by looking at the node again.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from nodeagent.errors import KernelError, WaitTimeout, reason
from nodeagent.kernel import parallel
from nodeagent.kernel.events import UdevWatch, Watch, wait_until_clear
from nodeagent.kernel.rtnl import AltnameChange, Change, Link, LinkChange, VfChange, VfInfo
from nodeagent.sriov.actions import (
    Action,
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetLink,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.sriov.model import NO_DRIVER, DeviceHandle
from nodeagent.sriov.node import Node, Target, outstanding, target_name
from nodeagent.sriov.plan import TEMPORARY_NAME

log = logging.getLogger(__name__)

THREADS: Final = 16
"""Writes side by side. The kernel probes VFs in parallel where their driver lets it."""

VF_PARTS: Final = (
    ("MAC", ("mac",)),
    ("VLAN", ("vlan", "qos", "vlan_proto")),
    ("rate", ("min_tx_rate", "max_tx_rate")),
    ("spoofchk", ("spoofchk",)),
    ("link state", ("link_state",)),
    ("query_rss", ("query_rss",)),
    ("trust", ("trust",)),
)
LINK_PARTS: Final = (
    ("MAC", ("mac",)),
    ("MTU", ("mtu",)),
    ("name", ("name",)),
    ("txqueuelen", ("txqueuelen",)),
    ("group", ("group",)),
    ("alias", ("alias",)),
    ("promisc", ("promisc",)),
    ("allmulti", ("allmulti",)),
    ("state", ("up",)),
)
UDEV_FOLLOWS: Final = 5.0
"""Seconds. How long udevd may take to run its rules for a rename before we look without it."""
LINK_FIELDS: Final = tuple(name for _, names in LINK_PARTS for name in names)
TOGETHER: Final = (("vlan", "qos", "vlan_proto"), ("min_tx_rate", "max_tx_rate"))

Failures = list[tuple[Target, str]]
SysfsAction = BindPf | SetAutoprobe | CreateVfs | OverrideDriver | UnbindVf | BindVf


def perform(node: Node, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Perform all stages; a line for each action that failed and each thing that never came.

    Raises Stopped between two stages, or in a wait, when a signal has come: a running action is
    always finished.
    """
    failures: Failures = []
    with node.watches() as watches:
        for stage in stages:
            if node.stop is not None:
                node.stop.drain()
            began = time.monotonic()
            log.debug("stage %s: %d actions", stage.name, len(stage.actions))
            failed = _perform_stage(node, stage, watches, {target for target, _ in failures})
            failures += failed
            elapsed = round(time.monotonic() - began, 3)
            log.info("%s: %s", stage.name, _tally(stage, failed), extra={"elapsed": elapsed})
    return tuple(text for _, text in failures)


def _tally(stage: Stage, failed: Failures) -> str:
    tally = f"{len(stage.actions)} actions"
    return f"{tally}, {len(failed)} FAILED" if failed else tally


def _perform_stage(
    node: Node, stage: Stage, watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    """One stage. `lost` are the targets whose failure is known: nobody waits for them again."""
    writes = [action for action in stage.actions if not isinstance(action, SetVf | SetLink)]
    failures = _write_sysfs(node, writes)
    failures += _await_functions(node, writes, watches)
    vf_actions = [action for action in stage.actions if isinstance(action, SetVf)]
    if vf_actions:
        failures += _await_carrier(node, vf_actions, watches)
        failures += _set_vfs(node, vf_actions)
    link_actions = [action for action in stage.actions if isinstance(action, SetLink)]
    if link_actions:
        failures += _set_links(node, link_actions, watches, lost)
    return failures


# sysfs: devices, functions, drivers


def _write_sysfs(node: Node, actions: Sequence[SysfsAction]) -> Failures:
    jobs = [_job(node, action) for action in actions]
    results = parallel.run_all(jobs, timeout=node.settings.vf_timeout, threads=THREADS)
    return [
        (_target(action), f"{target_name(_target(action))}: {result.message}")
        for action, result in zip(actions, results, strict=True)
        if result is not None
    ]


def _target(action: Action) -> Target:
    return action.pf, getattr(action, "index", None)


def _job(node: Node, action: SysfsAction) -> Callable[[], None]:
    """The write that ensures `action`, to be run in a thread."""
    match action:
        case BindPf():
            return lambda: _bind_pf(node, action)
        case SetAutoprobe():
            return lambda: _set_autoprobe(node, action)
        case CreateVfs():
            return lambda: _create_vfs(node, action)
        case OverrideDriver():
            return lambda: _override_driver(node, action)
        case UnbindVf():
            return lambda: _unbind_vf(node, action)
        case BindVf():
            return lambda: _bind_vf(node, action)


def _bind_pf(node: Node, action: BindPf) -> None:
    bus, name = action.pf.bus, action.pf.name
    if not node.sysfs.exists(bus, name):
        raise KernelError("there is no such device any more")
    if node.sysfs.driver(bus, name) == NO_DRIVER:
        node.sysfs.probe(bus, name)
    now = node.sysfs.driver(bus, name)
    if now != action.driver:
        raise KernelError(f"is bound to {now}, not to {action.driver}")


def _set_autoprobe(node: Node, action: SetAutoprobe) -> None:
    bus, name = action.pf.bus, action.pf.name
    if node.sysfs.autoprobe(bus, name) != action.on:
        node.sysfs.set_autoprobe(bus, name, action.on)


def _create_vfs(node: Node, action: CreateVfs) -> None:
    bus, name = action.pf.bus, action.pf.name
    if node.sysfs.numvfs(bus, name) != action.count:
        node.sysfs.set_numvfs(bus, name, action.count)
    now = node.sysfs.numvfs(bus, name)
    if now != action.count:
        raise KernelError(f"the kernel took numvfs {action.count} and reports {now}")


def _override_driver(node: Node, action: OverrideDriver) -> None:
    function = _function(node, action.pf, action.index)
    if node.sysfs.driver_override(action.pf.bus, function) != action.driver:
        node.sysfs.set_driver_override(action.pf.bus, function, action.driver)


def _unbind_vf(node: Node, action: UnbindVf) -> None:
    function = _function(node, action.pf, action.index)
    now = node.sysfs.driver(action.pf.bus, function)
    if now == action.driver:
        node.sysfs.unbind(action.pf.bus, function, now)
    elif now != NO_DRIVER:
        raise KernelError(f"is bound to {now} by now, not to {action.driver}: left alone")


def _bind_vf(node: Node, action: BindVf) -> None:
    bus, function = action.pf.bus, _function(node, action.pf, action.index)
    now = node.sysfs.driver(bus, function)
    if now == NO_DRIVER and action.override:
        node.sysfs.probe(bus, function)
    elif now == NO_DRIVER:
        node.sysfs.bind(bus, function, action.driver)
    now = node.sysfs.driver(bus, function)
    if now != action.driver:
        raise KernelError(f"the bind of {function} to {action.driver} left it bound to {now}")


def _function(node: Node, pf: DeviceHandle, index: int) -> str:
    """The VF's device, proven to be a VF of this PF by its physfn link (FIELD.md, no. 31)."""
    function = node.sysfs.function(pf.bus, pf.name, index)
    if function is None:
        raise KernelError("has no function that points back to its PF")
    return function


def _await_functions(
    node: Node, actions: Sequence[SysfsAction], watches: tuple[Watch, ...]
) -> Failures:
    """Where VFs were created: wait until every function is there (some drivers are late)."""
    created = [
        a for a in actions if isinstance(a, CreateVfs) and node.sysfs.has_functions(a.pf.bus)
    ]
    targets: list[Target] = [(a.pf, index) for a in created for index in range(a.count)]

    def missing(target: Target) -> str | None:
        return None if node.device_of(target) is not None else target_name(target)

    timeout = node.settings.vf_timeout
    try:
        wait_until_clear(
            outstanding(targets, missing), *watches, what="VFs to appear", timeout=timeout
        )
    except WaitTimeout as late:
        return _timed_out(late, targets, missing)
    return []


def _timed_out(
    late: WaitTimeout, targets: Iterable[Target], why: Callable[[Target], str | None]
) -> Failures:
    """A line for each target that is still missing, with the wait that gave up on it."""
    named = ((target, why(target)) for target in targets)
    return [
        (target, f"{text} after {late.seconds:g} s") for target, text in named if text is not None
    ]


# rtnetlink: what the PF holds for its VFs


def _await_carrier(node: Node, actions: Sequence[SetVf], watches: tuple[Watch, ...]) -> Failures:
    """igb computes a rate from the link's speed: it takes one only while the PF has carrier."""
    targets: list[Target] = sorted(
        {(a.pf, None) for a in actions if a.min_tx_rate or a.max_tx_rate}, key=str
    )

    def without_carrier() -> list[Target]:
        """All PFs in one dump: a look costs the same however many they are."""
        devices = node.links_by_device() if targets else {}
        links = [(target, node.link_of(target, devices)) for target in targets]
        return [target for target, link in links if link is None or not link.carrier]

    timeout = node.settings.pf_timeout
    try:
        wait_until_clear(without_carrier, *watches, what="carrier", timeout=timeout)
    except WaitTimeout as late:
        text = f"no carrier, for its VFs' rates, after {late.seconds:g} s"
        return [(target, f"{target_name(target)}: {text}") for target in without_carrier()]
    return []


def _set_vfs(node: Node, actions: Sequence[SetVf]) -> Failures:
    devices = node.links_by_device()
    changes: list[tuple[Target, Change]] = []
    failures: Failures = []
    for pf in sorted({action.pf for action in actions}):
        link = node.link_of((pf, None), devices)
        if link is None:
            failures.append(((pf, None), f"{pf}: has no interface to set its VFs through"))
            continue
        have = {info.index: info for info in node.rtnl.vfs(link.index)}
        for action in actions:
            if action.pf == pf:
                change = _vf_change(action, link, have.get(action.index))
                changes += [((pf, action.index), change)] if change is not None else []
    return failures + _send(node, changes, VF_PARTS, _vf_refusal)


def _vf_change(action: SetVf, link: Link, have: VfInfo | None) -> VfChange | None:
    """What of `action` is not so already; VLAN and rates as a whole. None: nothing."""
    wanted = {
        "mac" if field.name == "admin_mac" else field.name: getattr(action, field.name)
        for field in dataclasses.fields(action)
        if field.name not in {"pf", "index"}
    }
    left = {
        name: value
        for name, value in wanted.items()
        if value is not None and (have is None or getattr(have, name) != value)
    }
    for names in TOGETHER:
        if any(name in left for name in names):
            left.update({name: wanted[name] for name in names})
    return VfChange(link.index, action.index, **left) if left else None


def _vf_refusal(target: Target, part: str, error: OSError) -> str:
    return f"{target_name(target)}: cannot set its {part}: {reason(error)}"


# rtnetlink: the netdevs themselves


def _set_links(
    node: Node, actions: Sequence[SetLink], watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    awaited = [target for target in map(_target, actions) if target not in lost]
    timeout = node.settings.vf_timeout
    failures: Failures = []
    try:
        node.wait_settled(awaited, watches, "network interfaces", timeout)
    except WaitTimeout as late:
        failures = _timed_out(late, awaited, node.unsettled)
    late_ones = {target for target, _ in failures}
    devices = node.links_by_device()
    links = [link for group in devices.values() for link in group]
    changes: list[tuple[Target, Change]] = []
    for action in actions:
        link = node.link_of(_target(action), devices)
        # one that udev may still rename is left alone: once it is up it could not be renamed
        if link is not None and _target(action) not in late_ones:
            changes += [(_target(action), change) for change in _link_changes(action, link)]
    cleared = list(_names_cleared(changes, links))
    new_names = {change.index for _, change in _renames(changes)}
    with _udev_follows(new_names, watches):
        refused = _send(node, cleared + changes, LINK_PARTS, _link_refusal)
        new_names -= {c.index for target, c in _renames(changes) if target in dict(refused)}
    return failures + refused


def _renames(changes: Iterable[tuple[Target, Change]]) -> list[tuple[Target, LinkChange]]:
    return [
        (target, change)
        for target, change in changes
        if isinstance(change, LinkChange) and change.name is not None
    ]


def _names_cleared(
    changes: Iterable[tuple[Target, Change]], links: Sequence[Link]
) -> Iterator[tuple[Target, Change]]:
    """What has to go first where one of our interfaces has a name that another is to get.

    A name that moves on anyway (a swap) makes way by a temporary one, unique by its ifindex. An
    alternative name goes: udevd gives an interface that was renamed its path's name as one
    (AlternativeNamesPolicy), and no two interfaces share a name of either kind (EEXIST). All of it
    goes in the same batch as the renames, so that udevd cannot give it back in between.
    """
    renames = _renames(changes)
    wanted = {change.name: target for target, change in renames}
    moving = {change.index: target for target, change in renames}
    for link in links:
        if link.name in wanted and link.index in moving:
            temporary = f"{TEMPORARY_NAME}{link.index}"
            yield moving[link.index], LinkChange(link.index, name=temporary)
        for altname in link.altnames:
            if altname in wanted:
                yield wanted[altname], AltnameChange(link.index, altname, add=False)


@contextmanager
def _udev_follows(renamed: set[int], watches: tuple[Watch, ...]) -> Iterator[None]:
    """After a rename udevd runs its rules for the `move` event, and may add an altname: wait.

    Not for one whose rename was refused: no event comes of it.
    """
    udev_watch = next((watch for watch in watches if isinstance(watch, UdevWatch)), None)
    if udev_watch is None or not renamed:
        yield
        return
    udev_watch.drain()
    udev_watch.finished -= renamed
    yield

    def not_followed() -> Iterator[str]:
        return (f"interface {index}" for index in sorted(renamed - udev_watch.finished))

    try:
        wait_until_clear(not_followed, *watches, what="udev", timeout=UDEV_FOLLOWS)
    except WaitTimeout as late:
        log.debug("udev said nothing of renamed interfaces: %s", late.message)


def _link_changes(action: SetLink, link: Link) -> Iterator[Change]:
    """What of `action` is not so already; names first, because a name may be another's altname."""
    if action.altnames is not None:
        gone = set(link.altnames) - set(action.altnames)
        yield from (AltnameChange(link.index, name, add=False) for name in sorted(gone))
    left: dict[str, Any] = {
        name: getattr(action, name)
        for name in LINK_FIELDS
        if getattr(action, name) is not None and getattr(action, name) != getattr(link, name)
    }
    if left:
        yield LinkChange(link.index, **left)
    if action.altnames is not None:
        new = set(action.altnames) - set(link.altnames)
        yield from (AltnameChange(link.index, name, add=True) for name in sorted(new))


def _link_refusal(target: Target, part: str, error: OSError) -> str:
    hint = "; another interface has that name" if error.errno == errno.EEXIST else ""
    return f"{target_name(target)}: cannot set its {part}: {reason(error)}{hint}"


# sending: in one batch, and what was refused once more in parts


def _send(
    node: Node,
    changes: Sequence[tuple[Target, Change]],
    parts: Sequence[tuple[str, tuple[str, ...]]],
    refusal: Callable[[Target, str, OSError], str],
) -> Failures:
    """Send all changes; a refused one again part by part, to do what can be done and name the rest.

    The kernel ends a message at the first attribute it refuses.
    """
    refused = [
        (target, change)
        for (target, change), error in zip(
            changes, node.rtnl.change([change for _, change in changes]), strict=True
        )
        if error is not None
    ]
    single = [
        (target, name, part) for target, change in refused for name, part in _parts(change, parts)
    ]
    results = node.rtnl.change([part for _, _, part in single])
    return [
        (target, refusal(target, name, error))
        for (target, name, _), error in zip(single, results, strict=True)
        if error is not None
    ]


def _parts(
    change: Change, parts: Sequence[tuple[str, tuple[str, ...]]]
) -> Iterator[tuple[str, Change]]:
    if isinstance(change, AltnameChange):
        yield f"altname {change.altname}", change
        return
    every = {name for _, names in parts for name in names}
    for label, names in parts:
        if any(getattr(change, name) is not None for name in names):
            others: dict[str, Any] = dict.fromkeys(every - set(names))
            yield label, dataclasses.replace(change, **others)
