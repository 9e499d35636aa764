"""How interfaces spread what they receive and send (`ethtool -X`, `-N`, RPS, XPS), and what they
take at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, PF2, Nodeagent

KEY = ":".join(f"{n:02x}" for n in range(40))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    lab.clean("A")
    yield
    lab.clean("A")


def told() -> dict[str, str]:
    """What ethtool and ip print of both PFs, and of the first one's VFs and their representors."""
    names = lab.sh("ls /sys/class/net").split()
    return {
        name: lab.sh(
            f"ethtool -x {name}; ethtool -n {name}; ethtool -n {name} rx-flow-hash udp4; "
            f"ip -d link show {name} | grep -o 'g[rs]o_[^ ]* [0-9]*'; "
            f"cd /sys/class/net/{name}; grep -s . gro_flush_timeout napi_d* queues/*/*ps_*; true"
        )
        for name in names
        if name.startswith("enp")
    }


def test_it_is_kept_in_one_pass(nodeagent: Nodeagent, tmp_path: Path) -> None:
    lab.create_vfs(PF1, 2)
    lab.settle()
    fresh = told()
    pf, other, vf0, vf1 = (lab.name(each) for each in (PF1, PF2, *lab.vfs(PF1).values()))
    lab.sh(f"""set -e
        ethtool -N {pf} flow-type tcp4 dst-port 80 action 0
        ethtool -N {pf} flow-type udp4 src-ip 10.0.0.0 m 0.0.0.255 dst-port 53 action -1 loc 5
        ethtool -N {pf} flow-type ether dst 02:00:00:00:00:01 src 02:00:00:00:00:02 action 0 loc 7
        ethtool -N {pf} flow-type ip6 src-ip fe80::1 l4proto 58 action 0 loc 8
        ethtool -N {pf} flow-type ip4 dst-ip 10.1.1.1 vlan 5 m 0xf000 action 0 loc 9
        ethtool -N {pf} rx-flow-hash udp4 sd
        ethtool -X {pf} hfunc xor hkey {KEY}
        ethtool -X {vf0} hfunc xor
        ethtool -N {vf0} flow-type tcp6 dst-port 443 action 0 loc 2
        ip link set {other} gso_max_size 30000 gro_max_size 40000
        ip link set {vf1} gso_max_segs 9 gro_max_size 100000
        cd /sys/class/net/{pf}
        echo 1 | tee queues/rx-0/rps_cpus queues/tx-0/xps_rxqs
        echo 32 > queues/rx-0/rps_flow_cnt
        cd ../{vf0}
        echo 0 > queues/tx-0/xps_cpus
        echo 20000 > gro_flush_timeout
        echo 2 > napi_defer_hard_irqs
    """)
    before = told()
    assert all(before[name] != fresh[name] for name in (pf, other, vf0, vf1))
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)

    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert told() == before
    assert reload.log.count("INFO  set PF ethtool:") == 1
    assert reload.log.count("INFO  set ethtool:") == 1

    lab.sh(f"""set -e
        ethtool -N {pf} delete 5
        ethtool -N {pf} rx-flow-hash udp4 sdfn
        ethtool -X {pf} hfunc toeplitz
        ethtool -X {vf1} hkey {KEY}
        ethtool -N {vf1} flow-type tcp6 dst-port 443 action 0 loc 3
        ip link set {other} gso_max_size 65536
        echo 0 > /sys/class/net/{pf}/queues/rx-0/rps_cpus
        echo 1 > /sys/class/net/{vf0}/queues/tx-0/xps_cpus
    """)
    nodeagent.call("verify", "--snapshot", snapshot, status=1)
    lab.sh(nodeagent.call("plan", "--snapshot", snapshot).output())
    assert told() == before
    nodeagent.call("verify", "--snapshot", snapshot)


TIMESTAMPS = """
import array, fcntl, socket, struct, sys
config = array.array("i", [0, 1, 1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    request = struct.pack("16sP16x", sys.argv[1].encode(), config.buffer_info()[0])
    fcntl.ioctl(asked, 0x89B0, request)
"""
"""SIOCSHWTSTAMP, as hwstamp_ctl(8) does it."""


def test_what_is_not_kept_is_named(nodeagent: Nodeagent, tmp_path: Path) -> None:
    pf, snapshot = lab.name(PF1), str(tmp_path / "snapshot")
    assert "not restored" not in nodeagent.call("snapshot", "--file", snapshot).log
    script = tmp_path / "timestamps.py"
    script.write_text(TIMESTAMPS)
    lab.sh(f"""set -e
        ip link set {pf} up
        ethtool -X {pf} context new
        ethtool -N {pf} flow-type tcp4 dst-port 81 context 1
        python3 {script} {pf}
    """)
    log = nodeagent.call("snapshot", "--file", snapshot).log
    for lost in (
        f"RSS context 1 of {pf}, with n-tuple rules that name it",
        f"hardware timestamping of {pf}",
    ):
        assert f"{lost}: the reload removes it, and it is not restored" in log
    assert log.count("not restored") == 2
