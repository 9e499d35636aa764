"""Log lines on stderr, as text for people or as JSON for programs. Times are UTC.

    12:03:04.123 INFO  restored 14 VFs  step=restore elapsed=5.6

Whatever a caller passes as `extra={…}` is a fact: it becomes `key=value` at the end of the line.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Self, TextIO

from nodeagent.render import Colour, Screen, visible


class LogFormat(StrEnum):
    """The formats of log lines."""

    TEXT = "text"
    JSON = "json"


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS: Final = {
    logging.DEBUG: Colour.FAINT,
    logging.WARNING: Colour.YELLOW,
    logging.ERROR: Colour.RED,
    logging.CRITICAL: Colour.RED,
}

LIVE: Final = 15
"""The level of lines about a wait in progress, shown on a terminal only."""

log = logging.getLogger(__name__)


class Live:
    """A line on a terminal about a wait in progress, removed at the end of the block."""

    def __init__(self, *, is_wanted: bool = True) -> None:
        self.period = 1.0 if is_wanted and log.isEnabledFor(LIVE) else math.inf
        """Seconds between two lines; infinite where none is shown."""
        self._next = time.monotonic() + self.period

    def show(self, text: Callable[[], str]) -> None:
        """Show the line that `text` returns, if a period has passed."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + self.period
            log.log(LIVE, "%s", text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if math.isfinite(self.period):
            log.log(LIVE, "")


class _Terminal(logging.StreamHandler[TextIO]):
    """Keeps one line of level LIVE below all others."""

    def __init__(self, stream: TextIO, width: int) -> None:
        super().__init__(stream)
        self._width, self._is_shown = width, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record in place of that line."""
        if self._is_shown:
            self.stream.write("\r\x1b[K")
        line = visible(record.getMessage()) if record.levelno == LIVE else ""
        self._is_shown = line != ""
        if record.levelno != LIVE:
            super().emit(record)
        self.stream.write(line[: self._width - 1])
        self.flush()


class TextFormatter(logging.Formatter):
    """`HH:MM:SS.mmm LEVEL message  key=value …`; continuation lines of a message are indented."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line for each line of the message. Control characters are escaped."""
        first, *rest = _message(record).split("\n")
        facts = " ".join(f"{key}={_value(value)}" for key, value in _facts(record).items())
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        level = f"{record.levelname:<5}"
        if self.colour and record.levelno in _COLOURS:
            level = _COLOURS[record.levelno].of(level)
        line = f"{clock}.{int(record.created % 1 * 1000):03d} {level} {visible(first)}"
        if facts:
            line += f"  {facts}"
        return "\n".join([line, *(f"    {visible(each)}" for each in rest)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message and the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """A fact of a type that JSON does not have is written as text."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{clock}.{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        return json.dumps(_facts(record) | fields, default=str)


def configure(
    *, log_format: str, verbose: bool, colour: bool = False, stream: TextIO | None = None
) -> None:
    """Write nodeagent's log to `stream` (stderr): INFO and above, everything if `verbose`.

    `colour` takes effect on a terminal only. Libraries log warnings and above.
    """
    stream = stream or sys.stderr
    screen = Screen.of(stream, colour=colour)
    if log_format == LogFormat.JSON or screen.width is None:
        handler: logging.StreamHandler[TextIO] = logging.StreamHandler(stream)
        handler.addFilter(lambda record: record.levelno != LIVE)
        level = logging.INFO
    else:
        handler, level = _Terminal(stream, screen.width), LIVE
    handler.setFormatter(
        JsonFormatter() if log_format == LogFormat.JSON else TextFormatter(colour=screen.colour)
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("nodeagent").setLevel(logging.DEBUG if verbose else level)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 10 else f"{value:.1f}"
    text = str(value)
    if text and text.isprintable() and not any(c in ' ="' for c in text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
