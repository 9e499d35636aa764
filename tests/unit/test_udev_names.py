"""Interface names without ports: when the rule is there, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import udev_names
from nodeagent.settings import Settings
from tests.support import host as support
from tests.support.host import Host

PF = "0000:01:00.0"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = support.make(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made.script("bin/udevadm", f"#!/bin/sh\necho $* >>{tmp_path}/udevadm.calls\n")
    (tmp_path / "rules.d").mkdir()
    return made


def ensure(host: Host, *, wanted: bool = True) -> str | None:
    rule = host.root / "rules.d/77.rules"
    settings: Settings = replace(
        host.driver.settings, create_ifnames_udev=wanted, udev_rules_file=rule
    )
    udev_names.ensure(settings, host.root / "sys", host.root / "udev")
    return rule.read_text() if rule.exists() else None


def named(host: Host, path: str) -> None:
    host.pf(PF)
    host.interface(PF, "eth7", 7)
    host.file("udev/data/n7", f"I:123\nE:ID_NET_NAME=x\nE:ID_NET_NAME_PATH={path}\n")


@pytest.mark.parametrize("name", ["enp1s0f0np0", "enp1s0f1np3"])
def test_names_with_ports_stay(host: Host, name: str) -> None:
    named(host, name)
    (host.root / "rules.d/77.rules").touch()
    assert ensure(host) is None
    assert (host.root / "udevadm.calls").read_text() == "control --reload\n"


@pytest.mark.parametrize("name", ["enp1s0f0", "enp0s3", "enp1s0f0np4", "enp1s0f0v2"])
def test_names_without_ports_are_kept(host: Host, name: str) -> None:
    named(host, name)
    rule = ensure(host)
    assert rule is not None
    assert rule.count('DRIVERS=="mlx5_core"') == 2
    assert "s/np[0-3]$$// -e s/np[0-3]v/v/" in rule
    assert (host.root / "udevadm.calls").read_text() == "control --reload\n"


def test_nobody_asked(host: Host) -> None:
    named(host, "enp1s0f0")
    (host.root / "rules.d/77.rules").touch()
    assert ensure(host, wanted=False) is None


@pytest.mark.parametrize("there", [True, False])
def test_without_an_interface_what_is_there_stays(host: Host, there: bool) -> None:
    """An earlier run was killed with no driver loaded: nothing tells what names were."""
    if there:
        (host.root / "rules.d/77.rules").write_text("old")
    assert ensure(host) == ("old" if there else None)


def test_without_udevadm_udev_reads_it_by_itself(host: Host) -> None:
    named(host, "enp1s0f0")
    (host.root / "bin/udevadm").unlink()
    assert ensure(host) is not None
