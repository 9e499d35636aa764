"""After a reload device plugins are restarted once, whoever was killed in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.cluster import after_reload, allocatable, cordon, device_plugin
from nodeagent.cluster.client import Client
from nodeagent.cluster.failures import Unreachable
from nodeagent.cluster.kinds import NODE
from nodeagent.record.journal import Journal, Note, Step
from nodeagent.record.lock import lock, lock_holders
from nodeagent.settings import Settings
from nodeagent.state.model import NodeState, Snapshot
from tests.cluster.commands import Pod
from tests.cluster.conftest import eventually
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
    journal.note(Note.READY)
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
    journal.note(Note.READY)
    plugin.make()
    client.patience = 0.3
    proxy.fail(cut=True, times=99)
    assert not after_reload.after_reload(client, settings, node, journal)
    proxy.faults.clear()
    client.patience = 5  # a busy machine answers slowly
    with plugin.playing():
        assert after_reload.after_reload(client, settings, node, journal)
    assert len(plugin.made) == 2


def test_two_reloads_while_the_api_server_is_away(
    pod: Pod, settings: Settings, server: Server, proxy: Proxy
) -> None:
    """One process tries, one waits, a third leaves it to them; then all is said, in order, once."""
    proxy.fail(cut=True, times=999)
    processes = []
    for hour in (3, 4):
        journal = Journal(settings)
        journal.save(replace(SNAPSHOT, taken_at=f"2026-11-21T0{hour}:00:00.000+00:00"))
        with journal.step(Step.RESTART):
            pass
        journal.close_snapshot()
        journal.note(Note.READY)
        processes.append(pod.start("node", "after-reload", "--patience", "7200"))
        lock = settings.state_dir / ("cluster.lock" if hour == 3 else "cluster.next.lock")
        eventually(lambda lock=lock: bool(lock_holders(lock)))  # type: ignore[misc] # its default
    third = pod.run("node", "after-reload")
    assert (third.returncode, "another process is waiting" in third.stderr) == (0, True)
    assert all(each.poll() is None for each in processes)
    proxy.faults.clear()
    said = [each.communicate(timeout=60)[1] for each in processes]
    assert [each.returncode for each in processes] == [0, 0], said
    path = (
        f"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={settings.node_name}"
    )
    found = {each["reason"]: each["count"] for each in server.get(path)["items"]}
    assert found == {"DriverReloadStarted": 2, "DriverReady": 2}
    assert [
        [line.rpartition(" ")[2] for line in each.splitlines() if "announced" in line]
        for each in said
    ] in (
        [["DriverReloadStarted", "DriverReady"]] * 2,
        [["DriverReloadStarted", "DriverReady"] * 2, []],
    )


def test_without_permission_it_says_so_once_and_goes_on(
    pod: Pod, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    journal.note(Note.READY)
    proxy.fail(status=403, times=99)
    done = pod.run("node", "after-reload")
    assert done.returncode == 1
    assert done.stderr.count("forbidden") == 1
    assert "Traceback" not in done.stderr


def test_what_started_while_there_were_no_vfs_is_restarted(
    client: Client, settings: Settings, journal: Journal, plugin: Plugin
) -> None:
    """A device plugin discovers devices when it starts, and found none: the node says 0 until it
    is started again. What the node had before the reload is waited for."""
    node = str(settings.node_name)
    allocatable.save(client, node, settings.state_dir, in_flight=False)
    journal.save(SNAPSHOT)
    plugin.make()
    plugin.say({"openshift.io/vfs": "0"})
    journal.note(Note.READY)
    journal.close_snapshot()
    with plugin.playing():
        assert after_reload.after_reload(client, settings, node, journal)
    assert len(plugin.made) == 2
    (alive,) = plugin.alive()
    assert alive["metadata"]["name"] == plugin.made[-1]
    assert allocatable.of_node(client.get(NODE, node)) == {"openshift.io/vfs": 8}


def test_device_plugins_are_restarted_without_vfs_and_again_with_them(
    client: Client, settings: Settings, journal: Journal, plugin: Plugin
) -> None:
    """While VFs are away kubelet has none to give; afterwards what the node had is waited for."""
    node = str(settings.node_name)
    plugin.make()
    assert device_plugin.hold_off(client, settings, node, lambda: False) == (), "no record yet"
    allocatable.save(client, node, settings.state_dir, in_flight=False)
    journal.save(SNAPSHOT)
    (first,) = plugin.made

    def offered() -> object:
        return allocatable.of_node(client.get(NODE, node))

    plugin.report = {"openshift.io/vfs": "0"}
    with plugin.playing():
        held = device_plugin.hold_off(client, settings, node, lambda: False)
        assert [each.partition("/")[2] for each in held] == [first]
        eventually(lambda: len(plugin.made) == 2 and offered() == {"openshift.io/vfs": 0})
        plugin.report = {"openshift.io/vfs": "8"}
        journal.close_snapshot()
        journal.note(Note.READY)
        assert after_reload.after_reload(client, settings, node, journal)
    assert len(plugin.made) == 3
    assert not device_plugin.is_held_off(settings.state_dir)
    assert offered() == {"openshift.io/vfs": 8}


def test_device_plugins_find_vfs_that_are_back_after_a_reload_that_failed(
    client: Client, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    """Its snapshot stays open, so that no restart is due; one is all the same, once."""
    node = str(settings.node_name)
    allocatable.save(client, node, settings.state_dir, in_flight=False)
    journal.save(SNAPSHOT)
    plugin.make()
    with plugin.playing():
        assert device_plugin.hold_off(client, settings, node, lambda: False)
        eventually(lambda: len(plugin.made) == 2)
        journal.note(Note.FAILED, message="openibd restart did not bring in the installed driver")
        assert after_reload.after_reload(client, settings, node, journal)
        eventually(lambda: len(plugin.made) == 3)
        seen = proxy.count()
        assert after_reload.after_reload(client, settings, node, journal)
    assert proxy.count() == seen
    assert allocatable.load(settings.state_dir) is not None


def test_a_restart_of_device_plugins_that_is_late_is_none(
    pod: Pod, settings: Settings, journal: Journal, plugin: Plugin, proxy: Proxy
) -> None:
    """The API server was away until the reload was over; a failure is one warning."""
    plugin.make()
    assert pod.run("device-plugin", "record").returncode == 0
    journal.save(SNAPSHOT)
    assert pod.run("device-plugin", "hold-off").returncode == 0, "no agent is at work"
    with lock(settings.work_path):
        proxy.fail(cut=True, times=99)
        failed = replace(pod, environment=pod.environment | {"API_TIMEOUT": "1"}).run(
            "device-plugin", "hold-off"
        )
        proxy.faults.clear()
        assert failed.returncode == 1
        assert failed.stderr.count("device plugins offer VFs that do not exist: ") == 1
        assert len(failed.stderr.splitlines()) == 1
        journal.close_snapshot()
        assert pod.run("device-plugin", "hold-off").returncode == 0, "the reload is over"
    assert len(plugin.alive()) == 1
    assert not device_plugin.is_held_off(settings.state_dir)


def test_a_cordon_lasts_until_device_plugins_are_back(
    client: Client, settings: Settings, journal: Journal, server: Server, proxy: Proxy
) -> None:
    """Ours goes, also after a kill; another's stays; without one nobody is asked."""
    node = str(settings.node_name)

    def is_cordoned() -> bool:
        return bool(server.get(f"/api/v1/nodes/{node}")["spec"].get("unschedulable"))

    assert cordon.cordon(client, node, settings.state_dir, journal.is_ready)
    assert is_cordoned()
    assert cordon.cordon(client, node, settings.state_dir, journal.is_ready), "the next start's"
    assert after_reload.after_reload(client, settings, node, journal)
    assert not is_cordoned()
    seen = proxy.count()
    assert after_reload.after_reload(client, settings, node, journal)
    assert proxy.count() == seen

    server.merge(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
    assert not cordon.cordon(client, node, settings.state_dir, journal.is_ready)
    assert after_reload.after_reload(client, settings, node, journal)
    assert is_cordoned()
    server.merge(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": None}})


def test_a_cordon_that_is_late_is_none(
    client: Client, settings: Settings, server: Server, proxy: Proxy
) -> None:
    """The API server was away for as long as the reload took; and then in the middle."""
    node = str(settings.node_name)
    assert not cordon.cordon(client, node, settings.state_dir, lambda: True)
    assert not server.get(f"/api/v1/nodes/{node}")["spec"].get("unschedulable")
    client.patience = 0.3
    proxy.fail(method="PATCH", cut=True, times=99)
    with pytest.raises(Unreachable):
        cordon.cordon(client, node, settings.state_dir, lambda: False)
    proxy.faults.clear()
    client.patience = 5  # a busy machine answers slowly
    cordon.lift(client, node, settings.state_dir)
    assert not server.get(f"/api/v1/nodes/{node}")["spec"].get("unschedulable")
