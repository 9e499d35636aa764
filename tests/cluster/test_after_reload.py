"""After a reload device plugins are restarted once, whoever was killed in between."""

from __future__ import annotations

import pytest

from nodeagent.cluster import after_reload, allocatable
from nodeagent.cluster.client import Client
from nodeagent.journal import Journal
from nodeagent.settings import Settings
from nodeagent.sriov.model import NodeState, Snapshot
from tests.cluster.commands import Pod
from tests.cluster.kubelet import Plugin
from tests.cluster.proxy import Proxy
from tests.cluster.server import Server

SNAPSHOT = Snapshot("2026-11-21T03:00:00.000+00:00", "m", "b", "k", (), NodeState("mlx5_core", ()))


@pytest.fixture
def journal(settings: Settings) -> Journal:
    return Journal(settings)


@pytest.fixture
def plugin(server: Server, namespace: str, node: str) -> Plugin:
    return Plugin(
        server, namespace, node, dip={"openshift.io/vfs": "0"}, report={"openshift.io/vfs": "8"}
    )


def test_once_for_each_reload(
    client: Client, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    node = str(settings.node_name)
    assert after_reload.after_reload(client, settings, node, journal)
    assert proxy.count() == 0, "nothing has been reloaded"
    allocatable.save(client, node, settings.state_dir, in_flight=False)
    journal.save(SNAPSHOT)
    assert after_reload.due(journal, settings.state_dir) == "", "the reload is in flight"
    journal.note("ready")
    journal.close_snapshot()
    plugin.make()
    with plugin.playing():
        assert after_reload.after_reload(client, settings, node, journal)
    assert len(plugin.made) == 2
    assert proxy.count() <= 12
    seen = proxy.count()
    assert after_reload.after_reload(client, settings, node, journal)
    assert proxy.count() == seen


def test_api_that_is_away_is_made_up_for(
    client: Client, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    node = str(settings.node_name)
    journal.save(SNAPSHOT)
    journal.close_snapshot()
    journal.note("ready")
    plugin.make()
    client.patience = 0.3
    proxy.fail(cut=True, times=99)
    assert not after_reload.after_reload(client, settings, node, journal)
    proxy.faults.clear()
    with plugin.playing():
        assert after_reload.after_reload(client, settings, node, journal)
    assert len(plugin.made) == 2


def test_without_permission_it_says_so_once_and_goes_on(
    pod: Pod, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    journal.note("ready")
    proxy.fail(status=403, times=99)
    done = pod.run("node", "after-reload")
    assert done.returncode == 1
    assert done.stderr.count("forbidden") == 1
    assert "Traceback" not in done.stderr
