"""Prometheus metrics, by a process of their own: `nodeagent metrics`, with METRICS_PORT.

The agent that is ready stays at its 10 MB and has no part in this: each request reads the flag, the
journal, the snapshots and sysfs. One thread, one request at a time. Counters begin with this
process, as is usual in Prometheus, and with the runs on record then.
"""

from __future__ import annotations

import logging
import selectors
from collections import Counter
from collections.abc import Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, ConfigError, Stopped, UnavailableError
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import Journal, lock_holders
from nodeagent.record.timeline import Run, runs_of
from nodeagent.settings import Mode, Settings

log = logging.getLogger(__name__)

_ENDED = {"ready", "failed", "interrupted", "cut short"}
_REQUEST_TIMEOUT = 5.0  # seconds; a client that sends nothing must not keep the next one waiting


def serve(settings: Settings) -> int:
    """Answer on METRICS_ADDRESS:METRICS_PORT until SIGTERM; then 0.

    ConfigError without METRICS_PORT, UnavailableError when the port is taken.
    """
    if settings.metrics_port is None:
        raise ConfigError(
            "METRICS_PORT is not set: metrics are off",
            hint="set it to a port of this node that is free; manifests/metrics does",
        )
    registry = CollectorRegistry()
    registry.register(Collector(settings))
    where = f"{settings.metrics_address}:{settings.metrics_port}"
    try:
        server = make_server(
            settings.metrics_address,
            settings.metrics_port,
            make_wsgi_app(registry),
            handler_class=_Handler,
        )
    except OSError as error:
        raise UnavailableError(
            f"cannot serve metrics on {where}: {error.strerror}",
            hint="METRICS_PORT and METRICS_ADDRESS say where; a pod on the host's network shares "
            "its ports",
        ) from error
    with server, StopSignal() as stop, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(stop, selectors.EVENT_READ)
        log.info("metrics on http://%s/metrics", where)
        try:
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if stop in ready:
                    stop.drain()
                if server in ready:
                    server.handle_request()
        except Stopped:
            return 0


class Collector:
    """Collects at each request. What cannot be read is left out, and logged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._results: dict[str, str] = {}

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; see README.md."""
        journal = Journal(self._settings)
        for part in (self._of_runs, self._of_vfs, self._of_driver):
            try:
                yield from part(journal)
            except AgentError as error:
                log.warning("metrics left out: %s", error.message)
        yield _gauge("nodeagent_ready", "The ready flag is there.", journal.is_ready())

    def _of_runs(self, journal: Journal) -> Iterator[Metric]:
        alive = bool(lock_holders(self._settings.lock_path))
        runs = runs_of(journal.records(), now=0.0 if alive else None)
        self._results |= {run.run: run.result for run in runs if run.result in _ENDED}
        total = CounterMetricFamily(
            "nodeagent_reloads", "Runs of the agent that are over, by result.", labels=["result"]
        )
        counts = Counter(self._results.values())
        for result in sorted(_ENDED):
            total.add_metric([result], counts[result])
        yield total
        over = [run for run in runs if run.result in _ENDED]
        if over:
            yield from _of_last_run(over[-1])
        reloaded = [run for run in over if run.windows]
        if reloaded and (seconds := reloaded[-1].windows[-1].seconds) is not None:
            text = "How long the VFs were gone in the last reload."
            yield _gauge("nodeagent_disruption_seconds", text, seconds)

    def _of_vfs(self, journal: Journal) -> Iterator[Metric]:
        """Wanted: of the open snapshot, else of the last one. Verified: with that one closed."""
        is_open = journal.has_open_snapshot()
        snapshot = journal.open_snapshot() or journal.last_snapshot()
        sysfs = Sysfs()
        pfs = sysfs.physical_functions(self._settings.driver_module)
        present = sum(sysfs.vfs_there(*pf) for pf in pfs)
        family = GaugeMetricFamily(
            "nodeagent_vfs", "VFs: wanted by the snapshot, present, verified.", labels=["state"]
        )
        family.add_metric(["present"], present)
        if snapshot is not None:
            family.add_metric(["wanted"], snapshot.state.vf_count)
            family.add_metric(["verified"], 0 if is_open else snapshot.state.vf_count)
        yield family

    def _of_driver(self, _journal: Journal) -> Iterator[Metric]:
        info = InfoMetricFamily(
            "nodeagent_driver", "srcversion of the driver's modules.", labels=["module"]
        )
        for each in NicDriver(self._settings, Mode.PRECOMPILED, None).srcversions():
            versions = {"installed": each.installed or "", "loaded": each.loaded or ""}
            info.add_metric([each.module], versions)
        yield info


def _of_last_run(run: Run) -> Iterator[Metric]:
    yield _gauge(
        "nodeagent_last_reload_success", "The last run ended ready.", run.result == "ready"
    )
    phases = GaugeMetricFamily(
        "nodeagent_reload_phase_seconds", "Duration of the last run's phases.", labels=["phase"]
    )
    for phase in run.phases:
        if phase.seconds is not None:
            phases.add_metric([phase.name], phase.seconds)
    yield phases


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


class _Handler(WSGIRequestHandler):
    """Logs requests at debug level, and gives up one that does not arrive in time."""

    timeout = _REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        log.debug(format, *args)
