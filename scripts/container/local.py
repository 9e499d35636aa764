"""The image on a Debian base of this machine's own packages: no registry, no daemon.

buildah runs in chroot isolation with a storage of its own under the cache. Nothing of the host is
mounted into a build but the folder of wheels, read-only: pip gets them outside, with the host's own
settings and certificates, and each is checked against the hashed lock, outside and inside.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

from emulator.cache import Artefact, Cache, digest
from emulator.host import Runner, locked, output_of, say
from emulator.packages import Apt, debian_suite, require_host

from container import smoke
from container.recipe import LOCK, OVER_DOCA, ROOT, SOURCES, copy_context, revision, version

SIDECAR = "python3 kmod iproute2 util-linux"
PACKAGES = {
    # usr-is-merged: instead of usrmerge, which is there first, and needs perl
    "sidecar": f"usr-is-merged {SIDECAR}",
    "driver": f"usr-is-merged {SIDECAR} lsof procps pciutils ethtool bsdutils rpm",
    "builder": "usr-is-merged python3 python3-venv",
}
WITHOUT = ("doc", "man", "locale", "info", "lintian", "bash-completion")
PERL = "usrmerge|perl|libperl5.*|perl-modules-.*|lib.*-perl"
WITHOUT_PERL = (
    'chroot "$1" dpkg-query --show --showformat "\\${Package}\\n" | '
    f'grep -E "^({PERL})$" | xargs chroot "$1" dpkg --purge'
)
"""45 MB that only rpm needs, of all that we install; perl-base, which dpkg needs, stays."""
RPM_WITHOUT_BUILD = 'rm -rf "$1"/usr/share/perl "$1"/usr/lib/*/perl "$1"/usr/lib/file'
"""The same, and libmagic's, where rpm is: to build packages it needs them, to install them not."""
DISK = "400M"
"""Of the disk that the emulated node mounts; it is sparse."""
HOST_TOOLS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
BUILD = ("--isolation", "chroot", "--network", "host", "--layers=false", "--pull-never")
STAND_IN = (
    *("--env", "NVIDIA_NIC_DRIVER_VER=25.10-1.2.8.0"),
    *("--env", "NVIDIA_NIC_DRIVER_PATH=/opt/driver-sources"),
    *("--entrypoint", '["/root/entrypoint.sh"]', "--cmd", "precompiled"),
)
"""What makes the base of `driver` a stand-in for NVIDIA's driver image, below over-doca."""
HINT = "scripts/image --base IMAGE builds on a public base with podman or docker"


class Local:
    """The cache of bases, wheels and images under `root`; `lists` is where apt keeps its lists."""

    def __init__(self, root: Path, lists: Path) -> None:
        for directory in (root, lists):
            directory.mkdir(parents=True, exist_ok=True)
        self.cache = Cache(root)
        self.runner = Runner(root / "logs")
        self.apt = Apt(lists, self.runner)
        self._storage = root / "storage"

    def ready(self, target: str) -> Path:
        """Directory of the tried image: image.oci.tar, root.ext4, config.json, report.txt."""
        suite = debian_suite()
        recipe = digest(*(ROOT / name for name in SOURCES), Path(__file__).parent)
        base = "driver" if target == OVER_DOCA else target
        parts = {name: self._base(suite, name) for name in (base, "builder")}
        wheels = Artefact("wheels", {"lock": digest(LOCK), "suite": suite})
        made_from = {part.name: part.key for part in (*parts.values(), wheels)}
        image = Artefact(f"image-{target}", {**made_from, "recipe": recipe})

        def build(directory: Path) -> None:
            require_host()
            self._install_tools()
            bases = {
                name: self.cache.get(part, partial(self._bootstrap, suite, name))
                for name, part in parts.items()
            }
            self._build(target, bases, self.cache.get(wheels, self._download), directory)

        return self.cache.get(image, build)

    def _base(self, suite: str, name: str) -> Artefact:
        facts = {
            "suite": suite,
            "packages": PACKAGES[name],
            "without": " ".join((*WITHOUT, WITHOUT_PERL, RPM_WITHOUT_BUILD)),
        }
        return Artefact(name, facts)

    def _install_tools(self) -> None:
        missing = [package for tool, package in HOST_TOOLS.items() if not shutil.which(tool)]
        missing += [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]
        self.apt.need_lists()
        if missing:
            self.apt.install(*missing)

    def _bootstrap(self, suite: str, name: str, directory: Path) -> None:
        """rootfs.tar: the essential packages of Debian and those listed; no apt."""
        say(f"{name}: {PACKAGES[name]} of {suite}")
        self.runner.run(
            *("mmdebstrap", "--quiet", "--variant=essential", "--mode=root"),
            '--aptopt=APT::Install-Recommends "false"',
            f"--aptopt={self.apt.transport()}",
            *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in WITHOUT),
            f"--include={','.join(PACKAGES[name].split())}",
            f"--customize-hook={WITHOUT_PERL if name != 'driver' else RPM_WITHOUT_BUILD}",
            *(suite, directory / "rootfs.tar", self.apt.sources),
            env={"TMPDIR": str(directory)},
            what=f"making the {name} image",
        )

    def _download(self, directory: Path) -> None:
        say(f"wheels of {LOCK.name}")
        environment = directory / "venv"
        self.runner.run("/usr/bin/python3", "-m", "venv", environment, what="making a venv for pip")
        self.runner.run(
            *(environment / "bin" / "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--only-binary", ":all:", "--no-deps"),
            *("--dest", directory / "wheels", "-r", LOCK),
            what="downloading the wheels",
        )
        shutil.rmtree(environment)

    def _build(self, target: str, bases: dict[str, Path], wheels: Path, directory: Path) -> None:
        say(f"building the target {target}")
        with locked(self.cache.root / "storage.lock"):
            try:
                base = "driver" if target == OVER_DOCA else target
                settings = STAND_IN if target == OVER_DOCA else ()
                self._import("base", bases[base] / "rootfs.tar", *settings)
                self._import("builder", bases["builder"] / "rootfs.tar")
                self._bud(target, wheels / "wheels", directory)
            finally:
                shutil.rmtree(self._storage, ignore_errors=True)
        smoke.check(directory, target, self.runner)

    def _import(self, name: str, rootfs: Path, *settings: str) -> None:
        """The image localhost/nodeagent-NAME; `settings` are arguments of buildah config."""
        container = self._ask("from", "--name", name, "scratch").strip()
        self._buildah("add", "--quiet", container, rootfs, "/")
        if settings:
            self._buildah("config", *settings, container)
        self._buildah("commit", "--quiet", "--rm", container, f"localhost/nodeagent-{name}")

    def _bud(self, target: str, wheels: Path, directory: Path) -> None:
        context, image = directory / "context", f"localhost/nodeagent:{target}"
        copy_context(context)
        self._buildah(
            *(
                "build",
                *BUILD,
                "--target",
                target,
                "--tag",
                image,
                "--volume",
                f"{wheels}:/wheels:ro",
            ),
            *("--build-arg", "BASE=localhost/nodeagent-base"),
            *("--build-arg", "DOCA_DRIVER=localhost/nodeagent-base"),
            *("--build-arg", "BUILDER=localhost/nodeagent-builder"),
            *("--build-arg", "PIP_OPTIONS=--no-index --find-links=/wheels"),
            *("--build-arg", f"VERSION={version()}"),
            *("--build-arg", f"REVISION={revision()}"),
            *("-f", context / "Containerfile", context),
        )
        shutil.rmtree(context)
        self._buildah("push", "--quiet", image, f"oci-archive:{directory}/image.oci.tar:nodeagent")
        config = json.loads(self._ask("inspect", "--type", "image", image))["OCIv1"]
        (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        root = self._ask("mount", self._ask("from", "--pull-never", image).strip()).strip()
        self.runner.run(
            *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root),
            *(directory / "root.ext4", DISK),
            what="making a disk of the image",
        )

    def _buildah(self, *arguments: object) -> None:
        self.runner.run(
            *self._command(), *arguments, what=f"buildah {arguments[0]}", contained=False
        )

    def _ask(self, *arguments: object) -> str:
        return output_of(*self._command(), *arguments, what=f"buildah {arguments[0]}")

    def _command(self) -> tuple[str, ...]:
        # vfs: plain directories, whatever file system the cache is on
        places = ("--root", str(self._storage / "root"), "--runroot", str(self._storage / "run"))
        return ("buildah", *places, "--storage-driver", "vfs")
