"""What another program changes while we restore: noticed, named, and not fought.

An attempt remembers what it has set. If the next look finds another value there, another program
has set that in between, or the driver accepts ours and ignores it; the kernel tells neither. The
attribute is planned once more, because that may have been the other's last change; the second time
the restore fails. Two programs that undo each other's work would do so for ever, and each new
number of VFs kills every VF of the PF.
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
    """What we have set in this attempt, and what of it was undone."""

    def __init__(self) -> None:
        self._done: dict[Key, tuple[object, str]] = {}
        self._undone: dict[Key, str] = {}

    def note_sent(self, target: str, attribute: str, value: object) -> None:
        """The kernel has accepted the value from us."""
        self._done[target, attribute] = value, "we set it to {}, and now it is {}"

    def note_made(self, target: str, attribute: str, value: object) -> None:
        """We have set the value and have read it back."""
        self._done[target, attribute] = value, "we set it to {}, and something else made it {}"

    def note_found(self, target: str, attribute: str, value: object) -> None:
        """The attribute had the value, and we have not touched it."""
        self._done[target, attribute] = value, "it was {}, and something else made it {}"

    def check(
        self, differences: Sequence[Difference], failures: Iterable[str], *, is_last: bool = False
    ) -> None:
        """Look at what differs after a plan was performed, with these failures.

        Logs what was undone; the second time, or after the last plan, raises RestoreFailed with all
        that is left.
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
                "what is restored does not stay: something else on this node changes it, or its "
                "driver ignores it, and is not fought",
                dict.fromkeys(
                    (*self._undone.values(), *undone.values(), *failures, *map(str, differences))
                ),
                hint="the snapshot stays open: find who changes it (sriov_numvfs: an SR-IOV "
                "operator's config daemon; else a CNI, a network manager, a udev rule, a script), "
                "stop it, and start again",
            )
        for line in undone.values():
            log.warning("%s: planned once more, not twice", line)
        self._undone |= undone
