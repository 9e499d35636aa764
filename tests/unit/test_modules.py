"""Modules on disk and in the kernel: a tree like /sys, and a modinfo that is a real executable."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import KernelError, UnavailableError
from nodeagent.kernel import modules

MODINFO = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/calls"
while case $1 in -0) shift ;; -b) shift 2 ;; *) false ;; esac; do :; done
status=0
for module; do
    file="filename:       /lib/modules/x/$module.ko"
    case $module in
    mlx5_core)
        printf '%s\\0' "$file" 'description=two
lines: name=x' alias=pci:1 srcversion=ABCDEF depends= name=mlx5_core 'parm:           filename: x'
        ;;
    mlx5-ib) printf '%s\\0' "$file" 'vermagic=6.1.0 SMP ' ;;
    plain) printf '%s\\0' "name:           plain" "filename:       (builtin)" license=GPL ;;
    damaged)
        echo "modinfo: ERROR: could not get modinfo from '$module': Invalid argument" >&2
        printf '%s\\0' "$file"
        status=1
        ;;
    *) echo "modinfo: ERROR: Module $module not found." >&2; status=1 ;;
    esac
done
exit $status
"""


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    def make(module: str, **attributes: str) -> None:
        directory = tmp_path / "module" / module
        (directory / "holders").mkdir(parents=True)
        for name, value in attributes.items():
            (directory / name).write_text(value + "\n")

    make("mlx5_core", initstate="live", srcversion="0123", refcnt="2")
    make("ib_core", initstate="coming", srcversion="4567", refcnt="1")
    make("igb_without_srcversion", initstate="live", refcnt="0")
    make("built_in")
    for holder in ("mlx5_ib", "mlx5_vdpa"):
        (tmp_path / "module/mlx5_core/holders" / holder).symlink_to("/nowhere")
    return tmp_path


@pytest.fixture
def modinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "bin" / "modinfo"
    script.parent.mkdir()
    script.write_text(MODINFO)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return script


def calls(modinfo: Path) -> list[str]:
    return (modinfo.parent / "calls").read_text().splitlines()


def test_loaded(sysfs: Path) -> None:
    assert modules.is_loaded("mlx5_core", sysfs)
    assert modules.is_loaded("mlx5-core", sysfs)
    assert modules.loaded_srcversion("mlx5-core", sysfs) == "0123"


@pytest.mark.parametrize("module", ["ib_core", "built_in", "absent"])
def test_not_loaded(sysfs: Path, module: str) -> None:
    """A module that is still coming, a driver built into the kernel, and none at all."""
    assert not modules.is_loaded(module, sysfs)


def test_loaded_without_srcversion(sysfs: Path) -> None:
    assert modules.is_loaded("igb_without_srcversion", sysfs)
    assert modules.loaded_srcversion("igb_without_srcversion", sysfs) is None


def test_holders_and_refcount(sysfs: Path) -> None:
    assert modules.holders("mlx5_core", sysfs) == ("mlx5_ib", "mlx5_vdpa")
    assert modules.holders("absent", sysfs) == ()
    assert modules.refcount("mlx5_core", sysfs) == 2
    assert modules.refcount("built_in", sysfs) is None
    assert modules.refcount("absent", sysfs) is None


def test_installed(modinfo: Path) -> None:
    found = modules.installed("mlx5_core")
    assert found.srcversion == "ABCDEF"
    assert found.filename == "/lib/modules/x/mlx5_core.ko"
    assert found.fields == {"srcversion": "ABCDEF", "depends": "", "name": "mlx5_core"}
    assert calls(modinfo) == ["-0 mlx5_core"]


def test_several_are_one_look(modinfo: Path) -> None:
    """Built in, from before modules had a name in them, not there, not to be read."""
    found = modules.all_installed(("x", "plain", "mlx5-ib", "damaged", "mlx5_core"))
    assert list(found) == ["plain", "mlx5-ib", "mlx5_core"]
    assert found["plain"].filename == "(builtin)"
    assert found["plain"].srcversion is None
    assert found["mlx5-ib"].fields == {"vermagic": "6.1.0 SMP"}
    assert found["mlx5_core"].srcversion == "ABCDEF"
    assert modules.all_installed(("x",)) == {}
    assert calls(modinfo) == ["-0 x plain mlx5-ib damaged mlx5_core", "-0 x"]


def test_the_base_directory_is_given_only_when_there_is_one(modinfo: Path) -> None:
    modules.installed("mlx5_core", Path("/host"))
    assert calls(modinfo) == ["-0 -b /host mlx5_core"]


def test_not_installed(modinfo: Path) -> None:
    with pytest.raises(modules.NoSuchModule, match=r"no module x is installed under /host .*found"):
        modules.installed("x", Path("/host"))
    with pytest.raises(modules.NoSuchModule, match=r"kernel: .* could not get modinfo"):
        modules.installed("damaged")


def test_no_modinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError) as caught:
        modules.installed("mlx5_core")
    assert not isinstance(caught.value, modules.NoSuchModule)
    assert caught.value.hint == "install the package kmod"


@pytest.mark.parametrize("name", ["mlx5_core", "pci-hyperv-intf", "_", "8021q", "a" * 55])
def test_valid_names(name: str) -> None:
    assert modules.valid_module_name(name)


@pytest.mark.parametrize("name", ["", "-r", "a b", "a/b", "../x", "a\n", "é", "a" * 56, "a.ko"])
def test_invalid_names(name: str) -> None:
    assert not modules.valid_module_name(name)


@given(st.text())
def test_a_valid_name_is_safe_in_a_path_and_on_a_command_line(name: str) -> None:
    if modules.valid_module_name(name):
        assert not set(name) & set("/. \n\0")
        assert not name.startswith("-")


@pytest.mark.parametrize("said", ["a\\nb", "a\\tb", "a" * 5000])
def test_modinfo_that_says_rubbish(modinfo: Path, said: str) -> None:
    """It would go on into messages, records and command lines."""
    modinfo.write_text(f"#!/bin/sh\nprintf 'filename: x\\0srcversion={said}\\0'\n")
    with pytest.raises(UnavailableError, match=r"printed an invalid srcversion: ") as caught:
        modules.installed("mlx5_core")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "name", ["-r", "--remove", "../x", "a b", "a\nb", "", "/etc/x.ko", "a" * 60]
)
@pytest.mark.parametrize("do", [modules.load, modules.unload])
def test_what_is_no_name_reaches_no_command_line(do: Callable[[str], None], name: str) -> None:
    """`depends` of a module's file comes here as well."""
    with pytest.raises(KernelError, match="is not the name of a module"):
        do(name)
