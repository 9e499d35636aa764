"""scripts/release: what it makes, and that it makes nothing of a version that does not agree."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from container import release, sbom  # noqa: E402 - scripts/ is no installed package
from container.recipe import version  # noqa: E402 - likewise
from emulator.host import LabError  # noqa: E402 - likewise

import nodeagent  # noqa: E402 - likewise
from tests.support.helm import helm  # noqa: E402 - likewise


def test_there_is_one_version() -> None:
    assert version() == nodeagent.__version__
    assert "ARG VERSION=unknown\n" in (ROOT / "Containerfile").read_text()
    assert release.released(f"v{version()}") == version()
    assert release.notes_of((ROOT / "CHANGELOG.md").read_text(), "0.2.0")


def test_a_tag_of_another_version_is_refused() -> None:
    with pytest.raises(LabError, match="the tag is v9, nodeagent's version is"):
        release.released("v9")


def test_a_version_that_the_changelog_does_not_have_is_refused() -> None:
    text = "## [Unreleased]\n\n- x\n\n## [1.0] - 2026-01-02\n\n- first\n\n## [0.9] - 2026-01-01\n\n"
    assert release.notes_of(text, "1.0") == "- first\n"
    for missing in ("0.9", "1.1", "110"):
        with pytest.raises(LabError, match=r"CHANGELOG\.md has no section"):
            release.notes_of(text, missing)


def test_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT_URL", "https://example.org/nodeagent/")
    release.wheel(tmp_path)
    (made,) = tmp_path.iterdir()
    assert made.name == f"nodeagent-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(made) as wheel:
        names = wheel.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        facts = wheel.read(metadata).decode().partition("\n\n")[0].splitlines()
    assert f"Version: {version()}" in facts
    assert "License-Expression: Apache-2.0" in facts
    assert "Project-URL: Issues, https://example.org/nodeagent/issues" in facts
    assert "Classifier: Typing :: Typed" in facts
    assert {"nodeagent/py.typed", "nodeagent/probe.sh"} <= {*names}
    assert [name for name in names if name.endswith("/share/man/man8/nodeagent.8")]


def test_without_an_address_the_wheel_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROJECT_URL", raising=False)
    release.wheel(tmp_path)
    (made,) = tmp_path.iterdir()
    with zipfile.ZipFile(made) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        assert "Project-URL" not in wheel.read(metadata).decode()


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("1")
    (tmp_path / "a b").write_text("2")
    (tmp_path / "SHA256SUMS").write_text(release.checksums(tmp_path))
    argv = ("sha256sum", "--check", "--strict", "SHA256SUMS")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "a b: OK\nb: OK\n"


def chart_of(directory: Path, number: str) -> Path:
    directory.mkdir(parents=True)
    text = f'apiVersion: v2\nname: nodeagent\nversion: {number}\nappVersion: "{number}"\n'
    (directory / "Chart.yaml").write_text(text)
    return directory


def test_the_chart(tmp_path: Path) -> None:
    release.chart(chart_of(tmp_path / "one", "1.0"), tmp_path, "1.0")
    with tarfile.open(tmp_path / "nodeagent-chart-1.0.tgz") as packed:
        assert packed.getnames() == ["nodeagent", "nodeagent/Chart.yaml"]
    with pytest.raises(LabError, match=r"is of version 0\.9 for 0\.9"):
        release.chart(chart_of(tmp_path / "two", "0.9"), tmp_path, "1.0")


def test_the_chart_of_this_tree_is_one_that_helm_reads(tmp_path: Path) -> None:
    release.chart(ROOT / "manifests" / "chart", tmp_path, version())
    with helm().Chart.load(tmp_path / f"nodeagent-chart-{version()}.tgz") as chart:
        assert (chart.name, chart.version) == ("nodeagent", version())
        assert chart.metadata["appVersion"] == version()
        assert "kind: DaemonSet" in chart.render({}, name="x")["nodeagent/templates/objects.yaml"]


def packed(files: dict[str, bytes], *, compressed: bool = False) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def image_of(*layers: dict[str, str]) -> bytes:
    """An OCI archive with these layers."""
    blobs = [packed({k: v.encode() for k, v in layer.items()}, compressed=True) for layer in layers]

    def named(blob: bytes) -> str:
        return f"sha256:{sha256(blob).hexdigest()}"

    manifest = json.dumps({"layers": [{"digest": named(blob)} for blob in blobs]}).encode()
    index = json.dumps({"manifests": [{"digest": named(manifest)}]}).encode()
    files = {f"blobs/{named(blob).replace(':', '/')}": blob for blob in (manifest, *blobs)}
    return packed({"index.json": index, **files})


PACKAGE = "Package: {}\nStatus: {}\nVersion: {}\nArchitecture: amd64\nDescription: x\n more\n\n"


def test_the_bill_of_materials_is_of_the_last_layers(tmp_path: Path) -> None:
    installed, removed = "install ok installed", "deinstall ok config-files"
    base = PACKAGE.format("perl", installed, "5.36")
    status = PACKAGE.format("kmod", installed, "1:30+b1") + PACKAGE.format("perl", removed, "5.36")
    site = "usr/lib/python3/dist-packages/PyYAML-6.0.dist-info/METADATA"
    archive = tmp_path / "image.oci.tar"
    layers = (
        {sbom.DPKG: base},
        {f"./{sbom.DPKG}": status, site: "Name: PyYAML\nVersion: 6.0\n\n# x"},
    )
    archive.write_bytes(image_of(*layers))
    bill = json.loads(sbom.of_image(archive, "nodeagent:driver", "1.0"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert bill["metadata"]["component"]["name"] == "nodeagent:driver"
    assert [each["purl"] for each in bill["components"]] == [
        "pkg:deb/debian/kmod@1%3A30%2Bb1?arch=amd64",
        "pkg:pypi/pyyaml@6.0",
    ]
