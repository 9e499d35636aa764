"""Who may write to the host, by module: everything else goes through nodeagent/durable.py."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "nodeagent"

ALLOWED = {
    "durable.py": "the one place for files that last",
    "trace.py": "for tests: a directory that the test names",
    "hold.py": "removes the flag; imports nothing of the package",
    "debug.py": "writes to a descriptor that durable has opened",
    "cli/output.py": "/dev/null",
    "kernel/sysfs.py": "attributes of the kernel's",
    "kernel/sysctls.py": "attributes of the kernel's",
    "kernel/neighbourhood.py": "attributes of the kernel's",
    "driver/copies.py": "trees of files, whole under a name of their own and then renamed",
}
WRITING = {
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "symlink_to",
    "hardlink_to",
    "touch",
    "rmdir",
    "chmod",
    "copyfile",
    "copyfileobj",
    "copytree",
    "rmtree",
    "move",
}
FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"}


def writes(path: Path) -> list[str]:
    """Calls and flags by which a module could write to a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in FLAGS:
            found.append(f"{node.lineno}: {node.attr}")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        receiver = getattr(getattr(node.func, "value", None), "id", "")
        if name in WRITING and receiver not in {"durable", "host_tree"}:
            found.append(f"{node.lineno}: {name}()")
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        is_open = name == "open" or getattr(node.func, "id", "") == "open"
        if is_open and any(isinstance(m, str) and set(m) & set("wax+") == set(m) for m in modes):
            found.append(f"{node.lineno}: open() to write")
    return found


def test_nobody_else_writes() -> None:
    """A new writer either uses durable.py or gives its reason here."""
    others = {
        name: found
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := str(path.relative_to(PACKAGE))) not in ALLOWED and (found := writes(path))
    }
    # what only hands flags to durable.open_plain is not a writer of its own
    assert {name: found for name, found in others.items() if not _only_flags(found)} == {}


def _only_flags(found: list[str]) -> bool:
    return all(each.split(": ")[1] in {"O_WRONLY", "O_RDWR"} for each in found)


def test_the_list_is_no_longer_than_it_must_be() -> None:
    assert [name for name in ALLOWED if not writes(PACKAGE / name)] == []


def test_no_shell_anywhere() -> None:
    """subprocess gets argument lists; os.system and shell=True are nowhere."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"system", "popen"}, path
