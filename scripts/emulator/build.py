"""What the lab is made of, and what each part is made from."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emulator import image, kernel, machine, modules, packages, session, stall
from emulator.cache import Artefact, Cache, digest
from emulator.host import Runner, say
from emulator.machine import Options
from emulator.packages import Apt, Chosen

HERE = Path(__file__).parent
BOOT_SECONDS = 180


class Builder:
    """Makes the parts that are missing in the cache."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.cache = Cache(root)
        self.runner = Runner(root / "build.log")

    def ready(self, options: Options, *, newer: bool = False) -> tuple[Path, Path]:
        """Directories of the image and of a saved machine state for these options.

        `newer` asks the mirror for newer packages first; otherwise what was chosen at the first
        build stays, and a lab that is built needs neither network nor root.
        """
        chosen = packages.choose(self.root, self.runner, again=newer)
        made = self._image(chosen)
        if not shutil.which(packages.QEMU):  # it was there when the image was built
            packages.require_host()
            Apt(self.root / "apt", self.runner).install_tools(chosen.compiler)
        return made, self._state(made, options)

    def _image(self, chosen: Chosen) -> Path:
        kernel_part = Artefact(
            "kernel",
            {
                "version": chosen.version,
                "release": chosen.kernel,
                "recipe": _recipe("kernel"),
            },
        )
        modules_part = Artefact(
            "modules",
            {
                "kernel": kernel_part.key,
                "compiler": chosen.compiler,
                "recipe": _recipe("modules"),
            },
        )
        rootfs_part = Artefact(
            "rootfs",
            {
                "suite": chosen.suite,
                "recipe": _recipe("image"),
                **chosen.guest,
            },
        )
        site_part = Artefact(
            "site",
            {
                "suite": chosen.suite,
                "requirements": digest(image.REQUIREMENTS),
                "recipe": _recipe("image"),
            },
        )
        image_part = Artefact(
            "image",
            {
                **{part.name: part.key for part in (modules_part, rootfs_part, site_part)},
                "guest": digest(image.GUEST),
                "recipe": _recipe("image"),
            },
        )

        def make(directory: Path) -> None:
            packages.require_host()
            apt = Apt(self.root / "apt", self.runner)
            apt.install_tools(chosen.compiler)
            get = self.cache.get
            runner = self.runner

            def kernel_and_modules() -> tuple[Path, Path]:
                base = get(kernel_part, lambda path: kernel.fetch(chosen, apt, runner, path))
                return base, get(
                    modules_part, lambda path: modules.build(chosen, base, runner, path)
                )

            def rootfs() -> Path:
                return get(rootfs_part, lambda path: image.make_rootfs(chosen, apt, runner, path))

            def site() -> Path:
                return get(site_part, lambda path: image.make_site(runner, path))

            with ThreadPoolExecutor() as pool:
                jobs = [pool.submit(kernel_and_modules), pool.submit(rootfs), pool.submit(site)]
                try:
                    (base, built), system, python = (job.result() for job in jobs)
                except BaseException:
                    runner.terminate()
                    raise
            image.make_image(chosen, base, built, system, python, runner, directory)
            self.cache.remove_states_not_of(image_part.directory)

        return self.cache.get(image_part, make)

    def _state(self, made: Path, options: Options) -> Path:
        part = Artefact(
            f"state-{options.name}",
            {
                "image": made.name,
                "qemu": machine.qemu_version(),
                "recipe": _recipe("machine"),
            },
        )

        def make(directory: Path) -> None:
            say(f"machine state: booting a node with {options.pfs} PFs and {options.memory} MiB")
            with (
                tempfile.TemporaryDirectory(prefix="lab-") as files,
                machine.started(options, made, Path(files), state=None) as booted,
                stall.reported(booted, self.root / "failed"),
            ):
                session.wait_ready(booted, BOOT_SECONDS)
                machine.save(booted, directory / "state")

        return self.cache.get(part, make)


def _recipe(module: str) -> str:
    return digest(HERE / f"{module}.py")
