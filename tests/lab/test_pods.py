"""Pods keep their interfaces: a reload with VFs in other network namespaces.

What is inside pods is set up and read with iproute2; what they say to each other goes through the
switch of the emulated NIC, by processes that know nothing of the reload.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.settings import Settings
from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, RUN, Nodeagent, State
from tests.support.pods import (
    LEAST,
    Announcements,
    Pings,
    Pod,
    Stream,
    home,
    write_least,
)

SHARE: Final = 1.2
"""Of the time for which pods are cut off when a script does the least that is still right."""


@dataclass
class Scene:
    """Ten VFs in nine pods, four at home, and what is said between pods."""

    pods: list[Pod]
    vfs: list[tuple[Pod, str, str]]
    node: State
    inside: list[State]

    def now(self) -> list[State]:
        """The inside of each pod."""
        return [pod.read() for pod in self.pods]

    def asked(self) -> Iterator[tuple[Pod, str]]:
        """Each pod asks another one of its PF, so that each VF is asked by somebody."""
        for pf, count in ((1, 6), (2, 4)):
            for index in range(count):
                asks = next(p for p, vf, _ in self.vfs if vf == lab.vf(PFS[pf], index))
                yield asks, f"10.{pf}.0.{(index + 1) % count + 1}"


PFS: Final = {1: PF1, 2: PF2}


@pytest.fixture
def scene(no_vfs: None) -> Iterator[Scene]:
    """2 PFs with 7 VFs each; the first pod has net1 and net2, each of another PF."""
    for address in PFS.values():
        lab.make_vfs(address, 7, mtu=9000)
    with ExitStack() as held:
        pods = [held.enter_context(Pod()) for _ in range(9)]
        places = [(pods[n], 1, n, "net1") for n in range(6)]
        places += [(pods[0], 2, 0, "net2"), *((pods[5 + n], 2, n, "net1") for n in range(1, 4))]
        vfs = [(pod, lab.vf(PFS[pf], index), name) for pod, pf, index, name in places]
        for pod, pf, index, name in places:
            lab.ip(f"link set {lab.name(PFS[pf])} vf {index} vlan 0 trust on spoofchk off")
            pod.take(lab.vf(PFS[pf], index), name)
            pod.ip(
                f"address add 10.{pf}.0.{index + 1}/24 dev {name}",
                f"address add fd00:{pf}::{index + 1}/64 dev {name}",
                f"link set {name} mtu 1500 up",
                f"route add 172.{16 + index}.{pf}.0/24 via 10.{pf}.0.99",
            )
        pods[0].ip(
            "link set net1 mtu 1600 multicast off txqueuelen 500 alias tenant",
            "link property add dev net1 altname first-network",
            "link add link net1 name net1.5 type vlan id 5",
            "address add 10.5.0.1/24 dev net1.5",
            "link set net1.5 up",
            "link add link net1 name mv0 type macvlan mode bridge",
            "link set mv0 up",
            "neighbour add 10.1.0.77 lladdr 02:77:00:00:00:01 dev net1",
            "route add fd00:77::/64 via fd00:1::99",
        )
        pods[0].sh("tc qdisc add dev net1 root handle 8: fq limit 999 flow_limit 77")
        pods[0].sh("tc qdisc add dev net1.5 root tbf rate 5mbit burst 20kb latency 50ms")
        pods[0].sh("sysctl -qw net/ipv4/conf/net1/rp_filter=2 net/ipv4/conf/net1.5/proxy_arp=1")
        lab.settle()
        yield Scene(pods, vfs, lab.read(), [pod.read() for pod in pods])


def test_ten_vfs_in_nine_pods(nodeagent: Nodeagent, scene: Scene, tmp_path: Path) -> None:
    """Everything is as it was, streams survive, and no pod waits long."""
    wanted = lab.put_other_build_on_disk()
    stream = Stream(scene.pods[1], scene.pods[2], "10.1.0.3", 7001)
    other = Stream(scene.pods[0], scene.pods[7], "10.2.0.3", 7002)
    probe = f"10.1.0.2@{scene.pods[0].path}"
    write_least(tmp_path / "least", scene.vfs, held_by_pfs(scene.node))
    macs = dict(announced_by(scene))
    with Announcements(tmp_path) as announced:
        pings = gaps_of(scene, tmp_path, lambda: nodeagent.call("reload", "--probe", probe))
    assert lab.loaded() == wanted
    assert {f"{mac} {address}" for address, mac in macs.items()} <= announced.heard
    assert stream.finish() > 0
    assert other.finish() > 0
    assert scene.now() == scene.inside
    assert lab.read() == scene.node
    (run,) = json.loads(nodeagent.call("timeline", "--output", "json").output())
    (echoes,) = run["echoes"]
    measured = pings[f"{scene.pods[0].process.pid}:10.1.0.2"]
    assert abs(echoes["gap"] - measured) < 1
    assert 0 < echoes["lost"] < echoes["sent"]

    shares = compared(pings, gaps_of(scene, tmp_path, lambda: do_the_least(tmp_path / "least")))
    for _ in range(2):  # other guests on this machine come and go: then both once more
        if max(shares) <= SHARE:
            break
        lab.put_other_build_on_disk()
        pings = gaps_of(scene, tmp_path, lambda: nodeagent.call("reload"))
        shares = compared(pings, gaps_of(scene, tmp_path, lambda: do_the_least(tmp_path / "least")))
    assert max(shares) <= SHARE


def gaps_of(scene: Scene, directory: Path, do: Callable[[], object]) -> dict[str, float]:
    """The longest time without an answer, by who asked whom; they are all answered again."""
    with Pings(directory, scene.asked()) as pings:
        do()
        lab.sh("sleep 3")
    assert max(each["silent"] for each in pings.told.values()) < 1
    return pings.gaps


def announced_by(scene: Scene) -> Iterator[tuple[str, str]]:
    """Each address of a VF's own interface in a pod, and the MAC."""
    for pod, inside in zip(scene.pods, scene.inside, strict=True):
        assert pod.process.poll() is None
        for link in inside["address"]:
            if link["ifname"] in {"net1", "net2"}:
                own = [each["local"] for each in link["addr_info"] if each["scope"] == "global"]
                yield from ((address, link["address"]) for address in own)


def do_the_least(directory: Path) -> None:
    subprocess.run([LEAST, directory], check=True, timeout=lab.PATIENCE)


def compared(pings: dict[str, float], least: dict[str, float]) -> list[float]:
    """Each gap in shares of the script's; said on stderr."""
    lines = ["longest time without an answer"]
    for whom, gap in pings.items():
        words = f"{gap:6.2f} s, by the script {least[whom]:6.2f} s: {gap / least[whom]:.2f}"
        lines.append(f"{whom:24} {words}")
    sys.stderr.write("\n".join([*lines, ""]))
    return [gap / least[whom] for whom, gap in pings.items()]


def held_by_pfs(node: State) -> Iterator[str]:
    """What PFs hold for their VFs, as lines for ip(8)."""
    for pf, state in node.items():
        for index, vf in state["vfs"].items():
            told = f"mac {vf['told by its PF']['address']} trust on spoofchk off"
            yield f"link set dev {lab.name(pf)} vf {index} {told}"


def test_each_address_of_a_prefix_has_its_own_route(nodeagent: Nodeagent, no_vfs: None) -> None:
    """A change of one of them would take another one's (modify_prefix_route())."""
    lab.make_vfs(PF1, 1)
    with Pod() as pod:
        pod.take(lab.vf(PF1, 0), "net1")
        pod.ip(
            "link set net1 up",
            "address add 2001:db8::1/64 dev net1",
            "address add 2001:db8::2/64 dev net1 metric 32",
        )
        before = pod.read()
        metrics = [each["metric"] for each in before["-6 route"] if each["dst"] == "2001:db8::/64"]
        assert sorted(metrics) == [32, 256]
        lab.put_other_build_on_disk()
        nodeagent.call("reload")
        assert pod.read() == before


# Faults: each pod another one, in one reload


@pytest.mark.real_time
def test_what_becomes_of_pods_while_the_driver_is_away(
    nodeagent: Nodeagent, no_vfs: None, tmp_path: Path
) -> None:
    """Deleted, replaced by another with its number, out of processes, a name taken, and a good one.

    And a VF that a process has through VFIO, which is lost to it: that has to be accepted, and the
    process must let go of it before the driver is touched. What can be done is done, the rest is
    said; with the cause gone the next start finishes.
    """
    lab.create_vfs(PF1, 6)
    deleted, replaced, left, taken, good = pods = [Pod() for _ in range(5)]
    cache = tmp_path / "cni-cache"
    for index, pod in enumerate(pods):
        cache.write_text(
            json.dumps(recorded_by_the_cni(lab.vf(PF1, index)))
        )  # the good one's stays
        pod.take(lab.vf(PF1, index), "net1")
        # igb gives a VF's own multicast back: a bridge with the MAC of its port takes the port's
        # question for a duplicate of its own link-local address, where both ask in one second
        pod.ip("link set net1 addrgenmode none")
        pod.ip(f"address add 10.1.0.{index + 1}/24 dev net1", "link set net1 up")
    good.ip("link add br0 type bridge", "link set net1 master br0", "link set br0 up")
    # igb's VFs have carrier two seconds after they went up, and the bridge with them
    used = "ip -6 -br address show dev br0 scope link -tentative"
    lab.eventually(lambda: good.sh(used), "carrier of the bridge in a pod")
    machine = lab.vf(PF1, 5)
    lab.give_to("vfio-pci", machine)
    lab.ip(*(f"link set {lab.name(PF1)} vf {n} vlan 500 trust on" for n in (0, 1)))
    here = {index: lab.read()[PF1]["vfs"][index]["told by its PF"] for index in range(5)}
    inside = {pod: pod.read() for pod in (taken, good)}
    number, fd = replaced.inode, os.open(left.path, os.O_RDONLY)
    pids = " ".join(str(pod.process.pid) for pod in (deleted, replaced, left))
    meanwhile = (f"kill -9 {pids}", _reuse(number), taken.command("ip link add net1 type dummy"))
    lab.hook("post-stop", "\n".join(meanwhile))
    lab.put_other_build_on_disk()
    try:
        with in_a_pod(open_vfio(machine)) as holder:
            refused = nodeagent.call("reload", status=1)
            told = f"VF 5 ({machine}, vfio-pci, python3 (pid {holder.pid} in pod {UID}) holds"
            assert told in refused.log
            assert lab.restarts() == []
            refused = nodeagent.call("reload", POD_LOSSES="accept", VFIO_TIMEOUT=1, status=1)
            assert "to close VFs that they have open through VFIO" in refused.log
            assert lab.restarts() == []
            failed = nodeagent.start("reload", POD_LOSSES="accept")
            failed.wait_for(f"WARNING.*pid {holder.pid}")
        assert failed.wait() == 1
        lost = _notes(nodeagent, "pod-interface-lost")
        assert [(each["uid"], told in each["message"]) for each in lost] == [(UID, True)]
        assert good.read() == inside[good]
        # out of processes, but open here
        there = f"nsenter --net=/proc/{os.getpid()}/fd/{fd}"
        assert "10.1.0.3/24" in lab.sh(f"{there} ip -br address show net1")
        for index in (0, 1):
            assert home(lab.vf(PF1, index))
            assert f"vf {index}: was net1 in" in failed.log or f"vf {index}" not in failed.log
        assert "cannot be net1 in" in failed.log
        # it has everything but its name
        assert "10.1.0.4/24" in taken.sh(f"ip -br address show {NAMES.format(3)}")
        now = {n: lab.read()[PF1]["vfs"][n]["told by its PF"] for n in range(5)}
        assert {n: now[n] for n in (2, 3, 4)} == {n: here[n] for n in (2, 3, 4)}
        # nobody knows what those of pods that are gone had before them: as they were made
        assert [now[n]["vlan_list"] + [now[n]["trust"]] for n in (0, 1)] == [[{}, False]] * 2
        # nobody has been in the namespace that took the number, if one did in time
        newcomer = Path(f"/proc/{(RUN / 'newcomer').read_text().strip()}/ns/net")
        again = "given again" if newcomer.stat().st_ino == number else "not given again in time"
        sys.stderr.write(f"the number of a namespace that is gone was {again}\n")
        links = lab.sh(f"nsenter --net={newcomer} ip -br link").splitlines()
        assert [line.split()[0] for line in links] == ["lo"]

        taken.ip("link delete net1")
        done = nodeagent.call("reload")
        assert taken.read() == inside[taken]
        assert good.read() == inside[good]
        for index in (0, 1):
            assert f"pci/{PF1} vf {index}: was net1 in a namespace (sleep, pid" in done.log
        assert nodeagent.ready.exists()
        delete_as_the_cni_does(good, json.loads(cache.read_text()))
    finally:
        os.close(fd)
        lab.sh(f"pkill -9 -x sleep || true; rm -f {RUN}/newcomer")


NAMES: Final = "enp1s0v{}"
UID: Final = "8f3c3f0a-6e0d-4c43-9d43-0a1b2c3d4e5f"


def _notes(nodeagent: Nodeagent, name: str) -> list[State]:
    lines = (nodeagent.state_dir / "journal.jsonl").read_text().splitlines()
    return [each["facts"] for each in map(json.loads, lines) if each.get("name") == name]


def open_vfio(vf: str) -> list[str]:
    """What a virtual machine does first: it has the VF's IOMMU group open."""
    group = (PCI / vf / "iommu_group").resolve().name
    code = f"import sys; held = open('/dev/vfio/{group}', 'rb+', 0); print(flush=True); input()"
    return [sys.executable, "-c", code]


@contextmanager
def in_a_pod(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a kubelet's cgroup, once it has said something."""
    tree = RUN / "cgroup"
    group = tree / f"kubepods-pod{UID.replace('-', '_')}.slice"
    lab.sh(f"mkdir -p {tree}; mount -t cgroup2 none {tree}; mkdir {group}")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
    finally:
        process.communicate(b"\n")
        lab.sh(f"rmdir {group}; umount {tree}; rmdir {tree}")


def recorded_by_the_cni(vf: str) -> State:
    """What SR-IOV CNI keeps of a VF below /var/lib/cni/sriov until its DEL."""
    function = PCI / vf
    master = (function / "physfn").resolve()
    index = next(n for n in range(7) if (master / f"virtfn{n}").resolve() == function.resolve())
    names = {"hostIFNames": lab.name(vf), "contIFNames": "net1", "master": lab.name(master.name)}
    return {"deviceID": vf, "vfID": index, **names}


def delete_as_the_cni_does(pod: Pod, cached: State) -> None:
    """SR-IOV CNI's DEL, by its cache alone: rename, move to the host, reset; all is as recorded."""
    name, inside = cached["hostIFNames"], cached["contIFNames"]
    pod.ip(f"link set {inside} nomaster", f"link set {inside} down")
    pod.ip(f"link set {inside} name {name}", f"link set {name} netns 1")
    reset = "mac 00:00:00:00:00:00 vlan 0 spoofchk on trust off"
    lab.ip(f"link set {cached['master']} vf {cached['vfID']} {reset}")
    assert recorded_by_the_cni(cached["deviceID"]) == cached


def seconds_of_a_look(node: Node) -> float:
    """The shortest of three, after one that fills what is remembered."""
    observe(node)
    times = []
    for _ in range(3):
        began = time.monotonic()
        observe(node)
        times.append(time.monotonic() - began)
    return min(times)


def test_a_hundred_namespaces_of_which_two_matter(nodeagent: Nodeagent, no_vfs: None) -> None:
    """They are looked into once each; without hostPID those of processes can't be seen."""
    lab.create_vfs(PF1, 2)
    with Pod() as one, Node(Settings()) as node:
        one.take(lab.vf(PF1, 0), "net1")
        lab.sh("ip netns add blue")
        lab.ip(f"link set {lab.name(lab.vf(PF1, 1))} netns blue name net1")
        few = seconds_of_a_look(node)
        # the one that matters is the last that is looked into
        lab.sh("for n in $(seq 97); do ip netns add other$n; done; ip netns add last")
        lab.sh("ip -n blue link set net1 netns last")
        many = seconds_of_a_look(node)
        (pf,) = (pf for pf in observe(node).pfs if pf.vfs)
        assert [vf.inside and vf.inside.netdev.name for vf in pf.vfs] == ["net1", "net1"]
        told = f"a look with 2 namespaces {few:.3f} s, with 100 {many:.3f} s"
        sys.stderr.write(f"{told}: {1000 * (many - few) / 98:.1f} ms each\n")

        alone = ("unshare", "--pid", "--fork", "--mount-proc")
        seen = nodeagent.start_command(*alone, "nodeagent", "preflight")
        assert seen.wait() == 1
        unseen = f"in a network namespace that is not visible: pci/{PF1} vf 0 ({lab.vf(PF1, 0)})"
        assert unseen in seen.output()
        accepted = nodeagent.start_command(
            *alone, "nodeagent", "preflight", "--output", "json", POD_LOSSES="accept"
        )
        assert accepted.wait() == 0
        (finding,) = (f for f in json.loads(accepted.output())["findings"] if f["check"] == "pods")
        assert finding["what"] == unseen


def _reuse(inode: int) -> str:
    """Make namespaces until one gets the number; its process's pid is left in a file."""
    made = f"unshare --net sh -c 'echo $$ >{RUN}/newcomer; exec sleep 100000' >/dev/null 2>&1 &"
    is_it = f'[ "$(stat -Lc %i /proc/$(cat {RUN}/newcomer)/ns/net)" = {inode} ]'
    return (
        f"for n in $(seq 30); do rm -f {RUN}/newcomer; {made}"
        f" until [ -s {RUN}/newcomer ]; do sleep 0.02; done; {is_it} && break; done"
    )
