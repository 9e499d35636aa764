"""A fake SR-IOV operator: normal, slow, silent after a restart, overwriting what others patch."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.cluster.proxy import Proxy
from tests.cluster.server import ApiError, Object, Server

NADS = "network-attachment-definitions"
SRIOV = "/apis/sriovnetwork.openshift.io/v1"
CNI = "/apis/k8s.cni.cncf.io/v1"


@dataclass
class Operator:
    """One pod of the operator. `template` lacks `resourceName` where `buggy` (the field's bug)."""

    server: Server
    proxy: Proxy
    namespace: str
    mode: str = "normal"
    delay: float = 0.0
    buggy: bool = False
    prefix: str = "openshift.io"
    pod: str = field(default_factory=lambda: f"sriov-network-operator-{uuid.uuid4().hex[:6]}")
    log: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A log line as the kubelet hands it out."""
        self.log.append(f"{datetime.now(UTC).isoformat().replace('+00:00', '')}123Z {text}")

    def make_pod(self) -> None:
        """The operator's pod, its lease, and the first lines of its log."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        labels = {"name": "sriov-network-operator"}
        container = {"name": "sriov-network-operator", "image": "operator"}
        body = {
            "metadata": {"name": self.pod, "labels": labels},
            "spec": {"containers": [container]},
        }
        self.server.create(path, body)
        moment = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {"holderIdentity": f"{self.pod}_x", "leaseDurationSeconds": 15, "renewTime": moment}
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
        self.server.create(leases, {"metadata": {"name": f"{self.pod}.lease"}, "spec": spec})
        self.say("INFO Starting Controller {'controller': 'sriovnetwork'}")
        self.say("INFO Starting workers {'controller': 'sriovnetwork', 'worker count': 1}")
        self.proxy.logs[self.pod] = lambda: "\n".join(self.log) + "\n"

    @contextmanager
    def playing(self) -> Iterator[None]:
        """While this lasts it does what its mode says."""
        self.make_pod()
        stop = threading.Event()
        thread = threading.Thread(target=self._play, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _play(self, stop: threading.Event) -> None:
        if self.mode == "silent":
            return
        noticed: dict[str, float] = {}
        while not stop.wait(0.05):
            for network in self.server.get(f"{SRIOV}/namespaces/{self.namespace}/sriovnetworks")[
                "items"
            ]:
                uid = network["metadata"]["uid"]
                if uid not in noticed:
                    noticed[uid] = time.monotonic()
                    self.say(f"INFO Reconciling SriovNetwork {network['metadata']['name']}")
                if time.monotonic() - noticed[uid] >= self.delay:
                    self._reconcile(network)

    def _reconcile(self, network: Object) -> None:
        name = network["metadata"]["name"]
        space = network["spec"].get("networkNamespace", self.namespace)
        body = attachment(
            name,
            f"{self.prefix}/{network['spec']['resourceName']}",
            in_config=not self.buggy,
            owner=f"sriovnetwork.sriovnetwork.openshift.io/{self.namespace}/{name}",
        )
        path = f"{CNI}/namespaces/{space}/{NADS}"
        manager = "?fieldManager=sriov-network-operator"
        try:
            there = self.server.get(f"{path}/{name}")
        except ApiError:
            try:
                self.server.create(path + manager, body)
            except ApiError as error:
                self.say(f"ERROR {error}")
            return
        if there["spec"] != body["spec"]:
            self.server.merge(f"{path}/{name}", {"spec": body["spec"]}, "sriov-network-operator")


def network(server: Server, namespace: str, name: str, resource: str, into: str) -> None:
    """A SriovNetwork in `namespace` for the namespace `into`."""
    server.create(
        f"{SRIOV}/namespaces/{namespace}/sriovnetworks",
        {
            "apiVersion": "sriovnetwork.openshift.io/v1",
            "kind": "SriovNetwork",
            "metadata": {"name": name},
            "spec": {"resourceName": resource, "networkNamespace": into},
        },
    )


def attachment(
    name: str,
    resource: str,
    *,
    in_config: bool = True,
    annotated: bool = True,
    owner: str | None = None,
    config: str | None = None,
) -> Object:
    """A NetworkAttachmentDefinition as the operator makes it."""
    plugin = {"cniVersion": "1.0.0", "name": name, "type": "sriov", "vlan": 0, "ipam": {}}
    if in_config:
        plugin["resourceName"] = resource
    annotations = {}
    if annotated:
        annotations["k8s.v1.cni.cncf.io/resourceName"] = resource
    if owner:
        annotations["sriovnetwork.openshift.io/owner-ref"] = owner
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"config": json.dumps(plugin) if config is None else config},
    }
