"""A node's interfaces as ip(8) and bridge(8) print them, without ifindexes, counters and timers."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.support import lab

LOOKS: Final = (
    "ip -d -j address",
    "ip -d -j route show table all",
    "ip -d -6 -j route show table all",
    "ip -j rule",
    "ip -j -6 rule",
    "ip -j neigh show nud permanent",
    "ip -j neigh show proxy",
    "ip -j token",
    "ip -j nexthop",
    "bridge -d -j link",
    "bridge -j vlan",
)
SYSCTLS: Final = (
    "sysctl -a 2>/dev/null | grep -E '^net.(ipv4|ipv6).(conf|neigh).' | grep -vE '[.](all|lo)[.]'"
)
COUNTED: Final = {
    *("ifindex", "link_index", "expires", "used", "link_failure_count", "mii_status"),
    *("hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "topology_change_detected"),
    *("message_age_timer", "forward_delay_timer", "hold_timer", "topology_change_ack", "no"),
    *("id", "designated_port", "config_pending", "state", "permaddr"),
    "unbalanced_time",
}
"""State and numbers; `permaddr` of a VF without an admin MAC is what igbvf made up at its probe."""
FOREVER: Final = 0xFFFFFFFF


def _only(these: Any, those: Any) -> list[str]:
    """What of `these` is not in `those`, attribute by attribute."""
    flat = {json.dumps(pair) for item in those for pair in item.items()}
    return [
        f"{item.get('ifname', '')} {pair}"
        for item in these
        for pair in item.items()
        if item not in those and json.dumps(pair) not in flat
    ]


def look(namespace: str = "") -> dict[str, Any]:
    """What ip(8), bridge(8) and sysctl(8) tell of a namespace's interfaces; of the host's."""
    into = f"ip netns exec {namespace} " if namespace else ""
    found = {into + command: plain(json.loads(lab.sh(into + command) or "[]")) for command in LOOKS}
    values = [line.partition(" = ") for line in lab.sh(into + SYSCTLS).splitlines()]
    return {**found, f"{into}sysctl": [{key: value} for key, _, value in values]}


def plain(value: Any) -> Any:
    """Without what counts; what has no order (links, routes of several tables) sorted."""
    if isinstance(value, list):
        items = [plain(item) for item in value]
        return items if _has_order(items) else sorted(items, key=json.dumps)
    if not isinstance(value, dict):
        return value
    lifetimes = {"valid_life_time", "preferred_life_time"}
    return {
        key: item == FOREVER if key in lifetimes else plain(item)
        for key, item in sorted(value.items())
        if key not in COUNTED
    }


def _has_order(items: list[Any]) -> bool:
    """Addresses of one interface have: the first one is the primary."""
    return any(isinstance(item, dict) and "prefixlen" in item for item in items)


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two looks are the same; what has gone and what has come is told."""
    for command, was in before.items():
        gone = _only(was, after[command])
        come = _only(after[command], was)
        assert (gone, come) == ([], []), f"{command}\nwas {gone}\nis  {come}"
        assert after[command] == was, command
