"""DCB: parts that are not as wanted, and parts that a driver does not offer any more.

As with ethtool settings, a part is compared only if the driver offers it: others cannot be
restored. It is named when the node is verified (`no_longer_offered`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nodeagent.state.dcb import CLASSES, PARTS, Dcb, Ets, Pfc, Tsa, words
from nodeagent.state.model import NodeState, Pf


def differing(want: Pf, have: Pf) -> Iterator[tuple[str, str, str]]:
    """Each part that is not as wanted: `dcb pfc`, and both as dcb(8) takes them."""
    if want.dcb is None or have.dcb is None:
        return
    for name in PARTS:
        wanted, now = getattr(want.dcb, name), getattr(have.dcb, name)
        if wanted is not None and now is not None and wanted != now:
            yield attribute(name), words(wanted), words(now)


def to_set(want: Dcb, names: set[str]) -> Dcb:
    """The parts with these names."""
    return Dcb(**{name: getattr(want, name) for name in PARTS if attribute(name) in names})


def attributes(dcb: Dcb) -> set[str]:
    """The names of the known parts: `dcb ets`, `dcb app`."""
    return {attribute(name) for name in PARTS if getattr(dcb, name) is not None}


def attribute(part: str) -> str:
    """The name of a part: its dcb(8) command."""
    return f"dcb {part}"


def reset(dcb: Dcb | None) -> Dcb | None:
    """DCB after the driver is loaded: none. Buffers are its choice, and not known."""
    if dcb is None:
        return None
    zeros, strict = (0,) * CLASSES, (Tsa.STRICT,) * CLASSES
    ets = Ets(
        willing=False,
        tc_tsa=strict,
        tc_bw=zeros,
        pg_bw=zeros,
        prio_tc=zeros,
        reco_tc_tsa=strict,
        reco_tc_bw=zeros,
        reco_prio_tc=zeros,
    )
    return Dcb(
        ets=dcb.ets and ets,
        maxrate=dcb.maxrate and zeros,
        pfc=dcb.pfc and Pfc(prio_pfc=(False,) * CLASSES, macsec_bypass=False, delay=0),
        app=None if dcb.app is None else (),
    )


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each part that a PF had, and that its driver does not offer any more."""
    for pf in want.pfs:
        now = have.pf(pf.handle)
        if pf.dcb is None or now is None or now.netdev is None:
            continue
        had = replace(pf.dcb, app=pf.dcb.app or None)
        for name in sorted(attributes(had) - attributes(now.dcb or Dcb())):
            yield f"{now.netdev.name} ({pf.handle}) {name}"
