"""The commands from outside: what they print, and a status that a script can tell apart."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cluster.commands import Pod
from tests.cluster.conftest import eventually
from tests.cluster.kubelet import Plugin
from tests.cluster.operator import CNI, NADS, Operator, attachment, network
from tests.cluster.proxy import Proxy
from tests.cluster.server import Server


def test_restart_says_what_it_did(pod: Pod, server: Server, namespace: str, node: str) -> None:
    plugin = Plugin(server, namespace, node, report={"openshift.io/vfs": "8"})
    name = plugin.make()
    plugin.dip = {"openshift.io/vfs": "0"}
    assert pod.run("device-plugin", "record").stdout == "openshift.io/vfs: 8\n"
    with plugin.playing():
        done = pod.run("device-plugin", "restart", "--wait", "--output", "json")
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    assert plain["deleted"] == [f"{namespace}/{name}"]
    assert plain["resources"] == {"openshift.io/vfs": 8}


def test_names_of_nodes_are_completed(pod: Pod, server: Server, node: str) -> None:
    words = "nodeagent node wait-mofed --node"
    asking = {"COMP_CWORD": "4", "_NODEAGENT_COMPLETE": "bash_complete"}
    there = Pod(pod.environment | asking | {"COMP_WORDS": f"{words} {node[:-2]}"}).run()
    assert (there.stdout, there.stderr) == (f"plain,{node}\n", "")
    none = Pod(pod.environment | asking | {"COMP_WORDS": f"{words} no-such"}).run()
    assert (none.stdout.strip(), none.stderr) == ("", "")


def test_another_node_than_ours(pod: Pod, server: Server, node: str) -> None:
    del pod.environment["NODE_NAME"]
    done = pod.run("node", "wait-mofed", "--timeout", "1", "--node", node)
    assert (done.returncode, done.stderr) == (0, "")
    done = pod.run("node", "wait-mofed", "--timeout", "1", "--node", "no-such")
    assert "the cluster has no node no-such" in done.stderr


def test_every_way_to_fail_has_its_own_status(pod: Pod, server: Server, proxy: Proxy) -> None:
    restart = ("device-plugin", "restart", "--wait")
    none = pod.run(*restart)
    assert (none.returncode, none.stderr.count("no device plugin pods on node")) == (66, 1)
    assert "error" not in none.stderr

    plugin = Plugin(
        server, pod.environment["DEVICE_PLUGIN_NAMESPACES"], pod.environment["NODE_NAME"]
    )
    plugin.make()
    proxy.fail(status=403)
    forbidden = pod.run(*restart)
    assert (forbidden.returncode, "forbidden" in forbidden.stderr) == (77, True)

    pod.environment["DEVICE_PLUGIN_TIMEOUT"] = "1"
    late = pod.run(*restart)
    assert (late.returncode, "timed out after 1 s" in late.stderr) == (75, True)
    assert "hint: see the device plugin's log" in late.stderr

    proxy.fail(cut=True, times=99)
    away = pod.run(*restart)
    assert (away.returncode, "not reachable" in away.stderr) == (69, True)

    seen = proxy.count()
    del pod.environment["NODE_NAME"]
    nameless = pod.run(*restart)
    assert (nameless.returncode, "NODE_NAME is not set" in nameless.stderr) == (78, True)
    assert proxy.count() == seen


def test_watch_nodeeni_ends_on_sigterm(pod: Pod, proxy: Proxy) -> None:
    process = pod.start("device-plugin", "prune", "--watch-nodeeni")
    eventually(lambda: any("watch=true" in seen.path for seen in proxy.seen))
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143
    assert "stopped by a signal" in process.communicate()[1]


def test_prune_restarts_only_if_the_file_changed(
    pod: Pod, server: Server, proxy: Proxy, namespace: str, node: str
) -> None:
    if not [*Path("/sys/bus/pci").glob("devices/*")]:
        pytest.skip("this machine has no PCI devices, so none can be told from one that is gone")
    file = Path(pod.environment["DEVICE_PLUGIN_CONFIG"])
    gone = {"resourceName": "gone", "selectors": {"pciAddresses": ["ffff:00:00.1"]}}
    foreign = {"resourceName": "foreign", "selectors": {"drivers": ["vfio-pci"]}}
    file.write_text(json.dumps({"resourceList": [gone, foreign]}))
    Plugin(server, namespace, node).make()
    assert (
        "would remove gone: ffff:00:00.1" in pod.run("device-plugin", "prune", "--dry-run").stdout
    )
    assert proxy.count() == 0
    proxy.fail(status=403)
    refused = pod.run("device-plugin", "prune")
    assert refused.returncode == 77
    assert "removed gone: ffff:00:00.1" in refused.stdout
    assert json.loads(file.read_text()) == {"resourceList": [foreign]}
    # the restart is owed, and made up for
    assert pod.run("device-plugin", "prune").returncode == 0
    assert [seen.method for seen in proxy.seen].count("DELETE") == 1
    seen = proxy.count()
    assert "nothing is to be removed" in pod.run("device-plugin", "prune").stdout
    assert proxy.count() == seen


def test_prune_without_a_list_asks_nobody(pod: Pod, proxy: Proxy) -> None:
    done = pod.run("device-plugin", "prune")
    assert done.returncode == 0, done.stderr
    assert proxy.count() == 0


def test_network_check_ends_like_diff(pod: Pod, server: Server, namespace: str) -> None:
    good = pod.run("network", "check", "-n", namespace, "--output", "json")
    assert (good.returncode, good.stdout) == (0, "[]\n"), good.stderr
    path = f"{CNI}/namespaces/{namespace}/{NADS}"
    server.create(path, attachment("bad", "openshift.io/vfs", in_config=False))
    bad = pod.run("network", "check", "-n", namespace)
    assert bad.returncode == 1
    (line,) = bad.stdout.splitlines()
    assert line.startswith(f"{namespace}/bad: no-resource-in-config: ")


def test_network_wait_prints_how_long_it_took(pod: Pod, server: Server, namespace: str) -> None:
    path = f"{CNI}/namespaces/{namespace}/{NADS}"
    server.create(path, attachment("net", "openshift.io/vfs"))
    done = pod.run("network", "wait", "net", "-n", namespace)
    assert done.stdout.startswith(f"{namespace}/net complete after "), done.stderr
    late = pod.run("network", "wait", "other", "-n", namespace, "--timeout", "0")
    assert late.returncode == 75
    assert f"hint: no SriovNetwork defines {namespace}/other" in late.stderr
    assert pod.run("network", "wait", "../x", "-n", namespace).returncode == 64


def test_operator_check_has_a_status(
    pod: Pod, server: Server, proxy: Proxy, namespace: str
) -> None:
    assert pod.run("operator", "check").returncode == 1
    with Operator(server, proxy, namespace).playing():
        network(server, namespace, "net", "vfs", namespace)
        done = pod.run("operator", "check")
    assert (done.returncode, "is working" in done.stdout) == (0, True), done.stdout + done.stderr
