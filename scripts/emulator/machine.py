"""The emulated machine: QEMU's command line, starting it, saving and resuming its state."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from emulator.packages import QEMU
from emulator.qemu import BINARY, FIRMWARE
from emulator.qmp import Qmp

CPU = "qemu64,+rdrand"
EMULATION = ("-accel", "tcg,thread=single,tb-size=512", "-smp", "2", "-cpu", CPU)
"""Two processors that take turns on one thread of the host; the clock is the host's.

With a thread each, QEMU ends now and then: "iotlb_to_section: Assertion `section_index <
d->map.sections_nb' failed". One processor then uses what it has noted of the machine's memory
while another maps it anew, as each probe of a PCI function does (QEMU's issue 1921).
"""
IOMMU = ("-device", "intel-iommu,intremap=off")
"""For vfio-pci. What is not passed through does without its translation, at no cost."""
VIRTUAL_TIME = (
    *("-accel", "tcg,thread=single,tb-size=512", "-smp", "1"),
    *("-icount", "shift=1,sleep=off"),
    *("-cpu", f"{CPU},-tsc"),
)
"""One processor whose clock counts instructions, 2 ns each, and jumps over what it would sleep.

The same instructions then take the same time on any host, however busy; half of a reload is sleep
(a second after the VFs are disabled, half a second for a link), which costs next to nothing here.

Without a TSC: to read it, QEMU leaves the code that it has translated, and counts the instructions.
A kernel that has one reads it in a loop in udelay(), of which igb makes much use, and at each
switch of tasks: of the host's time for a reload on igb that was a seventh.
"""
STEADY_TICK = " nohz=off highres=off"
"""What waits for the host's disk sleeps, too: then the clock goes on a tick (4 ms) at a time."""

PORTS = 2
"""PFs of one ConnectX."""
SUBFUNCTIONS = 8
"""That a PF of a ConnectX can make; a VF and a subfunction have 1 MiB of the bridge's window."""
STATE = "state"
"""The file of a saved state in its directory."""

KERNEL_ARGUMENTS = " ".join(
    (
        "console=ttyS0 loglevel=4 rdinit=/init audit=0 selinux=0",
        # Emulation is slow enough without mitigations for a processor that isn't there.
        "mitigations=off nokaslr nowatchdog no_timer_check rcupdate.rcu_expedited=1",
        "random.trust_cpu=on",
        # The TSC of a resumed machine is another host's, or another boot's.
        "tsc=unstable",
        # The firmware leaves no room for VF BARs behind the root ports; the kernel finds it.
        "pci=realloc",
        # An IOMMU for vfio-pci; what is not passed through does without its translation.
        "intel_iommu=on iommu=pt",
        # A panic, or the NMI sent to a stalled machine, shows where every processor is.
        "panic=-1 oops=panic panic_print=0x40 unknown_nmi_panic sysrq_always_enabled",
    )
)


class Nic(StrEnum):
    """What the node's PFs are."""

    IGB = "igb"
    """QEMU's own, which the guest drives by the stand-in named mlx5_core."""
    CONNECTX = "connectx"
    """The device in connectx/, which the guest drives by the genuine mlx5_core."""


@dataclass(frozen=True)
class Options:
    """What the machine is like. One saved state per combination."""

    nic: Nic = Nic.IGB
    pfs: int = 2
    vfs: int = 8
    """VFs that each PF of a ConnectX can make; igb has 7."""
    memory: int = 1024
    """MiB."""
    virtual_time: bool = False
    disk: Path | None = None
    """A file that is the node's second disk. Such a node boots: no state was saved with it."""

    @property
    def name(self) -> str:
        nic = f"connectx-{self.vfs}vf-" if self.nic is Nic.CONNECTX else ""
        time = "-virtual-time" if self.virtual_time else ""
        return f"{nic}{self.pfs}pf-{self.memory}m{time}"


@dataclass(frozen=True)
class Made:
    """What a machine is started from."""

    qemu: Path | None
    """The directory of a QEMU of our own; None: this host's."""
    image: Path
    """The directory of kernel, initramfs and disk."""
    state: Path | None
    """The directory of a saved state; None: the machine boots."""


@dataclass(frozen=True)
class Machine:
    """A running QEMU: its monitor, and the sockets behind the guest's virtio-serial ports."""

    process: subprocess.Popen[bytes]
    qmp: Qmp
    control: socket.socket
    out: socket.socket
    err: socket.socket
    serial: Path
    """What the guest's kernel printed on ttyS0."""
    log: Path
    """What QEMU itself printed."""

    def seconds_at_work(self) -> float:
        """A clock that stands still while QEMU waits for a processor of a busy host.

        The time that its thread with the longest wait spent on a run queue (the second number of
        /proc/PID/task/TID/schedstat, ns; Documentation/scheduler/sched-stats.rst) is taken off.
        """
        waited = 0
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                waited = max(waited, int(path.read_text().split()[1]))
        return time.monotonic() - waited / 1e9


def qemu_version() -> str:
    """First line of what QEMU says about itself; a saved state fits only the QEMU that saved it."""
    shown = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.partition("\n")[0]


def command_line(options: Options, made: Made, files: Path, ports: dict[str, int]) -> list[str]:
    """QEMU's arguments. `files` holds host/ and the logs, `ports` are open sockets by name."""
    image = made.image
    arguments = [
        *([f"{made.qemu}/{BINARY}", *_firmware()] if made.qemu else [QEMU]),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        # No HPET: its emulation costs a great deal of time for a clock that nobody needs.
        *("-machine", "q35,hpet=off"),
        *(VIRTUAL_TIME if options.virtual_time else EMULATION),
        *IOMMU,
        *("-m", f"{options.memory}"),
        # A panic ends in a paused machine that can still be looked at.
        *("-action", "reboot=shutdown,shutdown=pause"),
        *("-kernel", f"{image}/vmlinux", "-initrd", f"{image}/initrd.cpio"),
        *("-append", KERNEL_ARGUMENTS + (STEADY_TICK if options.virtual_time else "")),
        *("-chardev", f"file,id=serial,path={_value(files / 'serial.log')}"),
        *("-serial", "chardev:serial"),
        *("-drive", f"if=none,id=root,file={_value(image / 'root.ext4')},format=raw,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=root,romfile="),
        *("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"),
        *("-fsdev", f"local,id=host,path={_value(files / 'host')},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-chardev", f"socket,id=qmp,fd={ports['qmp']}", "-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci"),
    ]
    if options.disk:
        disk = f"if=none,id=disk,file={_value(options.disk)},format=raw"
        arguments += ["-drive", disk, "-device", "virtio-blk-pci,drive=disk,romfile="]
    for name in ("ctl", "out", "err"):
        arguments += ["-chardev", f"socket,id={name},fd={ports[name]}"]
        arguments += ["-device", f"virtserialport,chardev={name},name=lab.{name}"]
    match options.nic:
        case Nic.IGB:
            for index in range(options.pfs):
                arguments += _igb(index)
        case Nic.CONNECTX:
            arguments += _monitor_in_guest(ports)
            for card in range(-(-options.pfs // PORTS)):
                arguments += _connectx(options, card, files)
    return arguments


def _firmware() -> list[str]:
    return [argument for directory in FIRMWARE for argument in ("-L", directory)]


def _igb(index: int) -> list[str]:
    """A PF behind a root port of its own, so that each is bus N, function 0: enpNs0.

    VFs are functions 0x80 and up of the same bus. A hub port is a network without anything on it:
    it gives the PF its carrier, and the NIC switches between PF and VFs by itself.
    """
    return [
        *("-device", f"pcie-root-port,{_port(index)}"),
        *("-netdev", f"hubport,id=net{index},hubid={index}"),
        *(
            "-device",
            f"igb,bus=port{index},netdev=net{index},romfile=,mac=52:54:00:00:{index:02x}:01",
        ),
    ]


def _connectx(options: Options, card: int, files: Path) -> list[str]:
    """A card behind a root port: its PFs are functions 0 and 1 of bus N, enpNs0f0np0 and f1np1.

    All VFs of the first PF come after the PFs, then all of the second: with 127 each they fill the
    bus. The bridge's window is theirs, too, and SeaBIOS makes it as large as it is asked for. A
    function is made before the one that ARI says comes before it.
    """
    pfs = min(PORTS, options.pfs - card * PORTS)
    window = 1 << (pfs * (16 + options.vfs + SUBFUNCTIONS) - 1).bit_length()
    port = f"pcie-root-port,{_port(card)},pref64-reserve={window}M"
    arguments = ["-device", port]
    for function in reversed(range(pfs)):
        index = card * PORTS + function
        properties = {
            "id": f"pf{index}",
            "bus": f"port{card}",
            "addr": f"0.{function}",
            "multifunction": "on",
            "mac": f"52:54:00:00:{index:02x}:01",
            "port": f"{function + 1}",
            "next": f"{(function + 1) % pfs}",
            "vfs": f"{options.vfs}",
            "vf-offset": f"{pfs + function * options.vfs - function}",
            "guid": f"{0x1AB0000000000000 + (card << 32):#x}",
            "vhca": f"{index * 256}",
            "lag": "on" if pfs == PORTS else "off",
            "sfs": f"{SUBFUNCTIONS}",
            "log": _value(files / "host" / "firmware.log"),
        }
        given = ",".join(f"{name}={value}" for name, value in properties.items())
        arguments += ["-device", f"mlx5fw,{given}"]
    return arguments


def _monitor_in_guest(ports: dict[str, int]) -> list[str]:
    """A port lab.qmp in the guest that leads to a monitor, where a test sets the card's faults."""
    return [
        *("-chardev", f"socket,id=monitor,fd={ports['monitor']}"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=guest,fd={ports['guest']}"),
        *("-device", "virtserialport,chardev=guest,name=lab.qmp"),
    ]


def _port(index: int) -> str:
    """A root port's properties: its name is portN."""
    address = f"bus=pcie.0,addr={0x10 + index // 8:#x}.{index % 8:#x},multifunction=on"
    return f"id=port{index},chassis={index + 1},slot={index + 1},{address}"


@contextlib.contextmanager
def started(options: Options, made: Made, files: Path) -> Iterator[Machine]:
    """A machine that boots the image, or resumes a saved state; it ends with the context.

    Every connection to QEMU is a socket pair handed down at the start: no names to collide, none
    left behind. The kernel kills QEMU if this process dies (PR_SET_PDEATHSIG, by setpriv).
    """
    (files / "host").mkdir(parents=True, exist_ok=True)
    pairs = {name: socket.socketpair() for name in ("qmp", "ctl", "out", "err")}
    monitor, guest = inner = socket.socketpair()
    """Both ends are QEMU's."""
    ports = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    ports |= {"monitor": monitor.fileno(), "guest": guest.fileno()}
    arguments = ["setpriv", "--pdeathsig", "KILL", *command_line(options, made, files, ports)]
    if made.state:
        arguments += ["-incoming", "defer", "-S"]
    log = files / "qemu.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=tuple(ports.values()),
            start_new_session=True,
        )
    try:
        for theirs in (*(pair[1] for pair in pairs.values()), *inner):
            theirs.close()
        ours = {name: pair[0] for name, pair in pairs.items()}
        qmp = Qmp(ours["qmp"])
        machine = Machine(
            process,
            qmp,
            ours["ctl"],
            ours["out"],
            ours["err"],
            files / "serial.log",
            log,
        )
        if made.state:
            _resume(qmp, made.state / STATE)
        yield machine
    finally:
        process.kill()
        process.wait()
        for mine, _ in pairs.values():
            mine.close()


def save(machine: Machine, directory: Path) -> None:
    """Stop the machine and write its state: memory and devices. Nothing is on a disk."""
    _report_migration(machine.qmp)
    machine.qmp.command("stop")
    machine.qmp.command("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    machine.qmp.command("migrate", {"uri": f"file:{directory / STATE}"})
    machine.qmp.wait_for_event("MIGRATION", 120, status="completed")


def _resume(qmp: Qmp, state: Path) -> None:
    _report_migration(qmp)
    qmp.command("migrate-incoming", {"uri": f"file:{state}"})
    qmp.wait_for_event("MIGRATION", 60, status="completed")
    qmp.command("cont")


def _report_migration(qmp: Qmp) -> None:
    capability = {"capability": "events", "state": True}
    qmp.command("migrate-set-capabilities", {"capabilities": [capability]})


def _value(path: Path) -> str:
    """A path as a value in one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
