"""Kernel modules: loaded ones (/sys/module) and those on disk (modinfo(8)).

The kernel's names have underscores, those of files also dashes: both are accepted.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeagent import hostpath
from nodeagent.errors import KernelError, UnavailableError

_SYSFS = Path("/sys")
_MODINFO_TIMEOUT = 120.0  # seconds; it reads the whole module, from a disk that may be busy
_LOAD_TIMEOUT = 120.0  # seconds; probing a device can take tens of them

_MAX_TEXT = 4096  # characters of modinfo's output, PATH_MAX
_MAX_QUOTED = 80
_OWN = re.compile(r"\n?(name|filename): +")
_FIELDS = frozenset({"name", "srcversion", "version", "vermagic", "signer", "depends"})

# include/linux/module.h: MODULE_NAME_LEN is 64 less a long, with its NUL byte.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,54}")


class NoSuchModule(UnavailableError):
    """No module of that name is installed for the running kernel."""


def valid_module_name(text: str) -> bool:
    """Whether `text` can be the name of a module, so that it is not an option or a path."""
    return _NAME.fullmatch(text) is not None


def _require_name(module: str) -> None:
    """KernelError for a name that would be an option or a path on a command line."""
    if not valid_module_name(module):
        raise KernelError(f"{module[:_MAX_QUOTED]!r} is not the name of a module")


def tree(root: Path, release: str) -> Path:
    """The module tree of a kernel below `root`; /lib may be a link (file-hierarchy(7)).

    That link is resolved within `root`; no other link is followed.
    """
    return hostpath.resolve_in_root(root, Path("lib")) / "modules" / release


def is_loaded(module: str, sysfs: Path = _SYSFS) -> bool:
    """Whether a module is loaded and its init has succeeded.

    /sys/module/<m>/initstate is "coming", "live" or "going" (kernel/module/sysfs.c). A driver that
    is built into the kernel has a directory there, too, but no initstate.
    """
    return _attribute(module, "initstate", sysfs) == "live"


def loading(module: str, sysfs: Path = _SYSFS) -> int | None:
    """A number that is unique, in this boot, for this loading of a module; None if not loaded.

    It is the inode of /sys/module/<m>: kernfs does not reuse numbers (fs/kernfs/dir.c).
    """
    if not is_loaded(module, sysfs):
        return None
    try:
        return Path(_directory(module, sysfs)).stat().st_ino
    except FileNotFoundError:
        return None


def loaded_srcversion(module: str, sysfs: Path = _SYSFS) -> str | None:
    """The loaded module's srcversion; None if it is not loaded or was built without one.

    Only modules with MODULE_VERSION have one, unless the kernel's configuration has
    MODULE_SRCVERSION_ALL.
    """
    return _attribute(module, "srcversion", sysfs)


def refcount(module: str, sysfs: Path = _SYSFS) -> int | None:
    """The loaded module's reference count; None if it is not loaded."""
    text = _attribute(module, "refcnt", sysfs)
    return int(text) if text is not None and text.isdecimal() else None


def holders(module: str, sysfs: Path = _SYSFS) -> tuple[str, ...]:
    """The loaded modules that use this one directly, sorted."""
    return tuple(sorted(_names(f"{_directory(module, sysfs)}/holders")))


@dataclass(frozen=True)
class Loaded:
    """A loaded module, its reference count, and the modules that use it."""

    name: str
    refcount: int
    holders: tuple[str, ...]

    @property
    def unexplained(self) -> int:
        """References that no module explains: an open device, a mount, a user in the kernel."""
        return max(0, self.refcount - len(self.holders))


def all_loaded(sysfs: Path = _SYSFS, proc: Path = Path("/proc")) -> dict[str, Loaded]:
    """Every loaded module by name, from /sys/module and /proc/modules (proc(5)).

    They are not read at the same moment: the users of both are taken together.
    """
    listed: dict[str, tuple[int, set[str]]] = {}
    try:
        lines = (proc / "modules").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        if len(line.split()) < 4:
            continue
        name, _size, count, users = line.split()[:4]
        # "-" for none, and [permanent] for a module that cannot be unloaded
        names = {user for user in users.split(",") if user and user[0] not in "-["}
        listed[name] = (int(count) if count.isdecimal() else 0, names)
    found = {}
    for name in _names(f"{sysfs}/module"):
        if not is_loaded(name, sysfs):
            continue
        count_there, users_there = listed.get(name, (0, set()))
        both = tuple(sorted({*holders(name, sysfs), *users_there}))
        found[name] = Loaded(name, refcount(name, sysfs) or count_there, both)
    return found


def held_through(module: str, loaded: Mapping[str, Loaded]) -> dict[str, str]:
    """Every module that uses `module`, directly or indirectly, and through which one."""
    found: dict[str, str] = {}
    queue = [module]
    while queue:
        through = queue.pop(0)
        if through in loaded:
            new = [each for each in loaded[through].holders if each not in found]
            found |= dict.fromkeys(new, through)
            queue += new
    return found


@dataclass(frozen=True)
class Installed:
    """The module that modprobe would load for the running kernel, by modinfo(8).

    `filename` is its path, or "(builtin)". `fields` has name, srcversion, version, vermagic, signer
    and depends, as far as the module has them.
    """

    filename: str
    fields: Mapping[str, str]

    @property
    def srcversion(self) -> str | None:
        """None if it was built without one."""
        return self.fields.get("srcversion") or None


def installed(module: str, root: Path = Path("/")) -> Installed:
    """NoSuchModule if there is none, UnavailableError without modinfo or valid output."""
    found, said = _modinfo((module,), root)
    if module not in found:
        where = "" if root == Path("/") else f" under {root}"
        raise NoSuchModule(
            f"no module {module} is installed{where} for the running kernel: {said}",
            hint="install the driver for this kernel, then run depmod",
        )
    return found[module]


def all_installed(names: Iterable[str], root: Path = Path("/")) -> dict[str, Installed]:
    """Those of the modules that are installed, by name. UnavailableError as above."""
    return _modinfo(tuple(names), root)[0]


def loaded_build_id(module: str, sysfs: Path = _SYSFS) -> str | None:
    """The build ID of the loaded module, the linker's hash; None if it was linked without one."""
    try:
        note = Path(_directory(module, sysfs), "notes/.note.gnu.build-id").read_bytes()
    except FileNotFoundError:
        return None
    return _build_id(note)


def build_id_of(module: Installed, root: Path = Path("/")) -> str | None:
    """The same of the module on disk; None also if its compression is not supported (zstd)."""
    try:
        content = content_of(module, root)
    except OSError:
        return None
    return None if content is None else _build_id(content)


def content_of(module: Installed, root: Path = Path("/")) -> bytes | None:
    """The uncompressed content of a module's file; None if its compression is not supported (zstd).

    OSError if it cannot be read, FileNotFoundError for one that is built in.
    """
    # only a check before a reload needs these
    import gzip  # noqa: PLC0415
    import lzma  # noqa: PLC0415

    with os.fdopen(opened(module, root), "rb") as file:
        content = file.read()
    try:
        match Path(module.filename).suffix:
            case ".ko":
                return content
            case ".xz":
                return lzma.decompress(content)
            case ".gz":
                return gzip.decompress(content)
    except (OSError, lzma.LZMAError, EOFError):
        return None
    return None


def opened(module: Installed, root: Path = Path("/")) -> int:
    """A descriptor of a module's file, for reading; OSError as above."""
    path = Path(module.filename)
    if not path.is_relative_to(root):  # for example "(builtin)"
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), module.filename)
    # /lib may be a link, and so are the modules of weak-updates (RHEL)
    return hostpath.open_file(hostpath.resolve_in_root(root, path.relative_to(root)))


def loaded_version(module: str, sysfs: Path = _SYSFS) -> str | None:
    """The loaded module's MODULE_VERSION; None if it has none."""
    return _attribute(module, "version", sysfs)


def parameter(module: str, name: str, sysfs: Path = _SYSFS) -> str | None:
    """The present value of a parameter of a loaded module; None if there is none."""
    return _attribute(module, f"parameters/{name}", sysfs)


def load(module: str, root: Path = Path("/"), *, tree: Path | None = None) -> None:
    """Load a module and its dependencies by name, despite a blacklist (modprobe(8)).

    `root` is the root directory of modprobe, `tree` the directory that contains lib/modules.
    KernelError with modprobe's message if it fails.
    """
    where = [] if tree is None else ["-d", str(tree)]
    _require_name(module)
    _changed(["modprobe", *where, module], root, f"cannot load the module {module}")


def unload(module: str, root: Path = Path("/")) -> None:
    """Unload only this module; KernelError if it is in use.

    Not by `modprobe -r`, which also unloads its dependencies: for mlx5_vdpa that is the driver.
    """
    _require_name(module)
    _changed(["rmmod", module], root, f"cannot unload the module {module}")


def find(module: str, below: Path, srcversion: str | None = None) -> Path | None:
    """A file of the module below a directory, compressed or not, with the srcversion if given.

    For modules that modprobe does not find, because it loads another one of that name.
    """
    pattern = re.compile(rf"{module.replace('_', '[-_]')}\.ko(\.(xz|gz|zst))?")
    for directory, _, names in os.walk(below):
        for path in (Path(directory, name) for name in sorted(names) if pattern.fullmatch(name)):
            if srcversion is None or field_of_file(path, "srcversion") == srcversion:
                return path
    return None


def field_of_file(path: Path, field: str) -> str:
    """One field of modinfo(8) of a file; "" if it has none, or is not a module."""
    from nodeagent.kernel import process  # noqa: PLC0415  reading /sys does not need subprocess

    done = process.run(
        ["modinfo", "-F", field, str(path)], timeout=_MODINFO_TIMEOUT, only_looks=True
    )
    return done.output.strip() if done.returncode == 0 else ""


def insert(path: Path) -> None:
    """Load a module from a file (insmod(8)), after its dependencies; KernelError if it fails."""
    for need in field_of_file(path, "depends").split(","):
        if need:
            load(need)
    _changed(["insmod", str(path)], Path("/"), f"cannot load the module {path}")


def _directory(module: str, sysfs: Path) -> str:
    """As text, and so are the files in it: all loaded modules are asked right before an unload."""
    return f"{sysfs}/module/{module.replace('-', '_')}"


def _names(directory: str) -> list[str]:
    """The names in a directory; none if there is no such directory."""
    try:
        return os.listdir(directory)  # noqa: PTH208  a path of each costs more than the list
    except FileNotFoundError:
        return []


def _attribute(module: str, name: str, sysfs: Path) -> str | None:
    try:
        with open(f"{_directory(module, sysfs)}/{name}", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, NotADirectoryError):  # /sys/module/compression is a file
        return None


# An ELF note (elf(5)): the sizes of name and content, NT_GNU_BUILD_ID, the name, the hash (SHA-1).
_BUILD_ID = re.compile(rb"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0(.{20})", re.DOTALL)


def _build_id(content: bytes) -> str | None:
    found = _BUILD_ID.search(content)
    return None if found is None else found[1].hex()


def _changed(argv: list[str], root: Path, failure: str) -> None:
    from nodeagent.kernel import process  # noqa: PLC0415  reading /sys does not need subprocess

    finished = process.run(process.in_root(root, argv), timeout=_LOAD_TIMEOUT)
    if finished.returncode != 0:
        said = (finished.errors or finished.output)[-_MAX_TEXT:]
        said = said or f"{argv[0]} exited {finished.returncode}"
        raise KernelError(f"{failure}: {said}", hint="dmesg has the kernel's reason")


def _modinfo(names: tuple[str, ...], root: Path) -> tuple[dict[str, Installed], str]:
    """The installed ones of these modules, and modinfo's messages about the others.

    modinfo is run once for all of them, because each process costs a fork. It continues after a
    module that it does not find or cannot read, and exits with status 1.
    """
    from nodeagent.kernel import process  # noqa: PLC0415  reading /sys does not need subprocess

    base = [] if root == Path("/") else ["-b", str(root)]
    argv = ["modinfo", "-0", *base, *names]
    finished = process.run(argv, timeout=_MODINFO_TIMEOUT, only_looks=True)
    said = {}
    for filename, fields in _records(finished.output):
        _require_plain({"filename": filename} | fields, argv)
        name = fields.get("name") or Path(filename).name.partition(".ko")[0]
        if fields:
            said[name.replace("-", "_")] = Installed(filename, fields)
    found = {name: said[key] for name in names if (key := name.replace("-", "_")) in said}
    return found, finished.errors[-_MAX_TEXT:] or f"modinfo exited {finished.returncode}"


def _records(said: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The file of each module, and its fields in _FIELDS.

    With -0 an entry ends with NUL. An entry of the file is "field=value". modinfo's own entries
    begin a module: "filename:" and, before it and only for built-in ones, "name:". Other modules
    have their name in a field, since Linux 4.13 (scripts/mod/modpost.c). A module that could not be
    read has no fields.
    """
    filename, fields = "", dict[str, str]()
    for entry in said.split("\0"):
        own = _OWN.match(entry)
        if own and filename:
            yield filename, fields
            filename, fields = "", {}
        if own and own[1] == "filename":
            filename = entry[own.end() :]
        elif own:
            fields["name"] = entry[own.end() :]
        else:
            field, _, value = entry.partition("=")
            if field in _FIELDS:
                fields.setdefault(field, value.strip())
    if filename:
        yield filename, fields


def _require_plain(said: Mapping[str, str], argv: list[str]) -> None:
    """UnavailableError for text that must not appear in messages, records and command lines."""
    for field, text in said.items():
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise UnavailableError(
                f"`{' '.join(argv)}` printed an invalid {field}: {text[:_MAX_QUOTED]!r}",
                hint="run it by hand: modinfo or the module's file is damaged",
            )
