"""Files in sysfs by which a driver sets what no other interface has, mostly DOCA-OFED's mlx5_core.

One row a kind of file; everything else reads the rows. Which of them there are depends on version,
card and mode. `roce_enable` is not among them: it is devlink's parameter enable_roce.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.state.checks import within


@dataclass(frozen=True)
class File:
    """`place` is below the function's directory, or that of a VF's PF, which has the VF's index.

    `name` is what a snapshot calls it, and its path from there. `says` finds the value in what a
    read gives; where it finds none the value is `unset`. `fresh` is what a new function has, None
    where that is not known.
    """

    place: str
    name: str
    says: str = r"\S+"
    unset: str | None = None
    fresh: str | None = None
    before_bind: bool = False


VF: Final = "sriov/{vf}"
INTERFACE: Final = "net/*"
RDMA: Final = "infiniband/*"
CLOCK: Final = "ptp/*"
_VALUE: Final = re.compile(r"-1|\w*|\d{1,4}(-\d{1,4})?( \d{1,4}(-\d{1,4})?)*")

FILES: Final = (
    # VGT+: "Allowed 802.1Q VLANs: 2 3 4", nothing for none
    File(VF, "trunk", r"(?<=VLANs:)[ \d]+", unset="", fresh="", before_bind=True),
    File(VF, "group", r"\d+", fresh="0", before_bind=True),
    File(VF, "page_limit", r"\d+", fresh="0", before_bind=True),
    File(VF, r"meters/[rt]x/[bp]ps/(rate|burst)", r"\d+", fresh="0", before_bind=True),
    File(INTERFACE, "settings/hfunc", r"(?<=Operational hfunc: )\w+", fresh="toeplitz"),
    File(INTERFACE, "settings/pfc_stall_prevention", fresh="default"),
    File(INTERFACE, "settings/force_local_lb_disable", r"ON|OFF", fresh="OFF"),
    File(INTERFACE, r"ecn/roce_[nr]p/(enable/)?\w+", r"\d+"),
    # "Global tclass=106", nothing for none; rules by address follow, and are not read
    File(RDMA, r"tc/\d/traffic_class", r"(?<=Global tclass=)\d+", unset="-1", fresh="-1"),
    # of any driver: function and channel (drivers/ptp/ptp_sysfs.c)
    File(CLOCK, r"pins/\w+", r"\d+ \d+", fresh="0 0"),
)


def file_of(name: str) -> File | None:
    """The row of a name; None for what no file of these is called."""
    return next((each for each in FILES if re.fullmatch(each.name, name)), None)


def check_file(name: str, value: object) -> None:
    """ValueError for what no such file can hold."""
    if file_of(name) is None or not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"{name!r} {value!r} is no file that is set, with a value of it")
    if name == "trunk":
        for vlan in _vlans(value):
            within(0, 4095)("VLAN", vlan)


def value_of(file: File, text: str) -> str | None:
    """What a read has given, as a value: of a trunk its VLANs, ascending, as `2-4 10`."""
    found = re.search(file.says, text)
    if found is None:
        return file.unset
    return _ranges(found.group()) if file.name == "trunk" else found.group()


def writes(name: str, wanted: str, now: str) -> Iterator[str]:
    """What is written into a file to change its value, one write each."""
    if name != "trunk":
        yield {"ON": "1", "OFF": "0"}.get(wanted, wanted)
        return
    for verb, (some, others) in {"rem": (now, wanted), "add": (wanted, now)}.items():
        yield from (f"{verb} {r.replace('-', ' ')}" for r in _spans(_vlans(some) - _vlans(others)))


def _ranges(text: str) -> str:
    pairs = (each.split("-") for each in _spans(set(map(int, text.split()))))
    return " ".join(first if first == last else f"{first}-{last}" for first, last in pairs)


def _vlans(ranges: str) -> set[int]:
    spans = (each.split("-") for each in ranges.split())
    return {vlan for span in spans for vlan in range(int(span[0]), int(span[-1]) + 1)}


def _spans(vlans: set[int]) -> Iterator[str]:
    """`2-4` for 2, 3 and 4; `10-10` for 10."""
    for _, run in itertools.groupby(enumerate(sorted(vlans)), lambda pair: pair[1] - pair[0]):
        found = [vlan for _, vlan in run]
        yield f"{found[0]}-{found[-1]}"
