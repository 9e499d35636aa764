"""RSS, hashed fields and n-tuple rules: a driver that holds what it is told by ioctls."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.kernel import flow_rules, receive
from nodeagent.kernel.ethtool import Change, Ethtool, in_order
from nodeagent.kernel.receive import Interface, table_in_words, table_of
from nodeagent.plan.ethtool import commands
from nodeagent.state.ethtool import EthtoolKind

WEB = "flow-type tcp4 dst-port 80 action 2 loc 1023"
DROPPED = "flow-type udp4 src-ip 10.0.0.0 m 0.0.0.255 dst-port 53 action -1 loc 5"
RULES = (
    WEB,
    DROPPED,
    "flow-type ether dst 02:00:00:00:00:01 m 00:00:00:ff:ff:ff proto 35063 action 1 loc 7",
    "flow-type ip4 dst-ip 10.1.1.1 vlan 5 m 61440 user-def 0x5 action 0 loc 9",
    "flow-type tcp6 src-ip fe80::1 src-port 22 tclass 8 dst-mac 02:00:00:00:00:01 action 0 loc 1",
    "flow-type ip6 l4data 0x10 l4proto 58 action -2 loc 3",
    "flow-type esp4 spi 0x1000 tos 4 action 1 loc 2",
)


class Driver(Interface):
    """Four queues and a table of eight entries. What it lacks is EOPNOTSUPP."""

    def __init__(self, *, has_rules: bool = True, has_rss: bool = True) -> None:
        self.table = [n % 4 for n in range(8)]
        self.key = bytes(range(40))
        self.function = 1
        self.fields = {1: 0xF0, 2: 0x30}
        self.rules: dict[int, bytes] = {}
        self.has_rules, self.has_rss = has_rules, has_rss
        self.asked: list[int] = []

    def ask(self, body: bytes, kind: int = 0x8946) -> bytes:
        (command,) = struct.unpack_from("=I", body)
        self.asked.append(command)
        if command in (0x46, 0x47):
            return self._rss(body, is_set=command == 0x47)
        return self._nfc(bytearray(body), command)

    def _rss(self, body: bytes, *, is_set: bool) -> bytes:
        if not self.has_rss:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        _, context, size, length, function, _ = struct.unpack_from("=IIIIBB", body)
        assert context == 0
        if not is_set:
            head = struct.pack("=IIIIBB6x", 0x46, 0, 8, 40, self.function, 0)
            return head + struct.pack("=8I", *self.table) + self.key if size else head
        if size == 0:
            self.table = [n % 4 for n in range(8)]
        at = 24
        if size not in (0, 0xFFFFFFFF):
            table = list(struct.unpack_from(f"={size}I", body, at))
            if max(table) >= 4:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self.table, at = table, at + 4 * size
        if length:
            self.key = body[at : at + length]
        self.function = function or self.function
        return body

    def _nfc(self, body: bytearray, command: int) -> bytes:
        _, flow, data = struct.unpack_from("=IIQ", body)
        spec = bytes(body[16:184])
        place = flow_rules.SPEC.unpack(spec)[-1]
        if command == 0x2D:
            struct.pack_into("=Q", body, 8, 4)
        elif command == 0x29 and flow in self.fields:
            struct.pack_into("=Q", body, 8, self.fields[flow])
        elif command == 0x2A and flow in self.fields:
            self.fields[flow] = data
        elif command == 0x2E and self.has_rules:
            struct.pack_into("=I", body, 184, len(self.rules))
        elif command == 0x30:
            struct.pack_into(f"={len(self.rules)}I", body, 188, *self.rules)
        elif command == 0x2F:
            body[16:184] = self.rules[place]
        elif command == 0x31:
            del self.rules[place]
        elif command == 0x32:
            self.rules[place] = spec
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return bytes(body)


FRESH = {
    "rss.table": "default",
    "rss.hkey": "default 40",
    "rss.hfunc": "toeplitz",
    "rx-flow-hash.tcp4": "sdfn",
    "rx-flow-hash.udp4": "sd",
    "ntuple.rules": "",
}
TUNED = {
    "rss.table": "weight 6 2",
    "rss.hkey": ":".join(["0a"] * 40),
    "rss.hfunc": "xor",
    "rx-flow-hash.tcp4": "sdfn",
    "rx-flow-hash.udp4": "sdfn",
    "ntuple.rules": f"{DROPPED}; {WEB}",
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_default_key", lambda length: bytes(range(length)))


def test_a_fresh_interface() -> None:
    assert dict(receive.read(Driver())) == FRESH


def test_what_is_read_is_what_was_set() -> None:
    driver = Driver()
    receive.write(driver, TUNED)
    assert dict(receive.read(driver)) == TUNED
    receive.write(driver, FRESH)
    assert dict(receive.read(driver)) == FRESH


@pytest.mark.parametrize("key", TUNED)
def test_one_is_set_without_the_others(key: str) -> None:
    driver = Driver()
    receive.write(driver, {key: TUNED[key]})
    assert dict(receive.read(driver)) == FRESH | {key: TUNED[key]}


def test_rules_that_are_not_wanted_go() -> None:
    driver = Driver()
    receive.write(driver, {"ntuple.rules": "; ".join(RULES)})
    assert set(dict(receive.read(driver))["ntuple.rules"].split("; ")) == set(RULES)
    driver.asked.clear()
    other = "flow-type udp4 dst-port 54 action 0 loc 5"
    receive.write(driver, {"ntuple.rules": f"{other}; {WEB}"})
    assert dict(receive.read(driver))["ntuple.rules"] == f"{other}; {WEB}"
    assert (driver.asked.count(0x31), driver.asked.count(0x32)) == (len(RULES) - 1, 1)


def test_a_rule_for_an_rss_context_is_left_alone() -> None:
    driver = Driver()
    spec = bytearray(flow_rules.spec_of(WEB))
    struct.pack_into("=I", spec, 0, 0x20000001)
    driver.rules[1023] = bytes(spec)
    assert dict(receive.read(driver))["ntuple.rules"] == ""
    receive.write(driver, {"ntuple.rules": DROPPED})
    assert sorted(driver.rules) == [5, 1023]


def test_what_a_driver_lacks_is_no_setting() -> None:
    assert dict(receive.read(Driver(has_rules=False, has_rss=False))) == {
        key: value for key, value in FRESH.items() if key.startswith("rx-flow-hash")
    }


def test_where_the_key_of_this_boot_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(receive, "_RSS_KEY", Path("/nowhere"))
    driver = Driver()
    assert dict(receive.read(driver))["rss.hkey"] == bytes(range(40)).hex(":")
    with pytest.raises(OSError, match="No such file"):
        receive.write(driver, {"rss.hkey": "default 40"})


def test_an_interface_that_is_gone_has_none() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        assert list(receive.read(Interface(asked, 2**31 - 2))) == []
        with pytest.raises(OSError, match="No such device"):
            receive.write(Interface(asked, 2**31 - 2), {"rss.hfunc": "xor"})


@pytest.mark.parametrize(
    "values",
    [
        {"rss.table": "weight 1 1"},
        {"rss.table": "equal 0"},
        {"rss.table": "equal 9"},
        {"rss.hkey": "0g"},
        {"rss.hfunc": "md5"},
        {"rx-flow-hash.udp4": "x"},
        {"ntuple.rules": "flow-type tcp9 action 1 loc 5"},
        {"ntuple.rules": "flow-type tcp4 dst-port 65536 action 1 loc 5"},
        {"ntuple.rules": "flow-type tcp4 src-ip fe80::1 action 1 loc 5"},
        {"ntuple.rules": "nonsense"},
        {"ntuple.rules": "raw 00 loc 5"},
    ],
)
def test_what_is_no_setting_is_refused(values: dict[str, str]) -> None:
    driver = Driver()
    with pytest.raises(OSError, match=r"no such setting|Invalid argument"):
        receive.write(driver, values)
    assert dict(receive.read(driver)) == FRESH


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_in_words(rule: str) -> None:
    assert flow_rules.words(flow_rules.spec_of(rule)) == rule


@given(st.binary(min_size=168, max_size=168))
def test_any_rule_is_kept_to_the_byte(spec: bytes) -> None:
    """Also one of a type that is not known; its padding is none of it."""
    spec = flow_rules.SPEC.pack(*flow_rules.SPEC.unpack(spec))
    assert flow_rules.spec_of(flow_rules.words(spec)) == spec


@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=16))
def test_any_table_is_kept(queues: int, table: list[int]) -> None:
    """If all its queues are there: the kernel refuses another, so that it is the driver's."""
    words = table_in_words(table, queues)
    if max(table) >= queues:
        assert words == "default"
        return
    again = table_of(words, len(table)) or [n % queues for n in range(len(table))]
    in_blocks = [n * queues // len(table) for n in range(len(table))]
    assert table in (again, in_blocks)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([0, 1, 2, 3] * 2, "default"),
        ([0, 0, 1, 1, 2, 2, 3, 3], "default"),
        ([0, 0, 4, 4], "default"),
        ([0, 1] * 4, "equal 2"),
        ([2, 3] * 4, "start 2 equal 2"),
        ([0, 0, 0, 0, 0, 0, 2, 2], "weight 6 0 2"),
        ([3, 1, 2, 0, 3, 1, 2, 0], "queues 3 1 2 0 3 1 2 0"),
    ],
)
def test_a_table_in_ethtools_words(table: list[int], words: str) -> None:
    assert table_in_words(table, 4) == words


def test_the_lines() -> None:
    assert list(commands(tuple(sorted(TUNED.items())), "ens1")) == [
        "ethtool -X ens1 hfunc xor",
        f"ethtool -X ens1 hkey {TUNED['rss.hkey']}",
        "ethtool -X ens1 weight 6 2",
        "ethtool -N ens1 rx-flow-hash tcp4 sdfn",
        "ethtool -N ens1 rx-flow-hash udp4 sdfn",
        "ethtool -n ens1 | sed -n 's/^Filter: //p' | xargs -rn1 ethtool -N ens1 delete",
        f"ethtool -N ens1 {DROPPED}",
        f"ethtool -N ens1 {WEB}",
    ]
    assert list(commands((("rss.hkey", "default 40"), ("rss.table", "queues 1 0")), "ens1")) == [
        "ethtool -X ens1 hkey $(cut -c1-119 /proc/sys/net/core/netdev_rss_key)",
        "# ethtool has no words for this table of ens1: queues 1 0",
    ]


class OneDriver(Ethtool):
    """Netlink takes all; for ioctls there is one driver."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver
        self.family = 22

    def interface(self, index: int) -> Interface:
        return self.driver

    def send(self, messages: object) -> list[OSError | None]:
        assert not self.driver.asked
        return [None for _ in messages]  # type: ignore[attr-defined]


@pytest.fixture
def ethtool() -> Iterator[OneDriver]:
    with OneDriver(Driver()) as opened:
        yield opened


def test_channels_before_what_refers_to_queues(ethtool: OneDriver) -> None:
    wanted: dict[str, int | str] = {**TUNED, "rss.hfunc": "md5", "channels.combined": 4}
    changes = in_order(7, tuple(sorted(wanted.items())))
    assert [change.kind for change in changes] == ["channels", "rss", "rx-flow-hash", "ntuple"]
    first, second, *rest = ethtool.change(changes)
    assert first is None
    assert second is not None
    assert second.errno == errno.EINVAL
    assert rest == [None, None]
    ethtool.driver.asked.clear()
    assert ethtool.change([Change(7, EthtoolKind.RSS, (("rss.hfunc", "crc32"),))]) == [None]
    assert ethtool.driver.function == 4
