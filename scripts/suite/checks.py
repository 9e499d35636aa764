"""The checks there are, as data: what scripts/test runs, in the order in which it begins them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from suite.changed import Broken

PARTS = 3
"""The lab's tests come in so many parts, each in a node of its own."""
SWEEPS = (
    *(("upgrade", "1/1"), ("termination", "1/1"), ("install", "1/1"), ("pods", "1/1")),
    ("phase", "1/4"),
)
"""Scenes in which nodeagent is ended at each place in turn, or in which CNIs are at work in each
phase of a reload; and the share of a scene's places. Of phases every fourth, for their time."""
WHOLE_SWEEPS = (
    *(("upgrade", "1/2"), ("upgrade", "2/2"), ("termination", "1/2"), ("termination", "2/2")),
    *(("install", "1/1"), ("pods", "1/1"), ("phase", "1/2"), ("phase", "2/2")),
)
"""The same at each point, and in all phases."""

CLUSTER_PARTS = 2
"""The cluster tests that a change can have broken come in so many parts, each with an API server of
its own: half of their time they wait, and beside each other they wait at the same time."""
UNIT_PARTS = 4
"""The unit tests that a change can have broken come in so many parts, more than run at a time:
test_plan.py alone takes 57 s at work, and all others 80 s, which then run beside it."""
NO_PATH = str.maketrans(" /", "--", ",")
"""A check's name as that of a directory."""

CONNECTX = ("--nic", "connectx", "--vfs", "64")
"""The node of all tests on the ConnectX, so that they have one saved state."""
CONNECTX_PARTS = 4
SEEDS = {"igb": "8-9", "connectx": "25-26"}
"""Of random nodes that are small. More of them: scripts/lab roundtrip --seeds 1-20."""
CONNECTX_SWEEPS = (("upgrade", "1/1"),)
"""Scenes on a ConnectX, and the share of their places."""
WHOLE_CONNECTX_SWEEPS = (("upgrade", "1/3"), ("upgrade", "2/3"), ("upgrade", "3/3"))


@dataclass(frozen=True)
class Check:
    """One command. `junit`: it is pytest, and this is where its report lies afterwards."""

    name: str
    argv: tuple[str, ...]
    junit: Path | None = None


def linters(tree: Path, environment: Path) -> Iterator[Check]:
    """Each is quick, and quiet when all is well."""
    yield Check("ruff format", ("ruff", "format", "--check", "--no-cache", "."))
    yield Check("ruff check", ("ruff", "check", "--no-cache", "."))
    yield Check("import-linter", ("lint-imports", "--no-cache"))
    yield Check("shellcheck", ("shellcheck", *shell_files(tree)))
    cache = f"--cache-dir={environment / 'mypy'}"
    yield Check("mypy", ("mypy", "--strict", cache, "nodeagent", "scripts", "tests"))


def on_this_host(name: str, work: Path, *chosen: str) -> Check:
    """The tests of tests/NAME, which need no emulated node of ours; of them those chosen."""
    return _pytest(name, work, *chosen, f"tests/{name}")


def for_a_change(tree: Path, work: Path, broken: Broken) -> Iterator[Check]:
    """The tests that a change can have broken; what takes longest begins first."""
    yield from _in_parts("cluster", CLUSTER_PARTS, tree, work, broken.cluster)
    yield from _in_parts("unit", UNIT_PARTS, tree, work, broken.unit)
    virtual = [test.id for test in broken.igb if "real_time" not in test.marks]
    real = [test.id for test in broken.igb if "real_time" in test.marks]
    if virtual:
        yield _lab("lab, virtual time", work, ("--virtual-time", *virtual))
    if real:
        yield _lab("lab, real time", work, tuple(real))
    if broken.connectx:
        ids = (test.id for test in broken.connectx)
        yield _lab("connectx", work, ("--virtual-time", *CONNECTX, *ids))
    if broken.launcher:
        yield _pytest("launcher", work, *(test.id for test in broken.launcher))


def _in_parts(
    name: str, most: int, tree: Path, work: Path, files: tuple[str, ...]
) -> Iterator[Check]:
    shared = _shared_out(tree, list(files), most)
    for number, part in enumerate(shared, 1):
        yield _pytest(f"{name} {number}/{len(shared)}", work, *part)


def _pytest(name: str, work: Path, *chosen: str) -> Check:
    junit = work / name.translate(NO_PATH) / "junit.xml"
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}")
    return Check(name, (*argv, *chosen), junit)


def in_the_node(
    tree: Path, work: Path, *, wide: bool, every_point: bool = False
) -> Iterator[Check]:
    """The lab's tests: the sweeps, the others in parts, those with the image, those with 8 PFs.

    What takes longest begins first. Each is given the files that it takes tests from: pytest
    imports all of them, slowly there. Nearly all run in virtual time: a busy host changes nothing
    of it, sleep costs nothing, and one emulated processor costs a third of what two do that wait
    for each other. What needs two has a node in real time.
    """
    sweeps = (
        _lab(
            f"{scene} {points}",
            work,
            ("--virtual-time", *marked(tree, "sweep"), *_swept(scene, points, every_point)),
        )
        for scene, points in (WHOLE_SWEEPS if every_point else SWEEPS)
    )
    plain = ("-m", "not wide and not sweep and not image and not real_time")
    others = (
        _lab(f"lab {number}/{PARTS}", work, ("--virtual-time", *plain, *files))
        for number, files in enumerate(parts(tree, PARTS), 1)
    )
    for pair in zip_longest(sweeps, others):
        yield from filter(None, pair)
    yield _round_trips("igb")
    chosen = ("-m", "real_time and not wide", *marked(tree, "real_time"))
    yield _lab("lab, real time", work, chosen)
    chosen = ("--virtual-time", "--image", "-m", "image", *marked(tree, "image"), "-rP")
    yield _lab("image", work, chosen)
    if wide:
        chosen = ("--virtual-time", "-m", "wide", *marked(tree, "wide"))
        yield _lab("lab, 8 PFs", work, chosen, pfs=8)


def _swept(scene: str, points: str, every_point: bool) -> tuple[str, ...]:
    """pytest's arguments for a sweep; -rP shows how many points it has, and how many survived."""
    whole = ("--every-point",) if every_point else ()
    return ("-k", scene, "--points", points, *whole, "-rP")


def on_the_connectx(
    tree: Path, work: Path, *, wide: bool, every_point: bool = False
) -> Iterator[Check]:
    """The tests of tests/lab/connectx, and those of tests/lab that hold on both NICs.

    A node whose QEMU cannot be built fails them: scripts/lab says why, and there is no report.
    """
    files = [*connectx_files(tree), *marked(tree, "both_nics")]

    def check(name: str, which: str, files: list[str], *more: str, pfs: int = 2) -> Check:
        chosen = ("-m", f"(connectx or both_nics) and {which}", *files, *more)
        return _lab(f"connectx{name}", work, ("--virtual-time", *CONNECTX, *chosen), pfs=pfs)

    plain = "not wide and not sweep"
    for number, part in enumerate(_shared_out(tree, files, CONNECTX_PARTS), 1):
        yield check(f" {number}/{CONNECTX_PARTS}", plain, part)
    if swept := _having(tree, files, "sweep"):
        for scene, points in WHOLE_CONNECTX_SWEEPS if every_point else CONNECTX_SWEEPS:
            share = _swept(scene, points, every_point)
            yield check(f", {scene} {points}", "sweep", swept, *share)
    yield _round_trips("connectx")
    if wide and (large := _having(tree, files, "wide")):
        yield check(", 8 PFs", "wide", large, pfs=8)


def parts(tree: Path, number: int) -> list[list[str]]:
    """The lab's other test files, in so many parts of about as many tests each."""
    left = set(_lab_files(tree)) - {*marked(tree, "sweep"), *marked(tree, "image")}
    return _shared_out(tree, sorted(left), number)


def _shared_out(tree: Path, files: list[str], number: int) -> list[list[str]]:
    """Files in so many parts, fewer where there are fewer files.

    The largest file goes first, always to the part that has the fewest tests so far.
    """
    sizes = {name: (tree / name).read_text().count("def test_") for name in files}
    found: list[list[str]] = [[] for _ in range(min(number, len(files)))]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        min(found, key=lambda part: sum(sizes[each] for each in part)).append(name)
    return found


def marked(tree: Path, mark: str) -> list[str]:
    """The lab's test files in which something has that mark."""
    return _having(tree, _lab_files(tree), mark)


def _having(tree: Path, files: list[str], mark: str) -> list[str]:
    return [name for name in files if f"mark.{mark}" in (tree / name).read_text()]


def connectx_files(tree: Path) -> list[str]:
    """The test files of what only a ConnectX has."""
    return _tests_in(tree, "tests/lab/connectx")


def _lab_files(tree: Path) -> list[str]:
    return _tests_in(tree, "tests/lab")


def _tests_in(tree: Path, directory: str) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in (tree / directory).glob("test_*.py"))


def _round_trips(nic: str) -> Check:
    argv = ("scripts/lab", "roundtrip", "--nic", nic, "--seeds", SEEDS[nic])
    return Check(f"round trips, {nic}", argv)


def _lab(name: str, work: Path, chosen: tuple[str, ...], *, pfs: int = 2) -> Check:
    out = work / name.translate(NO_PATH)
    argv = ("scripts/lab", "test", "--pfs", str(pfs), "--out", str(out), *chosen)
    junit = out / "junit.xml"
    return Check(name, (*argv, "--junitxml=/host/out/junit.xml"), junit)


def have_api_server() -> bool:
    """Tell whether kube-apiserver and etcd are where the tests look (the envtest convention)."""
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nonexistent"))
    return all(
        os.access(assets / name, os.X_OK) or shutil.which(name)
        for name in ("kube-apiserver", "etcd")
    )


def shell_files(tree: Path) -> list[str]:
    """Every shell script of the tree, told by its first line."""
    argv = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)
    names = listed.stdout.splitlines() if listed.returncode == 0 else _all_files(tree)
    return [name for name in names if _is_shell(tree / name)]


def _all_files(tree: Path) -> list[str]:
    """Where git has nothing to say: the tree may have come as an archive."""
    return [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]


def _is_shell(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(80).split()
    except OSError:
        return False
    if not first or not first[0].startswith(b"#!"):
        return False
    return any(word.rsplit(b"/", 1)[-1] in (b"sh", b"bash", b"dash") for word in first[:2])
