"""The working tree as a tar for the guest: an edit needs no new image."""

from __future__ import annotations

import importlib.util
import py_compile
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("nodeagent", "tests", "scripts", "manifests", "pyproject.toml")
COMPILED = ("nodeagent/", "tests/support/")
"""Tests themselves are not: pytest compiles them anew, with its own assert."""


def pack(target: Path) -> None:
    """Write the tar: what git tracks or would track of PARTS, with byte code for COMPILED.

    Compiling takes far longer in the guest. Its python3 comes from the same Debian as the one that
    runs this, so the byte code fits; it is not checked against the source (PEP 552).
    """
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in _files():
            path = ROOT / name
            tar.add(path, name, recursive=False)
            if path.suffix == ".py" and name.startswith(COMPILED):
                _add_byte_code(tar, path, name)


def _files() -> list[str]:
    names = _known_to_git() if shutil.which("git") else None
    if names is None:
        found = (path for part in PARTS for path in [ROOT / part, *(ROOT / part).rglob("*")])
        names = [
            path.relative_to(ROOT).as_posix() for path in found if path.parent.name != "__pycache__"
        ]
    return [name for name in names if (ROOT / name).is_file()]


def _known_to_git() -> list[str] | None:
    """None where there is no checkout, as in an unpacked tar of the tree."""
    which = ("--cached", "--others", "--exclude-standard", "--deduplicate")
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", *which, *PARTS],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if listing.returncode else [name for name in listing.stdout.split("\0") if name]


def _add_byte_code(tar: tarfile.TarFile, path: Path, name: str) -> None:
    with tempfile.NamedTemporaryFile() as compiled:
        try:
            py_compile.compile(
                str(path),
                cfile=compiled.name,
                dfile=f"/opt/nodeagent/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError:
            return  # a syntax error: the guest's own import shows it where it matters
        tar.add(compiled.name, importlib.util.cache_from_source(name))
