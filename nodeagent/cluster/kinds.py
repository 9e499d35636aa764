"""The kinds of objects that nodeagent uses, and their paths at the API server.

With the paths listed here, no discovery requests are necessary: from 1000 nodes at once they would
be a load, and the answers do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    """A kind: API group ("" is the core group), version, kind, plural, and its scope."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of a manifest: `v1`, `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, name: str | None = None, namespace: str | None = None) -> str:
        """The URL path of an object, of all objects in a namespace, or of all objects."""
        prefix = f"/apis/{self.group}" if self.group else "/api"
        within = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{prefix}/{self.version}{within}/{self.plural}" + (f"/{name}" if name else "")

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


EVENT: Final = Kind("", "v1", "Event", "events")
NAMESPACE: Final = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
NODE: Final = Kind("", "v1", "Node", "nodes", namespaced=False)
POD: Final = Kind("", "v1", "Pod", "pods")
ENDPOINTS: Final = Kind("", "v1", "Endpoints", "endpoints")
LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")
_WEBHOOKS: Final = "admissionregistration.k8s.io"
VALIDATING: Final = Kind(
    _WEBHOOKS,
    "v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    namespaced=False,
)
MUTATING: Final = Kind(
    _WEBHOOKS,
    "v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
    namespaced=False,
)
NETWORK_ATTACHMENT: Final = Kind(
    "k8s.cni.cncf.io",
    "v1",
    "NetworkAttachmentDefinition",
    "network-attachment-definitions",
)
_SRIOV: Final = "sriovnetwork.openshift.io"
SRIOV_NETWORK: Final = Kind(_SRIOV, "v1", "SriovNetwork", "sriovnetworks")
SRIOV_IB_NETWORK: Final = Kind(_SRIOV, "v1", "SriovIBNetwork", "sriovibnetworks")
OVS_NETWORK: Final = Kind(_SRIOV, "v1", "OVSNetwork", "ovsnetworks")
SRIOV_POLICY: Final = Kind(_SRIOV, "v1", "SriovNetworkNodePolicy", "sriovnetworknodepolicies")
SRIOV_POOL: Final = Kind(_SRIOV, "v1", "SriovNetworkPoolConfig", "sriovnetworkpoolconfigs")
SRIOV_CONFIG: Final = Kind(_SRIOV, "v1", "SriovOperatorConfig", "sriovoperatorconfigs")
_OLM: Final = "operators.coreos.com"
SUBSCRIPTION: Final = Kind(_OLM, "v1alpha1", "Subscription", "subscriptions")
OPERATOR_GROUP: Final = Kind(_OLM, "v1", "OperatorGroup", "operatorgroups")
CATALOG_SOURCE: Final = Kind(_OLM, "v1alpha1", "CatalogSource", "catalogsources")
DIGEST_MIRRORS: Final = Kind(
    "config.openshift.io", "v1", "ImageDigestMirrorSet", "imagedigestmirrorsets", namespaced=False
)
CONTENT_POLICY: Final = Kind(
    "operator.openshift.io",
    "v1alpha1",
    "ImageContentSourcePolicy",
    "imagecontentsourcepolicies",
    namespaced=False,
)
NODE_ENI: Final = Kind("networking.k8s.aws", "v1alpha1", "NodeENI", "nodeenis", namespaced=False)
