"""What is in an image, as CycloneDX (ECMA-424): Debian's packages and Python's, from its layers.

dpkg lists its packages in var/lib/dpkg/status, and each Python package has a METADATA (PEP 566) in
its dist-info. The database of rpm is not read: scripts/image makes Debian images.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import IO
from urllib.parse import quote

Component = dict[str, str]

DPKG = "var/lib/dpkg/status"
PYTHON = ".dist-info/METADATA"


def of_image(archive: Path, name: str, version: str) -> str:
    """The bill of materials of an OCI archive, as JSON. KeyError, ValueError: it is none."""
    found: dict[str, list[Component]] = {}
    for path, text in _lists(archive):
        found[path] = [*(_debian(text) if path == DPKG else _python(text))]
    components = sorted((each for part in found.values() for each in part), key=_order)
    image = {"type": "container", "name": name, "version": version}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": image},
        "components": components,
    }
    return json.dumps(bill, indent=1) + "\n"


def _order(component: Component) -> str:
    return component["purl"]


def _lists(archive: Path) -> Iterator[tuple[str, str]]:
    """Path and text of each list of packages. A later layer's replaces an earlier one's."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> IO[bytes]:
            if (file := outer.extractfile(f"blobs/{digest.replace(':', '/')}")) is None:
                raise ValueError(f"{archive}: {digest} is no file")
            return file

        index = json.load(outer.extractfile("index.json") or blob("index.json"))
        manifest = json.load(blob(index["manifests"][0]["digest"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"])) as inner:
                for member in inner:
                    path = member.name.removeprefix("./").lstrip("/")
                    is_list = path == DPKG or path.endswith(PYTHON)
                    if is_list and (file := inner.extractfile(member)) is not None:
                        yield path, file.read().decode()


def _debian(status: str) -> Iterator[Component]:
    for stanza in status.strip().split("\n\n"):
        facts = HeaderParser().parsestr(stanza)
        if facts["Status"] == "install ok installed":
            name, version = facts["Package"], facts["Version"]
            where = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={facts['Architecture']}"
            yield {"type": "library", "name": name, "version": version, "purl": where}


def _python(metadata: str) -> Iterator[Component]:
    facts = HeaderParser().parsestr(metadata)
    name, version = facts["Name"], facts["Version"]
    where = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"
    yield {"type": "library", "name": name, "version": version, "purl": where}
