"""rtnetlink: what the kernel was recorded to say, what we say to it, and a real kernel's answers.

The recorded messages are those of the emulated node (Linux 6.12): igb with 3 VFs, of which VF 1 has
everything set that igb takes, and netdevsim with 3 VFs, of which VF 2 has everything set. Where a
real kernel is asked, it is in a network namespace of its own, which holds nothing but `lo`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import KernelError
from nodeagent.kernel import netlink, rtnl, sysctls
from nodeagent.kernel.netlink import attribute
from nodeagent.kernel.rtnl import AltnameChange, Link, LinkChange, LinkMove, Rtnl, VfChange, VfInfo
from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.attributes import fresh
from nodeagent.state.attributes import given as known
from nodeagent.state.link import LinkAttributes
from nodeagent.state.vf import LinkState, VlanProtocol

RECORDED = Path(__file__).parents[1] / "support" / "recorded"
ZERO = Mac("00:00:00:00:00:00")
CLONE_NEWNET = 0x40000000


def recorded(name: str) -> bytes:
    return bytes.fromhex((RECORDED / f"{name}.hex").read_text())


class Answered(Rtnl):
    """rtnetlink that answers every request with the same message."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.asked: list[bytes] = []

    def ask(self, message: bytearray) -> list[bytes]:
        self.asked.append(bytes(message))
        return [self.message]

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        return self.ask(message)


def link_of(name: str) -> Link:
    (link,) = Answered(recorded(name)).links().values()
    return link


# what the kernel says


def test_a_pf_of_igb_as_recorded() -> None:
    link = link_of("igb-pf-link")
    assert dict(sysctls.decoded(link.af_spec, {"ipv6.hop_limit": 1}, 9000)) == {
        "ipv6.hop_limit": 64,
        "ipv6.mtu": 3000,
    }
    assert dataclasses.replace(link, af_spec=b"") == Link(
        index=2,
        name="enp1s0",
        mac=Mac("52:54:00:00:00:01"),
        mtu=3000,
        up=True,
        carrier=True,
        bus="pci",
        device="0000:01:00.0",
        phys_port_name=None,
        **known(fresh(LinkAttributes))
        | {"altnames": ("some-long-alternative-name",), "alias": "rack 4"},
    )


def test_a_vf_of_igb_as_recorded() -> None:
    link = link_of("igb-vf-link")
    assert (link.index, link.name, link.up) == (4, "enp1s0v0", False)
    assert (link.bus, link.device) == ("pci", "0000:01:10.0")


def test_an_xdp_program_is_seen() -> None:
    assert not link_of("igb-pf-link").has_xdp
    attached = attribute(43, attribute(2, b"\x01"))
    header = bytes(16) + struct.pack("=BxHiII", 0, 1, 7, 0, 0)
    name = attribute(3, b"ens1\0") + attribute(4, struct.pack("=I", 1500))
    assert rtnl._link(header + name + attached).has_xdp
    assert not rtnl._link(header + name + attribute(43, attribute(2, b"\0"))).has_xdp


def test_netdevsim_names_its_port() -> None:
    link = link_of("netdevsim-link")
    assert (link.bus, link.device, link.phys_port_name) == ("netdevsim", "netdevsim1", "p1")


def test_an_interface_without_a_device() -> None:
    link = link_of("lo-link")
    assert (link.bus, link.device, link.mac) == (None, None, ZERO)


def test_the_vfs_of_igb_as_recorded() -> None:
    fresh, set_by_hand, _ = Answered(recorded("igb-vfs")).vfs(2)
    assert fresh == VfInfo(
        0,
        admin_mac=Mac("16:17:1d:5d:40:5c"),
        vlan=0,
        qos=0,
        vlan_proto=VlanProtocol.Q,
        spoofchk=True,
        trust=False,
        link_state=LinkState.AUTO,
        min_tx_rate=0,
        max_tx_rate=0,
        query_rss=None,
    )  # a VF that was given no MAC made one up when it was probed, and told its PF
    assert set_by_hand == VfInfo(
        1,
        admin_mac=Mac("02:11:22:33:44:51"),
        vlan=100,
        qos=3,
        vlan_proto=VlanProtocol.Q,
        spoofchk=False,
        trust=True,
        link_state=LinkState.AUTO,
        min_tx_rate=0,
        max_tx_rate=100,
        query_rss=None,
    )


def test_the_vfs_of_netdevsim_as_recorded() -> None:
    down, fresh, set_by_hand = Answered(recorded("netdevsim-vfs")).vfs(7)
    assert down.link_state == "disable"
    assert fresh == VfInfo(
        1,
        admin_mac=ZERO,
        vlan=0,
        qos=0,
        vlan_proto=VlanProtocol.Q,  # netdevsim says 0 until one is set
        spoofchk=False,
        trust=False,
        link_state=LinkState.AUTO,
        min_tx_rate=0,
        max_tx_rate=0,
        query_rss=False,
    )
    assert set_by_hand == VfInfo(
        2,
        admin_mac=Mac("02:11:22:33:44:99"),
        vlan=200,
        qos=5,
        vlan_proto=VlanProtocol.AD,
        spoofchk=True,
        trust=True,
        link_state=LinkState.ENABLE,
        min_tx_rate=10,
        max_tx_rate=1000,
        query_rss=True,
    )


def test_minus_one_is_not_supported() -> None:
    """igb leaves rtnl_fill_vfinfo()'s preset of -1 in IFLA_VF_RSS_QUERY_EN: None, not True."""
    assert {vf.query_rss for vf in Answered(recorded("igb-vfs")).vfs(2)} == {None}


def test_an_interface_without_vfs() -> None:
    assert Answered(recorded("lo-link")).vfs(1) == ()


def test_statistics_are_never_asked_for() -> None:
    """With them a list of 300 VFs wraps, and says that there are 79."""
    kernel = Answered(recorded("igb-vfs"))
    kernel.vfs(2)
    kernel.links()
    masks = [_attributes(message)[rtnl.IFLA_EXT_MASK] for message in kernel.asked]
    assert masks == [
        struct.pack("=I", mask) for mask in (rtnl.RTEXT_FILTER_VF | rtnl.RTEXT_FILTER_SKIP_STATS, 8)
    ]


# the list of VFs wraps at 64 KiB


def vf_list(count: int) -> bytes:
    """netdevsim's message with `count` VFs, as nla_nest_end() makes it: the length is 16 bits."""
    message = recorded("netdevsim-vfs")
    start, length = next(
        (at, length) for at, length, kind in _top_level(message) if kind & 0x3FFF == 22
    )
    (one,) = struct.unpack_from("=H", message, start + 4)
    infos = bytearray()
    for number in range(count):
        info = bytearray(message[start + 4 : start + 4 + one])
        for at, _, _ in _attributes_at(info, 4):
            struct.pack_into("=I", info, at + 4, number)
        infos += info
    header = struct.pack("=HH", (4 + len(infos)) & 0xFFFF, 22 | 0x8000)
    body = bytearray(message[:start] + header + infos + message[start + length :])
    for at, _, kind in _top_level(message):
        if kind == 21:  # IFLA_NUM_VF
            struct.pack_into("=I", body, at + 4, count)
    struct.pack_into("=I", body, 0, len(body))
    return bytes(body)


def _top_level(message: bytes) -> Iterator[tuple[int, int, int]]:
    return _attributes_at(message, 32)


def _attributes_at(data: bytes | bytearray, at: int) -> Iterator[tuple[int, int, int]]:
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield at, length, kind
        at += (length + 3) & ~3


def test_300_vfs_are_all_read() -> None:
    assert [vf.index for vf in Answered(vf_list(300)).vfs(7)] == list(range(300))


def test_a_list_that_wrapped_is_refused_and_never_taken_for_the_truth() -> None:
    empty = len(vf_list(0))
    for count in (1, 2, *range(300, 1200, 37)):
        message = vf_list(count)
        if len(message) - empty <= 0xFFFF - 4:
            assert len(Answered(message).vfs(7)) == count
            continue
        with pytest.raises(KernelError, match="cut at 64 KiB") as caught:
            Answered(message).vfs(7)
        assert f"of the {count} VFs of interface eni1np1" in caught.value.message


# what we say


macs = st.integers(0, 2**48 - 1).map(
    lambda n: Mac(":".join(f"{n:012x}"[i : i + 2] for i in range(0, 12, 2)))
)
flags = st.none() | st.booleans()
guids = st.none() | st.integers(1, 2**64 - 1).map(lambda n: Guid(n.to_bytes(8, "big").hex(":")))
u32 = st.integers(0, 0xFFFFFFFF)
vf_changes = st.builds(
    VfChange,
    index=st.integers(1, 2**31 - 1),
    vf=st.integers(0, 0xFFFF),
    admin_mac=macs,
    vlan=st.integers(0, 4095),
    qos=st.integers(0, 7),
    vlan_proto=st.just(VlanProtocol.AD),
    spoofchk=flags,
    trust=flags,
    link_state=st.sampled_from((None, *LinkState)),
    min_tx_rate=u32,
    max_tx_rate=u32,
    query_rss=flags,
    node_guid=guids,
    port_guid=guids,
)


@pytest.mark.parametrize(
    ("number", "protocol"),
    [(0x8100, "802.1Q"), (0x88A8, "802.1ad"), (0, "802.1Q"), (0x9100, None)],
)
def test_the_protocol_of_a_vfs_vlan(number: int, protocol: str | None) -> None:
    """The kernel's own mlx5 reports 0 for every VF, DOCA-OFED's 802.1Q: it is the same."""
    change = VfChange(2, 3, admin_mac=ZERO, vlan=100, qos=5, vlan_proto=VlanProtocol.AD)
    (info,) = _vf_infos(change)
    info = info.replace(b"\x88\xa8", number.to_bytes(2, "big"))
    assert rtnl._vf_info(info).vlan_proto == protocol


@given(vf_changes)
def test_a_vf_change_reads_back_as_what_it_sets(change: VfChange) -> None:
    """RTM_SETLINK nests a VF's attributes as RTM_NEWLINK lists them."""
    said = dataclasses.asdict(rtnl._vf_info(b"".join(_vf_infos(change))))
    wanted = dataclasses.asdict(change)
    assert _header(rtnl._set_link(change))[0] == wanted.pop("index")
    assert said.pop("index") == wanted.pop("vf")
    assert said == wanted


def test_802_1q_goes_out_as_the_attribute_that_every_driver_knows() -> None:
    change = VfChange(2, 3, admin_mac=ZERO, vlan=100, qos=5, vlan_proto=VlanProtocol.Q)
    (info,) = _vf_infos(change)
    found = dict(netlink.attributes(info))
    assert rtnl.IFLA_VF_VLAN_LIST not in found
    assert found[rtnl.IFLA_VF_VLAN] == struct.pack("=III", 3, 100, 5)


def test_the_vlan_info_has_the_tail_padding_of_the_struct() -> None:
    """sizeof(struct ifla_vf_vlan_info) is 16; nla_validate refuses 14 (EINVAL)."""
    encoded = bytes(rtnl._set_link(VfChange(2, 3, vlan=100, qos=5, vlan_proto=VlanProtocol.AD)))
    assert encoded.endswith(
        struct.pack("=HHIIIHH", 20, 1, 3, 100, 5, int.from_bytes(b"\xa8\x88"), 0)
    )


def test_what_is_none_is_not_sent() -> None:
    (info,) = _vf_infos(VfChange(2, 3, trust=False))
    assert [kind for kind, _ in netlink.attributes(info)] == [rtnl.IFLA_VF_TRUST]
    message = rtnl._set_link(LinkChange(2, mtu=1400))
    assert [*_attributes(message)] == [rtnl.IFLA_MTU]
    assert _header(message) == (2, 0, 0)


def test_one_rate_alone_takes_the_other_with_it() -> None:
    (info,) = _vf_infos(VfChange(2, 3, max_tx_rate=100))
    found = dict(netlink.attributes(info))
    assert found[rtnl.IFLA_VF_RATE] == struct.pack("=III", 3, 0, 100)


def _vf_infos(change: VfChange) -> list[bytes]:
    return rtnl._vf_infos(_attributes(rtnl._set_link(change)))


def _attributes(message: bytes | bytearray) -> dict[int, bytes]:
    return dict(netlink.attributes(bytes(message), 32))


def _header(message: bytes | bytearray) -> tuple[int, int, int]:
    """Of struct ifinfomsg: ifi_index, ifi_flags, ifi_change."""
    index, flags, change = struct.unpack_from("=4xiII", message, 16)
    return index, flags, change


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        (
            LinkChange(7, mtu=1400, up=True, name="eth0"),
            "0800040078050000090003006574683000000000",
        ),
        (VfChange(7, 3, trust=True), "14001600100001000c0009000300000001000000"),
        (LinkMove(7, 11, "net1"), "08001c000b000000090003006e65743100000000"),
        (AltnameChange(7, "alt0", add=True), "1000348009003500616c743000000000"),
    ],
)
def test_the_bytes_are_those_that_pyroute2_sends(change: rtnl.Change, sent: str) -> None:
    """pyroute2 0.9.7, whose encoder this module had before its own."""
    assert bytes(rtnl._set_link(change))[32:].hex() == sent


@given(
    st.builds(
        LinkChange,
        index=st.integers(1, 2**31 - 1),
        name=st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True),
        mac=macs,
        mtu=st.integers(68, 9216),
        up=st.booleans(),
        promisc=st.booleans(),
        allmulti=st.booleans(),
        arp=st.booleans(),
        multicast=st.booleans(),
        altnames=st.just(()),
        txqueuelen=u32,
        group=u32,
        gso_max_size=u32,
        gso_ipv4_max_size=u32,
        gso_max_segs=u32,
        gro_max_size=u32,
        gro_ipv4_max_size=u32,
        alias=st.text(
            st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=60
        ),
    )
)
def test_a_link_change_reads_back_as_what_it_sets(change: LinkChange) -> None:
    said = dataclasses.asdict(rtnl._link(bytes(rtnl._set_link(change))))
    assert {name: said[name] for name in dataclasses.asdict(change)} == dataclasses.asdict(change)


@pytest.mark.parametrize(
    ("asked", "flags", "change"),
    [
        (LinkChange(7, up=True), 0x1, 0x1),
        (LinkChange(7, up=False), 0, 0x1),
        (LinkChange(7, promisc=True), 0x100, 0x100),
        (LinkChange(7, up=True, promisc=False, allmulti=True), 0x201, 0x301),
        (LinkChange(7, arp=False, multicast=True), 0x1080, 0x1080),
        (LinkChange(7, arp=True, multicast=False), 0, 0x1080),
    ],
)
def test_only_the_flags_that_are_asked_for_change(
    asked: LinkChange, flags: int, change: int
) -> None:
    assert _header(rtnl._set_link(asked)) == (7, flags, change)


def test_name_and_namespace_go_in_one_message() -> None:
    """The kernel does both before anybody else can look (do_setlink() holds the RTNL lock)."""
    message = rtnl._set_link(LinkMove(7, 11, "net1"))
    (kind,) = struct.unpack_from("=H", message, 4)
    assert (_header(message)[0], kind) == (7, rtnl.RTM_SETLINK)
    assert _attributes(message) == {
        rtnl.IFLA_NET_NS_FD: struct.pack("=I", 11),
        rtnl.IFLA_IFNAME: b"net1\0",
    }


# refusals, as recorded


def refusal(text: str) -> OSError:
    data = bytes.fromhex(text)
    _, _, flags, _ = struct.unpack_from("=IHHI", data)
    error = netlink._refusal(data, flags)
    assert isinstance(error, OSError)
    return error


def test_a_refusal_with_the_kernels_own_words() -> None:
    error = refusal(
        "48000000020000030a000000db000000eaffffff28000000130005000a00000000000000"
        "210001006d7475206c657373207468616e20646576696365206d696e696d756d00000000"
    )
    assert error.errno == errno.EINVAL
    assert error.strerror == "Invalid argument (mtu less than device minimum)"


def test_a_refusal_without_words() -> None:
    error = refusal("240000000200000107000000db000000a1ffffff34000000130005000700000000000000")
    assert (error.errno, error.strerror) == (errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_an_uncapped_refusal_carries_the_request_before_the_words() -> None:
    """NETLINK_CAP_ACK came with Linux 4.3; without it the whole request comes back."""
    request = bytes(rtnl._set_link(LinkChange(1, name="abc")))
    words = struct.pack("=HH", 8, 1) + b"no\0\0"
    body = struct.pack("=i", -errno.EPERM) + request + words
    data = struct.pack("=IHHII", 16 + len(body), 2, netlink.NLM_F_ACK_TLVS, 1, 0) + body
    assert refusal(data.hex()).strerror == "Operation not permitted (no)"


# a real kernel, in a namespace of its own


@pytest.fixture
def alone() -> Iterator[Rtnl]:
    """An rtnetlink socket of an empty network namespace: a thread's namespace is its own."""
    made: list[Rtnl | OSError] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            made.append(OSError(ctypes.get_errno(), "unshare"))
        else:
            made.append(Rtnl())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (socket,) = made
    if isinstance(socket, OSError):
        pytest.skip(f"no network namespace of our own: {os.strerror(socket.errno or 0)}")
    with socket:
        yield socket


def test_the_links_of_a_namespace(alone: Rtnl) -> None:
    (lo,) = alone.links().values()
    assert (lo.index, lo.name, lo.up, lo.bus, lo.device) == (1, "lo", False, None, None)
    assert alone.requests == 1


def test_every_attribute_of_a_link_is_set_and_read_back(alone: Rtnl) -> None:
    change = LinkChange(
        1, name="loop", mtu=1400, up=True, promisc=True, allmulti=True,
        txqueuelen=77, group=9, alias="rack 4, port 'b'",
        gso_max_size=30000, gso_max_segs=9, gro_max_size=40000,
    )  # fmt: skip
    assert alone.change([change]) == [None]
    said = dataclasses.asdict(alone.links()[1])
    wanted = {
        name: value for name, value in dataclasses.asdict(change).items() if value is not None
    }
    assert wanted.items() <= said.items()
    assert alone.change([LinkChange(1, up=False, promisc=False, allmulti=False, alias="")]) == [
        None
    ]
    now = alone.links()[1]
    assert (now.up, now.promisc, now.allmulti, now.alias) == (False, False, False, "")


def test_alternative_names_come_and_go(alone: Rtnl) -> None:
    long = "a" * 127
    assert alone.change([AltnameChange(1, "b", add=True), AltnameChange(1, long, add=True)]) == [
        None,
        None,
    ]
    assert alone.links()[1].altnames == (long, "b")
    refused, removed = alone.change(
        [AltnameChange(1, "b", add=True), AltnameChange(1, long, add=False)]
    )
    assert refused is not None
    assert refused.errno == errno.EEXIST
    assert removed is None
    assert alone.links()[1].altnames == ("b",)


def test_names_of_any_bytes_are_told_apart_from_ours(alone: Rtnl) -> None:
    """The kernel takes them all: another's odd interface must not end our look at the node."""
    changes = [AltnameChange(1, name, add=True) for name in ("a b", "a/b", "\x1b[2J", "QQQQ")]
    messages = [rtnl._set_link(change) for change in changes]
    messages += [rtnl._set_link(LinkChange(1, name="QQQQ", alias="QQQQ"))]
    odd = [bytearray(bytes(message).replace(b"QQQQ", b"\xff\xfeQ\xc3")) for message in messages[:4]]
    last = bytearray(bytes(messages[4]).replace(b"QQQQ", b"\xff\xfeR\xc3"))
    assert alone.send([*odd, last]) == [None] * 5
    (link,) = alone.links().values()
    assert link.name == "\\xff\\xfeR\\xc3"
    assert link.altnames == ("a b", "a/b")
    assert link.alias is None


def test_300_changes_each_have_their_own_answer(alone: Rtnl) -> None:
    """Each refusal takes 1.3 KiB of a socket buffer of 208 KiB: unbatched, most would be lost."""
    changes = [LinkChange(1 if n % 3 else 999, mtu=1000 + n) for n in range(300)]
    results = alone.change(changes)
    assert [result is None for result in results] == [bool(n % 3) for n in range(300)]
    assert {result.errno for result in results if result is not None} == {errno.ENODEV}
    assert alone.links()[1].mtu == 1299
    assert alone.requests == 301


def test_no_changes_is_no_message(alone: Rtnl) -> None:
    assert alone.change([]) == []
    assert alone.requests == 0


def test_the_vfs_of_an_interface_that_is_gone(alone: Rtnl) -> None:
    with pytest.raises(KernelError, match="VFs of interface 999: No such device") as caught:
        alone.vfs(999)
    assert caught.value.errno == errno.ENODEV


def test_a_vf_change_where_there_are_no_vfs_is_refused(alone: Rtnl) -> None:
    (error,) = alone.change([VfChange(1, 0, trust=True)])
    assert error is not None
    assert error.errno == errno.EOPNOTSUPP


def test_close_gives_the_socket_back(alone: Rtnl) -> None:
    alone.close()
    with pytest.raises(KernelError, match="Bad file descriptor"):
        alone.links()


# a scripted kernel: dumps that were overtaken, and answers to others


class Script:
    """A socket: each request is answered with the next datagram of (kind, flags, body)."""

    def __init__(self, *datagrams: list[tuple[int, int, bytes]]) -> None:
        self.datagrams = list(datagrams)
        self.sequence = 0

    def send(self, message: bytes) -> None:
        (self.sequence,) = struct.unpack_from("=I", message, 8)

    def recv(self, _: int) -> bytes:
        data = b""
        for kind, flags, body in self.datagrams.pop(0):
            offset = -1 if flags & 0x8000 else 0
            header = (16 + len(body), kind, flags & 0x7FFF, self.sequence + offset, 0)
            data += struct.pack("=IHHII", *header) + body
        return data


def scripted(*datagrams: list[tuple[int, int, bytes]]) -> Rtnl:
    made = Rtnl.__new__(Rtnl)
    made.requests, made._sequence = 0, 0
    made._socket = Script(*datagrams)  # type: ignore[assignment] # what of a socket is used
    return made


LO = recorded("lo-link")[16:]
MULTI, INTR, LATE = 0x2, 0x10, 0x8000
DONE = (3, MULTI, bytes(4))


def test_a_dump_that_was_overtaken_is_asked_for_again() -> None:
    rtnl_ = scripted([(16, MULTI | INTR, LO)], [DONE], [(16, MULTI, LO), DONE])
    assert list(rtnl_.links()) == [1]
    assert rtnl_.requests == 2


def test_a_node_that_never_stands_still_is_said_so() -> None:
    rtnl_ = scripted(*([(16, MULTI | INTR, LO), DONE] for _ in range(20)))
    with pytest.raises(KernelError, match="network interfaces: they changed during each of 8"):
        rtnl_.links()


def test_the_late_end_of_an_earlier_dump_is_not_taken_for_this_ones() -> None:
    rtnl_ = scripted([(3, MULTI | LATE, bytes(4))], [(16, MULTI, LO), DONE])
    assert list(rtnl_.links()) == [1]


def test_answers_in_several_datagrams_and_in_any_order_of_others() -> None:
    ack = struct.pack("=i", 0) + bytes(16)
    rtnl_ = scripted([(2, LATE, ack)], [(2, 0, ack)])
    assert rtnl_.change([LinkChange(1, mtu=1400)]) == [None]


def test_a_refused_dump_is_a_kernel_error() -> None:
    no = struct.pack("=i", -errno.EPERM) + bytes(16)
    with pytest.raises(KernelError, match="Operation not permitted"):
        scripted([(2, 0, no)]).links()
