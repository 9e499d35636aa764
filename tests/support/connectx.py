"""The node with a ConnectX in a test's hands: what only it has, and the card's faults and log.

QEMU's monitor is behind a port of the guest; the card's properties are described with the device,
scripts/emulator/connectx/. Nothing here uses nodeagent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support import lab
from tests.support.lab import State

LOG: Final = Path("/host/firmware.log")
"""A line for each command, at its end: seconds, function, name, status, syndrome, microseconds."""
NO_ANSWER: Final = 255
"""A status that is none: the command is never answered."""
BAD_PARAM: Final = 3

# Commands: include/linux/mlx5/mlx5_ifc.h
INIT_HCA: Final = 0x102
TEARDOWN_HCA: Final = 0x103
ENABLE_HCA: Final = 0x104
DISABLE_HCA: Final = 0x105
MODIFY_VPORT_STATE: Final = 0x751
MODIFY_ESW_VPORT_CONTEXT: Final = 0x753
CREATE_SCHEDULING_ELEMENT: Final = 0x782
CREATE_TIR: Final = 0x900
CREATE_SQ: Final = 0x904
CREATE_FLOW_TABLE: Final = 0x930


def read() -> State:
    """What lab.read() tells, and what devlink, rdma(8), dcb(8) and the representors do."""
    return {
        "devices": lab.read(),
        "eswitches": {pf: eswitch(pf) for pf in lab.pfs()},
        "representors": {pf: representors(pf) for pf in lab.pfs()},
        "rates": json.loads(lab.printed("devlink", "-j", "port", "function", "rate", "show")),
        "rdma": rdma(),
        "dcb": {pf: dcb(pf) for pf in lab.pfs()},
    }


def eswitch(pf: str) -> State:
    """Its mode, and its inline and encapsulation mode."""
    shown = lab.printed("devlink", "-j", "dev", "eswitch", "show", f"pci/{pf}")
    (told,) = json.loads(shown)["dev"].values()
    return State(told)


def representors(pf: str) -> State:
    """Each by its port. Its MAC is the driver's choice, another one each time."""
    told = {
        link["ifname"]: link for link in json.loads(lab.printed("ip", "-d", "-j", "link", "show"))
    }
    found = {}
    for port, name in lab.representors(pf).items():
        read_of_it = lab.read_interface(told[name])
        assert read_of_it is not None
        found[port] = {**read_of_it, "address": None, "txqlen": told[name]["txqlen"]}
    return found


def fatal(pf: str) -> str:
    """What devlink's health reporter of a PF's fatal errors says."""
    return fatal_of(f"pci/{pf}")


def fatal_of(device: str) -> str:
    """The same of any function, as devlink(8) calls it."""
    told = json.loads(lab.sh(f"devlink -j health show {device} reporter fw_fatal"))
    ((reporter,),) = told["health"].values()
    return str(reporter["state"])


def await_failed_recovery(device: str) -> None:
    """Until the driver has given up, which waits for a minute first (mlx5_error_sw_reset())."""
    lab.eventually(lambda: fatal_of(device) == "error", "the end of its recovery", every=1)


def dcb(pf: str) -> State:
    """All that dcb(8) shows of a PF's port."""
    words = ("ets", "pfc", "maxrate", "buffer", "app", "dcbx")
    return {word: json.loads(lab.dcb(f"-j {word} show dev {lab.name(pf)}")) for word in words}


def reset_dcb(pf: str) -> None:
    """Write a port's registers as firmware has them at power on: they outlast the driver."""
    port = f"dev {lab.name(pf)}"
    for command in (
        f"app flush {port}",
        f"pfc set {port} prio-pfc all:off delay 7",
        f"buffer set {port} prio-buffer all:0",
        f"buffer set {port} buffer-size 0:262080 1:0",
        f"maxrate set {port} tc-maxrate all:0gbit",
        f"ets set {port} tc-bw all:0 tc-tsa all:vendor prio-tc 0:1 1:0 4:4",
    ):
        lab.dcb(command)


def rdma() -> State:
    """The name of each function's RDMA device."""
    found = lab.PCI.glob("*/infiniband/*")
    return {path.parts[-3]: path.name for path in sorted(found)}


def switch(pf: str, mode: str = "switchdev") -> None:
    """Set an eswitch's mode as its manual says: while no VF is bound."""
    bound = [address for address in lab.vfs(pf).values() if lab.driver(address) == "mlx5_core"]
    for address in bound:
        lab.unbind(address)
    lab.sh(f"devlink dev eswitch set pci/{pf} mode {mode}; udevadm settle")
    for address in bound:
        bind(address)
    lab.settle()


def bind(address: str) -> None:
    """Bind a function to the NIC's own driver."""
    Path("/sys/bus/pci/drivers/mlx5_core/bind").write_text(address)


class Monitor:
    """QEMU's monitor (qmp-spec). Only one at a time: a port can be opened once."""

    def __init__(self) -> None:
        self._port = os.open("/dev/virtio-ports/lab.qmp", os.O_RDWR | os.O_CLOEXEC)
        self._received = b""
        # refused to the second who opens the port: for the monitor it is one session
        self._ask("qmp_capabilities", {})

    def command(self, name: str, **arguments: object) -> Any:
        """Its answer; AssertionError where it refuses."""
        answer = self._ask(name, arguments)
        assert "error" not in answer, (name, arguments, answer)
        return answer["return"]

    def _ask(self, name: str, arguments: dict[str, object]) -> dict[str, Any]:
        os.write(self._port, json.dumps({"execute": name, "arguments": arguments}).encode())
        while True:
            while b"\n" not in self._received:
                self._received += os.read(self._port, 65536)
            line, _, self._received = self._received.partition(b"\n")
            answer: dict[str, Any] = json.loads(line)
            if answer.keys() & {"return", "error"}:
                return answer

    def close(self) -> None:
        os.close(self._port)


@contextmanager
def card() -> Iterator[Card]:
    """The card in a test's hands; without faults afterwards."""
    monitor = Monitor()
    made = Card(monitor)
    try:
        yield made
    finally:
        made.mend()
        monitor.close()


class Card:
    """Its PFs are numbered from 0. Properties: scripts/emulator/connectx/README.md."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._changed: dict[tuple[int, str], object] = {}

    def fail(
        self, pf: int, opcode: int, status: int, *, count: int = 1, vport: int | None = None
    ) -> None:
        """The firmware answers the next commands of that kind with a status; vport 1 is VF 0's."""
        where = "" if vport is None else f" {vport}"
        self.set(pf, "fault", f"{opcode:#x} {status} {count}{where}")

    def hang(self, pf: int, opcode: int, *, vport: int, count: int = 1) -> None:
        """The next commands of that kind from a vport are carried out when faults are mended.

        Only one whose answer has at most 16 bytes: the driver frees the pages of a longer one when
        it gives up after 60 s, and firmware then writes to them.
        """
        self.set(pf, "fault", f"{opcode:#x} hang {count} {vport}")

    def set(self, pf: int, name: str, value: object) -> None:
        """A property of a PF, until the test's end."""
        path = f"/machine/peripheral/pf{pf}"
        if (pf, name) not in self._changed and name != "request-pages":
            before = self._monitor.command("qom-get", path=path, property=name)
            self._changed[pf, name] = before
        self._monitor.command("qom-set", path=path, property=name, value=value)

    def mend(self) -> None:
        """All as it was; commands that hang are carried out."""
        for (pf, name), before in self._changed.items():
            path = f"/machine/peripheral/pf{pf}"
            self._monitor.command("qom-set", path=path, property=name, value=before)
        self._changed.clear()

    def plug(self, pf: int, *, cable: bool) -> None:
        """Whether there is a cable in its port."""
        self.set(pf, "cable", cable)


@contextmanager
def infiniband(card: Card) -> Iterator[str]:
    """The first port is InfiniBand's, as mlxconfig's LINK_TYPE_P1 has it; its IPoIB interface."""

    def restart() -> None:
        lab.sh("modprobe -r ib_ipoib mlx5_ib mlx5_core; modprobe -a mlx5_core mlx5_ib ib_ipoib")
        lab.settle()

    card.set(0, "infiniband", True)
    restart()
    try:
        yield lab.name(lab.PF1)
    finally:
        (lab.PCI / lab.PF1 / "sriov_numvfs").write_text("0")
        card.set(0, "infiniband", False)
        restart()
        lab.sh("modprobe -r ib_ipoib")


@dataclass(frozen=True)
class Command:
    """A line of the log: what firmware was asked, and what became of it."""

    end: float
    """Seconds since the machine's start."""
    function: str
    """pf1, pf1vf0, pf1sf0 ..."""
    name: str
    status: str
    syndrome: int
    took: float
    """Seconds from the doorbell to the answer."""


def asked(since: int = 0) -> list[Command]:
    """The log from a place in it on."""
    lines = LOG.read_text(errors="replace")[since:].splitlines()
    words = [line.split() for line in lines]
    return [
        Command(float(end), function, name, status, int(syndrome, 16), int(us) / 1e6)
        for end, function, name, status, syndrome, us in (
            each for each in words if len(each) == 6 and each[2] != "#"
        )
    ]


def remarks(since: int = 0) -> str:
    """The rest of the log."""
    lines = LOG.read_text(errors="replace")[since:].splitlines()
    return "\n".join(line for line in lines if line.split()[2:3] == ["#"])


def commands(since: int = 0) -> list[tuple[str, str]]:
    """Function and command of each line of the log, from a place in it on."""
    return [(each.function, each.name) for each in asked(since)]
