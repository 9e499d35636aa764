"""Queueing disciplines (tc(8)) over rtnetlink: RTM_NEWQDISC.

The kernel dumps a qdisc's options in the format in which it accepts them (TCA_OPTIONS), so that
they can be saved raw. That is true for `KINDS`, each of which is tested on a kernel; netem does not
dump its distribution, red not the table that it requires (TCA_RED_STAB), taprio other attributes
before its schedule has begun than afterwards, and sfq another limit than it accepts. A qdisc with
filters (clsact has nothing else), classes of its own, a size table or a shared block, and mqprio in
hardware mode, whose queues are the driver's, is not restored, and is logged.
Formats: uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
    nested,
    request,
    text,
    text_bytes,
)
from nodeagent.kernel.stack.adapter import Adapter, Found, Look
from nodeagent.state.stack import QDISC_MAJOR, QDISC_ROOT, Qdisc

RTM_NEWQDISC, RTM_GETQDISC = 36, 38
RTM_GETTCLASS, RTM_GETTFILTER = 42, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_STAB, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 8, 13, 14
TCA_HTB_INIT: Final = 2
HTB_VERSION: Final = 3
CODEL_TIMES: Final = {"codel": (1, 3, 5), "fq_codel": (1, 3, 7)}
"""Target, interval and ce_threshold."""

MQPRIO_BYTES, MQPRIO_HW_AT = 84, 17
"""struct tc_mqprio_qopt, padded; whether it is in hardware mode."""

KINDS: Final = frozenset(
    {"pfifo", "bfifo", "pfifo_head_drop", "fq", "fq_codel", "codel", "tbf", "prio", "htb", "pie"}
    | {"mq", "noqueue", "mqprio", "ets", "etf", "multiq", "cake"}
)


def read(edge: Netlink, look: Look) -> Found[Qdisc]:
    """The qdiscs that an administrator has added, parents first; a line for each other one.

    One dump, and one for the filters of each qdisc.
    """
    by_index: dict[int, list[tuple[Qdisc, bool]]] = {}
    for body in edge.dump(_request(RTM_GETQDISC, NLM_F_DUMP), "qdiscs"):
        (index,) = struct.unpack_from("=i", body, 20)
        if index in look.indexes and (found := qdisc_of(body, look.names[index])) is not None:
            by_index.setdefault(index, []).append(found)
    kept: list[Qdisc] = []
    lost: list[str] = []
    for index, own in by_index.items():
        plain = [each for each, more in own if not more and not _is_used(edge, index, each)]
        there = in_order(plain)
        kept += there
        lost += (
            f"qdisc {each.kind} {each.handle >> 16:x}: on {each.dev}, with its classes and filters"
            for each, _ in own
            if each not in there
        )
    return Found(tuple(kept), tuple(lost))


def qdisc_of(body: bytes, dev: str) -> tuple[Qdisc, bool] | None:
    """One RTM_NEWQDISC, and whether it has more than a `Qdisc` contains.

    None for those of the kernel, which have no handle.
    """
    handle, parent = struct.unpack_from("=II", body, 24)
    if not handle:
        return None
    found = dict(attributes(body, 36))
    kind = text(found.get(TCA_KIND, b""))
    more = kind not in KINDS or {TCA_STAB, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK} & found.keys()
    options = found.get(TCA_OPTIONS, b"")
    is_hardware = kind == "mqprio" and any(options[MQPRIO_HW_AT : MQPRIO_HW_AT + 1])
    if kind in {"htb", "mqprio"} or kind in CODEL_TIMES:
        options = _taken(kind, options)
    return Qdisc(dev, kind, handle, parent, options.hex()), bool(more) or is_hardware


def in_order(qdiscs: Sequence[Qdisc]) -> list[Qdisc]:
    """Root qdiscs, then their children, level by level; those without a parent are left out.

    They may be several interfaces', whose handles are each interface's own.
    """
    kept: dict[tuple[str, int], Qdisc] = {}
    while level := [
        each
        for each in qdiscs
        if (each.dev, each.handle) not in kept
        and (each.parent == QDISC_ROOT or (each.dev, each.parent & QDISC_MAJOR) in kept)
    ]:
        kept |= {(each.dev, each.handle): each for each in level}
    return list(kept.values())


def message(qdisc: Qdisc, indexes: Mapping[str, int], now: float) -> bytearray:
    """Add it, in place of the kernel's default one."""
    del now
    body = attribute(TCA_KIND, text_bytes(qdisc.kind))
    if qdisc.options:
        body += nested(TCA_OPTIONS, bytes.fromhex(qdisc.options))  # ets insists on the flag
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return _request(RTM_NEWQDISC, flags, indexes[qdisc.dev], qdisc.handle, qdisc.parent, body=body)


def _is_used(edge: Netlink, index: int, qdisc: Qdisc) -> bool:
    """Whether it has filters, or classes that were added (all of htb's are)."""
    if edge.dump(_request(RTM_GETTFILTER, NLM_F_DUMP, index, 0, qdisc.handle), "filters"):
        return True
    if qdisc.kind != "htb":
        return False
    bodies = edge.dump(_request(RTM_GETTCLASS, NLM_F_DUMP, index), "classes")
    handles = (struct.unpack_from("=I", body, 24)[0] for body in bodies)
    return any(handle & QDISC_MAJOR == qdisc.handle for handle in handles)


def _taken(kind: str, options: bytes) -> bytes:
    """The options to send so that the kernel dumps the same ones."""
    if kind == "htb":
        return _changed(options, {TCA_HTB_INIT: _htb})
    if kind == "mqprio":
        return options[:MQPRIO_BYTES]  # EINVAL for the attributes behind it (mqprio_parse_opt())
    return _changed(options, dict.fromkeys(CODEL_TIMES[kind], _codel_time))


def _htb(init: bytes) -> bytes:
    """struct tc_htb_glob with the version that htb_init() accepts, which htb_dump() does not
    report, and without the count of unclassified packets."""
    _, *values, _, _ = struct.unpack("=5I", init)
    return struct.pack("=5I", HTB_VERSION, *values, 0, 0)


def _codel_time(microseconds: bytes) -> bytes:
    """The kernel counts in units of 1024 ns and rounds down both ways (codel_time_to_us()): the
    dumped value would become one unit less. One microsecond more becomes the same value."""
    return struct.pack("=I", struct.unpack("=I", microseconds)[0] + 1)


def _changed(options: bytes, changes: Mapping[int, Callable[[bytes], bytes]]) -> bytes:
    same = bytes
    pairs = ((n, changes.get(n, same)(value)) for n, value in attributes(options))
    return b"".join(attribute(number, value) for number, value in pairs)


def _request(kind: int, flags: int, *place: int, body: bytes = b"") -> bytearray:
    """struct tcmsg: family, ifindex, handle, parent, info; `place`: ifindex, handle and parent."""
    index, handle, parent = (*place, 0, 0, 0)[:3]
    header = struct.pack("=BxxxiIII", 0, index, handle, parent, 0)
    return request(kind, flags, header + body)


ADAPTER: Final = Adapter(Qdisc, read, message, in_order)
