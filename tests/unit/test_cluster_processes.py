"""The agent starts short processes for the cluster, and needs none of them."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from nodeagent.agent import cluster_processes
from nodeagent.cli.cluster import require_client
from nodeagent.errors import RestoreFailed, Stopped, UnavailableError
from nodeagent.settings import ClusterIntegration, HoldOff, Settings

POD = replace(Settings(), api_host="10.0.0.1", node_name="n")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "posix_spawn", lambda _path, argv, *_a, **_k: calls.append(argv))
    return calls


@pytest.mark.parametrize(
    ("settings", "is_wanted"),
    [
        (Settings(), False),
        (POD, True),
        (replace(POD, node_name=None), False),
        (replace(POD, cluster_integration=ClusterIntegration.OFF), False),
        (replace(Settings(), cluster_integration=ClusterIntegration.ON), True),
    ],
)
def test_only_where_it_is_wanted(
    settings: Settings, is_wanted: bool, started: list[list[str]]
) -> None:
    cluster_processes.before_reload(settings)
    cluster_processes.after_reload(settings)
    commands = [argv[3:5] for argv in started]
    assert commands == (
        [["device-plugin", "record"], ["node", "after-reload"]] if is_wanted else []
    )


@pytest.mark.parametrize(
    ("settings", "is_wanted"),
    [
        (POD, False),
        (replace(POD, hold_off=(HoldOff.CORDON,)), True),
        (replace(POD, hold_off=tuple(HoldOff), cluster_integration=ClusterIntegration.OFF), False),
    ],
)
def test_a_cordon_is_asked_for_where_it_is_wanted(
    settings: Settings, is_wanted: bool, started: list[list[str]]
) -> None:
    cluster_processes.before_snapshot(settings)
    assert [argv[3:5] for argv in started] == ([["node", "cordon"]] if is_wanted else [])


@pytest.mark.parametrize(
    ("settings", "is_wanted"),
    [
        (POD, False),
        (replace(POD, hold_off=(HoldOff.CNI, HoldOff.PLUGIN)), True),
        (replace(POD, hold_off=tuple(HoldOff), cluster_integration=ClusterIntegration.OFF), False),
    ],
)
def test_device_plugins_are_restarted_without_vfs_where_it_is_wanted(
    settings: Settings, is_wanted: bool, started: list[list[str]]
) -> None:
    cluster_processes.without_vfs(settings)
    assert [argv[3:5] for argv in started] == ([["device-plugin", "hold-off"]] if is_wanted else [])


def test_a_failure_is_told_and_a_stop_is_not_the_end(started: list[list[str]]) -> None:
    with pytest.raises(RestoreFailed), cluster_processes.around(POD):
        raise RestoreFailed("3 attributes", [])
    assert [argv[4] for argv in started] == ["record", "after-reload"]
    started.clear()
    with pytest.raises(Stopped), cluster_processes.around(POD):
        raise Stopped
    assert [argv[4] for argv in started] == ["record"]


def test_what_cannot_be_started_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_a: object, **_k: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with caplog.at_level(logging.WARNING):
        cluster_processes.after_reload(POD)
    assert "nothing is announced to the cluster" in caplog.text


def test_resident_agent_never_imports_the_client() -> None:
    code = "import sys, nodeagent.agent.cluster_processes; print([m for m in sys.modules "
    code += "if 'kube' in m or m.startswith('nodeagent.cluster')])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"


def test_without_the_library_the_commands_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="kubernetes is not installed"):
        require_client()
