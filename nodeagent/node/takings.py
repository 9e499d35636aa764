"""VFs that are taken while a restore runs: looked for before each batch of writes, and left alone.

`nodeagent.plan.taken` compares two looks at the whole node. Between them, a VF is looked at again
right before it is written to: sysfs has its driver and whether its interface is here. The other
namespaces are searched only for a VF whose interface is not.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nodeagent.kernel import rooms
from nodeagent.kernel.events import LinkWatch, Watch
from nodeagent.node.cni import Record
from nodeagent.node.locate import device_of, ifindex_of, users_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import (
    Action,
    CreateVfs,
    SetEswitch,
    SetRates,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.plan.taken import (
    Owner,
    Taken,
    attainable,
    given_back,
    is_anothers_driver,
    spared_rates,
    taken,
    without,
)
from nodeagent.state.model import DeviceHandle, NodeState, Target, Vf
from nodeagent.state.namespaces import Namespace
from nodeagent.state.rates import vf_of

log = logging.getLogger(__name__)

NOTHING: Final = NodeState("none")
UNDER_ALL_VFS: Final = (CreateVfs, SetEswitch)
"""Actions on a PF that its VFs do not survive, or not without a bind."""


class Takings:
    """The VFs of one restore that are others' by now.

    A VF that was seen to be taken stays its taker's to the end of the restore, also when the taker
    gives it back: what it has then is what the taker left.
    """

    def __init__(self, want: NodeState = NOTHING) -> None:
        self.found: dict[Owner, Taken] = {}
        self._own = want.driver
        self._want: dict[Owner, Vf] = {
            (pf.handle, vf.index): vf for pf in want.pfs for vf in pf.vfs
        }
        self._places: dict[Owner, Namespace] = {
            owner: want.namespace(vf.inside.namespace)
            for owner, vf in self._want.items()
            if vf.inside is not None
        }
        self._written: dict[Owner, dict[str, object]] = {}
        self._at_home: set[Owner] = set()
        self._looked: dict[Owner, int] = {}

    def look(self, want: NodeState, have: NodeState) -> tuple[NodeState, NodeState]:
        """What of `want` is still ours to restore; and what of that can be had."""
        for each in taken(want, have):
            self._note(each)
        ours = without(want, self.found)
        return ours, attainable(ours, have, self.found)

    def _note(self, each: Taken) -> None:
        if each.owner not in self.found:
            self.found[each.owner] = each
            log.warning("%s", each)

    def wrote(self, target: Target, name: str, value: object) -> None:
        """A PF has taken an attribute of a VF from us, while others could have the VF."""
        pf, port = target
        if isinstance(port, int):
            self._written.setdefault((pf, port), {})[name] = value

    def given_back(self, have: NodeState, records: Mapping[str, Record]) -> tuple[SetVf, ...]:
        """What we have set of VFs that were being taken, as the takers' records have it."""
        actions = []
        for owner in self.found.keys() & self._written.keys():
            pf = have.pf(owner[0])
            now = None if pf is None else pf.vf(owner[1])
            written = self._written.pop(owner)
            if now is None or now.address is None:
                continue
            record = records.get(now.address)
            action, unknown = given_back(
                owner, written, None if record is None else record.given, now
            )
            if action is not None:
                actions.append(action)
                log.warning("%s: given back what its taker had set: %s", Target(*owner), action)
            if unknown:
                names = ", ".join(unknown)
                text = "%s: set while it was being taken, and its taker left no record: %s"
                log.warning(text, Target(*owner), names)
        return tuple(actions)

    def has(self, target: Target) -> bool:
        """Whether a VF was seen to be another's."""
        return target in self.found

    # Between two looks at the node

    def spared(self, node: Node, stage: Stage) -> Stage:
        """The stage without what would touch a VF that another has by now."""
        owners = {owner for action in stage.actions for owner in self._touched(action)}
        self._look_at(node, owners)
        if not owners & self.found.keys():
            return stage
        kept = (self._spared(action) for action in stage.actions)
        return replace(stage, actions=tuple(each for each in kept if each is not None))

    def _spared(self, action: Action) -> Action | None:
        """What of an action touches no VF that another has; None where that is nothing."""
        if isinstance(action, SetRates):
            rates = spared_rates(action.pf, action.rates, self.found)
            return replace(action, rates=rates) if rates else None
        return None if self.found.keys() & set(self._touched(action)) else action

    def _touched(self, action: Action) -> Sequence[Owner]:
        if isinstance(action, SetRates):
            vfs = (vf_of(action.pf.bus, rate) for rate in action.rates)
            return [(action.pf, vf) for vf in vfs if vf is not None]
        index = getattr(action, "index", None)
        if isinstance(index, int):
            return ((action.pf, index),)
        if isinstance(action, UNDER_ALL_VFS):
            return [owner for owner in self._want if owner[0] == action.pf]
        return ()

    def is_taken(self, node: Node, target: Target, watches: Iterable[Watch]) -> bool:
        """Whether a VF that is waited for is another's by now.

        Only when an interface has left this namespace are the others searched again.
        """
        pf, port = target
        if not isinstance(port, int) or (pf, port) not in self._want:
            return False
        left = sum(watch.left for watch in watches if isinstance(watch, LinkWatch))
        if self._looked.get((pf, port)) != left:
            self._looked[pf, port] = left
            self._look_at(node, {(pf, port)})
        return self.has(target)

    def has_left(self, node: Node, action: UnbindVf) -> bool:
        """Whether a VF's interface, which was here a moment ago, is not: cheap, and for threads."""
        owner = (action.pf, action.index)
        return owner in self._at_home and ifindex_of(node, Target(*owner)) is None

    def _look_at(self, node: Node, owners: Collection[Owner]) -> None:
        looked = {
            owner: device_of(node, Target(*owner)) for owner in set(owners) & self._want.keys()
        }
        devices = {
            device: owner
            for owner, device in looked.items()
            if device is not None and owner not in self.found
        }
        drivers = {device: node.sysfs.driver(*device) for device in devices}
        users = users_of(node, drivers)
        away: dict[DeviceHandle, Owner] = {}
        for device, owner in devices.items():
            driver, vf = drivers[device], self._want[owner]
            is_here = ifindex_of(node, Target(*owner)) is not None
            if is_here:
                self._at_home.add(owner)
            if is_anothers_driver(driver, vf.driver, self._own):
                self._note(Taken(*owner, f"bound to {driver}"))
            elif users.get(device) not in {None, vf.used_by}:
                self._note(Taken(*owner, users[device]))
            elif driver == self._own and not is_here:
                away[device] = owner
        if not away:
            return
        for device, (namespace, _) in rooms.locate(node.namespaces, away).items():
            owner = away[device]
            if self._places.get(owner) != namespace:
                self._note(Taken(*owner, f"its interface is in {namespace}"))
