"""What scripts/image refuses: each of its checks of a finished image can fail."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from container import smoke  # noqa: E402 - scripts/ is no installed package
from container.local import Local  # noqa: E402
from emulator.host import LabError  # noqa: E402

pytestmark = pytest.mark.short

LABELS = ("title", "description", "licenses", "version", "revision")
GOOD: dict[str, Any] = {
    "config": {
        "Entrypoint": ["nodeagent"],
        "Cmd": ["sources"],
        "StopSignal": "SIGTERM",
        "Labels": {f"org.opencontainers.image.{name}": "it" for name in LABELS},
    }
}


def test_a_good_configuration() -> None:
    smoke._check_config(GOOD, "driver")
    with pytest.raises(LabError, match="Cmd is"):
        smoke._check_config(GOOD, "sidecar")


@pytest.mark.parametrize(
    ("key", "value"),
    [("Entrypoint", "nodeagent"), ("StopSignal", None), ("Entrypoint", ["/bin/sh", "-c", "x"])],
)
def test_a_wrong_configuration(key: str, value: object) -> None:
    wrong = copy.deepcopy(GOOD)
    wrong["config"][key] = value
    with pytest.raises(LabError, match=f"{key} is "):
        smoke._check_config(wrong, "driver")


@pytest.mark.parametrize("label", LABELS)
def test_a_label_that_is_missing(label: str) -> None:
    wrong = copy.deepcopy(GOOD)
    del wrong["config"]["Labels"][f"org.opencontainers.image.{label}"]
    with pytest.raises(LabError, match=f"no label {label}"):
        smoke._check_config(wrong, "driver")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As much of an image as its files are looked at."""
    package = tmp_path / "usr/local/lib/python3.11/dist-packages/nodeagent"
    (package / "__pycache__").mkdir(parents=True)
    (package / "agent.py").touch()
    (package / "__pycache__/agent.cpython-311.pyc").touch()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/rpm").touch()
    return tmp_path


def test_good_files(root: Path) -> None:
    smoke._check_files(root, "driver")


@pytest.mark.parametrize(
    "unwanted",
    ["usr/bin/gcc", "usr/bin/pip3", "usr/local/lib/python3.11/dist-packages/pip/x"],
)
def test_a_compiler_or_pip(root: Path, unwanted: str) -> None:
    (root / unwanted).parent.mkdir(exist_ok=True)
    (root / unwanted).touch()
    with pytest.raises(LabError, match=r"must not have: .*(gcc|pip)"):
        smoke._check_files(root, "driver")


def test_the_sidecar_installs_nothing(root: Path) -> None:
    with pytest.raises(LabError, match="must not have: usr/bin/rpm"):
        smoke._check_files(root, "sidecar")


def test_a_module_without_byte_code(root: Path) -> None:
    (root / "usr/local/lib/python3.11/dist-packages/nodeagent/late.py").touch()
    with pytest.raises(LabError, match=r"late\.py without byte code"):
        smoke._check_files(root, "driver")


def test_a_file_is_counted_once_however_many_names_it_has(root: Path) -> None:
    (root / "usr/bin/large").write_bytes(bytes(7_000_000))
    (root / "usr/bin/same").hardlink_to(root / "usr/bin/large")
    (root / "usr/bin/link").symlink_to("large")
    total, largest = smoke._sizes(root)
    assert total == 7
    assert largest.startswith("usr/bin 7 MB")


def test_a_start_that_takes_long(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = smoke._Tried(root)
    monkeypatch.setattr(smoke._Tried, "call", lambda *_: sum(range(5_000_000)))
    monkeypatch.setattr(smoke, "COLD_START", -1.0)
    with pytest.raises(LabError, match="nodeagent status takes"):
        tried.seconds("nodeagent", "status")


def test_on_a_machine_that_never_made_the_lab(tmp_path: Path) -> None:
    """apt's lists are fetched under a lock that lies beside them."""
    local = Local(tmp_path / "image", tmp_path / "lab/apt")
    fetched: list[bool] = []
    local.apt.update = lambda: fetched.append(True)  # type: ignore[method-assign]
    local.apt.need_lists()
    assert fetched == [True]
