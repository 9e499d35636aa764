"""What is tuned of functions: which values differ, which a driver lacks, and the commands.

A value is compared only if the function has it, or is made anew and not known yet. Of one that is
made anew those are set that a driver does not start with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from nodeagent.plan.actions import SetTuning
from nodeagent.plan.stages import StageName
from nodeagent.state import files
from nodeagent.state.files import file_of, writes
from nodeagent.state.model import NodeState, Pf, Vf
from nodeagent.state.tuning import WHILE_UNBOUND, Kind, Tuned, Value, kind

_STAGES: Final = {
    Kind.MSIX: StageName.FUNCTIONS,
    Kind.FUNCTION: StageName.FUNCTIONS,
    Kind.REPORTER: StageName.REPORTERS,
    Kind.PORT_REPORTER: StageName.REPORTERS,
}

_OFF: Final = ("migratable", "ipsec_crypto", "ipsec_packet")

_FRESH: Final[Mapping[str, Collection[Value]]] = {
    **dict.fromkeys(("auto_recover", "auto_dump", "function.roce"), (True,)),
    **dict.fromkeys((f"function.{word}" for word in _OFF), (False,)),
    **dict.fromkeys(("port-reporter.tx.grace_period", "port-reporter.rx.grace_period"), (500,)),
    "reporter.fw_fatal.grace_period": (60000, 30000),
}
"""What functions start with, by name or its last word (devl_health_reporter_create(),
net/devlink/health.c; mlx5: en/reporter_{tx,rx}.c, health.c for PF and VF). Others are not known."""


def stage_of(name: str) -> StageName:
    """The stage in which a value of this name is set."""
    file = file_of(name.partition(".")[2]) if kind(name) is Kind.FILE else None
    if file is not None:
        return StageName.VFS if file.place == files.VF else StageName.REPORTERS
    return _STAGES[kind(name)]


def differing(want: Pf | Vf, have: Pf | Vf) -> Iterator[tuple[Tuned, Value | None]]:
    """Each value that is not as wanted, with the present one; None where nobody knows that."""
    known = dict(have.tuning or ())
    for name, value in want.tuning or ():
        if have.tuning is None:
            if not is_fresh(name, value):
                yield (name, value), None
        elif known.get(name, value) != value:
            yield (name, value), known[name]


def is_fresh(name: str, value: Value) -> bool:
    """Whether a function that is made anew is known to have it."""
    if kind(name) is Kind.FILE and (file := file_of(name.partition(".")[2])) is not None:
        return value == file.fresh
    return value in _FRESH.get(name, _FRESH.get(name.rpartition(".")[2], ()))


def must_unbind(want: Vf, have: Vf) -> bool:
    """Whether a value is not as wanted that is set only while the VF has no driver."""
    return any(kind(name) in WHILE_UNBOUND for (name, _), _ in differing(want, have))


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each value that was set, and that a driver does not have any more."""
    for on, was in want.functions():
        now = have.function(on)
        if now is None or now.tuning is None:
            continue
        offered = {name for name, _ in now.tuning}
        for name, value in was.tuning or ():
            if name not in offered and not is_fresh(name, value):
                yield f"{on} {name} {value}"


def set_by_hand(owner: Pf | Vf) -> Iterator[str]:
    """The names of those that a function may have lost when its driver makes it anew."""
    return (name for name, value in owner.tuning or () if not is_fresh(name, value))


def by_stage(
    owner: Pf | Vf, names: Collection[str]
) -> Iterator[tuple[StageName, tuple[Tuned, ...]]]:
    """The values of these names, by the stage in which they are set."""
    for stage in (StageName.VFS, StageName.FUNCTIONS, StageName.REPORTERS):
        values = tuple(
            (name, value)
            for name, value in owner.tuning or ()
            if name in names and stage_of(name) is stage
        )
        if values:
            yield stage, values


def commands(action: SetTuning, own: str, representor: str) -> Iterator[str]:
    """Lines for a root shell; `own` and `representor` are the function's interfaces."""
    device = action.pf.with_name(action.address)
    for name, value in action.values:
        words = name.partition(".")[2]
        reporter, _, word = words.rpartition(".")
        match kind(name):
            case Kind.MSIX:
                directory = f"/sys/bus/{device.bus}/devices/{device.name}"
                yield f"echo {value} > {directory}/sriov_vf_msix_count"
            case Kind.FUNCTION:
                state = ("disable", "enable")[value] if isinstance(value, bool) else value
                yield f"devlink port function set {_port(representor)} {word} {state}"
            case Kind.REPORTER | Kind.PORT_REPORTER:
                where = device if kind(name) is Kind.REPORTER else _port(own)
                yield f"devlink health set {where} reporter {reporter} {word} {str(value).lower()}"
            case Kind.FILE:
                path = f"{_place(action, words, own)}/{words}"
                yield from (f"echo {text} | tee {path}" for text in _texts(words, str(value)))


def _place(action: SetTuning, name: str, own: str) -> str:
    """The directory of a file; with a wildcard, which tee(1) is for."""
    file, devices = file_of(name), f"/sys/bus/{action.pf.bus}/devices"
    match None if file is None else file.place:
        case files.VF:
            return f"{devices}/{action.pf.name}/sriov/{action.index}"
        case files.INTERFACE:
            return f"/sys/class/net/{own}"
        case place:
            return f"{devices}/{action.address}/{place}"


def _texts(name: str, value: str) -> Iterator[str]:
    """Which VLANs a trunk has at present is not known to a line: all go."""
    if name == "trunk":
        yield from writes(name, "", "0-4095")
    yield from writes(name, value, "")


def _port(interface: str) -> str:
    """devlink(8) of iproute2 6.1 hangs if it sets a reporter of an interface by its name."""
    return f"$(devlink port show {interface} | sed 's/: .*//;q')"
