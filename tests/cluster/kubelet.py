"""Plays kubelet and DaemonSet controller for device plugin pods, in a thread."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cluster.server import ApiError, Object, Server


@dataclass
class Plugin:
    """A DaemonSet of device plugins on one node.

    `silent`: no successor comes. `unready`: it comes, but never gets ready. `report` is what the
    node says when the new plugin has registered; `dip` what it says before.
    """

    server: Server
    namespace: str
    node: str
    labels: dict[str, str] = field(default_factory=lambda: {"app": "sriov-device-plugin"})
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    silent: bool = False
    unready: bool = False
    dip: dict[str, str] | None = None
    report: dict[str, str] | None = None
    delay: float = 0.2
    made: list[str] = field(default_factory=list)

    def make(self) -> str:
        """A new pod, ready if it may be; its name."""
        name = f"plugin-{uuid.uuid4().hex[:8]}"
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "plugin", "uid": self.uid}
        meta: Object = {"name": name, "labels": self.labels}
        if self.uid:
            meta["ownerReferences"] = [{**owner, "controller": True}]
        self.server.create(
            self.path,
            {
                "metadata": meta,
                "spec": {
                    "nodeName": self.node,
                    "containers": [{"name": "plugin", "image": "plugin"}],
                },
            },
        )
        ready = {"type": "Ready", "status": "False" if self.unready else "True"}
        self.server.merge(
            f"{self.path}/{name}/status", {"status": {"phase": "Running", "conditions": [ready]}}
        )
        self.made.append(name)
        return name

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def alive(self) -> list[Object]:
        """The pods that are there."""
        found: list[Object] = self.server.get(self.path)["items"]
        return found

    @contextmanager
    def playing(self) -> Iterator[None]:
        """While this lasts a pod that is to go goes, and a new one comes."""
        stop = threading.Event()
        thread = threading.Thread(target=self._play, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _play(self, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            for pod in self.alive():
                if pod["metadata"].get("deletionTimestamp"):
                    self.replace(pod["metadata"]["name"])

    def replace(self, name: str) -> None:
        """A pod goes, its successor comes and registers."""
        if self.dip is not None:
            self.say(self.dip)
        time.sleep(self.delay)
        self.server.delete(f"{self.path}/{name}")
        if not self.silent:
            self.make()
        if self.report is not None:
            time.sleep(self.delay)
            self.say(self.report)

    def say(self, resources: dict[str, str]) -> None:
        """What the kubelet reports of the node."""
        status = {"status": {"capacity": resources, "allocatable": resources}}
        try:
            self.server.merge(f"/api/v1/nodes/{self.node}/status", status)
        except ApiError as error:
            if error.status != 404:
                raise
