"""What other projects' CustomResourceDefinitions say of the kinds that the manifests have.

The fields that are used here, with the types, patterns and requirements of the originals: the
server drops or refuses any other. Sources: openshift/api security/v1, prometheus-operator v0.91.
"""

from __future__ import annotations

from typing import Any, Final

Object = dict[str, Any]

_TEXT: Final = {"type": "string"}
_WORDS: Final = {"type": "array", "nullable": True, "items": _TEXT}
_FLAG: Final = {"type": "boolean"}
_STRATEGY: Final = {"type": "object", "nullable": True, "properties": {"type": _TEXT}}
_DURATION: Final = (
    "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$"
)


def _object(properties: Object, *required: str) -> Object:
    told = {"type": "object", "properties": properties}
    return told | ({"required": [*required]} if required else {})


_SCC: Final = _object(
    {
        **dict.fromkeys(("allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork"), _FLAG),
        **dict.fromkeys(("allowHostPID", "allowHostPorts", "allowPrivilegedContainer"), _FLAG),
        **dict.fromkeys(("allowPrivilegeEscalation", "readOnlyRootFilesystem"), _FLAG),
        **dict.fromkeys(("allowedCapabilities", "defaultAddCapabilities"), _WORDS),
        **dict.fromkeys(("requiredDropCapabilities", "volumes", "users", "groups"), _WORDS),
        **dict.fromkeys(("runAsUser", "seLinuxContext", "fsGroup"), _STRATEGY),
        "supplementalGroups": _STRATEGY,
        "priority": {"type": "integer", "format": "int32", "nullable": True},
    },
    *("allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork", "allowHostPID"),
    *("allowHostPorts", "allowPrivilegedContainer", "allowedCapabilities", "priority"),
    *("defaultAddCapabilities", "readOnlyRootFilesystem", "requiredDropCapabilities", "volumes"),
)
_ENDPOINT: Final = _object(
    {
        "port": _TEXT,
        "path": _TEXT,
        "interval": {"type": "string", "pattern": _DURATION},
        "scheme": {"type": "string", "enum": ["http", "https"]},
        "tlsConfig": _object({"insecureSkipVerify": _FLAG, "serverName": _TEXT}),
        "authorization": _object(
            {"type": _TEXT, "credentials": _object({"name": _TEXT, "key": _TEXT}, "key")}
        ),
        "relabelings": {
            "type": "array",
            "items": _object({"sourceLabels": _WORDS, "targetLabel": _TEXT, "action": _TEXT}),
        },
    }
)
_LABELS: Final = {"type": "object", "additionalProperties": _TEXT}
_POD_MONITOR: Final = _object(
    {
        "spec": _object(
            {
                "selector": _object({"matchLabels": _LABELS}),
                "podMetricsEndpoints": {"type": "array", "items": _ENDPOINT},
            },
            "selector",
        )
    },
    "spec",
)


_RULE: Final = _object(
    {
        "alert": _TEXT,
        "expr": {"x-kubernetes-int-or-string": True},
        "for": {"type": "string", "pattern": _DURATION},
        "labels": _LABELS,
        "annotations": _LABELS,
    },
    "expr",
)
_GROUP: Final = _object({"name": _TEXT, "rules": {"type": "array", "items": _RULE}}, "name")
_PROMETHEUS_RULE: Final = _object(
    {"spec": _object({"groups": {"type": "array", "items": _GROUP}})}, "spec"
)


def _definition(group: str, kind: str, plural: str, scope: str, schema: Object) -> Object:
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    spec = {"group": group, "scope": scope, "names": names, "versions": [version]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": spec,
    }


ALL: Final = (
    _definition(
        *("security.openshift.io", "SecurityContextConstraints", "securitycontextconstraints"),
        *("Cluster", _SCC),
    ),
    _definition("monitoring.coreos.com", "PodMonitor", "podmonitors", "Namespaced", _POD_MONITOR),
    _definition(
        *("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
        *("Namespaced", _PROMETHEUS_RULE),
    ),
)
