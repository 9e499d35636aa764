"""What an image must be and do before it counts as built; its size, and what makes it large."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from emulator.host import LabError, Runner

from container.recipe import OVER_DOCA

KEPT = ("NVIDIA_NIC_DRIVER_VER", "NVIDIA_NIC_DRIVER_PATH")
"""Of the environment of NVIDIA's driver image."""
LARGEST = 220
"""MB unpacked that the Debian variant may have."""
COLD_START = 0.4
"""Seconds for `nodeagent status`, of processor time: no matter who else is at work here."""
UNWANTED = ("pip", "pip3", "gcc", "cc", "c++", "ld", "make")
UNWANTED_BESIDE = ("rpm", "rpmbuild", "rpmkeys", "lsof", "lspci")
"""The sidecar installs nothing and calls no openibd."""
ENTERED = ("unshare", "--mount", "--pid", "--fork", "--net", "--kill-child")
IMPORT_ALL = """
import importlib, pkgutil, nodeagent
for each in pkgutil.walk_packages(nodeagent.__path__, "nodeagent."):
    if not each.name.endswith("__main__"):
        importlib.import_module(each.name)
import kubernetes.config.kube_config, prometheus_client
"""


def check(directory: Path, target: str, runner: Runner) -> None:
    """Unpack the image in `directory`, try it, write report.txt. LabError says what is wrong."""
    root = directory / "root"
    root.mkdir()
    dump = ("debugfs", "-R", f"rdump / {root}", directory / "root.ext4")
    runner.run(*dump, what="unpacking the image")
    try:
        tried = _Tried(root)
        _check_config(json.loads((directory / "config.json").read_text()), target)
        _check_files(root, target)
        tried.check_tools(target)
        tried.expect(0, "nodeagent", "--help", says="exactly as it was")
        tried.expect(1, "nodeagent", "sources", says="NVIDIA_NIC_DRIVER_VER is not set")
        tried.expect(1, "nodeagent", "precompiled", says="NVIDIA_NIC_DRIVER_VER is not set")
        tried.expect(1, "nodeagent", "dtk-build", says="DTK_OCP_START_COMPILE_FLAG")
        tried.expect(64, "nodeagent", "no-such-mode", says="no-such-mode")
        tried.expect(1, "nodeagent", "sources", "precompiled", says="unexpected extra argument")
        nobody = ("setpriv", "--reuid=65534", "--clear-groups", "env", "NVIDIA_NIC_DRIVER_VER=1")
        tried.expect(1, *nobody, "nodeagent", "precompiled", says="this needs root: ")
        tried.expect(0, *tried.python(), "-c", IMPORT_ALL, says="")
        tried.expect(1, "nodeagent", "probe", "ready", says="not ready: /run/mellanox/drivers/")
        tried.expect(64, "nodeagent", "probe", says="usage")
        cold = tried.seconds("nodeagent", "status")
        size, largest = _sizes(root)
        if size > LARGEST:
            raise LabError(f"the image has {size} MB, more than {LARGEST}: {largest}", hint=HINT)
        archive = directory.with_suffix("") / "image.oci.tar"
        text = (
            f"nodeagent:{target}  {size} MB unpacked; `nodeagent status` {cold * 1000:.0f} ms\n"
            f"  largest: {largest}\n"
            f"  {str(archive).replace('.tmp', '')}\n"
        )
        (directory / "report.txt").write_text(text)
    finally:
        shutil.rmtree(root)


HINT = "the Containerfile and scripts/container decide what is in it"


class _Tried:
    """The image's root, with commands run in it: a /proc of its own, no network."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def python(self) -> tuple[str, ...]:
        """The interpreter that nodeagent starts with."""
        last = (self.root / "usr/local/bin/nodeagent").read_text().splitlines()[-1]
        return (last.split()[1],)

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = (*ENTERED, f"--mount-proc={self.root}/proc", "chroot", str(self.root), *argv)
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def expect(self, status: int, *argv: str, says: str) -> None:
        done = self.call(*argv)
        if done.returncode != status or says not in done.stdout + done.stderr:
            raise LabError(
                f"in the image, {' '.join(argv)[:80]} exited {done.returncode}, not {status} with "
                f"{says!r}: {done.stdout[-500:]}{done.stderr[-1500:]}",
                hint=HINT,
            )

    def check_tools(self, target: str) -> None:
        """What the packages' list says is there, and needs no package manager to come."""
        script = self.root / "packages"
        shutil.copy(Path(__file__).with_name("packages"), script)
        for each in {"driver": ("sidecar", "driver")}.get(target, (target,)):
            self.expect(0, "sh", "/packages", each, says="")
        script.unlink()

    def seconds(self, *argv: str) -> float:
        """Processor time of the quickest of five; LabError when even that is too long."""
        taken = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.call(*argv)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if min(taken) > COLD_START:
            raise LabError(f"{' '.join(argv)} takes {min(taken):.2f} s", hint=HINT)
        return min(taken)


def _check_config(image: dict[str, Any], target: str) -> None:
    config = image["config"]
    wanted = {
        "Entrypoint": ["nodeagent", "run"] if target == OVER_DOCA else ["nodeagent"],
        "Cmd": ["sidecar" if target == "sidecar" else "sources"],
        "StopSignal": "SIGTERM",
    }
    kept = KEPT if target == OVER_DOCA else ()
    there = {each.partition("=")[0] for each in config.get("Env") or ()}
    wrong = [f"{name} of the base is lost" for name in kept if name not in there]
    wrong += [f"{key} is {config.get(key)!r}" for key in wanted if config.get(key) != wanted[key]]
    named = {"title", "description", "licenses", "version", "revision"}
    labels = {name.rpartition(".")[2] for name in config.get("Labels") or ()}
    wrong += [f"there is no label {name}" for name in sorted(named - labels)]
    if wrong:
        raise LabError(f"the image's configuration: {'; '.join(wrong)}", hint=HINT)


def _check_files(root: Path, target: str) -> None:
    """Neither pip nor a compiler; byte code beside every file of Python that is ours to compile."""
    unwanted = UNWANTED if target != "sidecar" else (*UNWANTED, *UNWANTED_BESIDE)
    places = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin")
    found = [
        f"{place}/{name}" for place in places for name in unwanted if (root / place / name).exists()
    ]
    site = next((root / "usr/local").glob("lib*/python3*/*-packages/nodeagent")).parent
    found += [str(path) for path in site.glob("pip")]
    for source in site.rglob("*.py"):
        if not any((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")):
            found.append(f"{source.relative_to(root)} without byte code")
    if found:
        raise LabError(f"the image has what it must not have: {', '.join(found[:9])}", hint=HINT)


def _sizes(root: Path) -> tuple[int, str]:
    """MB of all files, each inode once, and the largest folders with theirs."""
    total, parts, seen = 0, dict[str, int](), set[int]()
    for directory, _, names in os.walk(root):
        for name in names:
            facts = os.lstat(Path(directory) / name)
            if facts.st_ino in seen or not stat.S_ISREG(facts.st_mode):
                continue
            seen.add(facts.st_ino)
            total += facts.st_size
            inside = Path(directory).relative_to(root).parts
            depth = 6 if "dist-packages" in inside or "site-packages" in inside else 3
            place = "/".join(inside[:depth])
            parts[place] = parts.get(place, 0) + facts.st_size
    largest = sorted(parts, key=lambda place: -parts[place])[:8]
    return round(total / 1e6), ", ".join(f"{at} {parts[at] / 1e6:.0f} MB" for at in largest)
