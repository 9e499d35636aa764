"""What of the chart is generated: the objects of each overlay, and the schema of the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import yaml

from container.recipe import ROOT
from nodeagent import parse
from nodeagent.settings import Settings, Variable, rows
from tests.support.kustomize import Object, render

MANIFESTS: Final = ROOT / "manifests"
CHART: Final = MANIFESTS / "chart"
METRICS: Final = {
    **dict.fromkeys(("companion", "sidecar"), "metrics-sidecar"),
    **dict.fromkeys(("replace", "openshift"), "metrics"),
}
"""The component for metrics of each overlay."""
SCC: Final = {"companion": "scc-companion", "replace": "scc", "sidecar": "scc"}
"""The component with SecurityContextConstraints of each overlay that has none of its own."""
METRICS_TLS: Final = "metrics-tls"
"""The component that one may have after that one."""
SHARED: Final = ("device-plugins", "node-status", "sriov-operator")
"""Folders whose objects any overlay may be given."""

NOT_A_VALUE: Final = {
    *("DTK_OCP_COMPILED_DRIVER_VER", "DTK_OCP_DRIVER_BUILD", "NODE_NAME", "NVIDIA_NIC_DRIVER_VER"),
    *("BIND_DELAY_SEC", "NVIDIA_NIC_CONTAINER_VER", "USE_DKMS"),
}
"""Settings that the chart sets by itself, or that change nothing."""
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Read by the tools that a build runs."""

_OBJECT: Final = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_MODULE: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,54}"
_LABEL: Final = r"([A-Za-z0-9._-]{1,253}/)?[A-Za-z0-9._-]{1,63}=[A-Za-z0-9._-]{0,63}"
_PCI: Final = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


def _text(pattern: str) -> Object:
    return {"type": "string", "pattern": f"^({pattern})$"}


def _list(item: str, separator: str) -> Object:
    return _text(f"{item}({separator}{item})*")


_SECONDS: Final = {"type": "number", "maximum": 604800}
SCHEMAS: Final[dict[Callable[[str], object], Object]] = {
    parse.boolean: {"type": "boolean"},
    parse.seconds: {**_SECONDS, "minimum": 0.001},
    parse.pause: {**_SECONDS, "minimum": 0},
    parse.module_name: _text(_MODULE),
    parse.module_names: _list(_MODULE, ":"),
    parse.module_words: _text(f"|{_MODULE}( +{_MODULE})*"),
    parse.object_names: _list(_OBJECT, ","),
    parse.names_or_addresses: _list(f"({_OBJECT}|{_PCI})", ","),
    parse.label_selectors: _list(_LABEL, ","),
    parse.shell_words: {"type": "string"},
}
"""What a parser accepts. Without one a setting is no value of the chart: paths are the mounts'."""


def schema_of(row: Variable, default: object) -> Object | None:
    """The JSON schema of a setting's value; None if the chart does not let it be set."""
    if row.name in NOT_A_VALUE:
        return None
    if row.name == "NVIDIA_NIC_DRIVER_PATH":  # in the image, where its builder put the sources
        return _text(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
    match default:
        case StrEnum():
            return {"enum": [*type(default)]}
        case (StrEnum() as first, *_):
            return _text(f"none|({'|'.join(type(first))})(,({'|'.join(type(first))}))*")
    return SCHEMAS.get(row.parse)


def settings() -> Object:
    """The schema of each setting by its variable."""
    defaults = Settings.from_environment({})
    found = {row.name: schema_of(row, getattr(defaults, name)) for name, row in rows()}
    described = {
        row.name: {"description": row.reason, **schema}
        for _, row in rows()
        if (schema := found[row.name]) is not None
    }
    return described | {name: {"type": "string"} for name in PROXIES}


def objects_of(overlay: str) -> Object:
    """An overlay, and what its components for metrics add to it: without TLS, and with it."""
    directory, component = MANIFESTS / "overlays" / overlay, MANIFESTS / METRICS[overlay]
    plain = render(directory)
    metrics = render(directory, component)
    proxied = render(directory, component, MANIFESTS / METRICS_TLS)
    return {
        "objects": plain,
        "metrics": _added(plain, metrics),
        METRICS_TLS: _added(plain, proxied),
        "scc": render(directory, MANIFESTS / SCC[overlay])[len(plain) :] if overlay in SCC else [],
    }


def _added(plain: list[Object], more: list[Object]) -> Object:
    (pod,), (larger,) = ([_pod(each) for each in these if _pod(each)] for these in (plain, more))
    added = [each for each in more if each not in plain and not _pod(each)]
    return {
        "containers": [each for each in larger["containers"] if each not in pod["containers"]],
        "objects": [each for each in added if each["kind"] != "PrometheusRule"],
    }


def _pod(thing: Object) -> Object:
    """A DaemonSet's pod; {} for another kind."""
    found: Object = thing["spec"]["template"]["spec"] if thing["kind"] == "DaemonSet" else {}
    return found


def files() -> Iterator[tuple[Path, str]]:
    """Each generated file with its content."""
    for overlay in METRICS:
        yield CHART / "files" / f"{overlay}.yaml", _yaml(objects_of(overlay))
    policy = yaml.safe_load((MANIFESTS / "network-operator/nicclusterpolicy.yaml").read_text())
    yield CHART / "files/policy.yaml", _yaml({"objects": [policy]})
    alerts = yaml.safe_load((MANIFESTS / "metrics/prometheusrule.yaml").read_text())
    shared = {each: render(MANIFESTS / each) for each in SHARED}
    yield CHART / "files/shared.yaml", _yaml(shared | {"alerts": [alerts]})
    schema = CHART / "values.schema.json"
    told: dict[str, Any] = json.loads(schema.read_text())
    told["properties"]["settings"]["properties"] = settings()
    yield schema, json.dumps(told, indent=2) + "\n"


def _yaml(told: Object) -> str:
    # through JSON, so that nothing is the same object twice: YAML would have anchors for it
    text = yaml.safe_dump(json.loads(json.dumps(told)), sort_keys=False, width=100)
    return f"# Written by scripts/chart from the overlays and components beside this chart.\n{text}"


def main() -> None:
    """Write them."""
    for path, text in [*files()]:
        path.write_text(text)
