"""What Prometheus is told, read through a real request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nodeagent.agent import metrics
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.errors import ConfigError, UnavailableError
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import Journal
from nodeagent.settings import Settings
from tests.unit.test_agent import SNAPSHOT

Told = dict[tuple[str, ...], float]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    versions = (SrcVersions("mlx5_core", "NEW", "OLD"),)
    monkeypatch.setattr(NicDriver, "srcversions", lambda _self: versions)
    monkeypatch.setattr(Sysfs, "physical_functions", lambda _self, _driver: (("pci", "a"),))
    monkeypatch.setattr(Sysfs, "vfs_there", lambda _self, _bus, _name: 5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    return replace(
        Settings(),
        ready_path=tmp_path / "ready",
        lock_path=tmp_path / "lock",
        state_dir=tmp_path / "state",
        metrics_port=number,
    )


def asked(settings: Settings) -> Told:
    """The samples that a running server tells: name and label values, and the value."""
    text: list[str] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        deadline = time.monotonic() + 30
        while len(text) < 2 and time.monotonic() < deadline:  # one request must not be the last
            with suppress(ConnectionError, urllib.error.URLError):  # it does not listen yet
                answer: http.client.HTTPResponse = urllib.request.urlopen(url, timeout=10)
                text.append(answer.read().decode())
        # whoever has answered has its handler
        os.kill(os.getpid(), signal.SIGTERM if text else signal.SIGCONT)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert metrics.serve(settings) == 0
    asking.join()
    assert text[0] == text[1]
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text[0])
        for sample in family.samples
    }


def reloaded(settings: Settings) -> Journal:
    """A run that has reloaded the driver and is proven."""
    journal = Journal(settings)
    journal.note("run", mode="precompiled")
    with journal.step("snapshot"):
        journal.save(SNAPSHOT)
    journal.note("vfs-gone")
    with journal.step("restore"):
        journal.note("vfs-back")
    return journal


def test_after_a_reload(settings: Settings) -> None:
    journal = reloaded(settings)
    journal.set_ready()
    journal.close_snapshot()
    journal.note("ready")
    told = asked(settings)
    assert told["nodeagent_reloads_total", "ready"] == 1
    assert told["nodeagent_reloads_total", "failed"] == 0
    assert told["nodeagent_last_reload_success",] == 1
    assert 0 <= told["nodeagent_reload_phase_seconds", "restore"] < 10
    assert 0 <= told["nodeagent_disruption_seconds",] < 10
    assert told["nodeagent_vfs", "present"] == 5
    assert told["nodeagent_vfs", "wanted"] == 0
    assert told["nodeagent_vfs", "verified"] == 0
    assert told["nodeagent_ready",] == 1
    assert told["nodeagent_driver_info", "NEW", "OLD", "mlx5_core"] == 1


def test_a_run_that_failed(settings: Settings) -> None:
    reloaded(settings).note("failed", message="no")
    told = asked(settings)
    assert told["nodeagent_reloads_total", "failed"] == 1
    assert told["nodeagent_last_reload_success",] == 0
    assert told["nodeagent_ready",] == 0


def test_nothing_on_record_yet(settings: Settings) -> None:
    told = asked(settings)
    assert told["nodeagent_reloads_total", "ready"] == 0
    assert ("nodeagent_last_reload_success",) not in told
    assert ("nodeagent_vfs", "wanted") not in told


def test_counts_outlive_the_journals_rotation(settings: Settings) -> None:
    collector = metrics.Collector(settings)

    def ready() -> float:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in collector.collect()
            for sample in family.samples
        }["nodeagent_reloads_total", "ready"]

    for _ in range(2):
        journal = Journal(settings)
        journal.note("run", mode="precompiled")
        journal.note("ready")
    assert ready() == 2
    journal.records_path.unlink()
    assert ready() == 2


def test_what_cannot_be_read_is_left_out(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    journal = reloaded(settings)
    journal.open_path.write_text("damaged")
    told = asked(settings)
    assert ("nodeagent_vfs", "present") not in told
    assert told["nodeagent_ready",] == 0
    assert "metrics left out" in caplog.text


def test_off_by_default(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="METRICS_PORT is not set"):
        metrics.serve(replace(settings, metrics_port=None))


def test_a_port_that_is_taken(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.metrics_port or 0))
        taken.listen()
        with pytest.raises(UnavailableError, match="Address already in use"):
            metrics.serve(settings)
