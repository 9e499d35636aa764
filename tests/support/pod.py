"""A kubelet for one pod: containers of a rendered manifest, run by crun exactly as it says.

An image is an unpacked root and its configuration (image-spec: Entrypoint, Cmd, Env, StopSignal).
A container gets the mounts, namespaces, capabilities, environment and root of its spec and nothing
else: what the manifest forgets is not there. Probes run as the kubelet runs them, with their
periods and thresholds: a container whose liveness fails gets SIGTERM, its grace period, SIGKILL,
and is started anew with an empty upper layer. Each has a cgroup of its own and its memory limit.

What is not here: the API server, images' pulling, shares of the processor, restart back-off.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

Object = dict[str, Any]

CRUN: Final = ("crun", "--cgroup-manager=cgroupfs", "--root", "/run/lab-crun")
CGROUPS: Final = Path("/sys/fs/cgroup")
UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
DEFAULT_CAPABILITIES: Final = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
    *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
)
MASKED: Final = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
PROPAGATION: Final = {"None": "rprivate", "HostToContainer": "rslave", "Bidirectional": "rshared"}
ANY_DEVICE: Final = {"allow": True, "access": "rwm"}
SECOND: Final = 1.0
"""The length of a probe's second. The guest is slow, but so is all that is probed."""


@dataclass(frozen=True)
class Image:
    """Layers of an unpacked image, the topmost first, and its configuration."""

    layers: tuple[Path, ...]
    config: Mapping[str, Any]

    def with_layer(self, layer: Path) -> Image:
        """As FROM does it: one more layer on top."""
        return Image((layer, *self.layers), self.config)


@dataclass
class Status:
    """What the kubelet knows of a container."""

    started: bool = False
    ready: bool = False
    restarts: int = 0
    exits: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """As `kubectl describe` has them: which probe failed with what, and why it was killed."""


class Container:
    """One container of the pod, and its process while there is one."""

    def __init__(self, pod: Pod, spec: Object, image: Image) -> None:
        self.pod, self.spec, self.image = pod, spec, image
        self.name: str = spec["name"]
        self.status = Status()
        self.log_path = pod.directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    @property
    def log(self) -> str:
        """Both streams of all its lives."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def id(self) -> str:
        """This life's name for crun."""
        return f"{self.pod.name}-{self.name}-{self._number}"

    def start(self) -> None:
        """A new life: a fresh upper layer, the same spec."""
        self._number += 1
        self.status.started = self.status.ready = False
        bundle = self.pod.directory / self.id
        root = bundle / "rootfs"
        for path in (root, bundle / "upper", bundle / "work"):
            path.mkdir(parents=True)
        lower = ":".join(str(layer) for layer in self.image.layers)
        options = f"lowerdir={lower},upperdir={bundle}/upper,workdir={bundle}/work"
        _must("mount", "-t", "overlay", "-o", options, "overlay", str(root))
        (bundle / "config.json").write_text(json.dumps(self._config(), indent=1))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                (*CRUN, "run", "--bundle", str(bundle), self.id),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, timeout: float) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout)

    def kill(self, number: signal.Signals) -> None:
        """A signal to its first process; one that has ended is none."""
        argv = [*CRUN, "kill", self.id, str(int(number))]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)

    def exec(self, *argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """As `kubectl exec`."""
        return subprocess.run(
            [*CRUN, "exec", self.id, *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def used(self) -> dict[str, float]:
        """What this life has used so far: peak (bytes, files in the page cache too), cpu (s)."""
        group = CGROUPS / f"lab/{self.id}"
        told = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return {
            "peak": int((group / "memory.peak").read_text()),
            "now": int((group / "memory.current").read_text()),
            "anon": int(kept["anon"]),
            "cpu": int(told["usage_usec"]) / 1e6,
        }

    def clean_up(self) -> None:
        """Forget this life: its state, its root and its upper layer."""
        argv = [*CRUN, "delete", "--force", self.id]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)
        bundle = self.pod.directory / self.id
        subprocess.run(["umount", "-R", bundle / "rootfs"], capture_output=True, check=False)
        shutil.rmtree(bundle, ignore_errors=True)

    def _config(self) -> Object:
        security = self.spec.get("securityContext", {})
        privileged = bool(security.get("privileged"))
        changed = security.get("capabilities", {})
        capabilities = _all_capabilities() if privileged else [*DEFAULT_CAPABILITIES]
        if "ALL" in changed.get("drop", []):
            capabilities = []
        capabilities += [f"CAP_{name}" for name in changed.get("add", [])]
        binds = [self._bind(mount, privileged) for mount in self.spec.get("volumeMounts", [])]
        wanted = {option for bind in binds for option in bind["options"]}
        propagation = [name for name in ("rshared", "rslave", "rprivate") if name in wanted]
        command = self.spec.get("command") or self.image.config.get("Entrypoint") or []
        default = [] if "command" in self.spec else self.image.config.get("Cmd") or []
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": [*command, *self.spec.get("args", default)],
                "env": self._environment(),
                "cwd": self.image.config.get("WorkingDir") or "/",
                "user": {"uid": security.get("runAsUser", 0), "gid": security.get("runAsGroup", 0)},
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "noNewPrivileges": security.get("allowPrivilegeEscalation") is False,
            },
            "root": {"path": "rootfs", "readonly": bool(security.get("readOnlyRootFilesystem"))},
            **({} if self.pod.spec.get("hostNetwork") else {"hostname": self.pod.name}),
            "mounts": [*self.pod.base_mounts(privileged), *binds],
            "linux": {
                "namespaces": [{"type": name} for name in self.pod.namespaces()],
                "rootfsPropagation": [*propagation, "rprivate"][0],  # as containerd has it
                "cgroupsPath": f"/lab/{self.id}",
                "resources": {"memory": self._memory(), "devices": [ANY_DEVICE]},
                "devices": _devices() if privileged else [],
                "maskedPaths": [] if privileged else [*MASKED],
                "readonlyPaths": [] if privileged else [*READ_ONLY],
            },
        }

    def _memory(self) -> Object:
        limit = self.spec.get("resources", {}).get("limits", {}).get("memory")
        return {"limit": int(limit[:-2]) * UNITS[limit[-2:]]} if limit else {}

    def _bind(self, mount: Object, privileged: bool) -> Object:
        propagation = mount.get("mountPropagation", "None")
        if propagation == "Bidirectional" and not privileged:
            raise ValueError("the API server refuses Bidirectional without privileged")
        options = ["rbind", PROPAGATION[propagation], "ro" if mount.get("readOnly") else "rw"]
        source = self.pod.volume(mount["name"])
        return {
            "destination": mount["mountPath"],
            "type": "bind",
            "source": str(source / mount.get("subPath", "")),
            "options": options,
        }

    def _environment(self) -> list[str]:
        values = dict(each.split("=", 1) for each in self.image.config.get("Env") or [])
        for each in self.spec.get("env", []):
            values[each["name"]] = each.get("value", "")
            if "valueFrom" in each:
                values[each["name"]] = self.pod.fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        return [f"{name}={value}" for name, value in values.items()]


class Pod:
    """A pod of a template on this node, from its start to its end: `with` ends it."""

    def __init__(
        self, spec: Object, images: Mapping[str, Image], directory: Path, name: str = "pod"
    ) -> None:
        self.spec, self.directory, self.name = spec, directory, name
        self.fields = {"spec.nodeName": "lab", "status.podIP": "127.0.0.1", "metadata.name": name}
        self.volumes: dict[str, Object] = {each["name"]: each for each in spec.get("volumes", [])}
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        directory.mkdir(parents=True)
        self._init = [
            Container(self, each, images[each["image"]]) for each in spec.get("initContainers", [])
        ]
        self.containers = {
            each["name"]: Container(self, each, images[each["image"]])
            for each in spec["containers"]
        }

    def start(self, *, restart: bool = True) -> None:
        """Init containers to their end, one by one; then all containers and their probes."""
        for each in self._init:
            each.start()
            status = each.wait(120)
            each.clean_up()
            assert status == 0, f"init container {each.name} exited {status}:\n{each.log}"
        for container in self.containers.values():
            container.start()
            thread = threading.Thread(target=self._watch, args=(container, restart), daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(
        self, grace: float | None = None, first: signal.Signals = signal.SIGTERM
    ) -> dict[str, int]:
        """As when the pod is deleted: SIGTERM to all, SIGKILL after the grace period."""
        self._ending.set()
        allowed = self.spec.get("terminationGracePeriodSeconds", 30) if grace is None else grace
        for container in self.containers.values():
            container.kill(first)
        statuses = {name: _end(each, allowed) for name, each in self.containers.items()}
        for thread in self._threads:
            thread.join(30)
        for container in self.containers.values():
            container.clean_up()
        return statuses

    def kill(self) -> None:
        """As when the node's runtime dies: SIGKILL to all, and nobody starts them again."""
        self.end(60, signal.SIGKILL)

    def volume(self, name: str) -> Path:
        """Where a volume is on the node; made as its type says. FileNotFoundError as kubelet's."""
        volume = self.volumes[name]
        if "emptyDir" in volume:
            path = self.directory / "volumes" / name
            path.mkdir(parents=True, exist_ok=True)
            return path
        told = volume["hostPath"]
        path = Path(told["path"])
        match told.get("type", ""):
            case "DirectoryOrCreate":
                path.mkdir(parents=True, exist_ok=True)
            case "Directory" if not path.is_dir():
                raise FileNotFoundError(f"hostPath type check failed: {path} is not a directory")
            case "File" if not path.is_file():
                raise FileNotFoundError(f"hostPath type check failed: {path} is not a file")
        return path

    def namespaces(self) -> Sequence[str]:
        """Those that a container has of its own. Host network means the host's names, too (CRI)."""
        own = ["mount"]
        own += [] if self.spec.get("hostPID") else ["pid"]
        own += [] if self.spec.get("hostIPC") else ["ipc"]
        own += [] if self.spec.get("hostNetwork") else ["network", "uts"]
        return own

    def base_mounts(self, privileged: bool) -> list[Object]:
        """What the runtime mounts for any container; /sys is writable for a privileged one."""
        access = "rw" if privileged else "ro"
        plain = ["nosuid", "noexec", "nodev"]
        sysfs: Object = {"destination": "/sys", "type": "sysfs", "source": "sysfs"}
        if self.spec.get("hostNetwork"):  # a new sysfs may not be mounted over the host's devices
            sysfs = {"destination": "/sys", "type": "bind", "source": "/sys"}
            plain = ["rbind", "rprivate"]
        return [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
            {**sysfs, "options": [*plain, access]},
        ]

    def _watch(self, container: Container, restart: bool) -> None:
        """The kubelet's work for one container: probe, and start it again when it has ended."""
        probes = _Probes(container)
        while not self._ending.wait(0.1):
            status = container.poll()
            if status is not None:
                container.status.exits.append(status)
                container.status.ready = False
                if not restart:
                    return
                container.clean_up()
                container.status.restarts += 1
                container.start()
                probes = _Probes(container)
            elif probes.look():
                container.kill(signal.SIGTERM)
                _end(container, self.spec.get("terminationGracePeriodSeconds", 30))


class _Probes:
    """The probes of one life of a container."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.failures = dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), 0)
        now = time.monotonic()
        self.due = {
            name: now + SECOND * container.spec[name].get("initialDelaySeconds", 0)
            for name in self.failures
            if name in container.spec
        }
        if "startupProbe" not in self.due:
            container.status.started = True

    def look(self) -> bool:
        """Ask what is due; True when the container has to be killed."""
        status = self.container.status
        for name, when in self.due.items():
            if time.monotonic() < when or (name == "startupProbe") == status.started:
                continue
            probe = self.container.spec[name]
            good = self._ask(name, probe)
            self.due[name] = time.monotonic() + SECOND * probe.get("periodSeconds", 10)
            self.failures[name] = 0 if good else self.failures[name] + 1
            has_failed = self.failures[name] >= probe.get("failureThreshold", 3)
            if name == "readinessProbe":
                status.ready = good or (status.ready and not has_failed)
            elif name == "startupProbe" and good:
                status.started = True
            elif has_failed:
                status.events.append(f"Killing: {name} failed")
                return True
        return False

    def _ask(self, name: str, probe: Object) -> bool:
        timeout = SECOND * probe.get("timeoutSeconds", 1)
        try:
            done = self.container.exec(*probe["exec"]["command"], timeout=timeout)
        except subprocess.TimeoutExpired:
            self.container.status.events.append(f"Unhealthy: {name} timed out")
            return False
        if done.returncode:
            self.container.status.events.append(f"Unhealthy: {name}: {done.stdout.strip()}")
        return done.returncode == 0


def _end(container: Container, grace: float) -> int:
    try:
        return container.wait(grace)
    except subprocess.TimeoutExpired:
        container.kill(signal.SIGKILL)
        return container.wait(60)


def _all_capabilities() -> list[str]:
    """All that this kernel has, as crun writes them."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return [f"CAP_{name}" for name in CAPABILITIES.split()[: last + 1]]


CAPABILITIES: Final = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
"""By number (linux/capability.h)."""


def _devices() -> list[Object]:
    """A privileged container gets the node's devices, those that are there when it is made."""
    found = []
    for directory, below, names in os.walk("/dev"):
        if directory == "/dev":  # mounts of their own
            below[:] = [name for name in below if name not in {"pts", "shm", "mqueue", "hugepages"}]
        for path in (Path(directory, name) for name in names if name not in {"console", "ptmx"}):
            facts = path.lstat()
            kind = (
                "c" if stat.S_ISCHR(facts.st_mode) else "b" if stat.S_ISBLK(facts.st_mode) else ""
            )
            if kind:
                major, minor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
                found.append({"path": str(path), "type": kind, "major": major, "minor": minor})
    return found


def _must(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
