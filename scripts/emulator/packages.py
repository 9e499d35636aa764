"""Debian packages: which there are, getting them, and the host's tools.

apt works here with lists, cache and sources of our own: /etc/apt is read to learn which mirror this
machine uses (apt-get indextargets), and never written. The dpkg status is the host's own, because
missing tools are installed on the host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from emulator.host import WORKS_WITHOUT_LAB, LabError, Runner, output_of, say

KERNEL = "6.12"
GUEST_PACKAGES = tuple(
    "udev kmod procps iproute2 ethtool pciutils busybox-static strace less python3 "
    "rdma-core ibverbs-providers ibverbs-utils".split()
)
HOST_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
    "mke2fs": "e2fsprogs",
    "make": "make",
    "bc": "bc",
}
QEMU = "qemu-system-x86_64"


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
        self.suite = _debian_suite()
        self._run = runner.run
        self._conf = root / "apt.conf"

    def update(self) -> None:
        """Fetch the package lists of the suite, its updates, backports and security."""
        for directory in ("lists/partial", "archives/partial"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        (self.root / "lab.sources").write_text(_sources(self.suite))
        self._conf.write_text(
            'Dir::Etc::sourcelist "/dev/null";\n'
            f'Dir::Etc::sourceparts "{self.root}";\n'
            f'Dir::State::lists "{self.root}/lists";\n'
            f'Dir::Cache "{self.root}";\n'
            'Acquire::Languages "none";\n'
            # The lists are ours and under a home: apt's sandbox user could not read them.
            'APT::Sandbox::User "root";\n'
            'DPkg::Lock::Timeout "300";\n'
        )
        self._run("apt-get", "-q", "-c", self._conf, "update", what="fetching the package lists")

    def choose(self) -> Chosen:
        """The newest 6.12 kernel whose image, headers and source all can be had, and the rest."""
        pattern = re.compile(rf"linux-image-({re.escape(KERNEL)}\.\d+[^-]*-amd64)")
        names = self._cache("pkgnames", f"linux-image-{KERNEL}.").split()
        releases = [match[1] for name in names if (match := pattern.fullmatch(name))]
        sources = self._versions(f"linux-source-{KERNEL}")
        for release in sorted(releases, key=_numbers, reverse=True):
            headers = f"linux-headers-{release}"
            version = next(iter(self._versions(f"linux-image-{release}")), None)
            if version in sources and version in self._versions(headers):
                compiler = re.search(r"gcc-\d+", self._cache("show", f"{headers}={version}"))
                if compiler:
                    return Chosen(self.suite, release, version, compiler[0], self._guest())
        raise LabError(
            f"no {KERNEL} kernel with headers and source in this machine's package sources "
            f"({self.suite}, its security updates and backports)",
            hint=f"see what `apt-get indextargets` lists. {WORKS_WITHOUT_LAB}",
        )

    def download(self, directory: Path, *packages: str) -> None:
        """Put the .deb files of `name=version` packages into a directory."""
        self._run(
            *("apt-get", "-q", "-c", self._conf, "download", *packages),
            cwd=directory,
            what=f"downloading {', '.join(packages)}",
        )

    def install_tools(self, compiler: str) -> None:
        """Install what is missing of the host's tools. Needs root."""
        missing = [package for tool, package in HOST_TOOLS.items() if not shutil.which(tool)]
        missing += [] if shutil.which(compiler) else [compiler]
        missing += [] if _has_venv() else ["python3-venv"]
        missing += [] if _has_libelf() else ["libelf1"]
        target = []
        if not qemu_has_igb():
            missing.append("qemu-system-x86")
            if self.suite == "bookworm":  # bookworm itself has QEMU 7.2; igb came with 8.0
                target = ["-t", "bookworm-backports"]
        if not missing:
            return
        say(f"installing on this machine: {' '.join(missing)}")
        self._run(
            *("apt-get", "-q", "-y", "--no-install-recommends", "-c", self._conf, *target),
            *("install", *missing),
            what="installing the host's tools",
        )

    def sources(self) -> Path:
        return self.root / "lab.sources"

    def _guest(self) -> dict[str, str]:
        return {name: next(iter(self._versions(name)), "") for name in GUEST_PACKAGES}

    def _versions(self, package: str) -> list[str]:
        lines = self._cache("madison", package).splitlines()
        return [line.split("|")[1].strip() for line in lines]

    def _cache(self, *arguments: str) -> str:
        return output_of("apt-cache", "-c", self._conf, *arguments, what="reading package lists")


def choose(root: Path, runner: Runner, *, again: bool = False) -> Chosen:
    """The packages chosen at the first build; `again` looks for newer ones.

    Kept in a file, so that a lab that is built needs neither network nor root.
    """
    remembered = root / f"chosen-{_debian_suite()}.json"
    if remembered.exists() and not again:
        return Chosen(**json.loads(remembered.read_text()))
    require_host()
    say("package lists of this machine's mirror")
    apt = Apt(root / "apt", runner)
    apt.update()
    chosen = apt.choose()
    new = remembered.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(asdict(chosen), indent=1) + "\n")
    new.rename(remembered)
    return chosen


def require_host() -> None:
    """LabError unless this host can build the lab: Debian with apt, root, amd64."""
    lacking = []
    if not shutil.which("apt-get"):
        lacking.append("apt-get (Debian 12 or 13 is needed: the guest is made of its packages)")
    if os.geteuid() != 0:
        lacking.append("root (to install tools and to make the guest's root file system)")
    if os.uname().machine != "x86_64":
        lacking.append(f"an amd64 machine (this one is {os.uname().machine})")
    if lacking:
        raise LabError(f"cannot build the lab here, missing: {'; '.join(lacking)}")


def qemu_has_igb() -> bool:
    """Whether the host's QEMU emulates the igb NIC (QEMU 8.0 and later)."""
    if not shutil.which(QEMU):
        return False
    devices = subprocess.run([QEMU, "-device", "help"], capture_output=True, text=True, check=False)
    return 'name "igb"' in devices.stdout


def _has_venv() -> bool:
    return bool(list(Path("/usr/lib").glob("python3.*/ensurepip/__init__.py")))


def _has_libelf() -> bool:
    """objtool, which the kernel's build runs on every object file, is linked with it."""
    return Path("/usr/lib/x86_64-linux-gnu/libelf.so.1").exists()


def _debian_suite() -> str:
    release = Path("/etc/os-release")
    fields = (
        dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
        if release.exists()
        else {}
    )
    if fields.get("ID") != "debian" or "VERSION_CODENAME" not in fields:
        raise LabError(
            f"the lab needs Debian 12 or 13, this is {fields.get('PRETTY_NAME', 'something else')}"
        )
    return fields["VERSION_CODENAME"]


def _sources(suite: str) -> str:
    """A deb822 sources file with this machine's own mirror of the suite and of its security."""
    targets = output_of(
        *("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"),
        *("Created-By: Packages",),
        what="asking apt for this machine's mirror",
    )
    mirrors = dict(reversed([line.split() for line in targets.splitlines()]))
    main = mirrors.get(suite) or mirrors.get("stable") or mirrors.get("oldstable")
    if main is None:
        raise LabError(
            f"apt has no package source for {suite} (apt-get indextargets lists "
            f"{', '.join(mirrors) or 'none'})",
            hint=f"add one to /etc/apt/sources.list.d. {WORKS_WITHOUT_LAB}",
        )
    stanzas = [_stanza(main, suite, f"{suite}-updates", f"{suite}-backports")]
    security = mirrors.get(f"{suite}-security") or mirrors.get("stable-security")
    if security:
        stanzas.append(_stanza(security, f"{suite}-security"))
    return "\n".join(stanzas)


def _stanza(uri: str, *suites: str) -> str:
    return (
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))
