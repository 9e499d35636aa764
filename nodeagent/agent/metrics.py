"""Prometheus metrics, by a process of their own: `nodeagent metrics`, with METRICS_PORT.

It is separate so that an agent that is ready stays at 10 MB. Each request reads the flag, the
journal, the snapshots and sysfs, one request at a time. Counters begin with this process, as usual
in Prometheus, and count the runs that are on record then.
"""

from __future__ import annotations

import logging
import selectors
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nodeagent import __version__, machine
from nodeagent.agent import life
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, ConfigError, Stopped, UnavailableError
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.modes import Mode
from nodeagent.record.journal import Journal, Note, Record, Step
from nodeagent.record.timeline import SUCCEEDED, Result, Run, key_checkpoints, runs_of
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_ENDED: Final = {*Result} - {Result.DONE, Result.RUNNING}
_RELOADING: Final = {Step.RESTART, Step.INBOX, Step.RESTORE}
"""The phases that change devices."""
_REQUEST_TIMEOUT = 5.0  # seconds; a client that sends nothing must not keep the next one waiting


def serve(settings: Settings) -> int:
    """Answer on METRICS_ADDRESS:METRICS_PORT until SIGTERM; then 0.

    ConfigError without METRICS_PORT, UnavailableError if the port is in use.
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
            hint="set METRICS_PORT and METRICS_ADDRESS to free ones; a pod on the host's network "
            "shares the host's ports",
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
    """Collect at each request. What cannot be read is left out, and logged.

    What was counted is kept, so that no counter decreases when the journal is rotated.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._results: dict[str, Result] = {}
        self._lost: set[tuple[str, float, str]] = set()

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; manifests/README.md lists them."""
        journal = Journal(self._settings)
        try:
            _, records, now = life.on_record(self._settings, journal)
            runs = runs_of([*_one_restore_a_run(records)], now=now)
        except AgentError as error:
            log.warning("metrics left out: %s", error.message)
            runs, records = (), ()
        parts: tuple[Callable[[], Iterator[Metric]], ...] = (
            lambda: self._of_runs(runs),
            lambda: self._of_pods(records),
            lambda: _of_drift(runs),
            lambda: _wanted(journal),
            self._present,
            lambda: self._of_driver(runs),
            lambda: _of_heart(self._settings),
        )
        for part in parts:
            try:
                yield from part()
            except AgentError as error:
                log.warning("metrics left out: %s", error.message)
        yield _gauge("nodeagent_ready", "Whether the ready flag exists.", journal.is_ready())
        text = "Whether a reload is not finished: its snapshot is open."
        yield _gauge("nodeagent_open_snapshot", text, journal.has_open_snapshot())
        build = GaugeMetricFamily(
            "nodeagent_build_info", "The version of nodeagent.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build

    def _of_runs(self, runs: Sequence[Run]) -> Iterator[Metric]:
        """Metrics of finished runs that have reloaded something, or have failed."""
        over = [run for at, run in enumerate(runs) if _is_over(run, is_last=at == len(runs) - 1)]
        reloads = [run for run in over if _reloads(run)]
        for run in reloads:
            self._results.setdefault(run.run, run.result)
        total = CounterMetricFamily(
            "nodeagent_reloads", "Reloads that are over, by result.", labels=["result"]
        )
        counts = Counter(self._results.values())
        for result in sorted(_ENDED):
            total.add_metric([result], counts[result])
        yield total
        if reloads:
            yield from _of_last_reload(reloads[-1])
        windows = [window for run in reloads for window in run.windows]
        back = [each.seconds for each in windows if each.seconds is not None]
        if back:
            text = "How long the VFs were gone in the last reload that took them."
            yield _gauge("nodeagent_disruption_seconds", text, back[-1])

    def _of_pods(self, records: Iterable[Record]) -> Iterator[Metric]:
        for each in records:
            if each.is_note(Note.POD_INTERFACE_LOST):
                self._lost.add((each.run, each.clock, each.facts.get("message", "")))
        yield CounterMetricFamily(
            "nodeagent_pod_interfaces_lost",
            "Interfaces that pods have lost for good in reloads.",
            value=len(self._lost),
        )

    def _present(self) -> Iterator[Metric]:
        sysfs = Sysfs()
        pfs = sysfs.physical_functions(self._settings.driver_module)
        present = sum(sysfs.vf_count(*pf) for pf in pfs)
        yield _gauge("nodeagent_vfs_present", "VFs that exist on this node's PFs.", present)

    def _of_driver(self, runs: Sequence[Run]) -> Iterator[Metric]:
        """The installed driver is taken from the journal: this container may have another one."""
        key = key_checkpoints(look for run in runs for look in run.checkpoints)
        seen = dict(key["installed"].srcversions) if "installed" in key else {}
        info = GaugeMetricFamily(
            "nodeagent_driver_info",
            "The srcversions of the driver's modules.",
            labels=["module", "installed", "loaded"],
        )
        outdated = GaugeMetricFamily(
            "nodeagent_driver_outdated",
            "Whether the loaded module is another build than the installed one.",
            labels=["module"],
        )
        here = NicDriver(self._settings, Mode.PRECOMPILED, None).srcversions()
        loaded = {each.module: each.loaded for each in here}
        seen = {each.module: each.installed or "none" for each in here} | seen
        for module, installed in seen.items():
            now = loaded.get(module)
            if (installed, now) != ("none", None):
                info.add_metric([module, installed, now or "none"], 1)
            if installed != "none" and now is not None:
                outdated.add_metric([module], installed != now)
        yield info
        yield outdated


def _one_restore_a_run(records: Iterable[Record]) -> Iterator[Record]:
    """Records in which each restore of a sidecar, one process, is a run of its own."""
    begun: Counter[str] = Counter()
    for each in records:
        if each.is_note(Note.RUN):
            begun[each.run] += 1
        yield replace(each, run=f"{each.run} {begun[each.run]}")


def _is_over(run: Run, *, is_last: bool) -> bool:
    """Whether the run's result is final: its end is on record, or another run has begun since.

    An agent without a heartbeat may be stuck, and may continue.
    """
    return not is_last or run.result in {*SUCCEEDED, Result.FAILED}


def _reloads(run: Run) -> bool:
    """Whether the run has reloaded or restored something, or has failed.

    A run without a mode is not an agent's: a sidecar's init container takes a snapshot.
    """
    phases = {phase.name for phase in run.phases}
    if not run.mode:
        return False
    return bool(phases & _RELOADING) or run.result not in SUCCEEDED


def _of_last_reload(run: Run) -> Iterator[Metric]:
    good = run.result in SUCCEEDED
    yield _gauge("nodeagent_last_reload_success", "Whether the last reload succeeded.", good)
    ended = datetime.fromisoformat(run.at).timestamp() + run.seconds
    text = "When the last reload ended, in seconds since the epoch."
    yield _gauge("nodeagent_last_reload_timestamp_seconds", text, round(ended, 3))
    phases = GaugeMetricFamily(
        "nodeagent_reload_duration_seconds",
        "How long the phases of the last reload took.",
        labels=["phase"],
    )
    for phase in run.phases:
        if phase.seconds is not None:
            phases.add_metric([phase.name], phase.seconds)
    yield phases


def _of_drift(runs: Sequence[Run]) -> Iterator[Metric]:
    open_now = runs[-1].drifting if runs else ()
    text = "Attributes that have changed since the node was ready (WATCH_DRIFT)."
    yield _gauge("nodeagent_drift", text, len(open_now))


def _wanted(journal: Journal) -> Iterator[Metric]:
    """The number of VFs in the open snapshot, or else in the last one."""
    snapshot = journal.wanted_snapshot()
    if snapshot is not None:
        text = "VFs that this node had before the last reload."
        yield _gauge("nodeagent_vfs_wanted", text, snapshot.state.vf_count)


def _of_heart(settings: Settings) -> Iterator[Metric]:
    """An agent at work writes the heartbeat; one that is ready does not."""
    beat, booted = life.last_beat(settings), machine.booted_at()
    if beat is not None and booted is not None:
        text = "The last heartbeat of an agent at work, in seconds since the epoch."
        yield _gauge("nodeagent_heartbeat_timestamp_seconds", text, booted + beat)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


class _Handler(WSGIRequestHandler):
    """Logs requests at debug level, and gives up one that does not arrive in time."""

    timeout = _REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        log.debug(format, *args)
