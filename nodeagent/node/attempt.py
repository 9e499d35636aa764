"""One attempt to restore a snapshot: the node, and what the attempt remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

from nodeagent.node.conflicts import Conflicts
from nodeagent.node.node import Node
from nodeagent.node.takings import Takings
from nodeagent.state.model import DeviceHandle, Target


@dataclass(frozen=True, eq=False)
class Attempt:
    """The argument of the performers of a plan; each restore has its own.

    `given_up` has, by target, why a wait for it timed out: the attempt does not wait twice for the
    same reason. `conflicts` has what the attempt has set, `takings` the VFs that were taken
    meanwhile, `made` how often the attempt has created a PF's VFs, `silent` the VFs whose firmware
    does not start (`nodeagent.node.silent`), `without_lag` the PFs whose LAG has not become active,
    `without_rdma` the functions whose RDMA device has not come, which is not waited for again.
    """

    node: Node
    takings: Takings = field(default_factory=Takings)
    given_up: dict[Target, str] = field(default_factory=dict)
    conflicts: Conflicts = field(default_factory=Conflicts)
    made: dict[DeviceHandle, int] = field(default_factory=dict)
    silent: set[Target] = field(default_factory=set)
    without_lag: set[DeviceHandle] = field(default_factory=set)
    without_rdma: set[Target] = field(default_factory=set)

    def note_vfs_made(self, pf: DeviceHandle) -> None:
        """The VFs of a PF are new ones, so that what is known of the old ones is void."""
        self.made[pf] = self.made.get(pf, 0) + 1
        for known in (self.silent, self.without_rdma):
            known.difference_update([target for target in known if target.pf == pf])
