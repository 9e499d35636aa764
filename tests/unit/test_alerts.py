"""Alerts and dashboard, by promtool and by a real Prometheus that scrapes the real endpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.agent import life, metrics
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.kernel.heart import Heart
from nodeagent.record.journal import Journal, Note, Step
from nodeagent.settings import Settings
from tests.support import debian
from tests.unit.test_agent import SNAPSHOT
from tests.unit.test_metrics import collected, reloaded
from tests.unit.test_metrics import settings as settings  # noqa: PLC0414  a fixture

MANIFESTS = Path(__file__).parents[2] / "manifests"
DASHBOARD = json.loads((MANIFESTS / "metrics/dashboard.json").read_text())
EXPRESSIONS = [
    target["expr"].replace("$module", "mlx5_core")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


def groups() -> dict[str, Any]:
    """The rules as Prometheus' operator gives them to Prometheus."""
    whole = yaml.safe_load((MANIFESTS / "metrics/prometheusrule.yaml").read_text())
    return {"groups": whole["spec"]["groups"]}


def promtool(*arguments: str | Path, cwd: Path) -> str:
    argv = [debian.program("prometheus", "promtool"), *arguments]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups()))
    shutil.copy(Path(__file__).parents[1] / "support/alerts.yaml", tmp_path)
    names = {rule["alert"] for group in groups()["groups"] for rule in group["rules"]}
    assert f"{len(names)} rules found" in promtool("check", "rules", "rules.yaml", cwd=tmp_path)
    assert "SUCCESS" in promtool("test", "rules", "alerts.yaml", cwd=tmp_path)
    tests = yaml.safe_load((tmp_path / "alerts.yaml").read_text())["tests"]
    fired = {
        check["alertname"]
        for test in tests
        for check in test["alert_rule_test"]
        if check["exp_alerts"]
    }
    assert fired == names


def test_they_ask_for_metrics_that_there_are(settings: Settings) -> None:
    reloaded(settings).note(Note.READY)
    with Heart(settings.beat_path):
        pass
    there = {name for name, *_ in collected(metrics.Collector(settings))}
    rules = [rule["expr"] for group in groups()["groups"] for rule in group["rules"]]
    asked = set(re.findall(r"nodeagent_\w+", " ".join([*rules, *EXPRESSIONS])))
    assert asked == asked & there
    assert there - asked == set()


@contextmanager
def prometheus(directory: Path, port: int, target: int) -> Iterator[None]:
    """A Prometheus that scrapes the target each second, and evaluates the alerts."""
    labels = {"node": "a"}
    scraping: dict[str, Any] = {"job_name": "nodeagent", "scrape_interval": "1s"}
    scraping |= {"static_configs": [{"targets": [f"127.0.0.1:{target}"], "labels": labels}]}
    told = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yaml"]}
    (directory / "rules.yaml").write_text(yaml.safe_dump(groups()))
    (directory / "prometheus.yaml").write_text(
        yaml.safe_dump(told | {"scrape_configs": [scraping]})
    )
    argv = [
        str(debian.program("prometheus", "prometheus")),
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log:
        serving = subprocess.Popen(argv, cwd=directory, stderr=log, stdout=log)
    try:
        yield
    finally:
        serving.terminate()
        serving.wait(30)


def asked_of(port: int, expression: str) -> list[float]:
    """The values that Prometheus has for an expression now."""
    query = urllib.parse.urlencode({"query": expression})
    url = f"http://127.0.0.1:{port}/api/v1/query?{query}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        told = json.load(answer)
    assert told["status"] == "success", told
    return [float(each["value"][1]) for each in told["data"]["result"]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def until(check: Callable[[], bool], what: str) -> None:
    """Poll, as tests may."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except (ConnectionError, urllib.error.URLError):
            pass  # it does not listen yet
        time.sleep(0.1)
    raise AssertionError(f"Prometheus never saw {what}")


def test_a_real_prometheus_through_a_reload(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a second container: the lock is hidden. Each query of the dashboard has data then."""
    versions = [SrcVersions("mlx5_core", "NEW", "OLD")]
    monkeypatch.setattr(NicDriver, "srcversions", lambda _self: tuple(versions))
    monkeypatch.setattr(life, "lock_holders", lambda _path: ())
    monkeypatch.setattr(life, "sees_the_host", lambda: False)
    port = free_port()
    wrong: list[BaseException] = []
    counted: list[float] = []

    def value(expression: str) -> float:
        found = asked_of(port, expression)
        return found[0] if len(found) == 1 else -1.0

    def reload() -> None:
        journal = Journal(settings)
        journal.note(Note.RUN, mode="precompiled")
        journal.note(Note.SRCVERSION, checkpoint="installed", mlx5_core="NEW")
        with Heart(settings.beat_path):
            journal.save(SNAPSHOT)
            journal.note(Note.VFS_GONE)
            with journal.step(Step.RESTART):
                until(lambda: value("nodeagent_open_snapshot") == 1, "the open snapshot")
                until(lambda: value("nodeagent_driver_outdated") == 1, "the old driver")
                counted.append(value("sum(nodeagent_reloads_total)"))
                versions[:] = [SrcVersions("mlx5_core", "NEW", "NEW")]
            with journal.step(Step.RESTORE):
                journal.note(Note.VFS_BACK)
        journal.set_ready()
        journal.close_snapshot()
        journal.note(Note.READY)
        until(lambda: value("nodeagent_ready") == 1, "that it is ready")
        until(lambda: value('nodeagent_reloads_total{result="ready"}') == 1, "the reload")
        counted.append(value("sum(nodeagent_reloads_total)"))
        assert value("nodeagent_driver_outdated") == 0
        assert value("sum(increase(nodeagent_reloads_total[1m]))") >= 1
        assert value("resets(nodeagent_reloads_total[1m]) > 0 or vector(0)") == 0
        empty = [each for each in EXPRESSIONS if not asked_of(port, each)]
        assert empty == []
        assert asked_of(port, 'ALERTS{alertstate="firing"}') == []
        failed = Journal(settings)
        failed.note(Note.RUN, mode="precompiled")
        failed.note(Note.FAILED, message="no")
        alert = 'ALERTS{alertname="NodeagentReloadFailed",alertstate="firing",node="a"}'
        until(lambda: value(alert) == 1, "the alert")

    def play() -> None:
        try:
            reload()
        except BaseException as error:
            wrong.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    assert settings.metrics_port is not None
    with prometheus(tmp_path, port, settings.metrics_port):
        playing = threading.Thread(target=play, daemon=True)
        playing.start()
        assert metrics.serve(settings) == 0
        playing.join()
    if wrong:
        raise wrong[0]
    assert counted == [0, 1]
