"""What the image is made from: the versions that the tests run with, and what the build copies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    """Package and version of each line of a lock."""
    return dict(LOCKED.findall((ROOT / "scripts" / f"requirements{name}.lock").read_text()))


def test_the_image_holds_the_versions_that_the_tests_run_with() -> None:
    tested, image = locked("") | locked("-dev"), locked("-image")
    assert image.items() <= tested.items()


def test_the_image_holds_what_nodeagent_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    assert declared <= locked("-image").keys()
    text = (ROOT / "scripts/requirements-image.in").read_text()
    named = {line for line in text.splitlines() if line[:1].isalpha()}
    assert named == set(project["dependencies"])


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    """Each COPY of the Containerfile from the context is let through by .containerignore."""
    let_through = {
        line.removeprefix("!")
        for line in (ROOT / ".containerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for line in (ROOT / "Containerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied.update(line.split()[1:-1])
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert {name, *map(str, Path(name).parents)} & let_through, name


LOCKS = sorted((ROOT / "scripts").glob("*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_all_that_a_lock_names_is_pinned_and_hashed(lock: Path) -> None:
    """And comes from nowhere that the lock names: no index, no address, no path."""
    text = re.sub(r"#.*", "", lock.read_text()).replace("\\\n", " ")
    text = re.sub(r' ; platform_machine == "\w+" ', "", text)
    entries = [line for line in text.splitlines() if line.strip()]
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry


def test_whoever_installs_does_so_by_hash() -> None:
    """Every `pip install` of the tree: a lock, its hashes, wheels, and nothing that it pulls in."""
    scripts = [path for path in (ROOT / "scripts").rglob("*") if path.is_file()]
    texts = [path.read_text(errors="replace") for path in (*scripts, ROOT / "Containerfile")]
    installs = re.compile(r'pip"?,? "?install"?,? "?--.{0,300}', re.DOTALL)
    found = [match[0] for text in texts for match in installs.finditer(text)]
    assert len(found) >= 3
    for each in found:
        for option in ("--require-hashes", "--no-deps", "--only-binary"):
            assert option in each
