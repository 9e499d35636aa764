"""Device plugins are restarted by UID, their successors and the node's allocatable awaited."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nodeagent.cluster import allocatable, device_plugin
from nodeagent.cluster.client import Client
from nodeagent.cluster.failures import Forbidden, NotFound, Unreachable
from nodeagent.errors import WaitTimeout
from nodeagent.settings import Settings
from tests.cluster.kubelet import Plugin
from tests.cluster.proxy import Proxy
from tests.cluster.server import Server

EIGHT = {"openshift.io/vfs": "8"}
NONE = {"openshift.io/vfs": "0"}


@pytest.fixture
def plugin(server: Server, namespace: str, node: str) -> Plugin:
    return Plugin(server, namespace, node)


def test_all_pods_of_all_labels_go_by_uid(
    client: Client, settings: Settings, node: str, plugin: Plugin, proxy: Proxy
) -> None:
    names = {plugin.make() for _ in range(2)}
    other = replace(plugin, labels={"name": "sriov-device-plugin"}, uid="0b5e", made=[])
    names.add(other.make())
    Plugin(plugin.server, plugin.namespace, "another-node").make()
    Plugin(plugin.server, plugin.namespace, node, labels={"app": "web"}).make()
    done = device_plugin.restart(client, settings, node, wait=False)
    assert done is not None
    assert {name.partition("/")[2] for name in done.deleted} == names
    going = {
        p["metadata"]["name"] for p in plugin.alive() if p["metadata"].get("deletionTimestamp")
    }
    assert going == names
    assert [s.method for s in proxy.seen].count("DELETE") == 3


def test_wait_until_the_node_has_what_it_had(
    client: Client, settings: Settings, node: str, plugin: Plugin, proxy: Proxy
) -> None:
    plugin.make()
    plugin.dip, plugin.report = NONE, EIGHT
    with plugin.playing():
        done = device_plugin.restart(client, settings, node, wait=True)
    assert done is not None
    assert done.resources == {"openshift.io/vfs": 8}
    assert len(plugin.made) == 2
    assert proxy.count() <= 8
    lists = [s.path for s in proxy.seen if "/pods?" in s.path and "watch=true" not in s.path]
    assert lists
    assert all("resourceVersion=0" in path for path in lists), "each reads every pod there is"


def test_old_numbers_are_not_believed_at_once(
    client: Client, settings: Settings, node: str, plugin: Plugin
) -> None:
    plugin.make()
    with plugin.playing():
        done = device_plugin.restart(client, settings, node, wait=True)
    assert done is not None
    assert done.seconds >= settings.allocatable_settle


def test_what_the_record_says_is_wanted_and_then_forgotten(
    client: Client, settings: Settings, node: str, plugin: Plugin, server: Server
) -> None:
    allocatable.save(client, node, settings.state_dir, in_flight=False)
    server.merge(f"/api/v1/nodes/{node}/status", {"status": {"allocatable": NONE}})
    assert allocatable.save(client, node, settings.state_dir, in_flight=True).resources == {
        "openshift.io/vfs": 8
    }
    plugin.make()
    plugin.report = {"openshift.io/vfs": "6"}
    impatient = replace(settings, device_plugin_timeout=1.5)
    with plugin.playing(), pytest.raises(WaitTimeout, match=r"openshift.io/vfs: want 8, have 6"):
        device_plugin.restart(client, impatient, node, wait=True)
    plugin.report = EIGHT
    with plugin.playing():
        assert device_plugin.restart(client, settings, node, wait=True)
    assert allocatable.load(settings.state_dir) is None


def test_terminating_one_beside_a_new_one(
    client: Client, settings: Settings, node: str, plugin: Plugin, server: Server
) -> None:
    old, new = plugin.make(), plugin.make()
    server.delete(f"{plugin.path}/{old}", now=False)
    plugin.dip, plugin.report = NONE, EIGHT
    with plugin.playing():
        done = device_plugin.restart(client, settings, node, wait=True)
    assert done is not None
    left = {pod["metadata"]["name"] for pod in plugin.alive()}
    assert not left & {old, new}


@pytest.mark.parametrize("how", [("silent", "no successor"), ("unready", "not ready")])
def test_time_out_says_which_pod(
    client: Client, settings: Settings, node: str, plugin: Plugin, how: tuple[str, str]
) -> None:
    name = plugin.make()
    setattr(plugin, how[0], True)
    impatient = replace(settings, device_plugin_timeout=1.0)
    began = time.monotonic()
    with plugin.playing(), pytest.raises(WaitTimeout) as error:
        device_plugin.restart(client, impatient, node, wait=True)
    assert time.monotonic() - began < 6
    assert f"{plugin.namespace}/{name}" in str(error.value)
    assert how[1] in str(error.value)


def test_pods_that_were_not_admitted_are_listed(
    client: Client, settings: Settings, node: str, plugin: Plugin, server: Server
) -> None:
    plugin.make()
    plugin.dip, plugin.report = NONE, EIGHT
    unlucky = Plugin(server, plugin.namespace, node, labels={"app": "web"}).make()
    failed = {
        "phase": "Failed",
        "reason": "UnexpectedAdmissionError",
        "message": "Allocate failed due to requested number of devices unavailable",
    }
    server.merge(f"{plugin.path}/{unlucky}/status", {"status": failed})
    with plugin.playing():
        done = device_plugin.restart(client, settings, node, wait=True)
    assert done is not None
    assert done.failed == (
        f"{plugin.namespace}/{unlucky}: Allocate failed due to requested number of devices "
        "unavailable",
    )


def test_pod_without_a_controller_is_left(
    client: Client, settings: Settings, node: str, plugin: Plugin
) -> None:
    plugin.uid = ""
    name = plugin.make()
    done = device_plugin.restart(client, settings, node, wait=False)
    assert done is not None
    assert done.left == (f"{plugin.namespace}/{name}",)
    assert not done.deleted


def test_no_pods_is_no_failure(client: Client, settings: Settings, node: str) -> None:
    assert device_plugin.restart(client, settings, node, wait=True) is None


def test_one_that_was_replaced_meanwhile_is_not_deleted(
    client: Client, settings: Settings, node: str, plugin: Plugin, proxy: Proxy
) -> None:
    plugin.make()
    proxy.fail(method="DELETE", status=409)
    done = device_plugin.restart(client, settings, node, wait=False)
    assert done is not None
    assert not any(pod["metadata"].get("deletionTimestamp") for pod in plugin.alive())


def test_forbidden_and_unreachable_and_no_such_node(
    client: Client, settings: Settings, node: str, proxy: Proxy, plugin: Plugin
) -> None:
    plugin.make()
    with pytest.raises(NotFound, match="has no node"):
        allocatable.listing(client, "nowhere")
    proxy.fail(status=403, times=1)
    with pytest.raises(Forbidden, match="forbidden"):
        device_plugin.restart(client, settings, node, wait=True)
    client.patience = 0.5
    proxy.fail(cut=True, times=99)
    with pytest.raises(Unreachable, match="not reachable"):
        device_plugin.restart(client, settings, node, wait=True)
