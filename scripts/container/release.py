"""Everything that a release consists of, in one directory, with checksums."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from emulator.host import FAILED, LabError, say

from container import sbom
from container.recipe import ROOT, TARGETS, version

EPILOG = """\
The directory then holds, for version X:

  nodeagent-X-py3-none-any.whl      the wheel; PROJECT_URL in the environment is its home page
  nodeagent-X-TARGET.oci.tar        the image of each target, tried, as scripts/image makes it
  nodeagent-X-TARGET.cdx.json       what is in that image (CycloneDX)
  nodeagent-chart-X.tgz             the Helm chart
  NOTES.md                          what CHANGELOG.md says of this version
  SHA256SUMS                        of all others: sha256sum --check SHA256SUMS

Nothing is published. Exit status 125: something is missing or does not agree with the version.
"""


def main() -> int:
    arguments = _parse(sys.argv[1:])
    try:
        number = released(arguments.tag)
        notes = notes_of((ROOT / "CHANGELOG.md").read_text(), number)
        arguments.out.mkdir(parents=True)
        (arguments.out / "NOTES.md").write_text(notes)
        wheel(arguments.out)
        if not arguments.no_images:
            images(arguments.out, number)
        chart(ROOT / "manifests" / "chart", arguments.out, number)
        sums = checksums(arguments.out)
        (arguments.out / "SHA256SUMS").write_text(sums)
    except FileExistsError:
        print(f"release: {arguments.out} is there already\nhint: name another", file=sys.stderr)
        return FAILED
    except LabError as error:
        print(f"release: {error}\nhint: {error.hint}", file=sys.stderr)
        return FAILED
    print(sums, end="")
    return 0


def released(tag: str | None) -> str:
    """The version; LabError if the tag names another."""
    number = version()
    if tag is not None and tag != f"v{number}":
        raise LabError(
            f"the tag is {tag}, nodeagent's version is {number}",
            hint="set __version__ in nodeagent/__init__.py in the commit that is tagged",
        )
    return number


def notes_of(changelog: str, number: str) -> str:
    """What the changelog says of a version; LabError if it says nothing."""
    heading = rf"^## \[{re.escape(number)}\] - \d{{4}}-\d\d-\d\d$"
    found = re.search(rf"{heading}\n+(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise LabError(
            f"CHANGELOG.md has no section for {number}", hint=f"head it: ## [{number}] - YYYY-MM-DD"
        )
    return found[1].strip() + "\n"


def wheel(out: Path) -> None:
    """The wheel, built by this Python's setuptools from a copy: the tree stays clean."""
    work = out / "work"
    shutil.copytree(
        ROOT / "nodeagent", work / "nodeagent", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("LICENSE", "README.md"):
        shutil.copy(ROOT / name, work)
    declared = (ROOT / "pyproject.toml").read_text()
    (work / "pyproject.toml").write_text(declared + urls(os.environ.get("PROJECT_URL", "")))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    argv = (sys.executable, "-c", code, str(out.resolve()))
    done = subprocess.run(argv, cwd=work, capture_output=True, text=True, check=False)
    shutil.rmtree(work)
    if done.returncode:
        raise LabError(f"no wheel: {done.stderr[-2000:]}", hint="see setuptools' output above")


def urls(home: str) -> str:
    """The table of pyproject.toml that only the place that publishes knows; "" without a home."""
    home = home.rstrip("/")
    if not home:
        return ""
    found = {
        "Repository": home,
        "Issues": f"{home}/issues",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
    }
    lines = (f"{name} = {json.dumps(url)}" for name, url in found.items())
    return "\n".join(["", "[project.urls]", *lines, ""])


def images(out: Path, number: str) -> None:
    """Image and bill of materials of each target."""
    made = out / "images"
    if subprocess.run((ROOT / "scripts" / "image", "--out", made), check=False).returncode:
        raise LabError("no image", hint="scripts/image has said why")
    for target in TARGETS:
        archive = out / f"nodeagent-{number}-{target}.oci.tar"
        shutil.move(made / f"nodeagent-{target}.oci.tar", archive)
        say(f"what is in {archive.name}")
        bill = sbom.of_image(archive, f"nodeagent:{target}", number)
        archive.with_name(f"nodeagent-{number}-{target}.cdx.json").write_text(bill)
    made.rmdir()


def chart(directory: Path, out: Path, number: str) -> None:
    """The chart, as `helm package` packs it; LabError: it has another version."""
    declared = directory / "Chart.yaml"
    facts = dict(re.findall(r"""^(\w+): *["']?([^"'\s#]+)""", declared.read_text(), re.MULTILINE))
    if {facts.get("version"), facts.get("appVersion")} != {number}:
        raise LabError(
            f"{declared} is of version {facts.get('version')} for {facts.get('appVersion')}",
            hint=f"version and appVersion have to be {number}",
        )
    with tarfile.open(out / f"nodeagent-chart-{number}.tgz", "w:gz") as packed:
        packed.add(directory, facts["name"])


def checksums(out: Path) -> str:
    """A line for each file, as sha256sum(1) reads them."""
    files = sorted(path for path in out.iterdir() if path.is_file())
    return "".join(f"{_sha256(path)}  {path.name}\n" for path in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/release",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tag", help="the tag of this release; it must name nodeagent's version")
    parser.add_argument("--no-images", action="store_true", help="the rest only")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new directory")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
