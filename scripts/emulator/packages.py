"""Debian packages: which there are, getting them, and the host's tools.

apt works here with lists, cache and sources of our own: /etc/apt is read to learn which mirror this
machine uses (apt-get indextargets), and never written. The dpkg status is the host's own, because
missing tools are installed on the host.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from emulator.host import WORKS_WITHOUT_LAB, LabError, Runner, locked, output_of, say

KERNEL = "6.12"
GUEST_PACKAGES = """
    udev kmod procps iproute2 ethtool pciutils busybox-static strace less python3
    rdma-core ibverbs-providers ibverbs-utils rpm crun systemd containernetworking-plugins
"""
"""systemd for its networkd, which runs without it: the guest's init is the lab's."""
BACKPORTS = "-backports"
QEMU = "qemu-system-x86_64"
QEMU_VERSION = (8, 2)
"""igb came with 8.0, writing a machine's state to a file without a shell with 8.2."""
HOST_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
    "mke2fs": "e2fsprogs",
    "make": "make",
    "bc": "bc",
    "strip": "binutils",
}
"""Commands and the packages that bring them."""


class MirrorMovedOn(LabError):
    """What the lists promise can't be had (any more): fetching them again may help."""


@dataclass(frozen=True)
class Chosen:
    """Which packages the lab is made of, as of the last look at the mirror."""

    suite: str
    """Code name of the host's Debian, and of the guest's: bookworm, trixie."""
    kernel: str
    """Release of the kernel as uname -r says it, e.g. 6.12.48+deb13-amd64."""
    version: str
    """Version of the kernel's packages, e.g. 6.12.48-1."""
    compiler: str
    """The package that the kernel's headers want modules compiled with, e.g. gcc-12."""
    guest: dict[str, str]
    """Name and version of each package asked for in the guest."""


class Apt:
    """apt with its own lists under `root`, for this machine's suite and mirror."""

    def __init__(self, root: Path, runner: Runner) -> None:
        self.root = root
        self.sources = root / "debian.sources"
        """What the guest is made of: everything but the backports."""
        self._run = runner.run
        self._conf = root / "apt.conf"
        self._source_conf = root / "source" / "apt.conf"

    def update(self) -> None:
        """Fetch the package lists of the suite, its updates, backports and security."""
        say("package lists of this machine's mirror")
        for directory in ("lists/partial", "archives/partial"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        suite = debian_suite()
        main, security = _mirrors(suite)
        stanzas = [_stanza(main, suite, f"{suite}-updates")]
        stanzas += [_stanza(security, f"{suite}-security")] if security else []
        self.sources.write_text("\n".join(stanzas))
        (self.root / "backports.sources").write_text(_stanza(main, f"{suite}{BACKPORTS}"))
        self._conf.write_text(_settings(self.root))
        self._run(
            *("apt-get", "-q", "-c", self._conf, "--error-on=any", "update"),
            what="fetching the package lists",
        )

    def need_lists(self) -> None:
        """Fetch the package lists unless they are here."""
        needed = (self._conf, self.sources, self.root / "lists")
        if not all(path.exists() for path in needed):
            require_host()
            with locked(self.root / "lock"):
                self.update()

    def choose(self) -> Chosen:
        """The newest 6.12 kernel whose image, headers and source all can be had, and the rest."""
        suite = debian_suite()
        pattern = re.compile(rf"linux-image-({re.escape(KERNEL)}\.\d+[^-]*-amd64)")
        names = self._ask("pkgnames", f"linux-image-{KERNEL}.").split()
        releases = [match[1] for name in names if (match := pattern.fullmatch(name))]
        sources = self._versions(f"linux-source-{KERNEL}")
        for release in sorted(releases, key=_numbers, reverse=True):
            headers = f"linux-headers-{release}"
            version = next(iter(self._versions(f"linux-image-{release}")), None)
            if version in sources and version in self._versions(headers):
                compiler = re.search(r"gcc-\d+", self._ask("show", f"{headers}={version}"))
                if compiler:
                    return Chosen(suite, release, version, compiler[0], self._guest())
        raise LabError(
            f"this machine's package sources for {suite}, its security updates and backports have "
            f"no {KERNEL} kernel together with its headers and source",
            hint=f"see what `apt-get indextargets` lists. {WORKS_WITHOUT_LAB}",
        )

    def download(self, directory: Path, *packages: str) -> None:
        """Put the .deb files of `name=version` packages into a directory."""
        try:
            self._run(
                *("apt-get", "-q", "-c", self._conf, "download", *packages),
                cwd=directory,
                what="downloading packages",
            )
        except LabError as error:
            raise MirrorMovedOn(str(error), hint=error.hint) from error

    def source_version(self, package: str) -> str:
        """The newest version of a source package, in the suite that the host's QEMU comes from.

        Fetches the lists of sources, which are kept apart: a mirror need not have them.
        """
        suite = _qemu_suite(debian_suite())
        main, _ = _mirrors(debian_suite())
        conf = self._source_conf
        for directory in ("lists/partial", "archives/partial"):
            (conf.parent / directory).mkdir(parents=True, exist_ok=True)
        (conf.parent / "source.sources").write_text(_stanza(main, suite, types="deb-src"))
        conf.write_text(_settings(conf.parent))
        self._run(
            *("apt-get", "-q", "-c", conf, "--error-on=any", "update"),
            what="fetching the lists of sources",
        )
        shown = output_of("apt-cache", "-c", conf, "showsrc", package, what="reading source lists")
        versions = re.findall(r"^Version: (.*)$", shown, re.MULTILINE)
        if not versions:
            raise LabError(f"this machine's package sources have no source of {package} in {suite}")
        return str(max(versions, key=_numbers))

    def download_source(self, directory: Path, package: str, version: str) -> Path:
        """Put the upstream archive of a source package into a directory, and return its path.

        The distribution's own part is not needed, and a mirror that has moved on may lack it.
        """
        try:
            self._run(
                *("apt-get", "-q", "-c", self._source_conf, "--download-only"),
                *("source", f"{package}={version}"),
                cwd=directory,
                what="downloading a source package",
            )
        except LabError as error:
            found = [*directory.glob("*.orig.tar.*")]
            if not found:
                raise MirrorMovedOn(str(error), hint=error.hint) from error
        [archive] = directory.glob("*.orig.tar.*[!c]")
        return archive

    def install_tools(self, compiler: str) -> None:
        """Install what is missing of the host's tools; QEMU of the backports on bookworm."""
        self.need_lists()
        missing = [package for tool, package in HOST_TOOLS.items() if not shutil.which(tool)]
        missing += [] if shutil.which(compiler) else [compiler]
        missing += [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]
        # objtool, which the kernel's build runs on every object file, is linked with it.
        missing += [] if list(Path("/usr/lib").glob("*/libelf.so.1")) else ["libelf1"]
        backports = []
        if not _qemu_is_fit():
            missing.append("qemu-system-x86")
            suite = _qemu_suite(debian_suite())
            backports = ["-t", suite] if suite.endswith(BACKPORTS) else []
        if not missing:
            return
        self.install(*missing, options=backports)
        if not _qemu_is_fit():
            raise LabError(
                f"{shutil.which(QEMU) or QEMU} is not a QEMU {QEMU_VERSION[0]}.{QEMU_VERSION[1]} "
                "or later with the igb NIC, although the package is installed",
                hint=f"is an older one first on PATH? {WORKS_WITHOUT_LAB}",
            )

    def install(self, *packages: str, options: Sequence[str] = ()) -> None:
        """Install packages on this machine, and say so."""
        require_host()
        self.need_lists()
        quietly = ("apt-get", "-q", "-y", "--no-install-recommends", "-c", self._conf)
        say(f"installing on this machine: {' '.join(packages)}")
        try:
            with locked(self.root / "lock"):
                self._run(
                    *(*quietly, *options, "install", *packages),
                    what="installing the host's tools",
                    contained=False,
                )
        except LabError as error:
            raise MirrorMovedOn(str(error), hint=error.hint) from error

    def transport(self) -> Path:
        """A file with how this machine's apt reaches its mirror: proxies, certificates."""
        settings = output_of("apt-config", "dump", what="asking apt for its settings")
        wanted = re.compile(r"Acquire::(http|https|ftp|tor)::|Acquire::Retries")
        path = self.root / "transport.conf"
        lines = [line for line in settings.splitlines() if wanted.match(line)]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def _guest(self) -> dict[str, str]:
        chosen = {}
        for name in GUEST_PACKAGES.split():
            versions = self._versions(name, BACKPORTS)
            if not versions:
                raise LabError(f"this machine's package sources have no {name} for the guest")
            chosen[name] = versions[0]
        return chosen

    def _versions(self, package: str, *without: str) -> list[str]:
        """Versions that the lists have, newest first, without suites of such a name."""
        lines = [line.split("|") for line in self._ask("madison", package).splitlines()]
        return [
            version.strip()
            for _, version, source in lines
            if not any(suite in source for suite in without)
        ]

    def _ask(self, *arguments: str) -> str:
        return output_of("apt-cache", "-c", self._conf, *arguments, what="reading package lists")


def choose(apt: Apt, *, again: bool = False) -> Chosen:
    """The packages chosen at the first build; `again` looks for newer ones.

    Kept in a file, so that a lab that is built needs neither network nor root.
    """
    remembered = apt.root / "chosen.json"
    if remembered.exists() and not again:
        chosen = Chosen(**json.loads(remembered.read_text()))
        wanted = GUEST_PACKAGES.split()
        if chosen.suite == debian_suite() and {*wanted} <= {*chosen.guest}:
            # those of another checkout are on the list, too
            return replace(chosen, guest={name: chosen.guest[name] for name in wanted})
    require_host()
    apt.root.mkdir(parents=True, exist_ok=True)
    with locked(apt.root / "lock"):
        apt.update()
        chosen = apt.choose()
        new = remembered.with_suffix(".new")
        new.write_text(json.dumps(asdict(chosen), indent=1) + "\n")
        new.rename(remembered)
    return chosen


def choose_qemu(apt: Apt, *, again: bool = False) -> str:
    """The version of QEMU's source package chosen at the first build, kept as `choose` does."""
    remembered = apt.root / "qemu-source"
    if remembered.exists() and not again:
        return remembered.read_text().strip()
    require_host()
    with locked(apt.root / "lock"):
        version = apt.source_version("qemu")
        new = remembered.with_suffix(".new")
        new.write_text(f"{version}\n")
        new.rename(remembered)
    return version


def require_host() -> None:
    """LabError unless this host can build the lab: Debian with apt, root, amd64."""
    lacking = []
    if not shutil.which("apt-get"):
        lacking.append("apt-get (the guest is made of Debian's packages)")
    if os.geteuid() != 0:
        lacking.append("root (to install tools and to make the guest's root file system)")
    if os.uname().machine != "x86_64":
        lacking.append(f"an amd64 machine (this one is {os.uname().machine})")
    if lacking:
        raise LabError(f"cannot build the lab here, missing: {'; '.join(lacking)}")


def debian_suite() -> str:
    """Code name of the host's Debian."""
    release = Path("/etc/os-release")
    lines = release.read_text().splitlines() if release.exists() else []
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    if fields.get("ID") != "debian" or "VERSION_CODENAME" not in fields:
        name = fields.get("PRETTY_NAME", "something without /etc/os-release").strip('"')
        raise LabError(f"cannot build the lab here: it needs Debian 12 or 13, this is {name}")
    return fields["VERSION_CODENAME"]


def _qemu_is_fit() -> bool:
    if not shutil.which(QEMU):
        return False
    devices = subprocess.run([QEMU, "-device", "help"], capture_output=True, text=True, check=False)
    shown = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"version (\d+)\.(\d+)", shown.stdout)
    return (
        'name "igb"' in devices.stdout
        and version is not None
        and (int(version[1]), int(version[2])) >= QEMU_VERSION
    )


def _mirrors(suite: str) -> tuple[str, str | None]:
    """This machine's own mirror of the suite, and of its security updates if it has one."""
    targets = output_of(
        *("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"),
        "Created-By: Packages",
        what="asking apt for this machine's mirror",
    )
    mirrors = dict(line.split(maxsplit=1) for line in reversed(targets.splitlines()))
    main = mirrors.get(suite) or mirrors.get("stable") or mirrors.get("oldstable")
    if main is None:
        raise LabError(
            f"apt has no package source for {suite}, but for {', '.join(mirrors) or 'nothing'}",
            hint=f"add one to /etc/apt/sources.list.d. {WORKS_WITHOUT_LAB}",
        )
    security = mirrors.get(f"{suite}-security") or mirrors.get("stable-security")
    return main, security


def _settings(root: Path) -> str:
    """apt's settings for lists, cache and sources of our own under `root`."""
    return (
        'Dir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{root}";\n'
        f'Dir::State::lists "{root}/lists";\n'
        f'Dir::Cache "{root}";\n'
        'Acquire::Languages "none";\n'
        # The lists are ours and may be under a home: apt's sandbox user could not read them.
        'APT::Sandbox::User "root";\n'
        'DPkg::Lock::Timeout "300";\n'
    )


def _qemu_suite(suite: str) -> str:
    """bookworm itself has QEMU 7.2, too old for igb and for the ConnectX."""
    return f"{suite}{BACKPORTS}" if suite == "bookworm" else suite


def _stanza(uri: str, *suites: str, types: str = "deb") -> str:
    return (
        f"Types: {types}\nURIs: {uri}\nSuites: {' '.join(suites)}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))
