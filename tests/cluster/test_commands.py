"""The commands from outside: what they print, and a status that a script can tell apart."""

from __future__ import annotations

import json
import signal

from tests.cluster.commands import Pod
from tests.cluster.conftest import eventually
from tests.cluster.kubelet import Plugin
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
    assert "hint: look at the device plugin's log" in late.stderr

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


def test_prune_without_a_list_asks_nobody(pod: Pod, proxy: Proxy) -> None:
    done = pod.run("device-plugin", "prune")
    assert done.returncode == 0, done.stderr
    assert proxy.count() == 0
