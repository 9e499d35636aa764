"""The emulated ConnectX itself, by plain tools: frames, attributes, switchdev, DCB, LAG, RDMA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.connectx import Card
from tests.support.lab import PF1, PF2
from tests.support.port_functions import port_functions

SERVER = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listening = socket.create_server((sys.argv[1], 7000), family=family)
print("listening", flush=True)
connection, _ = listening.accept()
found, n = hashlib.sha256(), 0
while data := connection.recv(65536):
    found.update(data)
    n += len(data)
connection.sendall(f"{n} {found.hexdigest()}".encode())
"""
CLIENT = """
import hashlib, random, socket, sys
data = random.Random(1).randbytes(1_500_000)
with socket.create_connection((sys.argv[1], 7000), timeout=30) as to:
    to.sendall(data)
    to.shutdown(socket.SHUT_WR)
    told = b""
    while part := to.recv(100):
        told += part
assert told.decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}", told
"""
PING = """
import os, socket, struct, sys
# an echo request by a raw socket: the image has no ping
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
body = struct.pack("!HH", os.getpid() & 0xffff, 1) + bytes(range(56))
request = struct.pack("!BBH", 8, 0, checksum(struct.pack("!BBH", 8, 0, 0) + body)) + body
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
    icmp.settimeout(float(sys.argv[2]))
    icmp.sendto(request, (sys.argv[1], 0))
    try:
        while icmp.recv(1500)[20:22] != bytes(2):
            pass
    except TimeoutError:
        sys.exit("no answer")
"""


@pytest.fixture(autouse=True)
def held() -> Iterator[Card]:
    lab.clean()
    with connectx.card() as card:
        yield card
    for pf in lab.pfs():
        lab.ip(f"addr flush dev {lab.name(pf)}")
        lab.PCI.joinpath(pf, "sriov_numvfs").write_text("0")
        lab.sh(f"devlink dev eswitch set pci/{pf} mode legacy")
    lab.clean()


def answers(name: str, address: str, patience: float = 2.0) -> bool:
    """Whether a host answers an echo request from a namespace.

    An earlier request's search for the host's MAC is forgotten: the kernel asks three times, a
    second apart, and drops what waits for it then, this request included.
    """
    Path("/run/ping.py").write_text(PING)
    told = lab.sh(
        f"ip -n {name} neigh flush all;"
        f"ip netns exec {name} python3 /run/ping.py {address} {patience} 2>&1 || true"
    )
    assert told in ("", "no answer\n"), told
    return not told


def transfer(sender: str, receiver: str, address: str) -> None:
    """TCP: 1.5 MB, and their digest."""
    Path("/run/server.py").write_text(SERVER)
    Path("/run/client.py").write_text(CLIENT)
    lab.sh(
        f"coproc ip netns exec {receiver} python3 /run/server.py {address};"
        "trap 'kill ${COPROC_PID:-} 2>/dev/null || true' EXIT;"
        f'read -r _ <&"${{COPROC[0]}}"; ip netns exec {sender} python3 /run/client.py {address}'
    )


@contextmanager
def namespaces(*interfaces: str) -> Iterator[list[str]]:
    """Each interface in a namespace of its own, up, with 10.9.0.N/24."""
    names = [f"host{n}" for n in range(1, len(interfaces) + 1)]
    for n, (name, interface) in enumerate(zip(names, interfaces, strict=True), 1):
        lab.sh(
            f"ip netns add {name}; ip link set {interface} netns {name};"
            f"ip -n {name} link set lo up; ip -n {name} link set {interface} up;"
            f"ip -n {name} addr add 10.9.0.{n}/24 dev {interface};"
            f"ip -n {name} addr add fd09::{n}/64 dev {interface} nodad"
        )
    try:
        yield names
    finally:
        for name, interface in zip(names, interfaces, strict=True):
            lab.sh(f"ip -n {name} link set {interface} netns 1; ip netns del {name}")


def vf_interfaces(pf: str, count: int) -> list[str]:
    lab.create_vfs(pf, count)
    return [lab.name(lab.vf(pf, n)) for n in range(count)]


def of_pf(*commands: str, pf: str = PF1) -> None:
    lab.ip(*(f"link set {lab.name(pf)} {command}" for command in commands))


# ---- legacy -------------------------------------------------------------------------------------


def test_frames_go_by_mac_between_vfs_and_pf() -> None:
    """Ping, TCP over both protocols with segments of 64 KB, and what the eswitch counts."""
    of_pf("up")
    with namespaces(*vf_interfaces(PF1, 2)) as (one, two):
        lab.ip(f"addr add 10.9.0.100/24 dev {lab.name(PF1)}")
        assert answers(one, "10.9.0.2")
        assert answers(one, "10.9.0.100")
        transfer(one, two, "10.9.0.2")
        transfer(two, one, "fd09::1")
        (counted,) = json.loads(lab.sh(f"ip -j -s link show {lab.name(PF1)}"))
        stats = counted["vfinfo_list"][0]["stats"]
        assert stats["tx"]["tx_bytes"] > 1_500_000
        assert "csum failure" not in lab.sh("dmesg")


def test_vlan_spoofcheck_and_state_hold_for_frames() -> None:
    interfaces = vf_interfaces(PF1, 3)
    of_pf("up", "vf 0 mac 02:00:00:00:00:01", "vf 0 spoofchk on")
    of_pf("vf 1 vlan 100", "vf 2 vlan 100 qos 3")
    lab.rebind(lab.vf(PF1, 0))
    lab.settle()
    with namespaces(lab.name(lab.vf(PF1, 0)), *interfaces[1:]) as (one, two, _):
        assert answers(two, "10.9.0.3")
        assert not answers(one, "10.9.0.2")
        of_pf("vf 1 vlan 0", "vf 2 vlan 0")
        assert answers(one, "10.9.0.2")
        lab.sh(f"ip -n {one} link set {interfaces[0]} address 02:00:00:00:00:99")
        assert not answers(one, "10.9.0.3")
        of_pf("vf 0 spoofchk off")
        lab.sh(f"ip -n {two} neigh flush all")
        assert answers(one, "10.9.0.2")
        of_pf("vf 1 state disable")
        lab.eventually(
            lambda: "NO-CARRIER" in lab.sh(f"ip -n {two} link show {interfaces[1]}"), "no carrier"
        )
        assert not answers(one, "10.9.0.2")
        of_pf("vf 1 state enable")
        lab.eventually(
            lambda: "LOWER_UP" in lab.sh(f"ip -n {two} link show {interfaces[1]}"), "the carrier"
        )
        assert answers(one, "10.9.0.2")


def test_vlan_children_of_vfs() -> None:
    with namespaces(*vf_interfaces(PF1, 2)) as names:
        for n, name in enumerate(names, 1):
            interface = lab.vf_name(PF1, n - 1)
            lab.sh(
                f"ip -n {name} link add link {interface} name v7 type vlan id 7;"
                f"ip -n {name} link set v7 up; ip -n {name} addr add 10.8.0.{n}/24 dev v7"
            )
        assert answers(names[0], "10.8.0.2")
        for name in names:
            lab.sh(f"ip -n {name} link del v7")


def test_what_a_pf_holds_for_a_vf_is_read_back() -> None:
    """Also while a virtual machine has it; mlx5 has no query_rss."""
    lab.create_vfs(PF1, 1)
    of_pf("up", "vf 0 mac 02:00:00:00:00:41", "vf 0 vlan 9 qos 5", "vf 0 trust on")
    of_pf("vf 0 spoofchk on", "vf 0 state disable", "vf 0 max_tx_rate 400 min_tx_rate 100")
    lab.give_to("vfio-pci", lab.vf(PF1, 0))
    told = lab.sh(f"ip link show {lab.name(PF1)}")
    assert "vf 0     link/ether 02:00:00:00:00:41" in told
    for words in (
        "vlan 9, qos 5",
        "max_tx_rate 400Mbps, min_tx_rate 100Mbps",
        "spoof checking on",
        "link-state disable",
        "trust on",
    ):
        assert words in told
    with pytest.raises(AssertionError, match="Operation not supported"):
        of_pf("vf 0 query_rss on")


def test_the_cable_and_the_speed(held: Card) -> None:
    of_pf("up")
    lab.await_carrier(PF1)
    told = lab.sh(f"ethtool {lab.name(PF1)}")
    assert "Speed: 100000Mb/s" in told
    held.plug(0, cable=False)
    lab.eventually(lambda: "NO-CARRIER" in lab.sh(f"ip link show {lab.name(PF1)}"), "no carrier")
    held.set(0, "speed", 25000)
    held.plug(0, cable=True)
    lab.await_carrier(PF1)
    assert "Speed: 25000Mb/s" in lab.sh(f"ethtool {lab.name(PF1)}")
    lab.sh(f"ethtool -s {lab.name(PF1)} speed 10000 autoneg off")
    lab.await_carrier(PF1)
    assert "Speed: 10000Mb/s" in lab.sh(f"ethtool {lab.name(PF1)}")
    lab.sh(f"ethtool -s {lab.name(PF1)} autoneg on")


def test_msix_vectors_of_a_vf() -> None:
    """As many as its PF says, from what all VFs share; not while it is bound, and 2 at least."""
    total = int((lab.PCI / PF1 / "sriov_vf_total_msix").read_text())
    assert total == 16 * int((lab.PCI / PF1 / "sriov_totalvfs").read_text())
    lab.create_vfs(PF1, 2)
    address = lab.vf(PF1, 1)
    count = lab.PCI / address / "sriov_vf_msix_count"
    with pytest.raises(OSError, match="Device or resource busy"):
        count.write_text("6")
    lab.unbind(address)
    count.write_text("6")
    for wrong, refusal in ((1, "Invalid argument"), (17, "Value too large")):
        with pytest.raises(OSError, match=refusal):
            count.write_text(str(wrong))
    assert "MSI-X: Enable- Count=6" in lab.sh(f"lspci -vv -s {address}")
    connectx.bind(address)
    assert len(list((lab.PCI / address / "msi_irqs").iterdir())) <= 6


def test_as_many_vfs_as_the_card_has() -> None:
    """Not one more; the last one works."""
    total = int((lab.PCI / PF1 / "sriov_totalvfs").read_text())
    numvfs = lab.PCI / PF1 / "sriov_numvfs"
    with pytest.raises(OSError, match="Numerical result out of range"):
        numvfs.write_text(str(total + 1))
    autoprobe = lab.PCI / PF1 / "sriov_drivers_autoprobe"
    autoprobe.write_text("0")
    numvfs.write_text(str(total))
    autoprobe.write_text("1")
    last = lab.vf(PF1, total - 1)
    of_pf(f"vf {total - 1} mac 02:00:00:00:00:7f")
    connectx.bind(last)
    lab.settle()
    assert lab.name(last) == lab.vf_name(PF1, total - 1)
    assert "02:00:00:00:00:7f" in lab.sh(f"ip link show {lab.name(last)}")


# ---- switchdev ----------------------------------------------------------------------------------


def test_representors_pass_frames_of_their_vfs() -> None:
    """Through a bridge: a representor gets what its VF sends, and its VF what it sends."""
    lab.create_vfs(PF1, 2)
    connectx.switch(PF1)
    names = lab.representors(PF1)
    lab.sh("ip link add br9 type bridge; ip link set br9 up")
    for interface in (names["pf0vf0"], names["pf0vf1"]):
        lab.ip(f"link set {interface} up master br9")
    lab.ip("addr add 10.9.0.100/24 dev br9")
    try:
        with namespaces(*(lab.name(lab.vf(PF1, n)) for n in range(2))) as (one, two):
            assert answers(one, "10.9.0.2", 5)
            assert answers(one, "10.9.0.100", 5)
            transfer(one, two, "10.9.0.2")
            lab.ip(f"link set {names['pf0vf1']} down")
            assert not answers(one, "10.9.0.2")
    finally:
        lab.ip("link del br9")


def test_what_switchdev_refuses() -> None:
    lab.create_vfs(PF1, 1)
    connectx.switch(PF1)
    for attribute in ("vlan 5", "trust on", "spoofchk on", "state enable", "query_rss on"):
        with pytest.raises(AssertionError, match="Operation not supported"):
            lab.sh(f"ip link set {lab.name(PF1)} vf 0 {attribute}")
    with pytest.raises(AssertionError, match="Operation not supported"):
        lab.sh(f"devlink dev param set pci/{PF1} name esw_multiport value true cmode runtime")
    with pytest.raises(AssertionError, match="E-Switch must either disabled or non switchdev"):
        lab.sh(f"devlink dev param set pci/{PF1} name esw_port_metadata value false cmode runtime")
    of_pf("vf 0 mac 02:00:00:00:00:05")
    with pytest.raises(AssertionError, match="Inline mode can't be set"):
        lab.sh(f"devlink dev eswitch set pci/{PF1} inline-mode transport")
    lab.sh(f"devlink dev eswitch set pci/{PF1} encap-mode none")
    assert connectx.eswitch(PF1)["encap-mode"] in ("none", "disable", False)
    lab.sh(f"devlink dev eswitch set pci/{PF1} encap-mode basic")


def test_port_functions_and_rate_nodes() -> None:
    lab.create_vfs(PF1, 2)
    connectx.switch(PF1)
    handle = f"pci/{PF1}"
    lab.sh(f"devlink port function set {handle}/1 hw_addr 02:00:00:00:00:61")
    lab.sh(f"devlink port function rate set {handle}/1 tx_max 100mbit")
    lab.sh(f"devlink port function rate add {handle}/group tx_share 10mbit")
    lab.sh(f"devlink port function rate set {handle}/2 parent group")
    told = lab.sh(f"devlink port show {handle}/1; devlink port function rate show")
    assert "hw_addr 02:00:00:00:00:61" in told
    assert "tx_max 100Mbit" in told
    assert re.search(r"/2: type leaf parent group", told)
    lab.rebind(lab.vf(PF1, 0))
    lab.settle()
    shown = lab.sh(f"ip link show {lab.name(lab.vf(PF1, 0))}")
    assert "02:00:00:00:00:61" in shown


def test_roce_migratable_and_max_io_eqs_of_a_port_function() -> None:
    """Set while the VF is unbound, and read back; udev's name of its RDMA device tells RoCE."""
    lab.create_vfs(PF1, 2)
    connectx.switch(PF1)
    address = lab.vf(PF1, 0)
    assert connectx.rdma()[address] == "rocep1s0f0v0"
    with port_functions(PF1) as functions:
        fresh = functions.get(1)
        assert fresh["roce"] == fresh["migratable"] == 1
        lab.unbind(address)
        functions.set(1, roce=0)
        functions.set(1, migratable=0)
        functions.set(1, max_io_eqs=4)
        assert functions.get(1) == {"roce": 0, "migratable": 0, "max_io_eqs": 4}
        assert functions.get(2) == fresh
        connectx.bind(address)
        lab.settle()
        assert connectx.rdma()[address] == "rdmap1s0f0v0"
        lab.unbind(address)
        functions.set(1, roce=1)
        functions.set(1, migratable=1)
        functions.set(1, max_io_eqs=fresh["max_io_eqs"])
        connectx.bind(address)
        lab.settle()
        assert functions.get(1) == fresh
    assert connectx.rdma()[address] == "rocep1s0f0v0"


def test_a_subfunction_comes_and_goes() -> None:
    """With the builds that have them: made, set active, probed, made inactive, removed."""
    connectx.switch(PF1)
    handle = f"pci/{PF1}"
    lab.sh(f"devlink port add {handle} flavour pcisf pfnum 0 sfnum 88; udevadm settle")
    (port, told) = next(
        (name, each)
        for name, each in json.loads(lab.sh("devlink -j port show"))["port"].items()
        if each.get("flavour") == "pcisf"
    )
    representor = Path("/sys/class/net", told["netdev"])
    assert (representor / "phys_port_name").read_text().strip() == "pf0sf88"
    assert (representor / "device").resolve().name == PF1
    lab.sh(f"devlink port function set {port} hw_addr 02:00:00:00:00:88")

    def function() -> dict[str, str]:
        shown = json.loads(lab.sh(f"devlink -j port show {port}"))["port"][port]
        return dict(shown["function"])

    try:
        lab.sh(f"devlink port function set {port} state active")
        lab.eventually(lambda: function()["opstate"] == "attached", "the subfunction's driver")
        assert function()["hw_addr"] == "02:00:00:00:00:88"
        assert "auxiliary/mlx5_core.sf." in lab.sh("devlink dev show")
        lab.sh(f"devlink port function set {port} state inactive")
        lab.eventually(lambda: function()["opstate"] == "detached", "its end")
    finally:
        lab.sh(f"devlink port del {port}")
    assert "mlx5_core.sf." not in lab.sh("devlink dev show")


# ---- DCB ----------------------------------------------------------------------------------------


def dcb(what: str, command: str = "show") -> str:
    verb, _, rest = command.partition(" ")
    return lab.dcb(f"{what} {verb} dev {lab.name(PF1)} {rest}")


def test_dcb_is_read_back_as_it_was_written() -> None:
    assert "total-size 263424b" in dcb("buffer")
    assert "0:262080b 1:0b" in dcb("buffer")
    dcb(
        "ets",
        "set tc-bw 0:30 1:70 2:0 3:0 4:0 5:0 6:0 7:0 "
        "tc-tsa 0:ets 1:ets 2:strict 3:strict 4:strict 5:strict 6:strict 7:strict prio-tc 4:1",
    )
    told = dcb("ets")
    assert "tc-bw 0:30 1:70" in told
    assert "tc-tsa 0:ets 1:ets 2:strict" in told
    assert "4:1" in told.split("prio-tc")[1]
    dcb("pfc", "set prio-pfc 3:on")
    assert "2:off 3:on 4:off" in dcb("pfc")
    dcb("maxrate", "set tc-maxrate 2:1gbit")
    assert "2:1Gbit" in dcb("maxrate")
    dcb("buffer", "set buffer-size 0:100000 1:100000")
    dcb("buffer", "set prio-buffer 3:1")
    told = dcb("buffer")
    assert "3:1" in told.partition("buffer-size")[0]
    assert "0:99936b 1:99936b" in told
    dcb("app", "add dscp-prio 24:3")
    assert "CS3:3" in dcb("app")
    dcb("app", "del dscp-prio 24:3")
    connectx.reset_dcb(PF1)
    assert "0:262080b 1:0b" in dcb("buffer")
    assert "2:0bit" in dcb("maxrate")


# ---- LAG, RDMA, devlink -------------------------------------------------------------------------


def lag() -> str:
    return Path(f"/sys/kernel/debug/mlx5/{PF1}/lag/state").read_text().strip()


@contextmanager
def bonded() -> Iterator[None]:
    names = [lab.name(pf) for pf in (PF1, PF2)]
    lab.ip("link add bond9 type bond mode active-backup miimon 100")
    lab.ip(*(f"link set {name} down master bond9" for name in names), "link set bond9 up")
    try:
        yield
    finally:
        lab.ip(*(f"link set {name} nomaster" for name in names), "link del bond9")
        lab.settle()


def test_vf_lag_is_refused_while_a_vf_is_bound(held: Card) -> None:
    lab.create_vfs(PF1, 1)
    lab.sh("mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug")
    for pf in (PF1, PF2):
        connectx.switch(pf)
    since = connectx.LOG.stat().st_size

    def refused() -> bool:
        found = connectx.asked(since)
        return any(c.name == "CREATE_LAG" and c.status == "BAD_SYS_STATE" for c in found)

    with bonded():
        lab.eventually(refused, "the refusal")
        assert lag() == "disabled"
    assert "Make sure all VFs are unbound" in lab.sh("dmesg")
    lab.unbind(lab.vf(PF1, 0))
    with bonded():
        lab.eventually(lambda: lag() == "active", "LAG")
    lab.eventually(lambda: lag() == "disabled", "its end")
    connectx.bind(lab.vf(PF1, 0))
    held.set(0, "lag-needs-unbound-vfs", False)
    held.set(1, "lag-needs-unbound-vfs", False)
    with bonded():
        lab.eventually(lambda: lag() == "active", "LAG, with a VF bound")


def test_roce_lag_has_one_rdma_device() -> None:
    """Legacy, without VFs: the ports' devices give way to the bond's."""
    with bonded():
        lab.eventually(lambda: len(connectx.rdma()) == 1, "the bond's RDMA device")
    lab.eventually(lambda: len(connectx.rdma()) == 2, "those of the ports")


def test_rdma_devices_have_guids_of_their_functions() -> None:
    lab.create_vfs(PF1, 1)
    of_pf("vf 0 mac 02:00:00:00:00:31")
    lab.rebind(lab.vf(PF1, 0))
    lab.settle()
    (device,) = (lab.PCI / lab.vf(PF1, 0) / "infiniband").iterdir()
    assert (device / "node_guid").read_text().strip() == "0200:00ff:fe00:0031"
    for mode in ("exclusive", "shared"):
        lab.sh(f"rdma system set netns {mode}")
        assert lab.sh("rdma system show").startswith(f"netns {mode}")


def test_infiniband_and_the_guids_of_vfs(held: Card) -> None:
    """IPoIB on PF and VF; GUIDs and link state reach a VF's RDMA device when it is bound."""
    node, port = "02:11:22:33:44:55:66:77", "02:11:22:33:44:55:66:78"
    with connectx.infiniband(held) as name:
        assert "link/infiniband" in lab.sh(f"ip link show {name}")
        lab.create_vfs(PF1, 2)
        vf = lab.vf(PF1, 0)
        lab.unbind(vf)
        for words in (f"node_guid {node}", f"port_guid {port}", "state enable"):
            lab.ip(f"link set {name} vf 0 {words}")
        assert f"NODE_GUID {node}, PORT_GUID {port}" in lab.sh(f"ip link show {name}")
        connectx.bind(vf)
        lab.settle()
        (device,) = (lab.PCI / vf / "infiniband").iterdir()
        assert (device / "node_guid").read_text().strip() == "0211:2233:4455:6677"
        gid = (device / "ports/1/gids/0").read_text().strip()
        assert gid == "fe80:0000:0000:0000:0211:2233:4455:6678"
        assert (device / "ports/1/link_layer").read_text().strip() == "InfiniBand"
        assert "02:11:22:33:44:55:66:78" in lab.sh(f"ip link show {lab.name(vf)}")


def test_devlink_info_parameters_and_reload() -> None:
    handle = f"pci/{PF1}"
    told = lab.sh(f"devlink dev info {handle}")
    assert "fw.version 22.41.1000" in told
    assert "fw.psid LAB0000000001" in told
    lab.sh(
        f"devlink dev param set {handle} name enable_roce value false cmode driverinit;"
        f"devlink dev reload {handle}"
    )
    lab.settle()
    assert "value false" in lab.sh(f"devlink dev param show {handle} name enable_roce")
    with pytest.raises(AssertionError, match="steering is not supported by current device"):
        lab.sh(f"devlink dev param set {handle} name flow_steering_mode value smfs cmode runtime")
    assert "healthy" in lab.sh(f"devlink health show {handle} reporter fw")
    lab.sh(
        f"devlink dev param set {handle} name enable_roce value true cmode driverinit;"
        f"devlink dev reload {handle}"
    )
    lab.settle()
