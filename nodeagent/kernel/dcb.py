"""dcbnl: a port's DCB by rtnetlink (net/dcb/dcbnl.c, uapi/linux/dcbnl.h). pyroute2 has none of it.

Facts of the kernel that shape this module (Linux 6.12):

- An interface is named: there is no request by ifindex.
- The answer to IEEE_GET has all parts, without those that a driver lacks or cannot read just now.
- The result of a change is a byte in its answer (DCB_ATTR_IEEE), a negative errno; the request
  itself succeeds.
- IEEE_SET applies its attributes in a fixed order and ends at the first refusal, so each is sent by
  itself. It adds entries to the application table; only IEEE_DEL removes them.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.netlink import (
    Netlink,
    attribute,
    attributes,
    nested,
    request,
    text_bytes,
    understood,
)
from nodeagent.state.dcb import App, Buffers, Dcb, Ets, Pfc, Selector, Tsa

RTM_GETDCB: Final = 78
RTM_SETDCB: Final = 79
IEEE_SET, IEEE_GET, IEEE_DEL = 20, 21, 27
IFNAME, IEEE, DCBX = 1, 13, 14
ETS, PFC, APP_TABLE, MAXRATE, BUFFER = 1, 2, 3, 7, 10
IEEE_APP, DCB_APP = 1, 2
DCBX_HOST, DCBX_LLD_MANAGED = 0x01, 0x02
HEADER: Final = 20
"""struct nlmsghdr and struct dcbmsg."""
TSAS: Final = {0: Tsa.STRICT, 1: Tsa.CBS, 2: Tsa.ETS, 255: Tsa.VENDOR}
TSA_NUMBERS: Final = {tsa: number for number, tsa in TSAS.items()}
SELECTORS: Final = {
    1: Selector.ETHTYPE,
    2: Selector.STREAM_PORT,
    3: Selector.DGRAM_PORT,
    4: Selector.PORT,
    5: Selector.DSCP,
    255: Selector.PCP,
}
SELECTOR_NUMBERS: Final = {selector: number for number, selector in SELECTORS.items()}

ETS_FORM: Final = "=3B8s8s8s8s8s8s8s"
"""willing, ets_cap, cbs; tc_tx_bw, tc_rx_bw, tc_tsa, prio_tc; then tc_reco_bw and so on."""
PFC_FORM: Final = "=3BxH2x128x"
"""pfc_cap, pfc_en, mbc, delay, and counters."""
MAXRATE_FORM: Final = "=8Q"
BUFFER_FORM: Final = "=8s8II"
"""prio2buffer, buffer_size, total_size"""
APP_FORM: Final = "=BBH"


class Dcbnl(Netlink):
    """A NETLINK_ROUTE socket for DCB, for one thread."""

    def __init__(self) -> None:
        super().__init__(0)

    @understood("DCB")
    def dcb(self, name: str) -> Dcb | None:
        """The DCB of an interface: one request. None if the host cannot set it.

        That is the case if the driver has none (or is gone), and if firmware negotiates DCB with
        the switch (DCB_CAP_DCBX_LLD_MANAGED, or no DCB_CAP_DCBX_HOST). KernelError for any other
        refusal.
        """
        message = self._read(name)
        if not _is_hosts(message.get(DCBX)):
            return None
        return _dcb(dict(attributes(message.get(IEEE, b""))))

    def set(self, name: str, part: str, value: Any) -> None:
        """Set a member of `Dcb`, other than `app`. OSError when the driver refuses it."""
        now = dict(attributes(self._read(name).get(IEEE, b"")))
        if part == "ets":
            self._change(IEEE_SET, name, attribute(ETS, _ets_bytes(value, now.get(ETS))))
        elif part == "pfc":
            self._change(IEEE_SET, name, attribute(PFC, _pfc_bytes(value, now.get(PFC))))
        elif part == "maxrate":
            self._change(IEEE_SET, name, attribute(MAXRATE, struct.pack(MAXRATE_FORM, *value)))
        elif part == "buffer":
            sizes = bytes(value.prio_buffer), *value.buffer_size, 0
            self._change(IEEE_SET, name, attribute(BUFFER, struct.pack(BUFFER_FORM, *sizes)))
        else:
            raise LookupError(f"{part} is not set as a whole")

    def add_apps(self, name: str, apps: Iterable[App]) -> None:
        """Add entries to the application table. OSError at the first that is refused."""
        self._change(IEEE_SET, name, _table(apps))

    def delete_apps(self, name: str, apps: Iterable[App]) -> None:
        """Remove entries from the application table. OSError at the first that is refused."""
        self._change(IEEE_DEL, name, _table(apps))

    def _read(self, name: str) -> dict[int, bytes]:
        try:
            (body,) = self.ask(_message(RTM_GETDCB, IEEE_GET, name, b""))
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.ENODEV}:
                return {}
            raise KernelError(
                f"cannot read the DCB of {name}: {reason(error)}", errno=error.errno
            ) from error
        return dict(attributes(body, HEADER))

    def _change(self, command: int, name: str, change: bytes) -> None:
        (body,) = self.ask(_message(RTM_SETDCB, command, name, nested(IEEE, change)))
        (answer,) = dict(attributes(body, HEADER)).get(IEEE, b"\0")[:1]
        if answer:
            raise OSError(256 - answer, os.strerror(256 - answer))


def _message(kind: int, command: int, name: str, change: bytes) -> bytearray:
    """struct dcbmsg, the interface's name, and what is to change."""
    header = struct.pack("=BBH", 0, command, 0)
    return request(kind, 0, header + attribute(IFNAME, text_bytes(name)) + change)


def _is_hosts(dcbx: bytes | None) -> bool:
    """Whether DCB is the host's; without getdcbx it is."""
    return dcbx is None or dcbx[0] & (DCBX_HOST | DCBX_LLD_MANAGED) == DCBX_HOST


def _dcb(ieee: dict[int, bytes]) -> Dcb | None:
    if not ieee:
        return None
    read: dict[str, Any] = {
        "ets": _ets(ieee[ETS]) if ETS in ieee else None,
        "maxrate": struct.unpack_from(MAXRATE_FORM, ieee[MAXRATE]) if MAXRATE in ieee else None,
        "pfc": _pfc(ieee[PFC]) if PFC in ieee else None,
        "buffer": _buffers(ieee[BUFFER]) if BUFFER in ieee else None,
        "app": tuple(sorted(set(_apps(ieee[APP_TABLE])))) if APP_TABLE in ieee else None,
    }
    return Dcb(**read)


def _ets(data: bytes) -> Ets | None:
    """None for a scheduler that uapi/linux/dcbnl.h does not name."""
    willing, _, _, *rest = struct.unpack_from(ETS_FORM, data)
    tc_bw, pg_bw, tsa, prio_tc, reco_bw, reco_tsa, reco_prio_tc = rest
    if not TSAS.keys() >= {*tsa, *reco_tsa}:
        return None
    return Ets(
        willing=bool(willing),
        tc_tsa=tuple(TSAS[each] for each in tsa),
        tc_bw=tuple(tc_bw),
        pg_bw=tuple(pg_bw),
        prio_tc=tuple(prio_tc),
        reco_tc_tsa=tuple(TSAS[each] for each in reco_tsa),
        reco_tc_bw=tuple(reco_bw),
        reco_prio_tc=tuple(reco_prio_tc),
    )


def _ets_bytes(ets: Ets, now: bytes | None) -> bytes:
    """The driver's capabilities (ets_cap, cbs) are sent back as they were read."""
    able = (0, 0) if now is None else struct.unpack_from("=xBB", now)
    return struct.pack(
        ETS_FORM,
        ets.willing,
        *able,
        bytes(ets.tc_bw),
        bytes(ets.pg_bw),
        bytes(TSA_NUMBERS[each] for each in ets.tc_tsa),
        bytes(ets.prio_tc),
        bytes(ets.reco_tc_bw),
        bytes(TSA_NUMBERS[each] for each in ets.reco_tc_tsa),
        bytes(ets.reco_prio_tc),
    )


def _pfc(data: bytes) -> Pfc:
    _, enabled, bypass, delay = struct.unpack_from(PFC_FORM, data)
    return Pfc(
        prio_pfc=tuple(bool(enabled >> prio & 1) for prio in range(8)),
        macsec_bypass=bool(bypass),
        delay=delay,
    )


def _pfc_bytes(pfc: Pfc, now: bytes | None) -> bytes:
    able = 0 if now is None else now[0]
    enabled = sum(on << prio for prio, on in enumerate(pfc.prio_pfc))
    return struct.pack(PFC_FORM, able, enabled, pfc.macsec_bypass, pfc.delay)


def _buffers(data: bytes) -> Buffers:
    prio_buffer, *sizes, _ = struct.unpack_from(BUFFER_FORM, data)
    return Buffers(prio_buffer=tuple(prio_buffer), buffer_size=tuple(sizes))


def _apps(table: bytes) -> Iterator[App]:
    for kind, data in attributes(table):
        if kind in {IEEE_APP, DCB_APP}:
            selector, priority, protocol = struct.unpack_from(APP_FORM, data)
            if selector in SELECTORS:
                yield App(SELECTORS[selector], protocol, priority)


def _table(apps: Iterable[App]) -> bytes:
    """The application table. Selectors that IEEE 802.1Q lacks have an attribute of their own."""
    return nested(
        APP_TABLE,
        b"".join(
            attribute(
                DCB_APP if app.selector is Selector.PCP else IEEE_APP,
                struct.pack(APP_FORM, SELECTOR_NUMBERS[app.selector], app.priority, app.protocol),
            )
            for app in apps
        ),
    )
