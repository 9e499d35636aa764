"""What of a kustomization would fail on a node, said before anything is applied."""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import yaml

from container.chart import PROXIES
from nodeagent.errors import ConfigError
from nodeagent.modes import Mode
from nodeagent.settings import HoldOff, Settings, rows

Object = dict[str, Any]
REFERENCE: Final = re.compile(
    r"(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""An image's name as the kubelet accepts it (distribution/reference, regexp.go)."""
KNOWN: Final = {row.name for _, row in rows()} | {*PROXIES}
ARGUMENTS: Final = (*Mode, "sidecar", "metrics")
"""With which nodeagent's containers are started."""
NODE_STATUS: Final = "nodeagent-node-status"
"""The ClusterRole of the component node-status."""

EPILOG = """\
It renders DIRECTORY with `kubectl kustomize`, and looks at each container's image and at the
settings of nodeagent's containers. Exit status 0: nothing is wrong; 1: something is; 125: it cannot
be rendered. A field that Kubernetes does not have, or of another type, `kubectl apply` refuses.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="check-overlay",
        description="Say what is wrong with a kustomization of yours before it is applied.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIRECTORY", help="where your kustomization.yaml is")
    directory = parser.parse_args().directory
    try:
        told = subprocess.run(["kubectl", "kustomize", directory], stdout=-1, text=True, check=True)
    except FileNotFoundError:
        print(
            "check-overlay: no kubectl\nhint: install it; it renders the overlay", file=sys.stderr
        )
        return 125
    except subprocess.CalledProcessError:
        print(f"check-overlay: kubectl cannot render {directory}", file=sys.stderr)
        return 125
    found = [*problems([*yaml.safe_load_all(told.stdout)])]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


def problems(objects: list[Object]) -> Iterator[str]:
    """A line for each: where, what is wrong, what to do."""
    roles = {each["metadata"]["name"] for each in objects if each["kind"] == "ClusterRole"}
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "DaemonSet"]
    if not pods:
        yield "no DaemonSet: name one of manifests/overlays under `resources`"
    for pod in pods:
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            name = container["name"]
            yield from (f"{name}: {each}" for each in _image(container.get("image", "")))
            if _is_ours(container):
                may_write = any(role.endswith(NODE_STATUS) for role in roles)
                yield from (f"{name}: {each}" for each in _settings(container, may_write))


def _image(image: str) -> Iterator[str]:
    first, slash, _ = image.partition("/")
    if REFERENCE.fullmatch(image) is None:
        yield f"the image {image!r} is no image's name: set it under `images`"
    elif not slash or not (set(".:") & set(first) or first == "localhost"):
        yield f"the image {image} names no registry: set newName under `images`"
    elif "@" not in image and ":" not in image.rpartition("/")[2]:
        yield f"the image {image} has neither tag nor digest: set newTag under `images`"
    elif image.endswith(":latest"):
        yield f"the image {image} is another one tomorrow: set newTag under `images`"


def _is_ours(container: Object) -> bool:
    """Whether nodeagent is what runs in it, whatever the image's name."""
    probe = container.get("startupProbe", {}).get("exec", {}).get("command", [""])
    return probe[0] == "nodeagent" or container.get("args", [""])[0] in {"sidecar", "metrics"}


def _settings(container: Object, may_write: bool) -> Iterator[str]:
    mode = container.get("args", [""])[0]
    if mode not in ARGUMENTS:
        yield f"its argument is {mode!r}; allowed: {', '.join(ARGUMENTS)}"
    given = {each["name"]: each.get("value") or "" for each in container.get("env", [])}
    for name in sorted(given.keys() - KNOWN):
        near = difflib.get_close_matches(name, KNOWN, 1)
        yield f"{name} is no setting" + (f"; is it {near[0]}?" if near else "")
    good = {}
    for name in sorted(given.keys() & KNOWN):
        if not isinstance(given[name], str):
            yield f"{name} is {given[name]!r} and not text: put it in quotes"
            continue
        try:
            Settings.from_environment({name: given[name]})
            good[name] = given[name]
        except ConfigError as error:
            yield str(error)
    try:
        settings = Settings.from_environment(good)
        if mode in {*Mode}:
            settings.check_mode(mode, whole_life=True)
    except ConfigError as error:
        yield str(error)
        return
    writes = settings.node_condition or settings.node_annotations
    if (writes or HoldOff.CORDON in settings.hold_off) and not may_write:
        yield "NODE_CONDITION, NODE_ANNOTATIONS and HOLD_OFF=cordon need the component node-status"


if __name__ == "__main__":
    sys.exit(main())
