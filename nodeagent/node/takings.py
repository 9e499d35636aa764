"""VFs that are taken while a restore runs: found right before each batch of writes, and left alone.

`nodeagent.plan.taken` compares two states of the whole node. In between, each VF is looked at again
right before it is written to: sysfs has its driver, and shows whether its interface is in the
host's namespace. Other namespaces are searched only for VFs whose interface is not.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nodeagent.kernel import rooms
from nodeagent.kernel.events import LinkWatch, Watch
from nodeagent.node.cni import Record
from nodeagent.node.failures import target_of
from nodeagent.node.locate import device_of, ifindex_of, ifindex_on, users_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import (
    Action,
    CreateVfs,
    SetDriverinit,
    SetEswitch,
    SetRates,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.plan.taken import (
    Taken,
    attainable,
    given_back,
    is_anothers_driver,
    spared_rates,
    taken,
    without,
)
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Target, Vf
from nodeagent.state.rates import vf_of

log = logging.getLogger(__name__)

NO_STATE: Final = NodeState("none")
AFFECT_ALL_VFS: Final = (CreateVfs, SetDriverinit, SetEswitch)
"""Actions that remove or rebind all VFs of a PF, if they are the PF's own."""


class Takings:
    """The VFs that were taken during one restore.

    A VF that was found taken counts as taken to the end of the restore, even if its taker returns
    it: it has the taker's settings then.
    """

    def __init__(self, want: NodeState = NO_STATE) -> None:
        self.found: dict[Target, Taken] = {}
        self._own = want.driver
        self._want: dict[Target, Vf] = dict(want.vfs())
        self._places = {target: want.namespace_of(vf) for target, vf in want.vfs()}
        self._written: dict[Target, dict[str, object]] = {}
        self._at_home: set[Target] = set()
        self._looked: dict[Target, int] = {}

    def look(self, want: NodeState, have: NodeState) -> tuple[NodeState, NodeState]:
        """The part of `want` that is still ours to restore, and the part of that which can be."""
        for each in taken(want, have):
            self._note(each)
        ours = without(want, self.found)
        return ours, attainable(ours, have, self.found)

    def _note(self, each: Taken) -> None:
        if each.target not in self.found:
            self.found[each.target] = each
            log.warning("%s", each)

    def wrote(self, target: Target, name: str, value: object) -> None:
        """Note that we have set an attribute of a VF that may be taken at the same time."""
        if isinstance(target.port, int):
            self._written.setdefault(target, {})[name] = value

    def given_back(self, have: NodeState, records: Mapping[str, Record]) -> tuple[SetVf, ...]:
        """Actions that set attributes again which we have overwritten, by the takers' records."""
        actions = []
        for target in self.found.keys() & self._written.keys():
            now = have.vf(target)
            written = self._written.pop(target)
            if now is None or now.address is None:
                continue
            record = records.get(now.address)
            given = None if record is None else record.given
            action, unknown = given_back(target, written, given, now)
            if action is not None:
                actions.append(action)
                log.warning("%s: set again to the values of its new user: %s", target, action)
            if unknown:
                names = ", ".join(unknown)
                text = (
                    "%s: set while it was being taken; its new user's values are not on record: %s"
                )
                log.warning(text, target, names)
        return tuple(actions)

    def has(self, target: Target) -> bool:
        """Whether a VF was found taken."""
        return target in self.found

    # Between two observations of the node

    def spared(self, node: Node, stage: Stage) -> Stage:
        """The stage without what would change a taken VF."""
        touched = {target for action in stage.actions for target in self._touched(action)}
        self._look_at(node, touched)
        if not touched & self.found.keys():
            return stage
        kept = (self._spared(action) for action in stage.actions)
        return replace(stage, actions=tuple(each for each in kept if each is not None))

    def _spared(self, action: Action) -> Action | None:
        """The part of an action that changes no taken VF, or None."""
        if isinstance(action, SetRates):
            rates = spared_rates(action.pf, action.rates, self.found)
            return replace(action, rates=rates) if rates else None
        return None if self.found.keys() & set(self._touched(action)) else action

    def _touched(self, action: Action) -> Sequence[Target]:
        if isinstance(action, SetRates):
            vfs = (vf_of(action.pf.bus, rate) for rate in action.rates)
            return [Target(action.pf, vf) for vf in vfs if vf is not None]
        target = target_of(action)
        if isinstance(target.port, int):
            return (target,)
        if isinstance(action, AFFECT_ALL_VFS):
            return [each for each in self._want if each.pf == action.pf]
        return ()

    def is_taken(self, node: Node, target: Target, watches: Iterable[Watch]) -> bool:
        """Whether a VF that is waited for was taken.

        Other namespaces are searched again only if an interface has left the host's.
        """
        if target not in self._want:
            return False
        left = sum(watch.left for watch in watches if isinstance(watch, LinkWatch))
        if self._looked.get(target) != left:
            self._looked[target] = left
            self._look_at(node, {target})
        return self.has(target)

    def has_left(self, node: Node, action: UnbindVf) -> bool:
        """Whether a VF's interface has left the host's namespace since the last look.

        It is cheap, and may be called in threads.
        """
        target = target_of(action)
        return target in self._at_home and ifindex_of(node, target) is None

    def _look_at(self, node: Node, targets: Collection[Target]) -> None:
        looked = {
            target: device_of(node, target)
            for target in targets
            if target in self._want and target not in self.found
        }
        devices = {device: target for target, device in looked.items() if device is not None}
        drivers = {device: node.sysfs.driver(*device) for device in devices}
        users = users_of(node, drivers)
        away: dict[DeviceHandle, Target] = {}
        for device, target in devices.items():
            driver, vf = drivers[device], self._want[target]
            # a function without a driver has no interface
            is_here = driver != NO_DRIVER and ifindex_on(node, device, target) is not None
            if is_here:
                self._at_home.add(target)
            if is_anothers_driver(driver, vf.driver, self._own):
                self._note(Taken(target, f"bound to {driver}"))
            elif users.get(device) not in {None, vf.used_by}:
                self._note(Taken(target, users[device]))
            elif driver == self._own and not is_here:
                away[device] = target
        if not away:
            return
        for device, (namespace, _) in rooms.locate(node.namespaces, away).items():
            if self._places[away[device]] != namespace:
                self._note(Taken(away[device], f"its interface is in {namespace}"))
