"""What is tuned of a function beside its interface, as pairs of a name and a value.

A name is the kind (`Kind`), a dot, and devlink(8)'s words or a file's name: "function.roce",
"reporter.fw.auto_dump", "file.trunk".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from functools import lru_cache
from typing import Final

from nodeagent.state.checks import U64, check_sorted, within
from nodeagent.state.files import check_file

Value = bool | int | str
Tuned = tuple[str, Value]
"""A name and its value: `("msix", 12)`, `("reporter.tx.auto_recover", False)`."""


class Kind(StrEnum):
    """By what a value is set."""

    MSIX = "msix"
    """How many MSI-X vectors a VF has: sriov_vf_msix_count (drivers/pci/iov.c)."""
    FUNCTION = "function"
    """A VF's port function of devlink, in switchdev mode."""
    REPORTER = "reporter"
    """A health reporter of the function's devlink instance."""
    PORT_REPORTER = "port-reporter"
    """A health reporter of its devlink port, which goes with its interface."""
    FILE = "file"
    """A file in sysfs (`nodeagent.state.files`)."""


WHILE_UNBOUND: Final = frozenset({Kind.MSIX, Kind.FUNCTION})
"""Set while the VF has no driver, which looks at them when it is bound. The kernel refuses another
MSI-X count from then on (EBUSY)."""

_NAME: Final = re.compile(rf"({'|'.join(Kind)})(\.[!-~]{{1,64}})?")


def kind(name: str) -> Kind:
    """Of a value's name."""
    return Kind(name.partition(".")[0])


def check_tuning(what: object, values: Collection[Tuned]) -> None:
    """ValueError for what no function can have."""
    check_sorted(f"{what}: tuning", [name for name, _ in values])
    for name, value in values:
        _check(name, value)


@lru_cache
def _check(name: str, value: Value) -> None:
    """Cached: hundreds of VFs have the same."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is nothing that is tuned")
    if kind(name) is Kind.FILE:
        check_file(name.partition(".")[2], value)
    elif isinstance(value, str):
        raise ValueError(f"{name}: {value!r} is neither a number nor on or off")
    else:
        within(0, U64)(name, value)
