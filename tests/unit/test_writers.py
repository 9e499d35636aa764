"""Who may write to the host, and who may look at it by a plain path, by module.

Everything else goes through nodeagent/durable.py and nodeagent/hostpath.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "nodeagent"

ALLOWED = {
    "durable.py": "the one place for files that last",
    "trace.py": "for tests: a directory that the test names",
    "agent/hold.py": "removes the flag; imports nothing of the package",
    "agent/debug.py": "writes to a descriptor that durable has opened",
    "cli/output.py": "/dev/null",
    "kernel/sysfs.py": "attributes of the kernel's",
    "kernel/roce.py": "configfs: the kernel's own, too",
    "kernel/announcements.py": "attributes of the kernel's",
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


LOOKING = {
    *("exists", "is_file", "is_dir", "is_symlink", "lstat", "stat", "readlink", "resolve"),
    *("read_text", "read_bytes", "open", "glob", "rglob", "iterdir"),
}
MAY_LOOK = {
    "the kernel's own: /proc and /sys, debugfs and configfs in it": {
        *(
            "kernel/receive.py",
            "kernel/roce.py",
            "kernel/unsaved.py",
            "kernel/vf_guids.py",
        ),
        *("driver/vf_users.py", "driver/nic.py", "driver/openibd.py", "driver/preflight.py"),
        *("driver/privileges.py", "driver/rdma.py", "driver/uplink.py", "kernel/users.py"),
        *("kernel/cgroup.py", "kernel/echo.py", "kernel/modules.py", "kernel/mounts.py"),
        *("kernel/netns.py", "kernel/sysctls.py", "kernel/sysfs.py"),
        *("kernel/rooms.py", "machine.py", "node/devices.py", "node/settle.py", "node/tuning.py"),
    },
    "whether udevd has a file; nothing is opened": {"kernel/udev.py"},
    "what people name on the command line": {"cli/input.py"},
    "where people have links": {"cli/output.py"},
    "the kubelet's mount, which is links": {"cluster/access.py", "cluster/connection.py"},
    "/sys; and whether a file is a link, before it is opened": {"cluster/pcidp.py"},
    "whether the directory is mounted; what is in it goes by descriptors": {
        *("driver/blacklist.py", "driver/exports.py", "driver/udev_names.py"),
    },
    "below a directory that is open, or before each file is opened by descriptors": {
        *("driver/copies.py", "driver/host_tree.py", "driver/inventory.py", "driver/packages.py"),
    },
    "names of packages, for the log; our own scripts": {"driver/dtk.py"},
    "whether the image has a dnf": {"driver/builder.py"},
    "an archive in memory": {"agent/support.py"},
    "/proc; and whether the lock is the file of that name": {"record/lock.py"},
    "what all others use": {"hostpath.py"},
    "imports nothing of the package": {"agent/hold.py"},
    "for tests": {"trace.py"},
}


def looks(path: Path) -> bool:
    """It looks at something by a path, and not through our own rooms or from a descriptor."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in LOOKING
        and getattr(call.func.value, "id", "") not in {"durable", "hostpath"}
        and "dir_fd" not in {keyword.arg for keyword in call.keywords}
        for call in calls
    )


def test_nobody_else_looks_by_a_plain_path() -> None:
    """Whoever follows a link that somebody planted needs a reason why that does no harm."""
    looking = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if looks(path)}
    assert looking == {name for names in MAY_LOOK.values() for name in names}
