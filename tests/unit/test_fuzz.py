"""Rubbish from outside: one of our own errors or a valid value, never a traceback, never a write.

Short here; `scripts/fuzz` gives each parser 100,000 inputs (FUZZ_EXAMPLES).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.driver import distribution, dtk, neighbours
from nodeagent.errors import AgentError, ConfigError, DataError, KernelError, UnavailableError
from nodeagent.journal import _parse_record, seal, unseal
from nodeagent.kernel import modules, process
from nodeagent.kernel.devlink import Devlink
from nodeagent.kernel.ethnl import Ethtool
from nodeagent.kernel.netlink import attributes
from nodeagent.kernel.process import Finished, _Stream
from nodeagent.kernel.rtnl import Link, Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.settings import Settings, rows
from nodeagent.sriov.model import NodeState, Snapshot
from tests.support.strategies import states

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROOT = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
WORDS = (
    "mlx5_core",
    "1",
    "true",
    "/run/x",
    "../..",
    "-rf",
    "--help",
    "\n",
    "a\nb",
    "\0",
    "0x7",
    "",
)


def texts() -> st.SearchStrategy[str]:
    return st.one_of(
        st.text(max_size=200), st.sampled_from(WORDS), st.text("01-./:_ax\n ", max_size=40)
    )


@pytest.fixture(autouse=True, scope="module")
def _tidy() -> Iterator[None]:
    yield
    for path in sorted(ROOT.rglob("*"), reverse=True):
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
    ROOT.rmdir()


# environment


@fuzzed
@given(st.data())
def test_environment(data: st.DataObject) -> None:
    """What is accepted cannot carry a line, and names cannot carry an option or a path."""
    names = [row.name for _, row in rows()]
    chosen = data.draw(st.dictionaries(st.sampled_from(names), texts(), max_size=6))
    try:
        parsed = Settings.from_environment(chosen)
    except ConfigError:
        return
    for words in (
        parsed.blacklist_modules,
        parsed.auxiliary_modules,
        parsed.storage_modules,
        parsed.third_party_modules,
        (parsed.driver_module,),
    ):
        assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", word) for word in words)
    for attribute, _ in rows():
        value = getattr(parsed, attribute)
        if isinstance(value, Path):
            assert value.is_absolute()
            assert not re.search(r"[\n\0]", str(value))


# snapshot


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Bits turned, a piece cut out, the end cut off, or something else put in."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        match data.draw(st.sampled_from(["flip", "cut", "end", "put"])):
            case "flip" if changed:
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 50))]
            case "end":
                del changed[at:]
            case _:
                changed[at:at] = data.draw(st.binary(max_size=10))
    return bytes(changed)


SAMPLE = Snapshot("2026-11-21T00:00:00+00:00", "m", "b", "6.1", (), NodeState("mlx5_core", ()))


@fuzzed
@given(st.data(), states())
def test_a_damaged_snapshot(data: st.DataObject, state: NodeState) -> None:
    """The checksum finds whatever changes the content; nothing else is ever raised."""
    snapshot = Snapshot("2026-11-21T00:00:00+00:00", "m", "b", "6.1", (), state)
    whole = seal(snapshot).encode()
    changed = damaged(data, whole)
    with contextlib.suppress(DataError):
        assert unseal(changed, "file", sealed=True) == snapshot


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5)
    ),
    max_leaves=20,
)


@fuzzed
@given(st.data())
def test_a_snapshot_of_another_shape(data: st.DataObject) -> None:
    """Right JSON, wrong things in it."""
    plain = json.loads(seal(SAMPLE))["snapshot"]
    plain["state"]["pfs"] = data.draw(json_values)
    name = data.draw(st.sampled_from(sorted(plain)))
    if data.draw(st.booleans()):
        plain[name] = data.draw(json_values)
    with contextlib.suppress(DataError):
        assert isinstance(unseal(json.dumps(plain).encode(), "file", sealed=False), Snapshot)


@fuzzed
@given(st.binary(max_size=300))
def test_a_snapshot_that_is_none(raw: bytes) -> None:
    with pytest.raises(DataError, match="file"):
        unseal(raw, "file", sealed=True)


@fuzzed
@given(st.binary(max_size=300) | json_values.map(lambda plain: json.dumps(plain).encode()))
def test_a_line_of_the_journal(raw: bytes) -> None:
    _parse_record(raw)


# what /proc, /sys and commands say


@fuzzed
@given(st.binary(max_size=400) | texts().map(lambda text: text.encode(errors="replace")))
def test_proc_modules_and_attributes(raw: bytes) -> None:
    module = ROOT / "sys/module/mlx5_core"
    (module / "holders").mkdir(parents=True, exist_ok=True)
    (module / "initstate").write_text("live\n")
    (module / "refcnt").write_bytes(raw)
    (module / "srcversion").write_bytes(raw)
    (ROOT / "modules").write_bytes(raw)
    found = modules.all_loaded(ROOT / "sys", ROOT)
    assert set(found) == {"mlx5_core"}
    assert found["mlx5_core"].refcount >= 0
    modules.loaded_srcversion("mlx5_core", ROOT / "sys")
    modules.held_through("mlx5_core", found)


@fuzzed
@given(st.binary(max_size=4096))
def test_sysfs_attributes(raw: bytes) -> None:
    sysfs = Sysfs(ROOT / "tree")
    device = sysfs.device("pci", "0000:01:00.0")
    device.mkdir(parents=True, exist_ok=True)
    for name in ("sriov_numvfs", "sriov_drivers_autoprobe", "driver_override"):
        (device / name).write_bytes(raw)
    numvfs = sysfs.numvfs("pci", "0000:01:00.0")
    assert numvfs is None or numvfs >= 0
    assert sysfs.autoprobe("pci", "0000:01:00.0") in {None, True, False}
    sysfs.driver_override("pci", "0000:01:00.0")
    assert sysfs.functions("pci", "0000:01:00.0") == {}


@fuzzed
@given(texts(), st.integers(-15, 255))
def test_modinfo(text: str, status: int) -> None:
    """Whatever it says, it does not become an option of the next command."""
    said: list[tuple[str, ...]] = []

    def run(argv: Any, **_: object) -> Finished:
        said.append(tuple(argv))
        return Finished(tuple(argv), status if len(said) == 1 else 0, text, text, 0.0)

    real, process.run = process.run, cast("Any", run)
    try:
        with contextlib.suppress(UnavailableError):
            modules.installed_srcversion("mlx5_core")
        with contextlib.suppress(AgentError):
            list(neighbours._missing(["mlx5_core"], Settings(), ROOT))
    finally:
        process.run = real
    assert all(not argv[-1].startswith("-") and "\n" not in argv[-1] for argv in said)


@fuzzed
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_command_output(chunks: list[bytes]) -> None:
    """Lines without colours and carriage returns, whatever the bytes and wherever they are cut."""
    seen: list[str] = []
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        stream = _Stream(cast("Any", pipe), seen.append)
        for chunk in chunks:
            os.write(write_end, chunk)
            with contextlib.suppress(BlockingIOError):
                stream.read()
        os.close(write_end)
        stream.read_rest()
    assert all("\n" not in line and "\r" not in line for line in seen)
    assert stream.text() == "\n".join(seen)


@fuzzed
@given(texts())
def test_dtk_flags(release: str) -> None:
    """A kernel's name becomes one directory's, below the shared one."""
    name = dtk.sanitised_kernel(release)
    assert re.fullmatch(r"[-A-Za-z0-9_.]*", name)
    assert not name.startswith(("-", ".", "_"))


@fuzzed
@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,12}", fullmatch=True), texts(), max_size=4))
def test_dtk_environment(variables: dict[str, str]) -> None:
    """What the toolkit's shell reads: a line a variable, and nothing in a value is executed."""
    clean = {name: value.replace("\0", "") for name, value in variables.items()}
    try:
        lines = dtk.exports(clean)
    except AgentError:
        return
    assert lines.count("export ") >= len(clean)


@fuzzed
@given(st.binary(max_size=300))
def test_os_release(raw: bytes) -> None:
    path = ROOT / "etc/os-release"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    assert distribution.of_root(ROOT).name


# netlink


@st.composite
def attribute_streams(draw: st.DrawFn, depth: int = 2) -> bytes:
    """Attributes with lengths that are mostly right: the kernel's types, and nested ones."""
    stream = b""
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.integers(0, 70)) | draw(st.sampled_from([0, 0x8000]))
        nested = depth and draw(st.booleans())
        payload = draw(attribute_streams(depth - 1)) if nested else draw(st.binary(max_size=24))
        length = 4 + len(payload) + draw(st.sampled_from([0] * 8 + [-3, 1, 400]))
        stream += struct.pack("=HH", max(length, 0), kind) + payload + bytes(-len(payload) % 4)
    return stream


@fuzzed
@given(st.binary(max_size=200) | attribute_streams())
def test_netlink_attributes(raw: bytes) -> None:
    assert sum(4 for _ in attributes(raw)) <= len(raw)


class Rubbish:
    """Instead of a socket: whatever is asked, these bodies are the answer."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies
        self.family: int | None = 1

    def dump(self, *_: object) -> list[bytes]:
        return self.bodies

    def ask(self, *_: object) -> list[bytes]:
        return self.bodies[:1] or [b""]

    def message(self, *_: object) -> bytearray:
        return bytearray()


class RubbishRtnl(Rubbish, Rtnl):
    pass


class RubbishStack(Rubbish, StackEdge):
    pass


class RubbishDevlink(Rubbish, Devlink):
    pass


class RubbishEthtool(Rubbish, Ethtool):
    def __init__(self, bodies: list[bytes]) -> None:
        Rubbish.__init__(self, bodies)
        self._feature_names = ()
        self._decoded = {}
        self._joined = {}


def bodies(header: int) -> st.SearchStrategy[list[bytes]]:
    """A netlink header, the protocol's own, then attributes."""
    start = st.binary(min_size=16 + header, max_size=16 + header)
    one = st.tuples(start, attribute_streams()).map(lambda parts: parts[0] + parts[1])
    return st.lists(one | st.binary(max_size=60), max_size=3)


@fuzzed
@given(bodies(16))
def test_links_and_vfs(raw: list[bytes]) -> None:
    edge = RubbishRtnl(raw)
    for read in (edge.links, lambda: edge.vfs(1), lambda: edge.number_of(0)):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(bodies(8) | bodies(12) | bodies(20))
def test_the_stack(raw: list[bytes]) -> None:
    raw = [body[:20] + struct.pack("=I", 1) + body[24:] for body in raw]  # the ifindex is ours
    of_port = {"af_spec": raw[0][24:], "info": raw[0][28:], "master": 2} if raw else {}
    eth0 = Link(1, "eth0", None, 1500, False, False, None, None, None, **cast("Any", of_port))
    edge = RubbishStack(raw)
    for read in (
        lambda: edge.read({1: eth0}, {1}),
        lambda: edge.tentative({1}),
        lambda: edge.parameters(ROOT),
    ):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(bodies(4))
def test_devlink(raw: list[bytes]) -> None:
    devlink = RubbishDevlink(raw)
    for read in (devlink.devices, devlink.params, lambda: devlink.eswitch(("pci", "0"))):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(bodies(4))
def test_ethtool(raw: list[bytes]) -> None:
    with contextlib.suppress(KernelError):
        RubbishEthtool(raw).settings([1, 2])
