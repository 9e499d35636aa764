"""What others do between two steps of a restore: it is held at one, and goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, RULES, Nodeagent, Started, State
from tests.support.zygote import Zygote

BIND = Path("/sys/bus/pci/drivers/mlx5_core/bind")
BRIDGE = "bridge7"


@dataclass(frozen=True)
class Scene:
    """A saved state that is restored from no VFs on; a restore can be held at one of its points.

    `points` are those of one that nobody disturbed, `before` is what it must come to.
    """

    nodeagent: Nodeagent
    snapshot: Path
    trace: Path
    before: State
    points: list[str]

    def numbers(self, pattern: str) -> list[int]:
        """The points in which the pattern is."""
        return [at for at, point in enumerate(self.points, 1) if re.search(pattern, point)]

    @contextmanager
    def held_at(self, number: int, **settings: object) -> Iterator[Started]:
        """A restore that has come to that point; it goes on when the block ends, to its end."""
        run = self._begun(f"STOP {number}", settings)
        lab.eventually(lambda: lab.is_stopped(run.process.pid), f"held at {number}")
        try:
            yield run
        finally:
            os.kill(run.process.pid, signal.SIGCONT)
            run.wait()

    def restored(self) -> Started:
        """A restore that is not held; it must be whole."""
        run = self._begun("", {})
        assert run.wait() == 0, run.log
        return run

    def _begun(self, end: str, settings: dict[str, object]) -> Started:
        (PCI / PF1 / "sriov_numvfs").write_text("0")
        lab.settle()
        (self.trace / "points").unlink(missing_ok=True)
        (self.trace / "end").write_text(end)
        arguments = ("restore", "--snapshot", str(self.snapshot))
        return self.nodeagent.start(*arguments, TRACE_POINTS=self.trace, **settings)


def look() -> State:
    """What lab.read() tells, and what the interfaces are ports of."""
    lab.settle()
    links = json.loads(lab.sh("ip -j link show"))
    return {**lab.read(), "ports": {link["ifname"]: link.get("master") for link in links}}


@pytest.fixture(scope="module")
def scene(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Three VFs, one of them the port of a bridge; restored twice: the first makes directories."""
    nodeagent = Nodeagent(tmp_path_factory.mktemp("nodeagent"), zygote)
    trace = tmp_path_factory.mktemp("trace")
    snapshot = trace / "snapshot.json"
    lab.clean()
    lab.make_vfs(PF1, 3)
    lab.ip(f"link add {BRIDGE} up type bridge", f"link set {the_port()} master {BRIDGE}")
    nodeagent.call("snapshot", "--file", str(snapshot))
    made = Scene(nodeagent, snapshot, trace, look(), [])
    for _ in range(2):
        made.restored()
        assert look() == made.before
    made.points.extend((trace / "points").read_text().splitlines())
    yield made
    nodeagent.end()
    lab.ip(f"link delete {BRIDGE}")


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    lab.remove_faults()


def the_port() -> str:
    return lab.name(lab.vf(PF1, 1))


def another_gets_its_ifindex() -> Callable[[], str]:
    """VF 1's interface goes, another one gets its ifindex, and it comes again.

    A look at that other one. udevd is done before: it renames by ifindex, too.
    """
    function = lab.vf(PF1, 1)
    # binds run side by side: the thread that has begun this one may have been stopped before its
    # write, or may be in the kernel, where this write waits for it and is EBUSY
    with suppress(OSError):
        BIND.write_text(function)
    assert (PCI / function / "net").is_dir()
    lab.settle()
    port = the_port()
    number = (PCI / function / "net" / port / "ifindex").read_text().strip()
    lab.unbind(function)
    lab.ip(f"link add other index {number} type dummy")
    BIND.write_text(function)
    return lambda: lab.sh("ip -d -j link show dev other")


def test_an_interface_goes_and_comes_and_its_ifindex_is_anothers(scene: Scene) -> None:
    """Taken and given back while others are bound; what got its ifindex is not touched."""
    binds = scene.numbers("/bind$")
    assert len(binds) == 3
    for number in binds[1:]:
        with scene.held_at(number) as run:
            other = another_gets_its_ifindex()
            before = other()
        assert run.wait() == 0, run.log
        assert other() == before
        lab.ip("link delete other")
        assert look() == scene.before


def test_and_between_the_last_look_and_the_change(scene: Scene) -> None:
    """The kernel takes changes by ifindex alone: what went astray is found, and done again."""
    with scene.held_at(_sets_netdevs(scene)) as run:
        another_gets_its_ifindex()
    assert run.wait() == 0, run.log
    assert f"pci/{PF1} vf 1 up: nodeagent set it to True, and now it is False: restoring" in run.log
    lab.ip("link delete other")
    assert look() == scene.before


def test_two_get_each_others_names_while_they_are_configured(scene: Scene) -> None:
    with scene.held_at(_sets_netdevs(scene)) as run:
        lab.settle()
        one, other = (lab.name(lab.vf(PF1, index)) for index in (0, 1))
        moves = ((one, "between"), (other, one), ("between", other))
        lab.ip(*(f"link set {old} down name {new}" for old, new in moves))
        lab.settle()
    assert run.wait() == 0, run.log
    assert look() == scene.before


def _sets_netdevs(scene: Scene) -> int:
    """Of what is sent by netlink: on the PF, on the VFs' interfaces, the port, its settings."""
    (_, netdevs, _, _) = scene.numbers("netlink")
    return netdevs


def test_fewer_vfs_appear_than_numvfs_says(scene: Scene) -> None:
    """The one that is missing is named, the others are right, and the next start makes all."""
    numvfs = PCI / PF1 / "sriov_numvfs"
    (made,) = scene.numbers("/sriov_numvfs$")
    said = scene.trace / "numvfs"
    said.write_text("3\n")
    with scene.held_at(made + 1, VF_TIMEOUT=5) as run:
        numvfs.write_text("0")
        numvfs.write_text("2")
        lab.sh(f"mount --bind {said} {numvfs}")
    lab.sh(f"umount {numvfs}")
    assert run.wait() == 1
    assert f"pci/{PF1} vf 2" in run.log
    assert f"pci/{PF1} vf 0" not in run.log
    assert f"pci/{PF1} vf 1" not in run.log
    right = {index: scene.before[PF1]["vfs"][index] for index in (0, 1)}
    assert look()[PF1]["vfs"] == right
    scene.nodeagent.call("restore", "--snapshot", str(scene.snapshot))
    assert look() == scene.before


def test_events_are_doubled_late_and_out_of_order(scene: Scene) -> None:
    """udevd says everything again and again, and of the first VF last."""
    rule = 'ACTION=="add", SUBSYSTEM=="net", KERNELS=="{}", PROGRAM="/bin/sleep {}"\n'
    addresses = [lab.vf(PF1, index) for index in range(3)]
    delays = zip(addresses, (1.5, 0.8, 0.1), strict=True)
    RULES.mkdir(exist_ok=True)
    (RULES / "10-late.rules").write_text("".join(rule.format(*each) for each in delays))
    lab.sh("udevadm control --reload")
    with lab.busy(_said_again):
        for _ in range(3):
            scene.restored()
            assert look() == scene.before


def _said_again() -> None:
    lab.sh("udevadm trigger --action=add --subsystem-match=net --settle")


def test_a_port_is_busy_for_a_while_and_for_good(scene: Scene) -> None:
    """netlink's EBUSY: another has put a MACVLAN on it, which takes all that it receives."""
    (_, _, joins, _) = scene.numbers("netlink")

    def take() -> None:
        lab.settle()
        lab.ip(f"link add link {the_port()} name theirs type macvlan")

    with scene.held_at(joins) as run:
        take()
        threading.Timer(2, lambda: lab.ip("link delete theirs")).start()
    assert run.wait() == 0, run.log
    assert "FAILED" not in run.log
    assert look() == scene.before
    with scene.held_at(joins) as run:
        take()
    assert run.wait() == 1
    assert f"cannot make {the_port()} a port of bridge {BRIDGE}: EBUSY" in run.log
    lab.ip("link delete theirs")
    scene.nodeagent.call("restore", "--snapshot", str(scene.snapshot))
    assert look() == scene.before
