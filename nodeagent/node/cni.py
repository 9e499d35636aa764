"""SR-IOV CNI's records: the pods of VFs, and the state of the VFs before.

It keeps two kinds of files below its data directory, /var/lib/cni/sriov (sriov-cni 2.8 and later,
pkg/utils/utils.go and pci_allocator.go):

- `CONTAINER-IFNAME`: JSON of an interface of a pod, from ADD to DEL: the VF's `deviceID`, what the
  network sets (`vlan`, `MAC`, `trust` ...), and `OrigVfState`, which DEL restores.
- `pci/ADDRESS`: the path of the network namespace that has the VF. ADD refuses a VF while that
  namespace exists. ADD and DEL hold a lock on it (flock(2), since 2.10) while they run.

With the second kind nodeagent holds SR-IOV CNI off during a reload (`held_off`): it allocates free
VFs to the node's own namespace, and locks the records of pods' VFs, so that DEL waits until the VF
is back. sriov-cni waits a minute for the lock; then DEL fails, the record stays, and the kubelet
repeats the DEL.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent import durable, hostpath
from nodeagent.cleanup import afterwards
from nodeagent.errors import StorageError, WaitTimeout, reason
from nodeagent.kernel import parallel, users
from nodeagent.kernel.events import wait_until_clear
from nodeagent.node.node import Node
from nodeagent.settings import HoldOff, Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.model import CniRecord, Netdev, Vf
from nodeagent.state.vf import VLAN_PROTOCOLS, LinkState, VlanProtocol

log = logging.getLogger(__name__)

OWN_NAMESPACE: Final = "/proc/1/ns/net"
"""The content of our records: no pod has the namespace of the node's first process."""
MAX_ROUNDS: Final = 3
"""How often ADDs are searched for: one may have begun during the wait for another."""
PLUGIN_TIMEOUT: Final = 60.0
"""Seconds for an ADD or DEL in progress, as long as these wait for each other; or VF_TIMEOUT, if
that is shorter, as at the end of a grace period."""
MAX_RECORD_BYTES: Final = 1 << 20
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PROTOCOLS: Final = {0: VlanProtocol.Q} | VLAN_PROTOCOLS


@dataclass(frozen=True)
class Record:
    """One of its records: the VF's PCI address, what ADD has set, and the part for the snapshot,
    because DEL removes the file.

    `given`, and `before` in `kept`, have only the attributes that the network sets.
    """

    address: str
    given: Vf
    kept: CniRecord


def records(directory: Path) -> dict[str, Record] | None:
    """By PCI address, the newest record of each VF; None if there is no such directory.

    Files that are not records, or of an unknown format, are skipped.
    """
    try:
        with hostpath.directory(directory) as fd:
            facts = {
                each.name: os.stat(each.name, dir_fd=fd, follow_symlinks=False)
                for each in os.scandir(fd)
            }
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("cannot read %s: %s", directory, reason(error))
        return None
    found: dict[str, Record] = {}
    plain = [name for name in facts if stat.S_ISREG(facts[name].st_mode)]
    for name in sorted(plain, key=lambda name: facts[name].st_mtime_ns):
        record = _read(directory / name)
        if record is not None:
            found[record.address] = record
    return found


def _read(path: Path) -> Record | None:
    try:
        with os.fdopen(hostpath.open_file(path, MAX_RECORD_BYTES), encoding="utf-8") as file:
            return parsed(path.name, json.load(file))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        log.debug("%s is not a record of SR-IOV CNI: %s", path, error)
        return None


def parsed(name: str, plain: Any) -> Record | None:
    """A record from its JSON; None for another program's. ValueError, TypeError, LookupError."""
    if not isinstance(plain, Mapping) or "OrigVfState" not in plain:
        return None
    address, was = plain["deviceID"], plain["OrigVfState"]
    if not isinstance(was, Mapping) or not _ADDRESS.fullmatch(str(address)):
        raise ValueError("it has no VF")
    given: dict[str, Any] = {}
    before: dict[str, Any] = {}
    if plain.get("vlan") is not None:
        is_ad = str(plain.get("vlanProto")).lower() == "802.1ad"
        proto = VlanProtocol.AD if is_ad else VlanProtocol.Q
        given |= {"vlan": plain["vlan"], "qos": plain.get("vlanQoS") or 0, "vlan_proto": proto}
        before |= {
            "vlan": was.get("Vlan", 0),
            "qos": was.get("VlanQoS", 0),
            "vlan_proto": _PROTOCOLS[was.get("VlanProto", 0)],
        }
    if plain.get("MAC"):
        given["admin_mac"] = Mac(plain["MAC"])
        before["admin_mac"] = Mac(was["AdminMAC"])
    if plain.get("min_tx_rate") is not None or plain.get("max_tx_rate") is not None:
        given |= {name: plain.get(name) or 0 for name in ("min_tx_rate", "max_tx_rate")}
        before |= {
            "min_tx_rate": was.get("MinTxRate", 0),
            "max_tx_rate": was.get("MaxTxRate", 0),
        }
    if plain.get("spoofchk"):
        given["spoofchk"] = plain["spoofchk"] == "on"
        before["spoofchk"] = bool(was["SpoofChk"])
    if plain.get("trust"):
        given["trust"] = plain["trust"] == "on"
        before["trust"] = bool(was.get("Trust", False))  # before 2.8: DEL puts back "off"
    if plain.get("link_state"):
        given["link_state"] = LinkState(plain["link_state"])
        before["link_state"] = tuple(LinkState)[was.get("LinkState", 0)]
    index = plain["VFID"]
    netdev = _interface(was)
    kept = CniRecord(name, Vf(index, **before, netdev=netdev))
    return Record(address, Vf(index, **given), kept)


def _interface(was: Mapping[str, Any]) -> Netdev | None:
    """The VF's interface in the host's namespace; None if it had none (vfio-pci)."""
    if not was.get("HostIFName"):
        return None
    mac = Mac(was["EffectiveMAC"]) if was.get("EffectiveMAC") else None
    return Netdev(was["HostIFName"], mac=mac, mtu=was.get("MTU") or None)


def namespace_of(directory: Path, address: str) -> str | None:
    """The path, on the host, of the network namespace that has a VF."""
    text = _text(directory / "pci" / address)
    return text if text.startswith("/") and text != OWN_NAMESPACE else None


def await_idle(node: Node, addresses: Iterable[str]) -> None:
    """Return when no ADD or DEL of these VFs is in progress, or after PLUGIN_TIMEOUT.

    The state of a VF in the middle of one is of no use.
    """
    pci = node.settings.cni_data_dir / "pci"
    names: set[str] = set()
    with suppress(FileNotFoundError, NotADirectoryError):
        names = hostpath.names(pci)
    if not names:
        return
    with _opened(pci, (each for each in addresses if each in names)) as records_of:
        _lock(pci, records_of, node)


@contextmanager
def held_off(node: Node, addresses: Iterable[str]) -> Iterator[None]:
    """During the block, let ADD refuse free VFs, and DEL of other VFs wait.

    Does nothing without the data directory, or without `cni` in HOLD_OFF. If a record cannot be
    written, a warning is logged: a VF that is taken then is left to its taker. StorageError if a
    record of ours cannot be removed after a block that succeeded.
    """
    directory = node.settings.cni_data_dir
    if HoldOff.CNI not in node.settings.hold_off or not hostpath.is_directory(directory):
        yield
        return
    pci = directory / "pci"
    with ExitStack() as held:
        held.callback(node.locked_records.clear)
        try:
            durable.make_directory(pci, 0o700)
            opened = held.enter_context(_opened(pci, addresses, make=True))
            _hold(pci, opened, node)
            node.locked_records.update(opened)
        except (OSError, StorageError) as error:
            log.warning("SR-IOV CNI is not held off: %s", reason(error))
        with afterwards(lambda: _release(pci)):
            yield


def _hold(pci: Path, opened: dict[str, int], node: Node) -> None:
    """Allocate free VFs to the node itself. The records of other VFs stay locked while open.

    An ADD of a free VF removes the file that it has locked, because an empty one names no namespace
    (PCIAllocator.IsAllocated()), and creates another one at its end: until then only its open
    descriptor shows that it is running. It must end before we write to that record, or what it
    writes is lost, and its VF is taken for free. One that has waited for another ADD of its VF can
    still write to ours.
    """
    free: set[str] = set()
    for _ in range(MAX_ROUNDS):
        _lock(pci, opened, node, make=True)
        _await_adds(pci, node)
        for address in list(opened):
            if _text(pci / address) in {"", OWN_NAMESPACE}:
                durable.replace(pci / address, OWN_NAMESPACE.encode(), 0o600)
                os.close(opened.pop(address))
                free.add(address)
        _await_adds(pci, node)
        taken = {address for address in free if _text(pci / address) != OWN_NAMESPACE}
        if not taken:
            return
        free -= taken
        _open(pci, taken, opened, make=True)
    _lock(pci, opened, node, make=True)


def _await_adds(pci: Path, node: Node) -> None:
    """Wait for each ADD that has removed the file that it has locked."""
    running = users.open_removed_files(pci, node.proc)
    try:
        _lock_these(running, node)
    finally:
        for fd in running.values():
            os.close(fd)


def sweep(settings: Settings) -> None:
    """Remove the records of a killed run. Call it while holding the lock."""
    released = _release(settings.cni_data_dir / "pci")
    if released:
        log.warning("SR-IOV CNI may give %d VFs to pods again: a reload was killed", released)


def _release(pci: Path) -> int:
    """Remove our records, and no others; return their number. StorageError."""
    if not hostpath.is_directory(pci):
        return 0
    count = 0
    with hostpath.directory(pci) as fd:
        names = [each.name for each in os.scandir(fd) if _ADDRESS.fullmatch(each.name)]
    for name in names:
        durable.remove_unfinished(pci / name)
        if _text(pci / name) == OWN_NAMESPACE:
            count += durable.remove(pci / name)
    return count


def _text(path: Path) -> str:
    """The content of a record; "" if there is none."""
    try:
        return hostpath.read_text(path).strip()
    except FileNotFoundError:
        return ""


@contextmanager
def _opened(pci: Path, addresses: Iterable[str], *, make: bool = False) -> Iterator[dict[str, int]]:
    """By address, descriptors of the VFs' records. With `make`, missing ones are created."""
    opened: dict[str, int] = {}
    try:
        _open(pci, addresses, opened, make=make)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def _open(pci: Path, addresses: Iterable[str], opened: dict[str, int], *, make: bool) -> None:
    for address in addresses:
        with suppress(FileNotFoundError, NotADirectoryError):
            opened[address] = (
                durable.open_plain(pci / address, os.O_RDWR, 0o600)
                if make
                else hostpath.open_file(pci / address, MAX_RECORD_BYTES)
            )


def _lock(pci: Path, records_of: dict[str, int], node: Node, *, make: bool = False) -> None:
    """Lock all records until they are closed, after a plugin that has locked one has finished.

    DEL removes the file, and the next ADD locks a new one of that name: a file that was opened
    before the DEL and locked afterwards is therefore opened again.
    """
    left = records_of
    while left:
        _lock_these(left, node)
        replaced = [address for address, fd in left.items() if not _is_in_place(pci, address, fd)]
        for address in replaced:
            os.close(records_of.pop(address))
        _open(pci, replaced, records_of, make=make)
        left = {address: records_of[address] for address in replaced if address in records_of}


def _is_in_place(pci: Path, address: str, fd: int) -> bool:
    """Whether an open file still has its name."""
    try:
        with hostpath.directory(pci) as directory:
            now = os.stat(address, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    own = os.fstat(fd)
    return (own.st_dev, own.st_ino) == (now.st_dev, now.st_ino)


def _lock_these(records_of: Mapping[str, int], node: Node) -> None:
    busy = {address: fd for address, fd in records_of.items() if not _is_locked_at_once(fd)}
    if not busy:
        return
    log.info("waiting for SR-IOV CNI: %s", ", ".join(busy))
    jobs = [_locking(fd) for fd in busy.values()]
    with parallel.Running(jobs, threads=len(jobs)) as running:

        def left() -> Iterator[str]:
            if running.unfinished():
                yield ", ".join(busy)

        try:
            timeout = min(PLUGIN_TIMEOUT, node.settings.vf_timeout)
            wait_until_clear(left, running, *node.stops, what="SR-IOV CNI", timeout=timeout)
        except WaitTimeout as late:
            log.warning("%s", late.message)


def _is_locked_at_once(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locking(fd: int) -> parallel.Job:
    """A job that locks a file. It has a descriptor of its own, as it may outlast the first."""
    own = os.dup(fd)

    def lock() -> None:
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
        finally:
            os.close(own)

    return lock
