"""Set what PFs hold for their VFs, and the interfaces themselves, over netlink.

The present values are read first: one request per PF, one dump for all interfaces. What differs is
sent in batches, by ifindex, which is not affected by renames.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from nodeagent.errors import KernelError, WaitTimeout, reason
from nodeagent.kernel import vf_guids
from nodeagent.kernel.events import UdevWatch, Watch, wait_until_clear
from nodeagent.kernel.rtnl import AltnameChange, Change, Link, LinkChange, VfChange, VfInfo
from nodeagent.node import retry
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import LinksByDevice, ifindex_of, is_bound, link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.node.settle import await_netdevs
from nodeagent.plan.actions import SetLink, SetVf
from nodeagent.plan.plan import TEMPORARY_NAME
from nodeagent.state.attributes import changed, given, only, parts
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import Target
from nodeagent.state.vf import VfAttributes

log = logging.getLogger(__name__)

UDEV_RENAME_TIMEOUT: Final = 5.0
"""Seconds for udevd to run its rules after a rename; then the restore continues."""


def set_vfs(attempt: Attempt, actions: Sequence[SetVf], watches: tuple[Watch, ...]) -> Failures:
    """Set what PFs hold for their VFs. A rate that is refused without carrier is set again with it.

    igb computes a rate from the link's speed, and returns EINVAL while there is no carrier; mlx5
    needs none. It is therefore waited for only after a refusal.
    """
    failures = _set_vfs(attempt, actions)
    refused = {target for target, _ in failures}
    again = [a for a in actions if (a.pf, a.index) in refused and (a.min_tx_rate or a.max_tx_rate)]
    if not again or not _without_carrier(attempt.node, again):
        return failures
    late = _await_carrier(attempt.node, again, watches)
    retried = {(a.pf, a.index) for a in again}
    kept = [failure for failure in failures if failure[0] not in retried]
    return kept + late + _set_vfs(attempt, again)


def _without_carrier(node: Node, actions: Sequence[SetVf]) -> list[Target]:
    """The PFs of these actions that have no carrier; one dump for all of them."""
    devices = links_by_device(node)
    targets = sorted({Target(a.pf) for a in actions}, key=str)
    links = [(target, link_of(node, target, devices)) for target in targets]
    return [target for target, link in links if link is None or not link.carrier]


def _await_carrier(node: Node, actions: Sequence[SetVf], watches: tuple[Watch, ...]) -> Failures:
    def without() -> list[Target]:
        return _without_carrier(node, actions)

    try:
        wait_until_clear(without, *watches, what="carrier", timeout=node.settings.pf_timeout)
    except WaitTimeout as late:
        text = f"no carrier, for its VFs' rates, after {late.seconds:g} s"
        return [(target, f"{target}: {text}") for target in without()]
    return []


def _set_vfs(attempt: Attempt, actions: Sequence[SetVf]) -> Failures:
    changes: list[tuple[Target, Change]] = []
    failures: Failures = []
    for pf in sorted({action.pf for action in actions}):
        index = ifindex_of(attempt.node, Target(pf))
        if index is None:
            failures += _set_guids(attempt.node, [each for each in actions if each.pf == pf])
            continue
        try:
            have = {info.index: info for info in attempt.node.rtnl.vfs(index)}
        except KernelError as error:
            failures.append((Target(pf), f"{pf}: {error.message}"))
            continue
        for action in actions:
            if action.pf == pf:
                change = _vf_change(action, index, have.get(action.index))
                changes += [(Target(pf, action.index), change)] if change is not None else []
    return failures + _send(attempt, changes, _vf_refusal)


def _set_guids(node: Node, actions: Sequence[SetVf]) -> Failures:
    """Set what a PF without an interface holds for its VFs."""
    failures: Failures = []
    device = node.sysfs.device(*actions[0].pf)
    have = vf_guids.read(device)
    for action in actions:
        target = Target(action.pf, action.index)
        now = have.get(action.index)
        if now is None:
            text = f"{action.pf}: has no interface through which to set its VFs"
            return [*failures, (Target(action.pf), text)]
        try:
            vf_guids.set_vf(device, action.index, changed(VfAttributes, action, now))
        except KernelError as error:
            failures.append((target, f"{target}: {error.message}"))
    return failures


def _vf_change(action: SetVf, index: int, have: VfInfo | None) -> VfChange | None:
    """The part of `action` that differs from `have`, VLAN and rates as a whole; None if none."""
    left = given(changed(VfAttributes, action, have or VfAttributes()))
    return VfChange(index, action.index, **left) if left else None


def _vf_refusal(target: Target, part: str, error: OSError) -> str:
    return f"{target}: cannot set its {part}: {reason(error)}"


def set_links(
    attempt: Attempt, actions: Sequence[SetLink], watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    """Set links after udev has finished with them; `lost`: targets whose failure is known."""
    failures = await_netdevs(attempt, list(map(target_of, actions)), watches, lost)
    return failures + change_links(attempt, actions, watches)


def change_links(
    attempt: Attempt, actions: Sequence[SetLink], watches: tuple[Watch, ...] = ()
) -> Failures:
    """Set what differs on the interfaces that exist.

    Names are set first: udevd may add an altname after a rename, which is not wanted.
    """
    devices = links_by_device(attempt.node)
    refused: Failures = []
    if _renames(attempt, actions, devices):
        refused = _give_names(attempt, actions, devices, watches)
        devices = links_by_device(attempt.node)
    changes = _all_changes(attempt, actions, devices)
    # an altname may move from one of ours to another
    changes.sort(key=lambda pair: not (isinstance(pair[1], AltnameChange) and not pair[1].add))
    failures = _send(attempt, changes, _link_refusal)
    if failures:
        # if udevd adds the same altname at the same moment, ours is refused and exists nevertheless
        right = _right_by_now(attempt, actions)
        failures = [failure for failure in failures if failure[0] not in right]
    return refused + failures


def _right_by_now(attempt: Attempt, actions: Sequence[SetLink]) -> set[Target]:
    """The targets whose interface exists and differs in nothing except perhaps its name."""
    devices = links_by_device(attempt.node)
    wrong = {target for target, _ in _all_changes(attempt, actions, devices)}
    there = {target_of(each) for each in actions if _link_to_change(attempt, each, devices)}
    return there - wrong


def _all_changes(
    attempt: Attempt, actions: Sequence[SetLink], devices: LinksByDevice
) -> list[tuple[Target, Change]]:
    """Changes for everything that differs, except names."""
    changes: list[tuple[Target, Change]] = []
    for action in actions:
        link = _link_to_change(attempt, action, devices)
        if link is not None:
            unnamed = dataclasses.replace(action, name=None)
            changes += [(target_of(action), change) for change in link_changes(unnamed, link)]
    return changes


def _link_to_change(attempt: Attempt, action: SetLink, devices: LinksByDevice) -> Link | None:
    """The link; None if udev may still rename it, which would fail after it was set up."""
    target = target_of(action)
    return None if target in attempt.given_up else link_of(attempt.node, target, devices)


def _renames(
    attempt: Attempt, actions: Sequence[SetLink], devices: LinksByDevice
) -> list[tuple[Target, LinkChange]]:
    """Changes for the interfaces that have another name than wanted."""
    return [
        (target_of(action), LinkChange(link.index, name=action.name))
        for action in actions
        if (link := _link_to_change(attempt, action, devices)) is not None
        and action.name not in {None, link.name}
    ]


def _give_names(
    attempt: Attempt, actions: Sequence[SetLink], devices: LinksByDevice, watches: tuple[Watch, ...]
) -> Failures:
    """Rename, up to three times.

    After an interface was renamed to free its name, udevd may add its path-based name again, as an
    altname, and that may be the name for another interface.
    """
    for again in (True, True, False):
        renames = _renames(attempt, actions, devices)
        links = [link for group in devices.values() for link in group]
        changes = [*_names_cleared(renames, links), *renames]
        with _udev_follows({change.index for _, change in renames}, watches) as awaited:
            results = retry.send(
                attempt.node, [change for _, change in changes], attempt.node.rtnl.change
            )
            errors = dict(zip(changes, results, strict=True))
            for target, change in renames:
                if errors[target, change] is None:
                    _note(attempt, target, change)
            refused = [(pair, error) for pair in renames if (error := errors[pair]) is not None]
            awaited -= {change.index for (_, change), _ in refused}
        if not (again and any(error.errno == errno.EEXIST for _, error in refused)):
            break
        devices = links_by_device(attempt.node)
    return [(target, _link_refusal(target, "name", error)) for (target, _), error in refused]


def _names_cleared(
    renames: Iterable[tuple[Target, LinkChange]], links: Sequence[Link]
) -> Iterator[tuple[Target, Change]]:
    """Changes to send first, to free names that other interfaces of ours get.

    An interface that is renamed anyway (a swap) gets a temporary name, unique by its ifindex. An
    altname is deleted: udevd adds the path-based name of a renamed interface as one
    (AlternativeNamesPolicy), and two interfaces cannot share a name of either kind (EEXIST).
    """
    wanted = {change.name: target for target, change in renames}
    moving = {change.index: target for target, change in renames}
    for link in links:
        if link.name in wanted and link.index in moving:
            temporary = f"{TEMPORARY_NAME}{link.index}"
            yield moving[link.index], LinkChange(link.index, name=temporary)
        for altname in link.altnames or ():
            if altname in wanted:
                yield wanted[altname], AltnameChange(link.index, altname, add=False)


@contextmanager
def _udev_follows(renamed: set[int], watches: tuple[Watch, ...]) -> Iterator[set[int]]:
    """After the block, wait until udevd has run its rules for `move` events of these interfaces.

    The rules may add an altname. A refused rename makes no event: the block removes its interface
    from the set that it is given.
    """
    awaited = set(renamed)
    udev_watch = next((watch for watch in watches if isinstance(watch, UdevWatch)), None)
    if udev_watch is None:
        yield awaited
        return
    udev_watch.drain()
    udev_watch.finished -= renamed
    yield awaited

    def not_followed() -> Iterator[str]:
        return (f"interface {index}" for index in sorted(awaited - udev_watch.finished))

    try:
        wait_until_clear(not_followed, *watches, what="udev", timeout=UDEV_RENAME_TIMEOUT)
    except WaitTimeout as late:
        log.debug("udev has sent no event for renamed interfaces: %s", late.message)


def link_changes(want: LinkAttributes, link: Link) -> Iterator[Change]:
    """Changes for what differs; altnames are deleted first, because one may be the new name."""
    now = set(link.altnames or ())
    wanted = now if want.altnames is None else set(want.altnames)
    yield from (AltnameChange(link.index, name, add=False) for name in sorted(now - wanted))
    left = dataclasses.replace(changed(LinkAttributes, want, link), altnames=None)
    if values := given(left):
        yield LinkChange(link.index, **values)
    yield from (AltnameChange(link.index, name, add=True) for name in sorted(wanted - now))


def _link_refusal(target: Target, part: str, error: OSError) -> str:
    hint = "; another interface has that name" if error.errno == errno.EEXIST else ""
    return f"{target}: cannot set its {part}: {reason(error)}{hint}"


def _send(
    attempt: Attempt,
    changes: Sequence[tuple[Target, Change]],
    refusal: Callable[[Target, str, OSError], str],
) -> Failures:
    """Send all changes. A refused one is sent again part by part, to set what is not refused.

    The kernel ends a message at the first attribute that it refuses. What it accepts is noted.
    """
    refused = []
    results = retry.send(attempt.node, [change for _, change in changes], attempt.node.rtnl.change)
    for (target, change), error in zip(changes, results, strict=True):
        if error is None:
            _note(attempt, target, change)
        else:
            refused.append((target, change))
    single = [(target, name, part) for target, change in refused for name, part in _parts(change)]
    results = attempt.node.rtnl.change([part for _, _, part in single])
    for (target, _, part), error in zip(single, results, strict=True):
        if error is None:
            _note(attempt, target, part)
    return [
        (target, refusal(target, name, error))
        for (target, name, _), error in zip(single, results, strict=True)
        if error is not None
    ]


def _note(attempt: Attempt, target: Target, change: Change) -> None:
    """Note what was set, by the names of `nodeagent.plan.comparison`."""
    if isinstance(change, LinkChange | VfChange):
        # a VF without a driver cannot be taken
        is_racing = isinstance(change, VfChange) and is_bound(attempt.node, target)
        for name, value in given(change).items():
            attempt.conflicts.note_sent(str(target), name, value)
            if is_racing:
                attempt.takings.wrote(target, name, value)


def _parts(change: Change) -> Iterator[tuple[str, Change]]:
    if isinstance(change, AltnameChange):
        yield f"altname {change.altname}", change
    elif isinstance(change, LinkChange | VfChange):
        values = given(change)
        for part, names in parts(type(change)).items():
            if any(name in values for name in names):
                yield part, only(change, names)
