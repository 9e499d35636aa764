"""What Prometheus is told, read through a real request."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nodeagent import __version__
from nodeagent.agent import life, metrics
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.errors import ConfigError, UnavailableError
from nodeagent.kernel.heart import Heart
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import Journal, Note, RecordKind, Step
from nodeagent.settings import Settings
from tests.support import debian
from tests.unit.test_agent import SNAPSHOT

README = Path(__file__).parents[2] / "manifests" / "README.md"

Told = dict[tuple[str, ...], float]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    versions = (SrcVersions("mlx5_core", "NEW", "OLD"),)
    monkeypatch.setattr(NicDriver, "srcversions", lambda _self: versions)
    monkeypatch.setattr(Sysfs, "physical_functions", lambda _self, _driver: (("pci", "a"),))
    monkeypatch.setattr(Sysfs, "vf_count", lambda _self, _bus, _name: 5)
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
    journal.note(Note.RUN, mode="precompiled")
    with journal.step(Step.SNAPSHOT):
        journal.save(SNAPSHOT)
    journal.note(Note.VFS_GONE)
    with journal.step(Step.RESTORE):
        journal.note(Note.VFS_BACK)
    return journal


def collected(collector: metrics.Collector) -> Told:
    """One scrape, without a request."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_after_a_reload(settings: Settings) -> None:
    journal = reloaded(settings)
    journal.set_ready()
    journal.close_snapshot()
    journal.note(Note.READY)
    told = asked(settings)
    assert told["nodeagent_reloads_total", "ready"] == 1
    assert told["nodeagent_reloads_total", "failed"] == 0
    assert told["nodeagent_last_reload_success",] == 1
    assert 0 <= time.time() - told["nodeagent_last_reload_timestamp_seconds",] < 60
    assert 0 <= told["nodeagent_reload_duration_seconds", "restore"] < 10
    assert 0 <= told["nodeagent_disruption_seconds",] < 10
    assert told["nodeagent_vfs_present",] == 5
    assert told["nodeagent_vfs_wanted",] == 0
    assert told["nodeagent_ready",] == 1
    assert told["nodeagent_open_snapshot",] == 0
    assert told["nodeagent_driver_info", "NEW", "OLD", "mlx5_core"] == 1
    assert told["nodeagent_driver_outdated", "mlx5_core"] == 1
    assert told["nodeagent_build_info", __version__] == 1
    assert told["nodeagent_pod_interfaces_lost_total",] == 0
    assert told["nodeagent_drift",] == 0


def test_a_run_that_failed(settings: Settings) -> None:
    reloaded(settings).note(Note.FAILED, message="no")
    told = asked(settings)
    assert told["nodeagent_reloads_total", "failed"] == 1
    assert told["nodeagent_last_reload_success",] == 0
    assert told["nodeagent_ready",] == 0
    assert told["nodeagent_open_snapshot",] == 1


def test_nothing_on_record_yet(settings: Settings) -> None:
    told = asked(settings)
    assert told["nodeagent_reloads_total", "ready"] == 0
    names = {name for name, *_ in told}
    absent = ("last_reload_success", "vfs_wanted", "heartbeat_timestamp_seconds")
    assert not names & {f"nodeagent_{each}" for each in absent}


def test_a_run_is_counted_when_it_is_over_and_no_counter_decreases(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen as a second container sees it: no holder, whether the agent lives or not."""
    monkeypatch.setattr(life, "lock_holders", lambda _path: ())
    monkeypatch.setattr(life, "sees_the_host", lambda: False)
    collector = metrics.Collector(settings)
    before: dict[tuple[str, ...], float] = {}

    def counts() -> dict[str, float]:
        told = {key: value for key, value in collected(collector).items() if "_total" in key[0]}
        assert all(told[key] >= value for key, value in before.items())
        before.update(told)
        return {key[1]: value for key, value in told.items() if len(key) == 2 and value}

    first = reloaded(settings)
    assert counts() == {}  # at work, or hanging: that is not over
    first.note(Note.READY)
    assert counts() == {"ready": 1}
    killed = reloaded_again(settings)
    assert counts() == {"ready": 1}
    third = Journal(settings)
    third.note(Note.RUN, mode="precompiled")
    assert counts() == {"ready": 1, "cut short": 1}
    with third.step(Step.BUILD):
        pass
    third.note(Note.READY)
    assert counts() == {"ready": 1, "cut short": 1}  # it has reloaded nothing
    killed.note(Note.FAILED, message="a line that comes late")
    assert counts() == {"ready": 1, "cut short": 1}
    Journal(settings).records_path.unlink()
    assert counts() == {"ready": 1, "cut short": 1}


def test_each_restore_of_a_sidecar_counts(settings: Settings) -> None:
    """Its init container takes a snapshot and is none; nor is a look at a node as it was."""
    prepared = Journal(settings)
    with prepared.step(Step.SNAPSHOT):
        prepared.save(SNAPSHOT)
    sidecar = Journal(settings)
    collector = metrics.Collector(settings)
    for number in (1, 2):
        sidecar.note(Note.RUN, mode="sidecar")
        with sidecar.step(Step.RESTORE):
            sidecar.note(Note.VFS_BACK)
        sidecar.note(Note.READY, loading="1", snapshot="s")
        with sidecar.step(Step.SNAPSHOT):
            pass
        told = collected(collector)
        results = {key[1]: n for key, n in told.items() if key[0] == "nodeagent_reloads_total"}
        assert {name: n for name, n in results.items() if n} == {"ready": number}
    sidecar.note(Note.RUN, mode="sidecar")
    sidecar.note(Note.READY, loading="1", snapshot="s")
    assert collected(collector)["nodeagent_reloads_total", "ready"] == 2


def reloaded_again(settings: Settings) -> Journal:
    """A run in the middle of its restart."""
    journal = Journal(settings)
    journal.note(Note.RUN, mode="precompiled")
    journal.note(Note.VFS_GONE)
    journal._record(RecordKind.START, "restart", {})
    return journal


def test_what_pods_have_lost(settings: Settings) -> None:
    collector = metrics.Collector(settings)
    journal = reloaded(settings)
    journal.note(Note.POD_INTERFACE_LOST, uid="u", message="vf 3: net1")
    journal.note(Note.POD_INTERFACE_LOST, uid="u", message="vf 4: net2")
    assert collected(collector)["nodeagent_pod_interfaces_lost_total",] == 2
    journal.records_path.unlink()
    assert collected(collector)["nodeagent_pod_interfaces_lost_total",] == 2


def test_drift(settings: Settings) -> None:
    journal = reloaded(settings)
    journal.note(Note.READY)
    for attribute in ("vlan", "trust"):
        journal.note(Note.DRIFT, target="vf 3", attribute=attribute, want="1", have="2")
    journal.note(Note.DRIFT_OVER, target="vf 3", attribute="vlan")
    assert collected(metrics.Collector(settings))["nodeagent_drift",] == 1


def test_the_heartbeat(settings: Settings) -> None:
    with Heart(settings.beat_path):
        pass
    beat = collected(metrics.Collector(settings))["nodeagent_heartbeat_timestamp_seconds",]
    assert abs(time.time() - beat) < 10


def test_the_installed_driver_is_the_one_that_the_agent_saw(settings: Settings) -> None:
    """The container for metrics has another root, in which none is installed, or an older one."""
    journal = reloaded(settings)
    journal.note(Note.SRCVERSION, checkpoint="installed", mlx5_core="OLD")
    told = collected(metrics.Collector(settings))
    assert told["nodeagent_driver_outdated", "mlx5_core"] == 0
    journal.note(Note.SRCVERSION, checkpoint="installed", mlx5_core="NEWER")
    told = collected(metrics.Collector(settings))
    assert told["nodeagent_driver_outdated", "mlx5_core"] == 1
    assert told["nodeagent_driver_info", "NEWER", "OLD", "mlx5_core"] == 1


def test_counts_outlive_the_journals_rotation(settings: Settings) -> None:
    collector = metrics.Collector(settings)
    for _ in range(2):
        reloaded(settings).note(Note.READY)
        Journal(settings).open_path.unlink()
    assert collected(collector)["nodeagent_reloads_total", "ready"] == 2
    Journal(settings).records_path.unlink()
    assert collected(collector)["nodeagent_reloads_total", "ready"] == 2


def test_what_cannot_be_read_is_left_out(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """That and no more."""
    journal = reloaded(settings)
    journal.open_path.write_text("damaged")
    told = asked(settings)
    assert ("nodeagent_vfs_wanted",) not in told
    assert told["nodeagent_vfs_present",] == 5
    assert told["nodeagent_ready",] == 0
    assert told["nodeagent_open_snapshot",] == 1
    assert "metrics left out" in caplog.text


LISTED = dict(
    re.findall(r"^\| `(nodeagent_\w+)(?:\{[^}]*\})?` \| (\w+) \|", README.read_text(), re.MULTILINE)
)


def test_the_readme_lists_every_metric(settings: Settings) -> None:
    journal = reloaded(settings)
    journal.note(Note.READY)
    with Heart(settings.beat_path):
        pass
    families = [*metrics.Collector(settings).collect()]
    told = {family.name + "_total" * (family.type == "counter"): family.type for family in families}
    assert told == LISTED


def test_promtool_finds_nothing_to_say(settings: Settings) -> None:
    journal = reloaded(settings)
    journal.note(Note.READY)
    with Heart(settings.beat_path):
        pass
    registry = CollectorRegistry()
    registry.register(metrics.Collector(settings))
    done = subprocess.run(
        [debian.program("prometheus", "promtool"), "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_off_by_default(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="METRICS_PORT is not set"):
        metrics.serve(replace(settings, metrics_port=None))


def test_a_port_that_is_taken(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.metrics_port or 0))
        taken.listen()
        with pytest.raises(UnavailableError, match="Address already in use"):
            metrics.serve(settings)
