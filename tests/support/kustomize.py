"""A kustomization as objects: the features that manifests/ uses, and a refusal of all others.

Resources (files and folders), components, and strategic merge patches by file. What a list's items
are known by is Kubernetes' own patch merge key (`name`, for mounts `mountPath`). Where kubectl is
installed a test holds this against `kubectl kustomize`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

Object = dict[str, Any]

KINDS: Final = {"Kustomization", "Component"}
KNOWN: Final = {"apiVersion", "kind", "resources", "components", "patches", "configurations"}
"""Configurations name what a renaming changes: nothing is renamed here."""
MERGE_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}


def render(directory: Path, *components: Path) -> list[Object]:
    """Every object of a kustomization. ValueError for a feature that is not known here.

    `components`: as if it named those, too.
    """
    found = _rendered(directory, [])
    for component in components:
        found = _rendered(component, found)
    return found


def _rendered(directory: Path, objects: list[Object]) -> list[Object]:
    told = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = told.keys() - KNOWN
    if unknown or told["kind"] not in KINDS:
        raise ValueError(f"{directory}: {', '.join(unknown) or told['kind']}: not known here")
    found = [*objects]
    for name in told.get("resources", []):
        path = directory / name
        if path.is_dir():
            found += _rendered(path, [])
        else:
            found += yaml.safe_load_all(path.read_text())
    for name in told.get("components", []):
        found = _rendered(directory / name, found)
    for patch in told.get("patches", []):
        if patch.keys() != {"path"}:
            raise ValueError(f"{directory}: a patch with {', '.join(patch)}: not known here")
        for change in yaml.safe_load_all((directory / patch["path"]).read_text()):
            (target,) = [each for each in found if identity(each) == identity(change)]
            found[found.index(target)] = _merged(target, change)
    return found


def identity(thing: Object) -> tuple[str, str, str, str]:
    """What an object is known by: version, kind, namespace, name."""
    facts = thing["metadata"]
    return thing["apiVersion"], thing["kind"], facts.get("namespace", ""), facts["name"]


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        both = {name: _merged(old[name], new[name], name) for name in old.keys() & new.keys()}
        return {name: value for name, value in (old | new | both).items() if value is not None}
    if isinstance(old, list) and isinstance(new, list) and key in MERGE_KEYS:
        return _merged_lists(old, new, MERGE_KEYS[key])
    return new


def _merged_lists(old: list[Object], new: list[Object], key: str) -> list[Object]:
    """Items of both, the patch's first and in its order, as kustomize has it."""
    known = {item[key]: item for item in old}
    changed = {item[key] for item in new}
    merged = [_merged(known[item[key]], item) if item[key] in known else item for item in new]
    return merged + [item for item in old if item[key] not in changed]
