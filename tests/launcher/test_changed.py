"""scripts/test --changed: the tests that need a changed file, told by imports and by names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from suite.changed import (  # noqa: E402 - scripts/ is no installed package
    ChangeError,
    LabTest,
    Needs,
    broken_by,
    change,
    lab_tests,
    needing,
    needs,
    tree_files,
)
from suite.checks import for_a_change  # noqa: E402 - likewise

pytestmark = pytest.mark.short

FILES = {
    "nodeagent/__init__.py": "",
    "nodeagent/low.py": "",
    "nodeagent/high.py": "def run():\n    from nodeagent import low\n",
    "nodeagent/page.py": "NAME = 'page.txt'\n",
    "nodeagent/page.txt": "",
    "nodeagent/kinds/__init__.py": "def get(name):\n    return import_module(name)\n",
    "nodeagent/kinds/one.py": "",
    "tests/unit/test_kinds.py": "from nodeagent.kinds import get\n",
    "nodeagent/__main__.py": "import nodeagent.high\n",
    "scripts/tool": "#!/bin/bash\nexec python3 -m kit --with scripts/part.sh\n",
    "scripts/part.sh": "#!/bin/sh\n",
    "scripts/kit/__main__.py": "from kit import wheel\n",
    "scripts/kit/wheel.py": "",
    "scripts/kit/__init__.py": "",
    "tests/unit/conftest.py": "",
    "tests/unit/test_low.py": "'''Names nodeagent.page here.'''\nimport nodeagent.low\n",
    "tests/unit/test_high.py": "from nodeagent.high import run\n",
    "tests/unit/test_page.py": "NAMED = 'nodeagent.page.NAME'\n",
    "tests/unit/test_tool.py": "ARGV = ['scripts/tool']\n",
    "tests/unit/test_program.py": "ARGV = ['python', '-m', 'nodeagent', 'status']\n",
    "tests/lab/test_node.py": (
        "import pytest\n"
        "@pytest.mark.short\ndef test_quick(): ...\n"
        "@pytest.mark.sweep\ndef test_at_every_point(): ...\n"
        "def test_plain(): ...\n"
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository on the branch `work`, at the same commit as `main`."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path, "first")
    git(tmp_path, "checkout", "-q", "-b", "work")
    return tmp_path


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    return subprocess.check_output(["git", *who, *arguments], cwd=tree, text=True).strip()


def commit(tree: Path, message: str) -> str:
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", message)
    return git(tree, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def real() -> Needs:
    """Of this tree."""
    return needs(ROOT, tree_files(ROOT))


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ("nodeagent/low.py", {"low", "high", "program"}),  # an import within a function
        ("nodeagent/high.py", {"high", "program"}),
        ("nodeagent/__init__.py", {"low", "high", "page", "program", "kinds"}),
        ("nodeagent/kinds/one.py", {"kinds", "program"}),  # beside one that makes names of modules
        ("nodeagent/page.txt", {"page", "program"}),  # a file that a module names, and reads
        ("scripts/kit/wheel.py", {"tool"}),  # through a shell script
        ("scripts/part.sh", {"tool"}),
        ("tests/unit/conftest.py", {"low", "high", "page", "tool", "program", "kinds"}),
        ("tests/unit/test_high.py", {"high"}),
        ("pyproject.toml", {"low", "high", "page", "tool", "program", "kinds"}),
        ("README.md", set()),
    ],
)
def test_unit_tests_that_need_a_file(tree: Path, changed: str, tests: set[str]) -> None:
    found = broken_by(tree, [changed]).unit
    assert set(found) == {f"tests/unit/test_{name}.py" for name in tests}


def test_a_removed_file_concerns_those_who_still_ask_for_it(tree: Path) -> None:
    (tree / "nodeagent/low.py").unlink()
    found = broken_by(tree, ["nodeagent/low.py"])
    assert "tests/unit/test_low.py" in found.unit


def test_of_the_lab_the_short_ones_and_those_of_a_changed_file(tree: Path) -> None:
    found = broken_by(tree, ["nodeagent/page.py"])
    assert [test.id for test in found.igb] == ["tests/lab/test_node.py::test_quick"]
    assert len(found.left_out) == 2
    found = broken_by(tree, ["tests/lab/test_node.py"])
    names = [test.id.partition("::")[2] for test in found.igb]
    assert names == ["test_quick", "test_plain"]
    assert [test.id.partition("::")[2] for test in found.left_out] == ["test_at_every_point"]


def test_marks_of_a_file_are_its_tests(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.both_nics, pytest.mark.usefixtures('no_vfs')]\n"
        "@pytest.mark.real_time\n@pytest.mark.parametrize('a', [1])\ndef test_a(a): ...\n"
    )
    (found,) = lab_tests(tmp_path, "test_x.py")
    assert found.marks >= {"both_nics", "real_time"}


def test_a_cycle_has_an_end() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"a"}), "c": frozenset({"a"})}
    assert needing(graph, ["b"]) == {"a", "b", "c"}


def test_what_a_branch_changed(tree: Path) -> None:
    """Committed, edited, new, and both names of a renamed file; not what main did meanwhile."""
    first = git(tree, "rev-parse", "main")
    (tree / "nodeagent/low.py").write_text("X = 1\n")
    commit(tree, "committed")
    git(tree, "checkout", "-q", "main")
    (tree / "of_main").write_text("")
    commit(tree, "main goes on")
    git(tree, "checkout", "-q", "work")
    (tree / "nodeagent/high.py").write_text("")
    (tree / "new.py").write_text("")
    git(tree, "mv", "nodeagent/page.txt", "nodeagent/leaf.txt")
    found = change(tree)
    assert found.commit == first
    assert found.files == (
        *("new.py", "nodeagent/high.py", "nodeagent/leaf.txt"),
        *("nodeagent/low.py", "nodeagent/page.txt"),
    )


def test_where_nothing_differs_from_main_the_last_commit_counts(tree: Path) -> None:
    first = git(tree, "rev-parse", "HEAD")
    git(tree, "checkout", "-q", "main")
    (tree / "new.py").write_text("")
    commit(tree, "second")
    assert change(tree).files == ("new.py",)
    assert change(tree).commit == first
    assert change(tree, "HEAD").files == ()


def test_what_cannot_be_told(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ChangeError, match="no-such-commit"):
        change(tree, "no-such-commit")
    with pytest.raises(ChangeError):
        change(tmp_path_factory.mktemp("no-repository"))


def test_every_module_of_the_program_is_needed_by_a_unit_test(real: Needs) -> None:
    for name in real:
        if name.startswith("nodeagent/") and name.endswith(".py"):
            users = needing(real, [name])
            assert any(user.startswith("tests/unit/test_") for user in users), name


def test_what_is_not_concerned_is_not_run(real: Needs) -> None:
    users = needing(real, ["nodeagent/plan/lines.py"])
    assert "tests/unit/test_lines.py" in users
    assert "tests/unit/test_parallel.py" not in users
    assert "tests/lab/test_restore.py" in users


def test_each_test_is_in_one_check_and_no_check_is_empty(tmp_path: Path) -> None:
    broken = broken_by(ROOT, ["nodeagent/settings.py", "tests/lab/test_reload.py"])
    given = [
        word
        for each in for_a_change(ROOT, tmp_path, broken)
        for word in each.argv
        if word.startswith("tests/")
    ]
    tests: tuple[LabTest, ...] = (*broken.igb, *broken.connectx, *broken.launcher)
    wanted = [*broken.unit, *broken.cluster, *(test.id for test in tests)]
    assert sorted(given) == sorted(wanted)
    assert "tests/lab/test_reload.py::test_every_vf_is_back" in given
    for each in for_a_change(ROOT, tmp_path, broken):
        assert any(word.startswith("tests/") for word in each.argv), each.name
