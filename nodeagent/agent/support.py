"""An archive of the files that a maintainer needs for a ticket, without secrets.

If something cannot be read, its file has the reason instead. Secret settings, tokens, passwords and
the machine-id (which is confidential, see machine-id(5)) are replaced in every file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from nodeagent import __version__, durable, machine, settings
from nodeagent.agent import by_hand, life, status
from nodeagent.driver import distribution
from nodeagent.driver.nic import NicDriver
from nodeagent.driver.preflight import Preflight
from nodeagent.errors import AgentError
from nodeagent.kernel import process
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.modes import Mode
from nodeagent.parse import Secret
from nodeagent.record import timeline
from nodeagent.record.journal import Journal
from nodeagent.render import Screen
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_to_json

COMMANDS: Final = {
    "ip-link.txt": ("ip", "-d", "-s", "link"),
    "ip-address.txt": ("ip", "address"),
    "ip-route.txt": ("ip", "route", "show", "table", "all"),
    "devlink-dev.txt": ("devlink", "dev", "show"),
    "devlink-info.txt": ("devlink", "dev", "info"),
    "devlink-port.txt": ("devlink", "port", "show"),
    "rdma.txt": ("rdma", "link"),
    "lsmod.txt": ("lsmod",),
}
WITHHELD: Final = "(withheld)"

_TIMEOUT: Final = 30.0  # seconds for each command
_RUNS: Final = 20  # of the timeline
_SECRETS: Final = (
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user:password@ of a URL
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"),  # a JSON Web Token
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"(?i)(?:(?<=password)|(?<=passwd)|(?<=token)|(?<=secret))[=:]\s*[^\s,;\"']+"),
)
_MACHINE_ID: Final = re.compile(r"(?<=\"machine_id\": \")[0-9a-f]{32}(?=\")")

Content = Callable[[], str]


def archive(given: Settings, more: Mapping[str, Content]) -> tuple[bytes, tuple[str, ...]]:
    """A gzipped tar, and the names of its files. `more` is added to it."""
    secrets = _secrets_of(given)
    packed, names = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in (*_contents(given), *more.items()):
            data = _without_secrets(_read(content), secrets).encode(errors="backslashreplace")
            entry = tarfile.TarInfo(f"nodeagent-support/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
            names.append(name)
    return packed.getvalue(), tuple(names)


def _contents(given: Settings) -> Iterator[tuple[str, Content]]:
    journal = Journal(given)
    driver = NicDriver(given, Mode.PRECOMPILED, None)

    def runs() -> tuple[timeline.Run, ...]:
        return life.runs(given, journal)[1][-_RUNS:]

    yield "versions.txt", lambda: _lines(_versions(driver))
    yield "status.txt", lambda: _lines(status.lines(status.look(given, driver), Screen()))
    yield "timeline.txt", lambda: _lines(timeline.lines(runs(), Screen()))
    yield "timeline.json", lambda: _json([asdict(run) for run in runs()])
    yield "settings.json", lambda: _json(_settings(given))
    yield "preflight.json", lambda: _json([asdict(each) for each in Preflight(given).findings()])
    yield "snapshot.json", lambda: snapshot_to_json(by_hand.snapshot_now(given))
    for path in (
        *(journal.open_path, journal.last_path, journal.aside_path),
        *(journal.old_records_path, journal.records_path),
    ):
        yield path.name, lambda path=path: _own(path)  # type: ignore[misc] # its default
    for name, argv in COMMANDS.items():
        yield name, lambda argv=argv: _output(argv)  # type: ignore[misc] # its default
    yield "dmesg.txt", lambda: _lines(_of_the_nic(_output(("dmesg",)), given))


def _versions(driver: NicDriver) -> Iterator[str]:
    yield f"nodeagent {__version__}"
    yield f"Python {sys.version.split()[0]}"
    yield f"kernel {os.uname().release} {os.uname().machine}"
    yield f"distribution {distribution.of_host(Path('/')).name}"
    yield f"driver {driver.version() or 'of no known version'}"


def _settings(given: Settings) -> dict[str, str | None]:
    """The variables that are set. Secrets are hidden."""
    return {
        row.name: None if (value := getattr(given, attribute)) is None else row.shown(value)
        for attribute, row in settings.rows()
        if settings.origin(row) == settings.Origin.ENVIRONMENT
    }


def _own(path: Path) -> str:
    data = durable.read_own(path)
    return "there is none\n" if data is None else data.decode(errors="backslashreplace")


def _output(argv: tuple[str, ...]) -> str:
    done = process.run(argv, timeout=_TIMEOUT, only_looks=True)
    ended = "" if done.returncode == 0 else f"\nexit status {done.returncode}"
    return f"{done.output}\n{done.errors}{ended}\n"


def _of_the_nic(text: str, given: Settings) -> Iterator[str]:
    """The kernel's lines that name the driver, one of its devices, or nodeagent."""
    driver = given.driver_module
    devices = (device for _, device in Sysfs().physical_functions(driver))
    names = {driver.removesuffix("_core"), "nodeagent", *devices}
    return (line for line in text.splitlines() if any(name in line for name in names))


def _read(content: Content) -> str:
    try:
        return content()
    except (AgentError, OSError) as error:
        return f"not available: {error}\n"


def _secrets_of(given: Settings) -> tuple[str, ...]:
    values = (getattr(given, attribute) for attribute, _ in settings.rows())
    return tuple(each.value for each in values if isinstance(each, Secret) and each.value)


def _without_secrets(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, WITHHELD)
    for pattern in _SECRETS:
        text = pattern.sub(WITHHELD, text)
    if mine := machine.machine_id():
        text = text.replace(mine, _digest(mine))
    return _MACHINE_ID.sub(lambda found: _digest(found[0]), text)


def _digest(machine_id: str) -> str:
    """Equal for equal machines; the ID cannot be computed from it."""
    return f"sha256:{hashlib.sha256(machine_id.encode()).hexdigest()[:12]}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _json(plain: object) -> str:
    return json.dumps(plain, indent=2, default=str) + "\n"
