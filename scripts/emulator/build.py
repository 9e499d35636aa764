"""What the lab is made of, and what each part is made from."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from emulator import image, kernel, machine, modules, packages, rootfs, session, stall
from emulator.cache import Artefact, Cache, digest
from emulator.host import Runner, say
from emulator.machine import Options
from emulator.packages import Apt, Chosen, MirrorMovedOn

HERE = Path(__file__).parent
BOOT_SECONDS = 180
"""A boot takes 5 s on an idle machine; this is for one that does three things more at once."""


@dataclass(frozen=True)
class Parts:
    """The artefacts behind an image."""

    kernel: Artefact
    modules: Artefact
    debian: Artefact
    python: Artefact
    image: Artefact


def parts_of(chosen: Chosen) -> Parts:
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
            "recipe": _files("modules.py"),
        },
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
    ingredients = {part.name: part.key for part in (kernel_part, modules_part, debian, python)}
    return Parts(
        kernel_part,
        modules_part,
        debian,
        python,
        Artefact("image", {**ingredients, "recipe": _files("image.py", "guest")}),
    )


class Builder:
    """Makes the parts that are missing in the cache."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.cache = Cache(root)
        self.runner = Runner(root / "logs")
        self._apt = Apt(root / "apt", self.runner)

    def ready(self, options: Options, *, newer: bool = False) -> tuple[Path, Path]:
        """Directories of the image and of a saved machine state for these options.

        `newer` asks the mirror for newer packages first; otherwise what was chosen at the first
        build stays, and a lab that is built needs neither network nor root.
        """
        chosen = packages.choose(self._apt, again=newer)
        try:
            return self._ready(chosen, options)
        except MirrorMovedOn:
            say("the mirror has moved on since its lists were fetched: looking again")
            return self._ready(packages.choose(self._apt, again=True), options)

    def _ready(self, chosen: Chosen, options: Options) -> tuple[Path, Path]:
        parts = parts_of(chosen)
        made = self.cache.get(parts.image, lambda path: self._make_image(chosen, parts, path))
        if not shutil.which(packages.QEMU):  # it was there when the image was built
            self._apt.install_tools(chosen.compiler)
        state = Artefact(
            f"state-{options.name}",
            {
                "image": made.name,
                "qemu": machine.qemu_version(),
                "recipe": _files("machine.py"),
            },
        )
        return made, self.cache.get(state, lambda path: self._make_state(options, made, path))

    def _make_image(self, chosen: Chosen, parts: Parts, directory: Path) -> None:
        """The parts that need no other at the same time: downloads overlap with compiling."""
        self._apt.install_tools(chosen.compiler)
        with ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(self._make_kernel_and_modules, chosen, parts),
                pool.submit(self._make_debian, chosen, parts),
                pool.submit(self._make_python, parts),
            ]
            try:
                made = {name: path for job in jobs for name, path in job.result().items()}
            except BaseException:
                self.runner.terminate()
                raise
        image.make(image.Ingredients(chosen.kernel, **made), self.runner, directory)
        self.cache.remove_states_not_of(parts.image.directory)

    def _make_kernel_and_modules(self, chosen: Chosen, parts: Parts) -> dict[str, Path]:
        base = self.cache.get(
            parts.kernel, lambda path: kernel.fetch(chosen, self._apt, self.runner, path)
        )
        made = self.cache.get(
            parts.modules, lambda path: modules.build(chosen, base, self.runner, path)
        )
        return {"kernel": base, "modules": made}

    def _make_debian(self, chosen: Chosen, parts: Parts) -> dict[str, Path]:
        made = self.cache.get(
            parts.debian, lambda path: rootfs.make_debian(chosen, self._apt, self.runner, path)
        )
        return {"debian": made}

    def _make_python(self, parts: Parts) -> dict[str, Path]:
        made = self.cache.get(parts.python, lambda path: rootfs.make_python(self.runner, path))
        return {"python": made}

    def _make_state(self, options: Options, made: Path, directory: Path) -> None:
        say(f"machine state: booting a node with {options.pfs} PFs and {options.memory} MiB")
        with (
            tempfile.TemporaryDirectory(prefix="lab-") as files,
            machine.started(options, made, Path(files), state=None) as booted,
            stall.reported(booted, self.root / "failed"),
        ):
            session.wait_ready(booted, BOOT_SECONDS)
            machine.save(booted, directory / "state")


def _files(*names: str) -> str:
    return digest(*(HERE / name for name in names))
