"""The node with a ConnectX: how its cards are plugged, and what a build of its QEMU touches."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from emulator import packages, qemu  # noqa: E402 - scripts/ is no installed package
from emulator.build import Builder  # noqa: E402 - likewise
from emulator.host import LabError  # noqa: E402 - likewise
from emulator.machine import Made, Nic, Options, command_line  # noqa: E402 - likewise

PORTS = dict.fromkeys(("qmp", "ctl", "out", "err", "monitor", "guest"), 9)


def devices(kind: str, options: Options) -> list[dict[str, str]]:
    """The properties of each device of a kind, as QEMU is given them."""
    made = Made(Path("/qemu"), Path("/image"), None)
    argv = command_line(options, made, Path("/run"), PORTS)
    given = [value for name, value in itertools.pairwise(argv) if name == "-device"]
    return [
        dict(pair.split("=", 1) for pair in value.split(",")[1:])
        for value in given
        if value.split(",")[0] == kind
    ]


def first_vf(pf: dict[str, str]) -> int:
    return int(pf["addr"].removeprefix("0.")) + int(pf["vf-offset"])


@pytest.mark.parametrize(("pfs", "cards"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_two_pfs_are_the_ports_of_a_card(pfs: int, cards: int) -> None:
    options = Options(Nic.CONNECTX, pfs)
    found = {pf["id"]: pf for pf in devices("mlx5fw", options)}
    assert sorted(found) == [f"pf{index}" for index in range(pfs)]
    assert len(devices("pcie-root-port", options)) == cards
    for index in range(pfs):
        pf = found[f"pf{index}"]
        assert (pf["bus"], pf["addr"]) == (f"port{index // 2}", f"0.{index % 2}")
        assert pf["port"] == str(index % 2 + 1)
        # of one card, and so of one system image, for LAG
        assert pf["guid"] == found[f"pf{index // 2 * 2}"]["guid"]
    assert len({pf["mac"] for pf in found.values()}) == pfs
    assert len({pf["guid"] for pf in found.values()}) == cards


def test_each_function_says_which_comes_next_and_is_there_by_then() -> None:
    second, first = devices("mlx5fw", Options(Nic.CONNECTX, 2))
    assert (first["addr"], first["next"]) == ("0.0", "1")
    assert (second["addr"], second["next"]) == ("0.1", "0")
    [only] = devices("mlx5fw", Options(Nic.CONNECTX, 1))
    assert only["next"] == "0"


@pytest.mark.parametrize("vfs", [1, 8, 127])
def test_the_vfs_of_two_pfs_share_a_bus(vfs: int) -> None:
    pfs = devices("mlx5fw", Options(Nic.CONNECTX, 2, vfs))
    taken = [0, 1]
    for pf in pfs:
        taken += range(first_vf(pf), first_vf(pf) + vfs)
    assert len(set(taken)) == 2 + 2 * vfs
    assert max(taken) <= 255
    [port] = devices("pcie-root-port", Options(Nic.CONNECTX, 2, vfs))
    window = int(port["pref64-reserve"].removesuffix("M"))
    assert window >= 2 * (16 + vfs)
    assert window & (window - 1) == 0


def test_no_two_functions_have_the_same_id_in_firmware() -> None:
    pfs = devices("mlx5fw", Options(Nic.CONNECTX, 8, 127))
    ids = [int(pf["vhca"]) + vport for pf in pfs for vport in range(128)]
    assert len(set(ids)) == len(ids)


def test_a_state_is_told_by_all_that_makes_the_machine() -> None:
    options = [
        Options(),
        Options(Nic.CONNECTX),
        Options(Nic.CONNECTX, vfs=64),
        Options(Nic.CONNECTX, pfs=1),
        Options(Nic.CONNECTX, virtual_time=True),
    ]
    assert len({each.name for each in options}) == len(options)


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    directory = tmp_path / "headers" / "include" / "linux" / "mlx5"
    directory.mkdir(parents=True)
    (directory / "mlx5_ifc.h").write_text("layouts\n")
    return tmp_path / "headers"


def test_what_did_not_change_is_not_compiled_again(tmp_path: Path, headers: Path) -> None:
    target = tmp_path / "connectx"
    qemu.put_device(target, headers)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.*")}
    assert target / "meson.build" in before
    (headers / "include" / "linux" / "mlx5" / "mlx5_ifc.h").write_text("others\n")
    (target / "gone.c").touch()
    qemu.put_device(target, headers)
    after = {path: path.stat().st_mtime_ns for path in target.rglob("*.*")}
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"mlx5_ifc.h"}
    assert not (target / "gone.c").exists()


def test_every_source_of_the_device_is_compiled_and_says_its_licence(
    tmp_path: Path, headers: Path
) -> None:
    qemu.put_device(tmp_path / "connectx", headers)
    recipe = (tmp_path / "connectx" / "meson.build").read_text()
    for path in qemu.device_files():
        assert "SPDX-License-Identifier: GPL-2.0-or-later" in path.read_text()[:100]
        assert (f"'{path.name}'" in recipe) == (path.suffix == ".c")


@pytest.mark.parametrize("kind", [LabError, packages.MirrorMovedOn])
def test_where_its_qemu_cannot_be_built_igb_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LabError]
) -> None:
    """A mirror need not have sources; one that has moved on is asked twice."""
    asked = []

    def no_source(*_: object, **__: object) -> str:
        asked.append(1)
        raise kind("this machine's package sources have no source of qemu", hint="add one")

    def chosen(*_: object, **__: object) -> packages.Chosen:
        return packages.Chosen("bookworm", "6.12.1+deb12-amd64", "6.12.1-1", "gcc-12", {})

    monkeypatch.setattr(packages, "choose_qemu", no_source)
    monkeypatch.setattr(packages, "choose", chosen)
    with pytest.raises(LabError, match="no source of qemu") as raised:
        Builder(tmp_path).ready(Options(Nic.CONNECTX))
    assert raised.value.hint == (
        "add one. The igb node needs no QEMU of its own: --nic igb, the default"
    )
    assert len(asked) == (2 if kind is packages.MirrorMovedOn else 1)
