"""What the lab is made of, and what each part is made from."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emulator import image, kernel, machine, mlx5, modules, packages, qemu, rootfs, session, stall
from emulator.cache import Artefact, Cache, digest
from emulator.host import LabError, Runner, say
from emulator.machine import Made, Nic, Options
from emulator.packages import Apt, Chosen, MirrorMovedOn

HERE = Path(__file__).parent
BOOT_SECONDS = 180
"""A boot takes 5 s on an idle machine; this is for one that does three things more at once."""


@dataclass(frozen=True)
class Parts:
    """The artefacts behind an image."""

    kernel: Artefact
    modules: Artefact
    mlx5: Artefact | None
    """The genuine drivers, where there is a ConnectX for them."""
    debian: Artefact
    python: Artefact
    image: Artefact


def parts_of(chosen: Chosen, nic: Nic) -> Parts:
    """Every part's name and what it is made from: packages, files of ours, and other parts."""
    kernel_part = Artefact(
        "kernel",
        {"release": chosen.kernel, "version": chosen.version, "recipe": _files("kernel.py")},
    )
    modules_part = Artefact(
        "modules",
        {
            "kernel": kernel_part.key,
            "compiler": chosen.compiler,
            "recipe": _files("modules.py", "lab_eoi.c", "lab_ib.c", "mlx5_holder.c"),
        },
    )
    mlx5_part = Artefact(
        "mlx5",
        {"kernel": kernel_part.key, "compiler": chosen.compiler, "recipe": _files("mlx5.py")},
    )
    debian = Artefact(
        "debian",
        {"suite": chosen.suite, "recipe": _files("rootfs.py"), "packages": repr(chosen.guest)},
    )
    python = Artefact(
        "python",
        {
            "suite": chosen.suite,
            "recipe": _files("rootfs.py"),
            "requirements": digest(rootfs.REQUIREMENTS),
        },
    )
    parts = [kernel_part, modules_part, debian, python]
    name = "image"
    if nic is Nic.CONNECTX:
        parts.append(mlx5_part)
        name = "image-connectx"
    ingredients = {part.name: part.key for part in parts}
    return Parts(
        kernel_part,
        modules_part,
        mlx5_part if nic is Nic.CONNECTX else None,
        debian,
        python,
        Artefact(name, {**ingredients, "recipe": _files("image.py", "guest")}),
    )


class Builder:
    """Makes the parts that are missing in the cache under `root`."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.cache = Cache(root)

    def ready(self, options: Options, *, newer: bool = False) -> Made:
        """QEMU, image and a saved machine state for these options.

        No state where the node has a disk: what is in memory would not fit what is on it.
        `newer` asks the mirror for newer packages first; otherwise what was chosen at the first
        build stays, and a lab that is built needs neither network nor root.
        """
        try:
            return self._ready(options, again=newer)
        except MirrorMovedOn:
            say("the mirror has moved on since its lists were fetched: looking again")
            return self._ready(options, again=True)

    def _runner(self) -> Runner:
        return Runner(self.root / "logs")

    def _apt(self, runner: Runner) -> Apt:
        return Apt(self.root / "apt", runner)

    def _ready(self, options: Options, *, again: bool) -> Made:
        chosen = packages.choose(self._apt(self._runner()), again=again)
        parts = parts_of(chosen, options.nic)
        # First, because it may not be possible: that is better said at once.
        ours = self._qemu(chosen, parts, again) if options.nic is Nic.CONNECTX else None
        made = self.cache.get(parts.image, lambda path: self._make_image(chosen, parts, path))
        if not shutil.which(packages.QEMU):  # it was there when the image was built
            self._apt(self._runner()).install_tools(chosen.compiler)
        booting = Made(ours, made, None)
        if options.disk:
            return booting
        state = Artefact(
            f"state-{options.name}",
            {
                "image": made.name,
                "qemu": ours.name if ours else machine.qemu_version(),
                "recipe": _files("machine.py"),
            },
        )
        saved = self.cache.get(state, lambda path: self._make_state(options, booting, path))
        return replace(booting, state=saved)

    def _qemu(self, chosen: Chosen, parts: Parts, again: bool) -> Path:
        """The directory of the QEMU with the ConnectX."""
        apt = self._apt(self._runner())
        try:
            version = packages.choose_qemu(apt, again=again)
            tree = Artefact("qemu-tree", qemu.tree_parts(version))
            made = Artefact(
                "qemu",
                {
                    "tree": tree.key,
                    **qemu.build_parts(),
                    "kernel": parts.kernel.key,
                    "compiler": chosen.compiler,
                },
            )
            return self.cache.get(
                made, lambda path: self._make_qemu(chosen, parts, tree, version, path)
            )
        except LabError as error:
            message = f"cannot build the QEMU that has the ConnectX: {error}"
            # of the same kind: a mirror that has moved on is asked again
            raise type(error)(message, hint=f"{error.hint}. {qemu.WITHOUT_CONNECTX}") from error

    def _make_qemu(
        self, chosen: Chosen, parts: Parts, tree: Artefact, version: str, directory: Path
    ) -> None:
        runner = self._runner()
        apt = self._apt(runner)
        apt.install_tools(chosen.compiler)
        qemu.install_tools(apt)
        base = self.cache.get(parts.kernel, lambda path: kernel.fetch(chosen, apt, runner, path))
        unpacked = self.cache.get(tree, lambda path: qemu.unpack(version, apt, runner, path))
        qemu.build(unpacked, chosen, base, runner, directory)

    def _make_image(self, chosen: Chosen, parts: Parts, directory: Path) -> None:
        runner = self._runner()
        apt = self._apt(runner)
        apt.install_tools(chosen.compiler)
        attempt = _Attempt(chosen, parts, self.cache, apt, runner)
        image.make(attempt.ingredients(), runner, directory)
        self.cache.remove_states_of_no_image()

    def _make_state(self, options: Options, booting: Made, directory: Path) -> None:
        say(
            f"machine state: booting a node with {options.pfs} PFs ({options.nic}) "
            f"and {options.memory} MiB"
        )
        with (
            tempfile.TemporaryDirectory(prefix="lab-") as files,
            machine.started(options, booting, Path(files)) as booted,
            stall.reported(booted, self.root / "failed"),
        ):
            session.wait_ready(booted, BOOT_SECONDS)
            machine.save(booted, directory)
            shutil.copy(booted.serial, directory / "serial.log")


@dataclass(frozen=True)
class _Attempt:
    """One go at the parts of an image; its runner is spent when one of them fails."""

    chosen: Chosen
    parts: Parts
    cache: Cache
    apt: Apt
    runner: Runner

    def ingredients(self) -> image.Ingredients:
        """All parts, those that don't need each other at the same time."""
        with ThreadPoolExecutor() as pool:
            modules_made = pool.submit(self.kernel_and_modules)
            debian = pool.submit(self.debian)
            python = pool.submit(self.python)
            jobs: list[Future[Any]] = [modules_made, debian, python]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self.runner.terminate()
                raise
        base, built, genuine = modules_made.result()
        return image.Ingredients(
            self.chosen.kernel, base, built, genuine, debian.result(), python.result()
        )

    def kernel_and_modules(self) -> tuple[Path, Path, Path | None]:
        base = self.cache.get(
            self.parts.kernel,
            lambda path: kernel.fetch(self.chosen, self.apt, self.runner, path),
        )
        built = self.cache.get(
            self.parts.modules,
            lambda path: modules.build(self.chosen, base, self.runner, path),
        )
        if self.parts.mlx5 is None:
            return base, built, None
        genuine = self.cache.get(
            self.parts.mlx5, lambda path: mlx5.build(self.chosen, base, self.runner, path)
        )
        return base, built, genuine

    def debian(self) -> Path:
        return self.cache.get(
            self.parts.debian,
            lambda path: rootfs.make_debian(self.chosen, self.apt, self.runner, path),
        )

    def python(self) -> Path:
        return self.cache.get(self.parts.python, lambda path: rootfs.make_python(self.runner, path))


def _files(*names: str) -> str:
    return digest(*(HERE / name for name in names))
