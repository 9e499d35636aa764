"""Who manages an interface, as networkd's and NetworkManager's files say; and waiting for them.

networkd's files are as the real one wrote them in the lab (tests/lab/test_networkd.py);
NetworkManager's as its source writes them (nm_config_device_state_write()): not in the lab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.kernel.managers import Manager, manager_of
from nodeagent.node import managers
from nodeagent.node.managers import await_managers, managed_netdevs
from nodeagent.node.observe import observe
from nodeagent.settings import Settings
from nodeagent.state.model import ManagerName
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        yield made


def write(run: Path, directory: str, ifindex: int, text: str) -> None:
    path = run / directory / str(ifindex)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("directory", "text", "manager"),
    [
        ("systemd/netif/links", "# private\nADMIN_STATE=unmanaged\nOPER_STATE=off\n", None),
        (
            "systemd/netif/links",
            "ADMIN_STATE=configuring\nOPER_STATE=routable\n",
            Manager(ManagerName.NETWORKD, False),
        ),
        ("systemd/netif/links", "ADMIN_STATE=configured\n", Manager(ManagerName.NETWORKD, True)),
        ("systemd/netif/links", "ADMIN_STATE=failed\n", Manager(ManagerName.NETWORKD, True)),
        ("systemd/netif/links", "", None),
        ("NetworkManager/devices", "[device]\nmanaged=false\n", None),
        (
            "NetworkManager/devices",
            "[device]\nmanaged=true\n",
            Manager(ManagerName.NETWORK_MANAGER, False),
        ),
        (
            "NetworkManager/devices",
            "[device]\nmanaged=true\nconnection-uuid=6b2c\n",
            Manager(ManagerName.NETWORK_MANAGER, True),
        ),
    ],
)
def test_what_their_files_say(
    tmp_path: Path, directory: str, text: str, manager: Manager | None
) -> None:
    write(tmp_path, directory, 7, text)
    assert manager_of(7, tmp_path) == manager
    assert manager_of(8, tmp_path) is None


def test_one_that_was_managed_is_waited_for_and_another_is_not(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = fake.link(PF1).index
    with fake.node(Settings()) as node:
        assert managed_netdevs(observe(node)) == {}
        write(fake.run, "systemd/netif/links", index, "ADMIN_STATE=configured\n")
        others = managed_netdevs(observe(node))
        assert list(others.values()) == ["systemd-networkd"]
        await_managers(node, others)
        assert caplog.text == ""
        write(fake.run, "systemd/netif/links", index, "ADMIN_STATE=configuring\n")
        monkeypatch.setattr(managers, "MANAGERS_TIMEOUT", 0.2)
        await_managers(node, others)
    assert "(ens1np0): systemd-networkd has not finished with it" in caplog.text


def test_who_manages_it_is_never_compared(fake: FakeNode) -> None:
    with fake.node(dataclasses.replace(Settings())) as node:
        write(fake.run, "NetworkManager/devices", fake.link(PF1).index, "managed=1\n")
        assert managed_netdevs(observe(node)) == {}
