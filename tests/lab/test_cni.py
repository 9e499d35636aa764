"""CNIs at work during a reload: nobody's VF is taken, and nobody inherits anything.

Without a drain kubelet starts and ends pods while VFs are away and while they come back. What does
it here is a stand-in for SR-IOV CNI with its order and records (tests.support.cni), and Debian's
host-device, static and tuning.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import cni, lab
from tests.support.cni import Attachment, Refused
from tests.support.lab import PF1, Nodeagent, Started
from tests.support.pods import Pod
from tests.support.sweep import Share

PACE: Final = 0.3
CYCLE: Final = 4 * PACE
"""Seconds from one pod of comes_and_goes() to the next, without those of ADD and DEL."""
PHASES: Final = 20
NAMING: Final = Path("/run/systemd/network/00-lab.link")
_numbers: Final = count(1)


def network(vf: str, number: int, **more: object) -> dict[str, Any]:
    """What a NetworkAttachmentDefinition and a device plugin make of a VF, and of a pod."""
    address = {"address": f"10.9.{number // 250}.{number % 250 + 1}/16"}
    ipam = {"type": "static", "addresses": [address]}
    return {
        "cniVersion": "1.0.0",
        "name": f"network-{number}",
        "type": "sriov",
        "deviceID": vf,
        "ipam": ipam,
        **more,
    }


def full(vf: str, number: int) -> dict[str, Any]:
    """Everything that a network can set of a VF."""
    mac = f"02:00:00:09:{number // 250:02x}:{number % 250:02x}"
    held = {"vlan": 500 + number % 100, "vlanQoS": 3, "mac": mac, "trust": "on", "spoofchk": "off"}
    return network(vf, number, **held)


def plain(vf: str, number: int) -> dict[str, Any]:
    """A network that sets no VLAN, and nothing else."""
    return network(vf, number)


@dataclass
class Tenant:
    """A pod with one VF, from its ADD to its DEL."""

    conf: dict[str, Any]
    pod: Pod = field(default_factory=Pod)

    @property
    def attachment(self) -> Attachment:
        return Attachment(f"pod{self.pod.process.pid}", self.pod.path)

    @property
    def held(self) -> dict[str, Any]:
        """What its network has set, and the PF says, in the network's words."""
        told = cni.held_by_pf(self.conf["deviceID"])
        vlan = told["vlan_list"][0]
        on = {True: "on", False: "off"}
        facts = {
            "vlan": vlan.get("vlan", 0),
            "vlanQoS": vlan.get("qos", 0),
            "mac": told["address"],
            "trust": on[told["trust"]],
            "spoofchk": on[told["spoofchk"]],
        }
        return {name: value for name, value in facts.items() if name in self.conf}

    @property
    def interface(self) -> dict[str, Any]:
        """What its network has set of the interface in there."""
        (link,) = json.loads(self.pod.sh("ip -j address show dev net1"))
        addresses = [each["local"] for each in link["addr_info"] if each["family"] == "inet"]
        mac = {"mac": link["address"]} if "mac" in self.conf else {}
        return {"addresses": addresses, "up": "UP" in link["flags"], **mac}

    def check(self) -> None:
        """It has what its ADD has given it."""
        wanted = {name: self.conf[name] for name in self.held}
        assert self.held == wanted
        addresses = [each["address"].split("/")[0] for each in self.conf["ipam"]["addresses"]]
        mac = {"mac": self.conf["mac"]} if "mac" in self.conf else {}
        assert self.interface == {"addresses": addresses, "up": True, **mac}


class Kubelet:
    """Pods on one VF, one after the other; each call of a plugin is repeated until it succeeds."""

    def __init__(self, vf: str, conf: Callable[[str, int], dict[str, Any]]) -> None:
        self.vf, self.conf = vf, conf
        self.last = conf
        self.tenant: Tenant | None = None
        self.is_added = False
        self.refusals: list[str] = []

    def add(self) -> bool:
        """One try."""
        if self.tenant is None:
            self.tenant = Tenant(self.conf(self.vf, next(_numbers)))
        self.is_added = self._done(self.call_add, self.tenant)
        return self.is_added

    def delete(self) -> bool:
        """One try; the pod ends when it succeeds. A half-way failure may have reset the VF."""
        self.is_added = False
        if self.tenant is not None:
            if not self._done(self.call_delete, self.tenant):
                return False
            self.tenant.pod.end()
        self.tenant = None
        return True

    def call_add(self, tenant: Tenant) -> None:
        cni.add(tenant.conf, tenant.attachment)

    def call_delete(self, tenant: Tenant) -> None:
        cni.delete(tenant.attachment)

    def _done(self, call: Callable[[Tenant], None], tenant: Tenant) -> bool:
        try:
            call(tenant)
        except Refused as error:
            self.refusals.append(f"{call.__name__}: {error}")
            return False
        return True

    def has_what_it_wants(self) -> bool:
        """The last of its pods has been added."""
        return self.is_added and self.conf is self.last

    def check(self) -> None:
        """The pod that is there has what its ADD has given it."""
        if self.tenant is not None and self.is_added:
            self.tenant.check()

    def end(self) -> None:
        """DEL, as often as kubelet would call it; but it must be over soon."""
        lab.eventually(self.delete, f"DEL of {self.vf}: {self.refusals[-3:]}")


class PluginsOfDebian(Kubelet):
    """host-device with static addresses, then tuning: none of them keeps a record of the VF."""

    def call_add(self, tenant: Tenant) -> None:
        conf = tenant.conf
        try:
            moved = cni.run("ADD", {**conf, "type": "host-device"}, tenant.attachment)
            cni.run("ADD", {**conf, "type": "tuning", "prevResult": moved}, tenant.attachment)
        except Refused:  # a runtime calls DEL after an ADD that failed half-way
            with suppress(Refused):
                self.call_delete(tenant)
            raise

    def call_delete(self, tenant: Tenant) -> None:
        for plugin in ("tuning", "host-device"):
            cni.run("DEL", {**tenant.conf, "type": plugin}, tenant.attachment)


def moved(vf: str, number: int) -> dict[str, Any]:
    """A network of those: an MTU and a sysctl."""
    told = {"mtu": 1400, "sysctl": {"net.ipv4.conf.net1.proxy_arp": "1"}}
    return {**plain(vf, number), "cniVersion": "0.4.0", "pciBusID": vf, **told}


def comes_and_stays(kubelet: Kubelet) -> Iterator[None]:
    while not kubelet.add():
        yield


def comes_and_goes(kubelet: Kubelet) -> Iterator[None]:
    while True:
        while not kubelet.add():
            yield
        yield
        while not kubelet.delete():
            yield
        yield


def goes_and_another_comes(kubelet: Kubelet) -> Iterator[None]:
    """The one that is there ends; the next one's network sets nothing."""
    for _ in range(5):
        yield
    kubelet.last = plain
    while not kubelet.delete():
        yield
    kubelet.conf = plain
    yield from comes_and_stays(kubelet)


@contextmanager
def at_work(*scripts: Iterator[None]) -> Iterator[None]:
    """Each script does a step each PACE seconds, until the block ends."""
    end = threading.Event()
    errors: list[BaseException] = []

    def play(script: Iterator[None]) -> None:
        try:
            for _ in script:
                if end.wait(PACE):
                    return
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=play, args=(script,)) for script in scripts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not errors


@dataclass
class Scene:
    """Seven VFs of a PF: two that nobody has, one that pods come to and go from, three that pods
    have, one of the node's own. `before` is what the PF held for them before any pod."""

    nodeagent: Nodeagent
    vfs: dict[int, str]
    before: dict[int, dict[str, Any]]
    kubelets: dict[int, Kubelet]

    def held(self) -> dict[int, dict[str, Any]]:
        return {index: cni.held_by_pf(vf) for index, vf in self.vfs.items()}

    def has_tenants(self) -> None:
        """Pods have VFs 3, 4 and 5; there is another driver on disk."""
        for index in (3, 4, 5):
            assert self.kubelets[index].add(), self.kubelets[index].refusals
        lab.settle()
        lab.put_other_build_on_disk()

    def at_work(self) -> AbstractContextManager[None]:
        """Kubelet on all VFs but those whose pods stay all along."""
        return at_work(
            comes_and_stays(self.kubelets[0]),
            comes_and_stays(self.kubelets[1]),
            comes_and_goes(self.kubelets[2]),
            goes_and_another_comes(self.kubelets[4]),
        )

    def reloaded(self, run: Started) -> None:
        """It ends well and soon; kubelet then has what it wants."""
        began = time.monotonic()
        assert run.wait() == 0, run.log
        assert time.monotonic() - began < 60, run.log
        assert self.nodeagent.ready.exists()
        for index in (0, 1, 4):
            lab.eventually(self.kubelets[index].has_what_it_wants, f"ADD of VF {index}")

    def reload_in_phase(self, seconds: float) -> None:
        """Kubelet is at work before it, and until its end."""
        self.has_tenants()
        with self.at_work():
            time.sleep(seconds)
            run = self.nodeagent.start("reload")
            self.reloaded(run)
        assert "taken since the snapshot" not in run.log

    def check(self) -> None:
        """Each pod has what it was given; and when all are gone, nothing of theirs is left."""
        for kubelet in self.kubelets.values():
            kubelet.check()
        for kubelet in self.kubelets.values():
            kubelet.end()
            kubelet.conf = kubelet.last = full
        assert {n: _kept(told) for n, told in self.held().items()} == {
            n: _kept(told) for n, told in self.before.items()
        }
        assert not list(cni.DATA.glob("pod*"))
        assert not list((cni.DATA / "pci").glob("*"))


def _kept(told: dict[str, Any]) -> dict[str, Any]:
    names = ("address", "vlan_list", "rate", "spoofchk", "trust", "link_state")
    return {name: told[name] for name in names}


@pytest.fixture
def _no_altnames() -> Iterator[None]:
    """udev gives no alternative names: one given while ADD moves an interface makes DEL fail."""
    default = Path("/usr/lib/systemd/network/99-default.link").read_text().splitlines()
    NAMING.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in default if not line.startswith("AlternativeNamesPolicy")]
    NAMING.write_text("\n".join(kept))
    lab.sh("udevadm control --reload")
    yield
    NAMING.unlink()
    lab.sh("udevadm control --reload")


@pytest.fixture
def scene(nodeagent: Nodeagent, no_vfs: None, _no_altnames: None) -> Iterator[Scene]:
    pf = lab.name(PF1)
    # igb dies of a multicast address that its PF gets by DAD while VFs are made (igb_enable_sriov()
    # counts them before it has a place for them, and igb_restore_vf_multicasts() looks there)
    lab.sh(f"sysctl -qw net/ipv6/conf/{pf}/disable_ipv6=1")
    lab.create_vfs(PF1, 7)
    vfs = lab.vfs(PF1)
    # each with a MAC of its PF, as an SR-IOV operator leaves it: igb takes no other one back
    lab.ip(*(f"link set {pf} vf {n} mac 02:00:00:00:01:{n:02x}" for n in vfs))
    lab.ip(f"link set {pf} vf 6 vlan 106 qos 2 trust on")
    for vf in vfs.values():
        lab.rebind(vf)
    lab.settle()
    before = {index: cni.held_by_pf(vf) for index, vf in vfs.items()}
    kubelets = {n: Kubelet(vfs[n], full) for n in range(6)}
    with ExitStack() as held:
        for kubelet in kubelets.values():
            held.callback(_end, kubelet)
        yield Scene(nodeagent, vfs, before, kubelets)
    lab.sh(f"rm -rf {cni.DATA}")


def _end(kubelet: Kubelet) -> None:
    told = "\n".join(dict.fromkeys(kubelet.refusals))
    sys.stderr.write(f"{kubelet.vf} was refused:\n{told}\n")
    if kubelet.tenant is not None:
        kubelet.tenant.pod.end()


def test_free_vfs_are_taken_while_they_come_back(scene: Scene) -> None:
    """Nobody is held off: who is quicker than the restore has it, and it is named.

    On igb alone. A ConnectX binds VFs side by side, `eth0` is another VF's a moment later, and a
    CNI that knows interfaces by their names moves that one: pods then have each other's VFs.
    """
    scene.has_tenants()
    run = scene.nodeagent.start("reload", HOLD_OFF="none")
    run.wait_for("Unloading HCA driver")
    with scene.at_work():
        scene.reloaded(run)
    assert f"pci/{PF1} vf 0: taken since the snapshot" in run.log
    scene.check()


@pytest.mark.both_nics
def test_nobody_is_quicker_where_cnis_are_held_off(scene: Scene) -> None:
    """From before the snapshot on: ADD fails cleanly, DEL waits, and both succeed afterwards."""
    scene.reload_in_phase(0.15)
    scene.check()


@pytest.mark.sweep
def test_in_each_phase(scene: Scene, share: Share) -> None:
    """The reload begins a little later each time, until a pod has come and gone."""
    for number in share.of(range(PHASES)):
        scene.reload_in_phase(number * CYCLE / PHASES)
        scene.check()


def test_link_local_addresses_outlast_two_reloads(scene: Scene) -> None:
    """They are optimistic in these pods (RFC 4429), and igb gives a VF's own multicast back."""
    scene.has_tenants()
    tenants = [scene.kubelets[index].tenant for index in (3, 4, 5)]
    pods = [tenant.pod for tenant in tenants if tenant is not None]
    before = [valid_link_local_address(pod) for pod in pods]
    for _ in range(2):
        scene.nodeagent.call("reload")
        assert [valid_link_local_address(pod) for pod in pods] == before
        lab.put_other_build_on_disk()
    scene.check()


def valid_link_local_address(pod: Pod) -> str:
    """The one that the kernel has made, once it is used."""
    shown = "ip -6 -br address show dev net1 scope link"
    lab.eventually(lambda: pod.sh(f"{shown} -tentative"), "a link-local address that is used")
    assert not pod.sh(f"{shown} dadfailed")
    return pod.sh(shown)


@pytest.mark.both_nics
def test_killed_in_the_middle(scene: Scene) -> None:
    """Those that were held off stay so until the next start, which lets them in."""
    scene.has_tenants()
    with scene.at_work():
        run = scene.nodeagent.start("reload")
        run.wait_for("bind VFs")
        run.kill_all()
        run = scene.nodeagent.start("reload")
        run.wait_for("SR-IOV CNI may give")
        scene.reloaded(run)
    scene.check()


def test_a_plugin_that_keeps_no_records(scene: Scene) -> None:
    """Debian's: they are not held off, and what they have taken is theirs."""
    scene.kubelets = {n: PluginsOfDebian(scene.vfs[n], moved) for n in range(2)}
    lab.put_other_build_on_disk()
    run = scene.nodeagent.start("reload")
    run.wait_for("Unloading HCA driver")
    with at_work(*map(comes_and_stays, scene.kubelets.values())):
        assert run.wait() == 0, run.log
        for kubelet in scene.kubelets.values():
            lab.eventually(kubelet.has_what_it_wants, f"ADD of {kubelet.vf}")
    assert scene.nodeagent.ready.exists()
    for kubelet in scene.kubelets.values():
        assert kubelet.tenant is not None
        sysctl = kubelet.tenant.pod.sh("sysctl -n net/ipv4/conf/net1/proxy_arp")
        assert sysctl.strip() == "1"
        assert "mtu 1400" in kubelet.tenant.pod.sh("ip link show net1")
    scene.check()
