"""Rubbish from outside: one of our own errors or a valid value, never a traceback, never a write.

Short here; `scripts/fuzz` gives each parser 100,000 inputs (FUZZ_EXAMPLES).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.driver import distribution, dtk, other_modules
from nodeagent.errors import AgentError, ConfigError, DataError, KernelError, UnavailableError
from nodeagent.kernel import modules, netlink, process
from nodeagent.kernel.devlink import Devlink
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.process import Finished, _Stream
from nodeagent.kernel.rtnl import Link, Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import _parse_record, seal, unseal
from nodeagent.settings import Settings, rows
from nodeagent.state.model import DeviceHandle, NodeState, Snapshot
from tests.support.rubbish import (
    attributes,
    changed_json,
    damaged,
    json_value,
    messages,
    octets,
    text,
)
from tests.support.strategies import states

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ROOT = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
RECORD = {
    "at": "2026-11-21T00:00:00.000Z",
    "clock": 1.5,
    "boot": "b",
    "run": "r",
    "pid": 1,
    "kind": "note",
    "name": "n",
    "facts": {"a": "b"},
}
rngs = st.randoms(use_true_random=True)
"""A seed an example: cheap to draw, and printed when the test fails."""

DAMAGES = 20
"""How many times each snapshot is damaged: to make one takes longer than to read it."""


@pytest.fixture(autouse=True, scope="module")
def _tidy() -> Iterator[None]:
    yield
    for path in sorted(ROOT.rglob("*"), reverse=True):
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
    ROOT.rmdir()


# environment


NAMES = [row.name for _, row in rows()]


@fuzzed
@given(rngs)
def test_environment(rng: random.Random) -> None:
    """What is accepted cannot carry a line, and names cannot carry an option or a path."""
    chosen = {rng.choice(NAMES): text(rng) for _ in range(rng.randrange(7))}
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


@settings(fuzzed, max_examples=EXAMPLES // DAMAGES + 1)
@given(rngs, states())
def test_a_damaged_snapshot(rng: random.Random, state: NodeState) -> None:
    """The checksum finds whatever changes the content; nothing else is ever raised."""
    snapshot = Snapshot("2026-11-21T00:00:00+00:00", "m", "b", "6.1", (), state)
    whole = seal(snapshot).encode()
    for _ in range(DAMAGES):
        with contextlib.suppress(DataError):
            assert unseal(damaged(rng, whole), "file", sealed=True) == snapshot


@settings(fuzzed, max_examples=EXAMPLES // DAMAGES + 1)
@given(rngs, states())
def test_a_snapshot_of_another_shape(rng: random.Random, state: NodeState) -> None:
    """Right JSON, wrong things in it: what is read could have been written."""
    snapshot = Snapshot("2026-11-21T00:00:00+00:00", "m", "b", "6.1", (), state)
    plain = json.loads(seal(snapshot))["snapshot"]
    for _ in range(DAMAGES):
        raw = json.dumps(changed_json(rng, plain)).encode()
        with contextlib.suppress(DataError):
            read = unseal(raw, "file", sealed=False)
            assert unseal(seal(read).encode(), "file", sealed=True) == read


@fuzzed
@given(rngs)
def test_a_snapshot_that_is_none(rng: random.Random) -> None:
    with pytest.raises(DataError, match="file"):
        unseal(octets(rng, 300), "file", sealed=True)


@fuzzed
@given(rngs)
def test_a_line_of_the_journal(rng: random.Random) -> None:
    _parse_record(rng.choice((octets(rng, 300), json.dumps(json_value(rng)).encode())))
    _parse_record(json.dumps(changed_json(rng, RECORD)).encode())


# what /proc, /sys and commands say


@fuzzed
@given(rngs)
def test_proc_modules_and_attributes(rng: random.Random) -> None:
    raw = octets(rng, 400)
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
@given(rngs)
def test_sysfs_attributes(rng: random.Random) -> None:
    raw = octets(rng, rng.choice((10, 4096)))
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
@given(rngs)
def test_modinfo(rng: random.Random) -> None:
    """Whatever it says, it does not become an option of the next command."""
    status, output = rng.randint(-15, 255), text(rng, 200)
    said: list[tuple[str, ...]] = []

    def run(argv: Any, **_: object) -> Finished:
        said.append(tuple(argv))
        return Finished(tuple(argv), status if len(said) == 1 else 0, output, output, 0.0)

    real, process.run = process.run, cast("Any", run)
    try:
        with contextlib.suppress(UnavailableError):
            modules.installed("mlx5_core")
        with contextlib.suppress(AgentError):
            list(other_modules._missing(["mlx5_core"], Settings(), ROOT))
    finally:
        process.run = real
    assert all(not argv[-1].startswith("-") and "\n" not in argv[-1] for argv in said)


@fuzzed
@given(rngs)
def test_command_output(rng: random.Random) -> None:
    """Lines without colours and carriage returns, whatever the bytes and wherever they are cut."""
    seen: list[str] = []
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        stream = _Stream(cast("Any", pipe), seen.append)
        for _ in range(rng.randrange(6)):
            os.write(write_end, octets(rng, 300))
            with contextlib.suppress(BlockingIOError):
                stream.read()
        os.close(write_end)
        stream.read_rest()
    assert all("\n" not in line and "\r" not in line for line in seen)
    assert stream.text() == "\n".join(seen)


@fuzzed
@given(rngs)
def test_dtk_flags(rng: random.Random) -> None:
    """A kernel's name becomes one directory's, below the shared one."""
    name = dtk.sanitised_kernel(text(rng))
    assert re.fullmatch(r"[-A-Za-z0-9_.]*", name)
    assert not name.startswith(("-", ".", "_"))


@fuzzed
@given(rngs)
def test_dtk_environment(rng: random.Random) -> None:
    """What the toolkit's shell reads: a line a variable, and nothing in a value is executed.

    shlex reads double quotes as sh(1) does, but for `$` and the backquote, which must be escaped.
    """
    values = {f"V{n}": text(rng, 60).replace("\0", "") for n in range(rng.randrange(4))}
    lines = dtk.exports(values)
    assert not re.search(r"(?<!\\)(\\\\)*[$`]", lines)
    bare = re.sub(r"\\([$`])", r"\1", lines)
    assert shlex.split(bare)[1::2] == [f"{name}={value}" for name, value in values.items()]


@fuzzed
@given(rngs)
def test_os_release(rng: random.Random) -> None:
    raw = octets(rng, 300)
    path = ROOT / "etc/os-release"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    assert distribution.of_root(ROOT).name


# netlink


@fuzzed
@given(rngs)
def test_netlink_attributes(rng: random.Random) -> None:
    raw = rng.choice((rng.randbytes(rng.randrange(200)), attributes(rng)))
    assert sum(4 for _ in netlink.attributes(raw)) <= len(raw)


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
        self._sysfs = None
        self._feature_names = ()
        self._decoded = {}
        self._joined = {}


@fuzzed
@given(rngs)
def test_links_and_vfs(rng: random.Random) -> None:
    edge = RubbishRtnl(messages(rng, 16))
    for read in (edge.links, lambda: edge.vfs(1), lambda: edge.number_of(0)):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(rngs)
def test_the_stack(rng: random.Random) -> None:
    raw = messages(rng, rng.choice((8, 12, 20)))
    raw = [body[:20] + struct.pack("=I", 1) + body[24:] for body in raw]  # the ifindex is ours
    of_port = {"af_spec": raw[0][24:], "info": raw[0][28:], "master": 2} if raw else {}
    eth0 = Link(
        index=1,
        name="eth0",
        mac=None,
        mtu=1500,
        up=False,
        carrier=False,
        bus=None,
        device=None,
        phys_port_name=None,
        **cast("Any", of_port),
    )
    edge = RubbishStack(raw)
    for read in (
        lambda: edge.read({1: eth0}, {1}),
        lambda: edge.tentative({1}),
        lambda: edge.parameters(ROOT),
    ):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(rngs)
def test_devlink(rng: random.Random) -> None:
    raw = messages(rng, 4)
    devlink, pf = RubbishDevlink(raw), DeviceHandle("pci", "0")
    for read in (
        devlink.instances,
        devlink.params,
        lambda: devlink.eswitch(pf),
    ):
        with contextlib.suppress(KernelError):
            read()


@fuzzed
@given(rngs)
def test_ethtool(rng: random.Random) -> None:
    raw = messages(rng, 4)
    with contextlib.suppress(KernelError):
        RubbishEthtool(raw).settings([1, 2])
