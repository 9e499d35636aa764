"""The differences between two states, attribute by attribute. No other module decides what differs.

`verify` prints the differences, and the plan is made of them: `nodeagent.plan.plan` has an action
for each, so that the plan is empty exactly if nothing differs. The exception is a VF in another
network namespace than wanted: it differs, and stays there, because another pod has it by now
(`Difference.is_anothers`).

None in a state means "not known". What is not known in `want` is not compared. What is known in
`want` and not in `have` differs ("have unknown"), and the plan has an action that ensures it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, auto

from nodeagent.plan import (
    dcb,
    driverinit,
    ethtool,
    lag,
    rates,
    rdma,
    subfunctions,
    sysctls,
    tuning,
    vdpa,
)
from nodeagent.plan.stack import places
from nodeagent.plan.unsettable import settable
from nodeagent.state.attributes import Attributes, differing
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import NO_DRIVER, Netdev, NodeState, Pf, PodNetdev, Target, Vf
from nodeagent.state.roce import port_of
from nodeagent.state.vf import VfAttributes


class Subject(IntEnum):
    """The subject of a difference, in the order of planning (`nodeagent.plan.plan`)."""

    PF = auto()
    """A PF is not bound to the driver."""
    FUNCTIONS = auto()
    """A PF has another number of VFs, or lacks one of them."""
    AUTOPROBE = auto()
    ESWITCH = auto()
    DCB = auto()
    SUBFUNCTION = auto()
    """A subfunction's port or function."""
    VDPA = auto()
    """A vDPA device of a function."""
    RATE = auto()
    """A rate object of an eswitch."""
    PARAM = auto()
    DRIVERINIT = auto()
    """A parameter that the driver of a PF or a VF has started with."""
    LAG = auto()
    TUNING = auto()
    """A value of a function that is set by devlink, or in sysfs."""
    VF = auto()
    """An attribute that a PF holds for a VF."""
    DRIVER = auto()
    OVERRIDE = auto()
    INTERFACE = auto()
    """A PF, a VF or a representor has no interface here."""
    LINK = auto()
    ETHTOOL = auto()
    SYSCTL = auto()
    POD = auto()
    """A VF's interface is not in its network namespace, or is not as wanted there."""
    RDMA = auto()
    STACKED = auto()
    """An interface, in the host's namespace or another, lacks something that was on it."""


@dataclass(frozen=True)
class Difference:
    """One attribute that is not as wanted. Its text is a line of `verify`.

    `on` is the PF, VF or representor (None for a thing that is on an interface), `target` its name
    in messages. `is_anothers`: it belongs to another program now and is left as it is.
    `is_drivers`: it is the driver's choice, which nothing else sets. It is left as it is, too, and
    the node counts as restored.
    """

    target: str
    attribute: str
    want: object
    have: object
    subject: Subject
    on: Target | None = None
    is_anothers: bool = False
    is_drivers: bool = False

    def __str__(self) -> str:
        return f"{self.target} {self.attribute}: want {self.want}, have {self.have}"


def differences(want: NodeState, have: NodeState) -> tuple[Difference, ...]:
    """Every attribute of `want` that `have` lacks, except for what its driver does not let set
    (`nodeagent.plan.unsettable`).
    """
    return all_differences(settable(want, have), have)


def all_differences(want: NodeState, have: NodeState) -> tuple[Difference, ...]:
    """Every attribute of `want` that `have` lacks, in the order of devices."""
    devices = itertools.chain.from_iterable(_of_pf(pf, want, have) for pf in want.pfs)
    return (
        *devices,
        *_of_sysctls(want, have),
        *_of_rdma(want, have),
        *_of_stack(want, have),
    )


def _of_pf(want: Pf, wanted: NodeState, state: NodeState) -> Iterator[Difference]:
    have, on = state.pf(want.handle), Target(want.handle)
    if have is None:
        what = "not bound, or no such device"
        yield _difference(on, Subject.PF, "driver", wanted.driver, what)
        return
    if want.numvfs not in {None, have.numvfs}:
        yield _difference(on, Subject.FUNCTIONS, "numvfs", want.numvfs, have.numvfs)
    if want.autoprobe not in {None, have.autoprobe}:
        yield _difference(on, Subject.AUTOPROBE, "autoprobe", want.autoprobe, have.autoprobe)
    yield from _of_rows(on, Subject.ESWITCH, EswitchAttributes, want, have)
    for name, wanted_words, words in dcb.differing(want, have):
        yield _difference(on, Subject.DCB, name, wanted_words, words)
    for wanted_port, port_now in subfunctions.differing(want, have):
        name = f"subfunction {wanted_port.port}"
        wanted_words = subfunctions.words(wanted_port, port_now)
        words = subfunctions.words_now(wanted_port, port_now)
        yield _difference(on, Subject.SUBFUNCTION, name, wanted_words, words)
    for port, device, device_now in vdpa.differing(want, have):
        words = "missing" if device_now is None else vdpa.words(device_now)
        name = f"vDPA device {device.name}"
        found = _difference(on, Subject.VDPA, name, vdpa.words(device), words)
        yield replace(found, target=str(Target(want.handle, port)))
    for rate, rate_now in rates.differing(want, have):
        words_now = "missing" if rate_now is None else rate_now.words()
        yield _difference(on, Subject.RATE, str(rate), rate.words(), words_now)
    yield from _of_interface(on, want.netdev, have.netdev)
    known = {param.name: param.value for param in have.params}
    for param in want.params:
        if param.value != (now := known.get(param.name)):
            yield _difference(on, Subject.PARAM, param.name, param.value, now)
    yield from _of_driverinit(on, want, have)
    yield from _of_tuning(on, want, have)
    if None not in {want.lag, have.lag} and want.lag != have.lag:
        found = _difference(on, Subject.LAG, "lag", want.lag, have.lag)
        yield replace(found, is_drivers=not lag.must_make(want, have))
    for vf in want.vfs:
        yield from _of_vf(Target(want.handle, vf.index), vf, have.vf(vf.index), wanted, state)
    for port, netdev in want.netdevs():
        if isinstance(port, str):
            on = Target(want.handle, port)
            yield from _of_interface(on, netdev, have.netdev_of(port))


def _of_vf(
    on: Target, want: Vf, have: Vf | None, wanted: NodeState, state: NodeState
) -> Iterator[Difference]:
    if have is None:
        yield _difference(on, Subject.FUNCTIONS, "function", "present", "missing")
        return
    if want.driver not in {None, have.driver}:
        yield _difference(on, Subject.DRIVER, "driver", want.driver, have.driver)
    elif have.driver != NO_DRIVER:
        yield from _of_driverinit(on, want, have)
    if want.driver_override not in {None, have.driver_override}:
        values = want.driver_override, have.driver_override
        yield _difference(on, Subject.OVERRIDE, "driver_override", *values)
    yield from _of_rows(on, Subject.VF, VfAttributes, want, have)
    yield from _of_tuning(on, want, have)
    if want.netdev is not None and have.netdev is None and have.inside is not None:
        where = f"{have.inside.netdev.name} in {state.namespace(have.inside.namespace)}"
        yield _difference(on, Subject.INTERFACE, "netdev", want.netdev.name, where)
    else:
        yield from _of_interface(on, want.netdev, have.netdev)
    if want.inside is not None:
        yield from _of_pod(on, want.inside, have, wanted, state)


def _of_driverinit(on: Target, want: Pf | Vf, have: Pf | Vf) -> Iterator[Difference]:
    for param, now in driverinit.differing(want, have):
        yield _difference(on, Subject.DRIVERINIT, param.name, param.value, now)


def _of_tuning(on: Target, want: Pf | Vf, have: Pf | Vf) -> Iterator[Difference]:
    for (name, value), now in tuning.differing(want, have):
        yield _difference(on, Subject.TUNING, name, value, now)


def _of_pod(
    on: Target, want: PodNetdev, have: Vf, wanted: NodeState, state: NodeState
) -> Iterator[Difference]:
    """The namespace of its interface, and the attributes that it has there."""
    place = wanted.namespace(want.namespace)
    if have.inside is None:
        where = "not to be found" if have.netdev is None else "here"
        yield _difference(on, Subject.POD, "namespace", place, where)
        return
    now = state.namespace(have.inside.namespace)
    if now != place:
        found = _difference(on, Subject.POD, "namespace", place, now)
        yield replace(found, is_anothers=True)
        return
    yield from _of_rows(on, Subject.POD, LinkAttributes, want.netdev, have.inside.netdev)
    for (key, value), is_now in ethtool.differing(want.netdev, have.inside.netdev):
        yield _difference(on, Subject.POD, key, value, is_now)
    if want.rdma is not None and have.inside.rdma is None:
        attribute = f"namespace of RDMA device {want.rdma}"
        yield _difference(on, Subject.POD, attribute, place, "another")
    for (key, value), is_now in sysctls.differing(want.netdev, have.inside.netdev, place, now):
        yield _difference(on, Subject.POD, f"net.{key}", value, is_now)


def _of_interface(on: Target, want: Netdev | None, have: Netdev | None) -> Iterator[Difference]:
    if want is None:
        return
    if have is None:
        yield _difference(on, Subject.INTERFACE, "netdev", want.name, "missing")
        return
    yield from _of_rows(on, Subject.LINK, LinkAttributes, want, have)
    for (key, value), now in ethtool.differing(want, have):
        yield _difference(on, Subject.ETHTOOL, key, value, now)


def _of_sysctls(want: NodeState, have: NodeState) -> Iterator[Difference]:
    for on, netdev in want.targets():
        if (now := have.netdev_of(on)) is not None:
            for (key, value), is_now in sysctls.differing(netdev, now, want, have):
                found = _difference(on, Subject.SYSCTL, f"net.{key}", value, is_now)
                yield replace(found, target=f"{on.pf} {now.name}")


def _of_rdma(want: NodeState, have: NodeState) -> Iterator[Difference]:
    for _, each in rdma.actions(want, have):
        on = Target(each.pf, each.index)
        if have.function(on) is None:  # which is a difference of its own
            continue
        yield _difference(on, Subject.RDMA, "rdma", each.name, each.now or "missing")
    for action in rdma.roce(want, have):
        on = Target(action.pf, action.index)
        known = rdma.device(have, on)
        for port in action.ports if have.function(on) is not None else ():
            now = "missing" if known is None else port_of(known.roce or (), port.port).words()
            yield _difference(on, Subject.RDMA, f"roce port {port.port}", port.words(), now)


def _of_rows(
    on: Target, subject: Subject, kind: type[Attributes], want: Attributes, have: Attributes
) -> Iterator[Difference]:
    for name, wanted, now in differing(kind, want, have):
        yield _difference(on, subject, name, wanted, now)


def _difference(
    on: Target, subject: Subject, attribute: str, want: object, have: object
) -> Difference:
    now = "unknown" if have is None else have
    return Difference(str(on), attribute, want, now, subject, on)


def _of_stack(want: NodeState, have: NodeState) -> Iterator[Difference]:
    """What our interfaces lack; what is on other interfaces is not compared."""
    anothers = {
        on
        for on, vf in want.vfs()
        if vf.inside is not None
        and (now := have.vf(on)) is not None
        and now.inside is not None
        and have.namespace_of(now) != want.namespace_of(vf)
    }
    for place in places(want, have):
        for each in place.lacking():
            yield Difference(
                f"{each.thing.interface}{place}",
                each.thing.noun,
                each.thing,
                each.instead or "missing",
                Subject.STACKED,
                is_anothers=place.namespace is not None and each.owner in anothers,
            )
