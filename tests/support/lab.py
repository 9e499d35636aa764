"""The emulated node in a test's hands: VFs made with iproute2, state read with iproute2, faults.

Nothing here uses nodeagent: what it sets up and what it reads are what nodeagent is held against.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from tests.support.zygote import Fork, Zygote

PCI: Final = Path("/sys/bus/pci/devices")
NETDEVSIM: Final = Path("/sys/bus/netdevsim")
DUMMY: Final = Path("/sys/module/dummy")
NAMESPACES: Final = Path("/run/netns")
"""Those that have a name (ip-netns(8))."""
BUILDS: Final = Path("/opt/lab/driver")
CONNECTX: Final = (BUILDS / "inbox").is_dir()
"""The node has a ConnectX and the genuine mlx5_core, not igb and the stand-in of that name."""
PF1: Final = "0000:01:00.0"
PF2: Final = "0000:01:00.1" if CONNECTX else "0000:02:00.0"
RUN: Final = Path("/run/lab")
SWITCHES: Final = RUN / "openibd.switches"
OPENIBD_LOG: Final = RUN / "openibd.log"
HOOKS: Final = Path("/etc/infiniband")
RULES: Final = Path("/run/udev/rules.d")
BLACKLIST: Final = Path("/etc/modprobe.d/blacklist-ofed-modules.conf")
FIRMWARE: Final = Path("/etc/modprobe.d/lab-firmware.conf")
PARAMETERS: Final = Path("/sys/module/mlx5_core/parameters")
DRIVER_VERSION: Final = "25.10-1.2.8.0"
DONE_FLAG: Final = "dtk_done_compile_25_10_1_2_8_0"
PATIENCE: Final = 120.0
"""Seconds until something that must come counts as never coming. The guest is slow."""

State = dict[str, Any]


def sh(command: str, timeout: float = PATIENCE) -> str:
    """What a shell command prints; it must succeed."""
    return printed("/bin/bash", "-euc", command, timeout=timeout)


def printed(*argv: str, timeout: float = PATIENCE) -> str:
    """What a command prints that needs no shell, which has half of the work; it must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"
    return done.stdout


def dcb(command: str) -> str:
    """What dcb(8) prints; it is begun in the first half of a second.

    iproute2 6.1 numbers its messages by the second, and leaves the acknowledgement of what it reads
    to be received as the answer to what it writes: if a second ends in between, "Protocol error".
    The first one of a guest is read from the host's disk, while a virtual clock leaps.
    """
    printed("dcb", "-V")
    late = time.time() % 1
    if late > 0.5:
        time.sleep(1 - late)
    return printed("dcb", *command.split())


def ip(*lines: str) -> None:
    """Lines for ip(8), in one batch; each must succeed."""
    text = "\n".join(lines)
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input=text,
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def is_emulated() -> bool:
    """This is the emulated node, and no other machine that has netdevsim."""
    return RUN.is_dir()


def settle() -> None:
    """Return when udev has handled every event."""
    printed("udevadm", "settle", "--timeout=100")


# PFs and VFs


def pfs() -> list[str]:
    """The PCI addresses of all PFs."""
    return sorted(path.parent.name for path in PCI.glob("*/sriov_totalvfs"))


def vf(pf: str, index: int) -> str:
    """The PCI address of a VF."""
    return (PCI / pf / f"virtfn{index}").resolve(strict=True).name


def vfs(pf: str) -> dict[int, str]:
    """The PCI addresses of a PF's VFs by index."""
    found = (PCI / pf).glob("virtfn*")
    return {int(link.name.removeprefix("virtfn")): link.resolve().name for link in sorted(found)}


def name(address: str) -> str:
    """The name of a device's one network interface; representors on it are not meant."""
    (path,) = (path for path in (PCI / address / "net").iterdir() if not represents(path.name))
    return path.name


def vf_name(pf: str, index: int) -> str:
    """What udev calls a VF's interface."""
    bus, function = int(pf[5:7], 16), f"f{pf[-1]}" if CONNECTX else ""
    return f"enp{bus}s0{function}v{index}"


def represents(interface: str) -> str | None:
    """What a representor stands for, as its port is called: pf0vf3, pf0sf88; None for others."""
    try:
        port = Path(f"/sys/class/net/{interface}/phys_port_name").read_text().strip()
    except OSError:  # EOPNOTSUPP where the driver has no names of ports
        return None
    return port if re.fullmatch(r"(c\d+)?pf\d+([vs]f\d+)?", port) else None


def representors(pf: str) -> dict[str, str]:
    """The names of a PF's representors by what they stand for."""
    names = [path.name for path in (PCI / pf / "net").iterdir()]
    return {port: each for each in names if (port := represents(each))}


def driver(address: str) -> str | None:
    """The driver that a device is bound to."""
    link = PCI / address / "driver"
    return link.resolve().name if link.exists() else None


def create_vfs(pf: str, count: int) -> None:
    """Make VFs on a PF that is up, each probed and named by udev."""
    ip(f"link set {name(pf)} up")
    (PCI / pf / "sriov_numvfs").write_text(str(count))
    settle()


def create_unbound_vfs(pf: str, count: int) -> None:
    """Make VFs on a PF that is up, without a driver; one that is bound by hand gets it."""
    autoprobe = PCI / pf / "sriov_drivers_autoprobe"
    ip(f"link set {name(pf)} up")
    autoprobe.write_text("0")
    (PCI / pf / "sriov_numvfs").write_text(str(count))
    autoprobe.write_text("1")


def unbind(address: str) -> None:
    """Take a device from its driver."""
    (PCI / address / "driver" / "unbind").write_text(address)


def rebind(address: str) -> None:
    """Unbind and bind to the same driver: an igb VF takes up its admin MAC then."""
    before = (PCI / address / "driver").resolve()
    (before / "unbind").write_text(address)
    (before / "bind").write_text(address)


def give_to(driver_name: str, address: str) -> None:
    """Bind a device to another driver by driver_override, as for a virtual machine."""
    sh(f"modprobe {driver_name}")
    unbind(address)
    (PCI / address / "driver_override").write_text(f"{driver_name}\n")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert driver(address) == driver_name


def await_carrier(pf: str) -> None:
    """A PF that is up has its link some 2 s later; igb takes a rate only then."""
    carrier = PCI / pf / "net" / name(pf) / "carrier"
    eventually(lambda: carrier.read_text() == "1\n", f"carrier of {pf}")


def on_each_pf(do: Callable[[str], None]) -> None:
    """Do it to all PFs side by side."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(do, pfs()))


def make_vfs(pf: str, count: int, *, mtu: int = 1500, rates: bool = False) -> None:
    """VFs in which everything differs: MACs, VLAN, QoS, trust, spoofchk, MTU, state, rates.

    Each is probed once, when its PF has its admin MAC: it takes that up then.
    """
    ip(f"link set {name(pf)} mtu {mtu}")
    create_unbound_vfs(pf, count)
    if rates:
        await_carrier(pf)
        ip(*(f"link set {name(pf)} vf {n} max_tx_rate {100 * (n + 1)}" for n in range(count)))
    bus, function = int(pf[5:7], 16), int(pf[-1])
    on, off = ("on", "off"), ("off", "on")
    addresses = vfs(pf)
    for index in addresses:
        ip(
            f"link set {name(pf)} vf {index} mac 02:00:00:{function:02x}:{bus:02x}:{index:02x}",
            f"link set {name(pf)} vf {index} vlan {100 + index} qos {index % 8}",
            f"link set {name(pf)} vf {index} trust {on[index % 2]}",
            f"link set {name(pf)} vf {index} spoofchk {off[index % 2]}",
        )
    for address in addresses.values():
        Path("/sys/bus/pci/drivers_probe").write_text(address)
    settle()
    for index, address in addresses.items():
        state = "up" if index % 3 else "down"
        ip(f"link set {name(address)} mtu {min(mtu, 1500 + 100 * index)} {state}")


# The state, as iproute2 and sysfs tell it


def read() -> State:
    """Every PF by address: its number of VFs, autoprobe, interface; each VF's everything."""
    links = {
        link["parentdev"]: link
        for link in json.loads(printed("ip", "-d", "-j", "link", "show"))
        if link.get("parentbus") == "pci" and link["link_type"] == "ether"
        # they hang on their PF's device
        if not represents(link["ifname"])
    }
    return {pf: _read_pf(pf, links) for pf in pfs() if driver(pf) is not None}


def _read_pf(pf: str, links: Mapping[str, State]) -> State:
    told = {int(vf["vf"]): vf for vf in links[pf]["vfinfo_list"]}
    return {
        "numvfs": _number(PCI / pf / "sriov_numvfs"),
        "autoprobe": _number(PCI / pf / "sriov_drivers_autoprobe"),
        "driver": driver(pf),
        "interface": read_interface(links.get(pf)),
        "vfs": {
            index: {
                "driver": driver(address),
                "override": (PCI / address / "driver_override").read_text(),
                "told by its PF": told[index],
                "interface": read_interface(links.get(address)),
            }
            for index, address in vfs(pf).items()
        },
    }


def read_interface(link: State | None) -> State | None:
    """What is kept of an interface: names, MAC, MTU, administrative state."""
    if link is None:
        return None
    kept = {key: link.get(key) for key in ("ifname", "altnames", "ifalias", "address", "mtu")}
    return kept | {"up": "UP" in link["flags"]}


def _number(path: Path) -> int:
    return int(path.read_text())


# The driver and its restart


@cache
def srcversion_of(build: str) -> str:
    """The srcversion of the lab's build A, B or C; "" of the kernel's own, which has none."""
    if build == "inbox":
        return ""
    return sh(f"modinfo -F srcversion {BUILDS}/{build}/mlx5_core.ko").strip()


def loaded() -> str | None:
    """The srcversion of the loaded driver, "" where that has none; None when none is loaded."""
    module = Path("/sys/module/mlx5_core")
    if not (module / "initstate").exists():
        return None
    path = module / "srcversion"
    return path.read_text().strip() if path.exists() else ""


def on_disk() -> str:
    """The lab's build that modprobe would load: A, B, C or inbox."""
    return _build_of(_srcversion_on_disk())


def _build_of(srcversion: str) -> str:
    return next(path.name for path in BUILDS.iterdir() if srcversion_of(path.name) == srcversion)


def _srcversion_on_disk() -> str:
    return printed("modinfo", "-F", "srcversion", "mlx5_core").strip()


def unload_driver() -> None:
    """No driver, if there was one; mlx5_ib holds the genuine one."""
    for module in ("mlx5_ib", "mlx5_core"):
        sh(f"if [ -d /sys/module/{module} ]; then modprobe -r {module}; fi")


def reload_by_hand() -> None:
    """What every reload does: all VFs are gone, the PFs are as after boot.

    By itself udev notices 3 s later that nodeagent has removed its blacklist (manager_reload()),
    and would not load mlx5_ib until then.
    """
    unload_driver()
    sh("udevadm control --reload; modprobe mlx5_core; udevadm settle")


def build_packages(sources: Path, build: str, **files: str) -> None:
    """Have the stand-in for install.pl build there; `files` are those that it looks for."""
    for name, text in {"build": build, **files}.items():
        (sources / name).write_text(f"{text}\n")
    sh(f"{sources}/install.pl")


def put_on_disk(build: str) -> None:
    """Install a build, unless it is there already. What is loaded stays."""
    if _srcversion_on_disk() != srcversion_of(build):
        sh(f"lab-driver {build}")


def put_loaded_build_on_disk() -> None:
    """No upgrade waits for a reload."""
    if (running := loaded()) is not None:
        put_on_disk(_build_of(running))


def make_loaded_build_the_one_on_disk() -> None:
    """Nothing that packages brought is left."""
    sh(f"lab-driver {_build_of(loaded() or '')}")


def put_other_build_on_disk() -> str:
    """An upgrade has happened on disk: the srcversion that a reload will bring."""
    build = "B" if loaded() == srcversion_of("A") else "A"
    put_on_disk(build)
    return srcversion_of(build)


@contextmanager
def firmware(**figures: int) -> Iterator[None]:
    """Have the stand-in take a firmware's time, in this and later loads: vf_probe_ms and others.

    The names are those of its module parameters (scripts/emulator/modules.py).
    """
    options = " ".join(f"{parameter}={value}" for parameter, value in figures.items())
    FIRMWARE.write_text(f"options mlx5_core {options}\n")
    reload_by_hand()
    try:
        yield
    finally:
        FIRMWARE.unlink()
        for parameter in figures:
            if (PARAMETERS / parameter).exists():  # nothing to end where no driver is loaded
                (PARAMETERS / parameter).write_text("0")


def restarts() -> list[str]:
    """Words of openibd's log since the test began: `begin`, `end`."""
    return [line.split()[0] for line in OPENIBD_LOG.read_text().splitlines()]


def hook(moment: str, command: str) -> None:
    """Have openibd run a command: pre-stop, post-stop, pre-start or post-start."""
    path = HOOKS / f"{moment}-hook.sh"
    path.write_text(f"#!/bin/bash\n{command}\n")
    path.chmod(0o755)


def kernel_directory() -> str:
    """This kernel's directory below the toolkit's shared one."""
    return os.uname().release.replace("+", "_")


# udev and its faults


def udevd_pid() -> int | None:
    """The main process of udevd."""
    done = subprocess.run(
        ["pgrep", "-o", "-x", "systemd-udevd"], capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 else None


def kill_udevd() -> None:
    """No udevd from here on, killed so that its socket's file stays."""
    pid = udevd_pid()
    assert pid is not None
    end = os.pidfd_open(pid)
    sh("pkill -KILL -x systemd-udevd")
    readable, _, _ = select.select([end], [], [], PATIENCE)
    os.close(end)
    assert readable


def start_udevd() -> None:
    """Have an udevd that has seen every device."""
    if udevd_pid() is None:
        sh("/lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add -s net")
        settle()


@contextmanager
def program_for(address: str, command: str) -> Iterator[None]:
    """udev runs a command on a device's new interface (`%k`) before it does anything else."""
    rule = RULES / "00-lab.rules"
    RULES.mkdir(exist_ok=True)
    device = f'SUBSYSTEM=="net", ACTION=="add", KERNELS=="{address}"'
    rule.write_text(f"{device}, PROGRAM=\"/bin/sh -c '{command}'\"\n")
    sh("udevadm control --reload")
    try:
        yield
    finally:
        rule.unlink()
        if udevd_pid() is not None:
            sh("udevadm control --reload")


class HiddenNamespace:
    """A network namespace that nobody finds: it is mounted where a single process sees it.

    An interface in it is nowhere. `put_away` is a shell's line that takes `%k` there; with the end
    of the block it comes home.
    """

    def __enter__(self) -> Self:
        path = RUN / "hidden"
        made = f"touch {path}; unshare --net={path} true; echo; exec sleep 100000"
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", made], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n"
        mounts = f"/proc/{self._process.pid}/ns/mnt"
        self.put_away = f"nsenter --mount={mounts} ip link set %k netns {path}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Gate:
    """Something stops where a test wants it, tells the test, and goes on when the test says so.

    `script` is what has to be run there, by udev or a hook: two named pipes, no clock.
    """

    def __init__(self, label: str) -> None:
        self._reached = RUN / f"{label}.reached"
        self._open = RUN / f"{label}.open"
        self.script = f"echo >{self._reached}; read x <{self._open}"

    def __enter__(self) -> Self:
        for path in (self._reached, self._open):
            os.mkfifo(path)
        # both ends of each: neither side's open(2) waits for the other
        self._arrival = os.open(self._reached, os.O_RDWR | os.O_NONBLOCK)
        self._release = os.open(self._open, os.O_RDWR | os.O_NONBLOCK)
        return self

    def wait(self) -> None:
        """Return when something has arrived at the gate."""
        readable, _, _ = select.select([self._arrival], [], [], PATIENCE)
        assert readable, "nothing came to the gate"
        os.read(self._arrival, 1)

    def open(self) -> None:
        """Let one that waits go on."""
        os.write(self._release, b"\n")

    def __exit__(self, *_: object) -> None:
        os.write(self._release, b"\n" * 8)
        for path in (self._reached, self._open):
            path.unlink()
        os.close(self._arrival)
        os.close(self._release)


# nodeagent, as a process


class Started:
    """nodeagent, running: its log as it comes, its output and status when it has ended."""

    def __init__(self, argv: Sequence[str], process: subprocess.Popen[str] | Fork) -> None:
        """`process` has pipes for its output."""
        self.argv = argv
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.process = process
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """What it has written on stderr so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str) -> str:
        """The log's line that matches, as soon as it is there."""
        seen = 0
        with self._news:
            while True:
                found = [line for line in self._lines[seen:] if re.search(pattern, line)]
                if found:
                    return found[0].rstrip("\n")
                assert self._reader.is_alive(), f"it ended without {pattern!r} in its log"
                seen = len(self._lines)
                assert self._news.wait(PATIENCE), f"no {pattern!r} in its log"

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def output(self) -> str:
        """What it has written on stdout, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def kill_all(self) -> None:
        """SIGKILL to it and all that it has started, as when a container is killed."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        self.process.kill()
        for pid in children.stdout.split():
            with suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
        self.wait()

    def end(self) -> None:
        """Whatever it does, it is over; its log is shown where a test fails."""
        if self.process.poll() is None:
            self.kill_all()
        said = f"$ {' '.join(self.argv)} -> {self.process.returncode}\n{self.log}\n"
        sys.stderr.write(said)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Nodeagent:
    """The command line, with files of its own below a directory of the test.

    With a zygote, what is started is a fork of that, which saves 3 s of imports.
    """

    def __init__(self, directory: Path, zygote: Zygote | None = None) -> None:
        self._zygote = zygote
        self.state_dir = directory / "state"
        self.ready = directory / "run" / "ready"
        self.shared = directory / "shared"
        self.environment = {
            **os.environ,
            "STATE_DIR": str(self.state_dir),
            "DRIVER_READY_PATH": str(self.ready),
            "LOCK_FILE_PATH": str(directory / "run" / "lock"),
            "OFED_BLACKLIST_MODULES_FILE": str(BLACKLIST),
            "NVIDIA_NIC_DRIVER_VER": DRIVER_VERSION,
            "NVIDIA_NIC_DRIVER_PATH": "/usr/src/driver",
            "DTK_OCP_DRIVER_BUILD": "true",
            "DTK_OCP_NIC_SHARED_DIR": str(self.shared),
        }
        self.done_flag = self.shared / kernel_directory() / DONE_FLAG
        self._started: list[Started] = []

    @property
    def open_snapshot(self) -> Path:
        """Exists while a reload is unfinished."""
        return self.state_dir / "open-snapshot.json"

    def start(self, *arguments: str, **settings: object) -> Started:
        """Start it with arguments, and settings as environment variables."""
        if self._zygote is None:
            return self.start_command("nodeagent", *arguments, **settings)
        process = self._zygote.popen(arguments, self._given(settings))
        return self._begun(("nodeagent", *arguments), process)

    def start_command(self, *argv: str, **settings: object) -> Started:
        """Start a command that runs it, or itself without a zygote."""
        process = subprocess.Popen(
            argv,
            env=self._given(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self._begun(argv, process)

    def _given(self, settings: Mapping[str, object]) -> dict[str, str]:
        return self.environment | {key: str(value) for key, value in settings.items()}

    def _begun(self, argv: Sequence[str], process: subprocess.Popen[str] | Fork) -> Started:
        self._started.append(Started(argv, process))
        return self._started[-1]

    def call(self, *arguments: str, status: int = 0, **settings: object) -> Started:
        """Run it to its end, which must have that status."""
        started = self.start(*arguments, **settings)
        assert started.wait() == status, started.log
        return started

    def reload_killed_at(self, *patterns: str) -> None:
        """A reload to the other build, killed at a line of its log, once for each pattern.

        The start after that, which nothing kills, ends it.
        """
        put_other_build_on_disk()
        for pattern in patterns:
            run = self.start("reload")
            run.wait_for(pattern)
            run.kill_all()
            assert self.open_snapshot.exists()
        self.call("reload")

    def finish_build(self, build: str | None = None) -> None:
        """Play the toolkit: real packages of a build (of the one on disk), then the done flag."""
        build_packages(next(self.done_flag.parent.glob("MLNX_OFED_SRC-*")), build or on_disk())
        self.done_flag.touch()

    def end(self) -> None:
        """End what is still running."""
        for started in self._started:
            started.end()


def reload_while(
    nodeagent: Nodeagent, do: Callable[[], object], moment: str = "post-start"
) -> Started:
    """A reload to the other build, to its end; `do` is done while openibd is at that hook."""
    put_other_build_on_disk()
    with Gate("loaded") as gate:
        hook(moment, gate.script)
        reload = nodeagent.start("reload")
        gate.wait()
        settle()
        do()
        gate.open()
        reload.wait(PATIENCE * 5)
    return reload


# A node as if nothing had happened


def remove_faults() -> None:
    """No gates, hooks, rules, namespaces or dummies; udevd runs and works."""
    rules = tuple(RULES.glob("*"))
    for path in (*RUN.iterdir(), *rules, *HOOKS.glob("*-hook.sh")):
        path.unlink()
    BLACKLIST.unlink(missing_ok=True)
    OPENIBD_LOG.touch()
    if udevd_pid() is None:
        start_udevd()
    else:
        printed("udevadm", "control", "--start-exec-queue")
        if rules:
            sh("udevadm control --reload")
    for namespace in NAMESPACES.glob("*"):
        sh(f"ip netns delete {namespace.name}")
    if DUMMY.exists():
        for line in sh("ip -o link show type dummy").splitlines():
            ip(f"link delete {line.split(': ')[1]}")
    if NETDEVSIM.exists():
        sh("modprobe -r netdevsim")
    settle()


def clean(build: str | None = None) -> None:
    """No faults, no VFs, PFs as after boot, the driver on disk is the loaded one (`build`).

    Quick when it is so already.
    """
    remove_faults()
    put_loaded_build_on_disk()
    if build is not None:
        put_on_disk(build)
    for pf in pfs():
        (PCI / pf / "sriov_drivers_autoprobe").write_text("1")
    if loaded() != _srcversion_on_disk() or not all(map(_is_fresh, pfs())):
        reload_by_hand()
    on_each_pf(_remove_vfs)
    settle()
    ip(*(f"link set {name(pf)} down mtu 1500" for pf in pfs()))


def _remove_vfs(pf: str) -> None:
    numvfs = PCI / pf / "sriov_numvfs"
    if numvfs.read_text() != "0\n":
        numvfs.write_text("0")


def _is_fresh(pf: str) -> bool:
    if driver(pf) != "mlx5_core" or representors(pf):
        return False
    port = f"f{pf[-1]}np{pf[-1]}" if CONNECTX else ""
    return name(pf) == f"enp{int(pf[5:7], 16)}s0{port}"


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (proc(5), /proc/PID/stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def eventually(is_so: Callable[[], object], what: str, *, every: float = 0.1) -> None:
    """Return soon after it is so. For what sysfs alone knows: it tells nobody.

    In virtual time sleep costs nothing, and a look that starts a process some 10 ms of work: what
    takes a minute is looked at every second.
    """
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {PATIENCE:g} s: {what}"
        time.sleep(every)


@contextmanager
def busy(do: Callable[[], None]) -> Iterator[None]:
    """Somebody does something over and over, beside us."""
    end = threading.Event()

    def loop() -> None:
        while not end.is_set():
            do()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
