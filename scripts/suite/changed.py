"""What a change can have broken: the tests that need a changed file.

A file needs the files that it imports, anywhere in it, those that it names in a string, and those
beside it if it imports by names that it makes, and so on. All tests of the lab need all of
nodeagent: of those, a change runs the ones marked `short`, and the others only when the test file
itself is changed.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

MAIN: Final = ("main", "origin/main")
"""The branches that a change is meant for; the first that there is."""

NEEDED_BY_ALL: Final = frozenset(
    {
        "pyproject.toml",
        "scripts/bootstrap",
        "scripts/requirements.lock",
        "scripts/requirements-dev.lock",
    }
)
"""What decides how all tests are run."""

IN_THE_NODE: Final = ("nodeagent", "scripts/emulator", "scripts/lab")
"""What every test of the lab needs: the program, and the node that it runs in."""

ELSEWHERE: Final = frozenset({"wide", "sweep", "image", "real_start"})
"""Marks of the lab's tests that take minutes, or need a node of their own."""

Needs = Mapping[str, frozenset[str]]
"""By file, the files that it needs itself; all are paths in the tree."""

Named = Mapping[str, Sequence[str]]
"""By path, the files it stands for: itself, or for a folder those below it."""


class ChangeError(Exception):
    """What was changed cannot be told; the message says why."""


@dataclass(frozen=True)
class Change:
    """The files that differ from a commit, those that git does not know yet with them."""

    commit: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class LabTest:
    """A test of the lab or of the launcher: `id` is pytest's, without parameters."""

    id: str
    marks: frozenset[str]

    @property
    def file(self) -> str:
        """The file that it is in."""
        return self.id.partition("::")[0]


@dataclass(frozen=True)
class Broken:
    """The tests that a change can have broken: whole files, or tests that may boot a node.

    `left_out` are those that it can have broken and that are not run.
    """

    unit: tuple[str, ...]
    cluster: tuple[str, ...]
    launcher: tuple[LabTest, ...]
    igb: tuple[LabTest, ...]
    connectx: tuple[LabTest, ...]
    left_out: tuple[LabTest, ...]


def change(tree: Path, commit: str = "") -> Change:
    """What differs from `commit`.

    Without one: from where this branch left `main`; where nothing does, what the last commit did.
    ChangeError where there is no repository or no such commit.
    """
    if commit:
        base = _git(tree, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", said=commit)
        return Change(base, _differing(tree, base))
    for main in MAIN:
        found = _run(tree, "merge-base", "HEAD", main)
        if found is not None and (files := _differing(tree, found.strip())):
            return Change(found.strip(), files)
    base = _git(tree, "rev-parse", "--verify", "--quiet", "HEAD^", said="HEAD^")
    return Change(base, _differing(tree, base))


def _differing(tree: Path, commit: str) -> tuple[str, ...]:
    """Both names of a file that was renamed: those who need the old one are concerned."""
    listed = _git(tree, "diff", "--name-only", "--no-renames", "-z", commit, "--", said=commit)
    new = _git(tree, "ls-files", "--others", "--exclude-standard", "-z", said="the working tree")
    return tuple(sorted({*filter(None, f"{listed}\0{new}".split("\0"))}))


def _git(tree: Path, *arguments: str, said: str) -> str:
    out = _run(tree, *arguments)
    if out is None:
        raise ChangeError(f"git cannot say what differs from {said} in {tree}")
    return out.rstrip("\n")


def _run(tree: Path, *arguments: str) -> str | None:
    argv = ["git", *arguments]
    try:
        done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def broken_by(tree: Path, files: Collection[str]) -> Broken:
    """The tests that need one of `files`."""
    there = tree_files(tree)
    tests = [name for name in there if re.fullmatch(r"tests/.*/test_\w+\.py", name)]
    if NEEDED_BY_ALL.isdisjoint(files):
        concerned = needing(needs(tree, {*there, *files}), files)
    else:
        concerned = frozenset(tests)

    def of(folder: str) -> tuple[str, ...]:
        return tuple(each for each in tests if each in concerned and in_folder(each, folder))

    def tests_of(folder: str) -> list[LabTest]:
        return [test for name in of(folder) for test in lab_tests(tree, name)]

    lab, launcher = tests_of("lab"), tests_of("launcher")
    igb = [test for test in lab if _runs(test, files) and not in_connectx(test)]
    connectx = [
        test
        for test in lab
        if _runs(test, files)
        and (in_connectx(test) or (test.file in files and "both_nics" in test.marks))
    ]
    launched = [test for test in launcher if _runs(test, files)]
    run = {*igb, *connectx, *launched}
    return Broken(
        unit=of("unit"),
        cluster=of("cluster"),
        launcher=tuple(launched),
        igb=tuple(igb),
        connectx=tuple(connectx),
        left_out=tuple(test for test in (*lab, *launcher) if test not in run),
    )


def in_folder(name: str, folder: str) -> bool:
    """Whether a test file is below tests/FOLDER."""
    return name.startswith(f"tests/{folder}/")


def in_connectx(test: LabTest) -> bool:
    """Whether a test is one of those that only a ConnectX can pass."""
    return in_folder(test.id, "lab/connectx")


def _runs(test: LabTest, files: Collection[str]) -> bool:
    """A short one always, another when its own file is changed and an ordinary node is enough."""
    return "short" in test.marks or (test.file in files and ELSEWHERE.isdisjoint(test.marks))


def needing(graph: Needs, files: Iterable[str]) -> frozenset[str]:
    """`files`, and all that need one of them, directly or through others."""
    users: defaultdict[str, set[str]] = defaultdict(set)
    for name, needed in graph.items():
        for each in needed:
            users[each].add(name)
    found: set[str] = set()
    left = list(files)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += users[name]
    return frozenset(found)


def needs(tree: Path, there: Collection[str]) -> Needs:
    """What each program and each test of the tree needs.

    `there`: all files, and those that were removed, which others may still ask for.
    """
    named = by_path(there)
    return {name: frozenset(_needed(tree, name, named)) - {name} for name in there}


def by_path(there: Iterable[str]) -> Named:
    """Files by their paths, and by those of the folders that they are in."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in there:
        found[name].append(name)
        for folder in list(PurePosixPath(name).parents)[:-1]:
            found[str(folder)].append(name)
    return dict(found)


def _needed(tree: Path, name: str, there: Named) -> Iterator[str]:
    path = tree / name
    if not path.is_file():
        return
    if name.endswith(".py"):
        yield from _by_python(path, name, there)
    elif name.startswith("scripts/") and path.read_bytes().startswith(b"#!"):
        text = path.read_text(errors="replace")
        yield from _by_first_line(text, name, there)


def _by_first_line(text: str, name: str, there: Named) -> Iterator[str]:
    """A command: Python's imports, or what a shell script starts and names."""
    if "python" in text.partition("\n")[0]:
        yield from _by_tree(ast.parse(text), name, there)
        return
    for module in re.findall(r"-m ([\w.]+)", text):
        yield from _package(module, there)
    for word in re.findall(r"[\w./-]+", text):
        yield from there.get(word.removeprefix("./"), ())


def _by_python(path: Path, name: str, there: Named) -> Iterator[str]:
    yield from _by_tree(ast.parse(path.read_text()), name, there)
    if name.startswith("tests/lab/"):
        for folder_of_all in IN_THE_NODE:
            yield from there.get(folder_of_all, ())
    for folder in PurePosixPath(name).parents:
        # fixtures come by name
        if f"{folder}/conftest.py" in there:
            yield f"{folder}/conftest.py"


def _by_tree(parsed: ast.Module, name: str, there: Named) -> Iterator[str]:
    said = {id(node.value) for node in ast.walk(parsed) if isinstance(node, ast.Expr)}
    for node in ast.walk(parsed):
        match node:
            case ast.Import(names=names):
                for each in names:
                    yield from _module(each.name, there)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from _module(module, there)
                for each in names:
                    yield from _module(f"{module}.{each.name}", there)
            case ast.Constant(value=str(text)) if id(node) not in said:
                yield from _by_text(text, name, there)
            case ast.Call(func=ast.Name(id="import_module")):
                # by a name that it makes: it may be any module beside it
                yield from there.get(str(PurePosixPath(name).parent), ())
            case ast.List(elts=words) | ast.Tuple(elts=words) | ast.Call(args=words):
                for first, second in pairwise(words):
                    if _is_text(first, "-m") and _is_text(second, "nodeagent"):
                        yield from there.get("nodeagent", ())


def _is_text(node: ast.expr, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _by_text(text: str, name: str, there: Named) -> Iterator[str]:
    """What a string names: a file beside its program; in tests and commands also any path.

    A test may also have code or a patch's target in a string, with the names of modules.
    """
    beside = f"{PurePosixPath(name).parent}/{text}"
    if text and f"{beside}/__init__.py" not in there:
        yield from there.get(beside, ())
    if name.startswith("nodeagent/"):
        return
    if "-m nodeagent" in text:
        yield from there.get("nodeagent", ())
    if "/" in text or "." in text or text == "manifests":
        yield from there.get(text.removeprefix("./").rstrip("/"), ())
    for module in re.findall(r"\bnodeagent(?:\.\w+)+", text):
        parts = module.split(".")
        for number in range(2, len(parts) + 1):
            yield from _module(".".join(parts[:number]), there)


def _package(module: str, there: Named) -> Iterator[str]:
    """A program: its module, or all of its package."""
    path = module.replace(".", "/")
    for root in ("", "scripts/"):
        yield from there.get(f"{root}{path}", ())
        yield from there.get(f"{root}{path}.py", ())


def _module(module: str, there: Named) -> Iterator[str]:
    """The file of a module of ours, and those of the packages that it is in."""
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        path = "/".join(parts[:number])
        for root in ("", "scripts/"):
            yield from filter(there.__contains__, (f"{root}{path}.py", f"{root}{path}/__init__.py"))


def lab_tests(tree: Path, name: str) -> tuple[LabTest, ...]:
    """The tests of a file with their marks, those of the whole file among them."""
    parsed = ast.parse((tree / name).read_text())
    own = [
        each.value
        for each in parsed.body
        if isinstance(each, ast.Assign)
        and any(isinstance(to, ast.Name) and to.id == "pytestmark" for to in each.targets)
    ]
    shared = _marks(own)
    return tuple(
        LabTest(f"{name}::{each.name}", frozenset(shared | _marks(each.decorator_list)))
        for each in parsed.body
        if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    )


def _marks(nodes: Iterable[ast.expr]) -> set[str]:
    """The names of `pytest.mark.NAME` in these expressions."""
    return {
        node.attr
        for each in nodes
        for node in ast.walk(each)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "mark"
    }


def tree_files(tree: Path) -> tuple[str, ...]:
    """All files that git knows, or would, sorted. ChangeError where there is no repository."""
    listed = _git(
        tree, "ls-files", "-co", "--exclude-standard", "-z", said="the working tree"
    ).split("\0")
    return tuple(sorted(name for name in {*filter(None, listed)} if (tree / name).is_file()))
