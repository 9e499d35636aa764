"""RPS, RFS, XPS and NAPI's times: an interface's directory in sysfs, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.kernel import queues
from nodeagent.plan.ethtool import commands, differing
from nodeagent.plan.lines_pods import inside_line
from nodeagent.state.model import Netdev
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.queues import FILES, agree

TEXTS = {
    "napi_defer_hard_irqs": "2",
    "gro_flush_timeout": "20000",
    "queues/rx-0/rps_cpus": "00000000,0000000f",
    "queues/rx-1/rps_cpus": "00000000,00000000",
    "queues/rx-0/rps_flow_cnt": "4096",
    "queues/rx-1/rps_flow_cnt": "0",
    "queues/tx-0/xps_cpus": "00000100,00000000",
    "queues/tx-0/xps_rxqs": "0",
}
READ = {
    "napi.defer_hard_irqs": "2",
    "napi.gro_flush_timeout": "20000",
    "queues.rps_cpus": "f 0",
    "queues.rps_flow_cnt": "4096 0",
    "queues.xps_cpus": "100,00000000",
    "queues.xps_rxqs": "0",
}


@pytest.fixture
def interface(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


def test_what_is_read_is_set_again(interface: Path) -> None:
    found = dict(queues.read(interface))
    assert found == READ
    assert found.keys() == FILES.keys()
    Netdev("ens1", ethtool=tuple(sorted(found.items())))  # a snapshot takes them
    for path in interface.rglob("*"):
        if path.is_file():
            path.write_text("0\n")
    queues.write(interface, found)
    assert dict(queues.read(interface)) == found
    assert (interface / "queues/rx-1/rps_cpus").read_text() == "0\n"


def test_an_interface_that_is_gone_has_none(tmp_path: Path) -> None:
    assert list(queues.read(tmp_path / "ens1")) == []


def test_a_kernel_that_refuses(interface: Path) -> None:
    (interface / "queues/rx-0/rps_cpus").unlink()
    (interface / "queues/rx-0/rps_cpus").symlink_to("rps_flow_cnt")
    with pytest.raises(OSError, match="rx-0/rps_cpus"):
        queues.write(interface, {"queues.rps_cpus": "3 3"})


def test_only_queues_that_are_there_are_compared_and_set(interface: Path) -> None:
    for number in range(2):
        (interface / f"queues/rx-{number}/rps_cpus").write_text("0\n")
    queues.write(interface, {"queues.rps_cpus": "1 2 4 8"})
    assert dict(queues.read(interface))["queues.rps_cpus"] == "1 2"
    assert agree("queues.rps_cpus", "1 2 4 8", "1 2")
    assert agree("queues.rps_cpus", "1", "1 2")
    assert not agree("queues.rps_cpus", "1 3", "1 2")
    assert not agree("rings.rx", 1, 2)
    want, have = (Netdev("ens1", ethtool=(("queues.rps_cpus", each),)) for each in ("1 2", "0 2"))
    assert list(differing(want, have)) == [(("queues.rps_cpus", "1 2"), "0 2")]


def test_lines_to_paste() -> None:
    values = (
        ("napi.gro_flush_timeout", "7"),
        ("queues.rps_cpus", "f f"),
        ("queues.xps_cpus", "1 2"),
    )
    assert list(commands(values, "ens1")) == [
        "echo f | tee /sys/class/net/ens1/queues/rx-*/rps_cpus",
        "echo 1 | tee /sys/class/net/ens1/queues/tx-0/xps_cpus",
        "echo 2 | tee /sys/class/net/ens1/queues/tx-1/xps_cpus",
        "echo 7 | tee /sys/class/net/ens1/gro_flush_timeout",
    ]


def test_a_line_to_paste_for_a_pod() -> None:
    """sysfs shows the interfaces of the namespace in which it was mounted."""
    pod = Namespace(4, 7, "boot", (Holder(mount="/run/netns/a"),))
    (line,) = commands((("napi.gro_flush_timeout", "7"),), "net1")
    assert inside_line(pod, line) == (
        "nsenter --net=/run/netns/a unshare -m sh -c "
        "'mount -t sysfs sysfs /sys; echo 7 | tee /sys/class/net/net1/gro_flush_timeout'"
    )
