"""Changes by another program during a restore: reported, and undone only once.

An attempt remembers what it has set. If an attribute has another value afterwards, another program
has set it, or the driver has accepted the value and ignored it. The attribute is planned once more,
because the change may have been the other program's last one; the second time the restore fails.
Otherwise two programs might undo each other's work for ever, and each change of the number of VFs
removes every VF of the PF.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from nodeagent.errors import RestoreFailed
from nodeagent.plan.comparison import Difference

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Target and attribute, as `Difference` has them: `pci/0000:01:00.0 vf 3`, `vlan`."""


class Conflicts:
    """The attributes that this attempt has set, and those that were changed afterwards."""

    def __init__(self) -> None:
        self._done: dict[Key, tuple[object, str]] = {}
        self._undone: dict[Key, str] = {}

    def note_sent(self, target: str, attribute: str, value: object) -> None:
        """The kernel has accepted the value."""
        self._done[target, attribute] = value, "nodeagent set it to {}, and now it is {}"

    def note_made(self, target: str, attribute: str, value: object) -> None:
        """The value was set and read back."""
        self._done[target, attribute] = (
            value,
            "nodeagent set it to {}, and another program made it {}",
        )

    def note_found(self, target: str, attribute: str, value: object) -> None:
        """The attribute had the value before."""
        self._done[target, attribute] = value, "it was {}, and another program made it {}"

    def check(
        self, differences: Sequence[Difference], failures: Iterable[str], *, is_last: bool = False
    ) -> None:
        """Check the differences after a plan was performed with these failures.

        Logs attributes that were changed; the second time, or after the last plan, raises
        RestoreFailed with everything that is left.
        """
        undone = {}
        for each in differences:
            key = each.target, each.attribute
            value, text = self._done.get(key, (None, ""))
            if value is not None and value == each.want and each.have != "unknown":
                undone[key] = f"{each.target} {each.attribute}: {text.format(value, each.have)}"
            elif key in self._undone:
                undone[key] = self._undone[key]
        self._done.clear()
        if undone and (self._undone or is_last):
            raise RestoreFailed(
                "restored attributes change again: another program on this node sets them, or "
                "their driver ignores them; nodeagent stops after the second time",
                dict.fromkeys(
                    (*self._undone.values(), *undone.values(), *failures, *map(str, differences))
                ),
                hint="the snapshot stays open: find the program (sriov_numvfs: an SR-IOV "
                "operator's config daemon; else a CNI, a network manager, a udev rule, a script), "
                "stop it, and start again",
            )
        for line in undone.values():
            log.warning("%s: restoring it once more", line)
        self._undone |= undone
