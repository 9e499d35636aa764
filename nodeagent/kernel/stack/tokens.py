"""IPv6 tokens over rtnetlink: INET6_TOKEN, in IFLA_AF_SPEC of a link (uapi/linux/if_link.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Final

from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import NLM_F_ACK, Netlink, attribute, nested, request
from nodeagent.kernel.stack.adapter import Adapter, Found, Look
from nodeagent.state.stack import Token

RTM_SETLINK: Final = 19
IFLA_AF_SPEC: Final = 26
INET6_TOKEN: Final = 7


def read(edge: Netlink, look: Look) -> Found[Token]:
    """Those of our interfaces, from the dump of links; a line for one that nobody could set now."""
    del edge
    found, lost = [], []
    for index in sorted(look.indexes):
        link = look.links[index]
        if (token := sysctls.token(link.af_spec)) is None:
            continue
        if link.arp is not False and sysctls.takes_token(link.af_spec):
            found.append(Token(link.name, str(token)))
        else:
            lost.append(f"IPv6 token {token} on {link.name}, which accepts no advertisements now")
    return Found(tuple(found), tuple(lost))


def message(token: Token, indexes: Mapping[str, int], now: float) -> bytearray:
    """Set it, in place of another one."""
    del now
    sixth = nested(socket.AF_INET6, attribute(INET6_TOKEN, IPv6Address(token.token).packed))
    header = struct.pack("=BxHiII", 0, 0, indexes[token.dev], 0, 0)
    return request(RTM_SETLINK, NLM_F_ACK, header + nested(IFLA_AF_SPEC, sixth))


ADAPTER: Final = Adapter(Token, read, message)
