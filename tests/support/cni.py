"""CNI plugins at work: SR-IOV CNI as the kernel sees it, and Debian's own, run as a runtime does.

`add` and `delete` do what SR-IOV CNI 2.10 does, step by step and with the same records: a lock and
an allocation `pci/ADDRESS` (the network namespace's path) and, for DEL, a file `CONTAINER-IFNAME`
with the configuration and what the VF was like before. Its flaw is kept: a DEL that finds no VF
fails and removes that file, so that the next one has nothing to do and succeeds.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.lab import PATIENCE, PCI

Conf = Mapping[str, Any]

DATA: Final = Path("/var/lib/cni/sriov")
PLUGINS: Final = Path("/usr/lib/cni")
LINK_STATES: Final = ("auto", "enable", "disable")
VLAN_PROTOCOLS: Final = {"802.1q": 0x8100, "802.1ad": 0x88A8}


class Refused(Exception):
    """What a plugin prints before it exits with a status other than 0."""


@dataclass(frozen=True)
class Attachment:
    """One interface of one pod, as a runtime names it in CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME."""

    container: str
    netns: str
    ifname: str = "net1"


def run(command: str, conf: Conf, attachment: Attachment) -> dict[str, Any]:
    """A plugin of Debian's containernetworking-plugins. Refused."""
    done = subprocess.run(
        [PLUGINS / conf["type"]],
        input=json.dumps(conf),
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": attachment.ifname,
            "CNI_PATH": str(PLUGINS),
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{conf['type']}: {done.stdout}{done.stderr}")
    told: dict[str, Any] = json.loads(done.stdout or "{}")
    return told


def add(conf: Conf, attachment: Attachment) -> None:
    """SR-IOV CNI's ADD of the VF `deviceID`. Refused, as often as there is no such VF yet."""
    address = conf["deviceID"]
    master, index = _pf_of(address)
    with _locked(address):
        if _is_allocated(address):
            raise Refused(f"pci address {address} is already allocated")
        name = _interface(address)
        kept = {
            **conf,
            "Master": master,
            "VFID": index,
            "MAC": conf.get("mac", ""),
            "OrigVfState": _as_it_was(master, index, name),
        }
        _held_by_pf(kept)
        try:
            _move_in(name, kept["MAC"], attachment)
            _configure(conf, attachment)
        except Refused:
            with suppress(Refused):
                _move_out(kept, attachment)
            with suppress(Refused):
                _reset(kept)
            raise
        (DATA / f"{attachment.container}-{attachment.ifname}").write_text(json.dumps(kept))
        _allocation(address).write_text(attachment.netns)


def delete(attachment: Attachment) -> None:
    """SR-IOV CNI's DEL, by what its ADD has kept; without that there is nothing to do. Refused."""
    record = DATA / f"{attachment.container}-{attachment.ifname}"
    try:
        kept = json.loads(record.read_text())
    except FileNotFoundError:
        return
    with _locked(kept["deviceID"]):
        try:
            if _pf_of(kept["deviceID"]) != (kept["Master"], kept["VFID"]):
                raise Refused("cmdDel() error obtaining VF ID")
            _reset(kept)
            if Path(attachment.netns).exists():
                _move_out(kept, attachment)
                _allocation(kept["deviceID"]).unlink()
        finally:
            record.unlink()


def held_by_pf(address: str) -> dict[str, Any]:
    """What a PF holds for a VF, by `ip`'s words. Refused."""
    master, index = _pf_of(address)
    return _told_by_pf(master, index)


def _allocation(address: str) -> Path:
    return DATA / "pci" / address


@contextmanager
def _locked(address: str) -> Iterator[None]:
    path = _allocation(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_allocated(address: str) -> bool:
    """To a network namespace that is still there; else the record goes."""
    path = _allocation(address)
    with suppress(FileNotFoundError):
        try:
            Path(path.read_text()).open().close()
        except OSError:
            path.unlink()
        else:
            return True
    return False


def _pf_of(address: str) -> tuple[str, int]:
    """The name of the VF's PF, and the VF's index."""
    try:
        physfn = (PCI / address / "physfn").resolve(strict=True)
        index = next(
            int(link.name.removeprefix("virtfn"))
            for link in physfn.glob("virtfn*")
            if link.resolve().name == address
        )
        return next(iter((physfn / "net").iterdir())).name, index
    except (OSError, StopIteration) as error:
        raise Refused(f"failed to get VF information: {error!r}") from error


def _interface(address: str) -> str:
    try:
        return next(iter((PCI / address / "net").iterdir())).name
    except (OSError, StopIteration) as error:
        raise Refused(f"the VF {address} does not have a interface name") from error


def _ip(*lines: str, netns: str | None = None) -> None:
    """Lines for ip(8), each a message of its own; the first that is refused is the last."""
    enter = () if netns is None else ("nsenter", f"--net={netns}")
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{'; '.join(lines)}: {done.stderr}")


def _link(name: str) -> dict[str, Any]:
    done = subprocess.run(
        ["ip", "-d", "-j", "link", "show", "dev", name],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise Refused(f"failed to lookup {name!r}: {done.stderr}")
    link: dict[str, Any] = json.loads(done.stdout)[0]
    return link


def _told_by_pf(master: str, index: int) -> dict[str, Any]:
    for told in _link(master).get("vfinfo_list", ()):
        if told["vf"] == index:
            return dict(told)
    raise Refused(f"failed to find vf {index}")


def _as_it_was(master: str, index: int, name: str) -> dict[str, Any]:
    """OrigVfState: a netlink library's view of the VF, and of its interface."""
    told, link = _told_by_pf(master, index), _link(name)
    vlan = told["vlan_list"][0]
    return {
        "HostIFName": name,
        "SpoofChk": told["spoofchk"],
        "Trust": told["trust"],
        "AdminMAC": told["address"],
        "EffectiveMAC": link["address"],
        "Vlan": vlan.get("vlan", 0),
        "VlanQoS": vlan.get("qos", 0),
        "VlanProto": VLAN_PROTOCOLS[vlan.get("protocol", "802.1Q").lower()],
        "MinTxRate": told["rate"]["min_tx"],
        "MaxTxRate": told["rate"]["max_tx"],
        "LinkState": LINK_STATES.index(told["link_state"]),
        "MTU": link["mtu"],
    }


def _held_by_pf(kept: Conf) -> None:
    vf = f"link set dev {kept['Master']} vf {kept['VFID']}"
    if kept.get("vlan") is not None:
        proto = kept.get("vlanProto") or "802.1q"
        _ip(f"{vf} vlan {kept['vlan']} qos {kept.get('vlanQoS') or 0} proto {proto}")
    if kept["MAC"]:
        _ip(f"{vf} mac {kept['MAC']}")
    if kept.get("max_tx_rate") is not None:
        _ip(f"{vf} min_tx_rate 0 max_tx_rate {kept['max_tx_rate']}")
    for name, word in (("spoofchk", "spoofchk"), ("trust", "trust"), ("link_state", "state")):
        if kept.get(name):
            _ip(f"{vf} {word} {kept[name]}")


def _reset(kept: Conf) -> None:
    """Of what ADD has set: as it was. One that it has not set is left as it is."""
    vf, was = f"link set dev {kept['Master']} vf {kept['VFID']}", kept["OrigVfState"]
    if kept.get("vlan") is not None:
        proto = next(name for name, number in VLAN_PROTOCOLS.items() if number == was["VlanProto"])
        _ip(f"{vf} vlan {was['Vlan']} qos {was['VlanQoS']} proto {proto}")
    if kept.get("spoofchk"):
        _ip(f"{vf} spoofchk {_on(was['SpoofChk'])}")
    if kept["MAC"]:
        _ip(f"{vf} mac {was['AdminMAC']}")
    if kept.get("trust"):
        _ip(f"{vf} trust {_on(was['Trust'])}")
    if kept.get("max_tx_rate") is not None:
        _ip(f"{vf} min_tx_rate {was['MinTxRate']} max_tx_rate {was['MaxTxRate']}")
    if kept.get("link_state"):
        _ip(f"{vf} state {LINK_STATES[was['LinkState']]}")


def _on(value: bool) -> str:
    return "on" if value else "off"


def _move_in(name: str, mac: str, attachment: Attachment) -> None:
    number = _link(name)["ifindex"]
    temporary, there = f"temp_{number}", attachment.netns
    _ip(f"link set dev {name} down", f"link set dev {name} name {temporary}")
    if name in _link(temporary).get("altnames", ()):
        _ip(f"link property del dev {temporary} altname {name}")
    _ip(f"link set dev {temporary} netns {Path(there).parts[2]}")
    inside = attachment.ifname
    _ip(f"link set dev {temporary} name {inside}", netns=there)
    _sysctls(there, inside, "ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify")
    if mac:
        _ip(f"link set dev {inside} address {mac}", netns=there)
    _sysctls(there, inside, "ipv6/conf/{}/optimistic_dad")
    _ip(f"link set dev {inside} up", netns=there)


def _sysctls(netns: str, ifname: str, *names: str) -> None:
    settings = [f"net/{name.format(ifname)}=1" for name in names]
    argv = ["nsenter", f"--net={netns}", "sysctl", "-qw", *settings]
    subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False)


def _configure(conf: Conf, attachment: Attachment) -> None:
    """The addresses that the IPAM plugin has for it; that one is executed with the same input."""
    if not conf.get("ipam"):
        return
    told = run("ADD", {**conf, "type": conf["ipam"]["type"]}, attachment)
    lines = [f"address add {each['address']} dev {attachment.ifname}" for each in told["ips"]]
    _ip(*lines, netns=attachment.netns)


def _move_out(kept: Conf, attachment: Attachment) -> None:
    name, inside, there = kept["OrigVfState"]["HostIFName"], attachment.ifname, attachment.netns
    _ip(
        f"link set dev {inside} down",
        f"link set dev {inside} name {name}",
        netns=there,
    )
    if kept["MAC"]:
        _ip(f"link set dev {name} address {kept['OrigVfState']['EffectiveMAC']}", netns=there)
    _ip(
        f"link set dev {name} mtu {kept['OrigVfState']['MTU']}",
        f"link set dev {name} netns 1",
        netns=there,
    )
