"""The field's cases in real time, played beside the other tests: what takes half a minute there.

Each has an operator, a proxy and a namespace of its own; the commands are run as processes.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import proxy as proxies
from tests.cluster.commands import Pod
from tests.cluster.kubelet import Plugin
from tests.cluster.operator import SRIOV, Operator, network
from tests.cluster.proxy import Proxy
from tests.cluster.server import ADMIN_TOKEN, Server

SLOW = 35.0
"""Seconds until a slow operator makes what it should: the field saw 30 to 120."""
EIGHT = {"openshift.io/vfs": "8"}
NONE = {"openshift.io/vfs": "0"}


@dataclass(frozen=True)
class Done:
    """How a command ended; `seconds` is how long it took."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.stdout)


Story = dict[str, Done]
"""What each command of a case said."""


@contextmanager
def playing(server: Server, directory: Path) -> Iterator[dict[str, Future[Story]]]:
    """All cases at once; each ends by itself."""
    cases = {
        "slow": _slow,
        "silent after a restart": _silent_after_restart,
        "device plugins restarted": _plugins_restarted,
    }
    with ThreadPoolExecutor(len(cases)) as pool:
        yield {
            name: pool.submit(_play, server, directory / f"case-{number}", case)
            for number, (name, case) in enumerate(cases.items())
        }


def _play(
    server: Server, directory: Path, case: Callable[[Server, Proxy, Pod, str], Story]
) -> Story:
    namespace = f"case-{uuid.uuid4().hex[:8]}"
    server.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    server.create("/api/v1/nodes", {"metadata": {"name": namespace}})
    directory.mkdir()
    (directory / "ca.crt").write_bytes(server.certificate.read_bytes())
    (directory / "token").write_text(ADMIN_TOKEN)
    with proxies.in_front_of(server) as proxy:
        pod = Pod(
            {
                "NODE_NAME": namespace,
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(proxy.port),
                "SERVICE_ACCOUNT_DIR": str(directory),
                "OPERATOR_NAMESPACES": namespace,
                "STATE_DIR": str(directory / "state"),
            }
        )
        return case(server, proxy, pod, namespace)


def _slow(server: Server, proxy: Proxy, pod: Pod, namespace: str) -> Story:
    with Operator(server, proxy, namespace, delay=SLOW).playing():
        network(server, namespace, "net", "vfs", namespace)
        wait = _timed(pod, "network", "wait", "net", "-n", namespace, "--output", "json")
    return {"wait": wait}


def _silent_after_restart(server: Server, proxy: Proxy, pod: Pod, namespace: str) -> Story:
    """It worked; a new pod of it says that it starts, and nothing any more."""
    first = Operator(server, proxy, namespace)
    with first.playing():
        network(server, namespace, "before", "vfs", namespace)
        good = _timed(pod, "network", "wait", "before", "-n", namespace)
    server.delete(f"/api/v1/namespaces/{namespace}/pods/{first.pod}")
    second = Operator(server, proxy, namespace, mode="silent")
    with second.playing():
        changed = f"{SRIOV}/namespaces/{namespace}/sriovnetworks/before"
        server.merge(changed, {"spec": {"vlan": 7}})
        network(server, namespace, "after", "vfs", namespace)
        check = _timed(pod, "operator", "check", "--output", "json")
        late = _timed(pod, "network", "wait", "after", "-n", namespace, "--timeout", "1")
    return {"good": good, "check": check, "late": late}


def _plugins_restarted(server: Server, _proxy: Proxy, pod: Pod, namespace: str) -> Story:
    """The node has what it had: once the kubelet has not said so, once it has reported none before.

    Two seconds until a plugin is gone, and with a report before it is made, two more.
    """
    plugin = Plugin(server, namespace, namespace, delay=2.0)
    plugin.say(EIGHT)
    plugin.make()
    pod.environment["DEVICE_PLUGIN_NAMESPACES"] = namespace
    restart = ("device-plugin", "restart", "--wait")
    with plugin.playing():
        unchanged = _timed(pod, *restart)
        plugin.dip, plugin.report = NONE, EIGHT
        fell = _timed(pod, *restart)
    return {"unchanged": unchanged, "fell": fell}


def _timed(pod: Pod, *arguments: str) -> Done:
    began = time.monotonic()
    done: subprocess.CompletedProcess[str] = pod.run(*arguments, timeout=150)
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
