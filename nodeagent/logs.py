"""Log lines on stderr, as text for people or as JSON for programs. Times are UTC.

    12:03:04.123 INFO  restored 14 VFs  step=restore elapsed=5.6

Whatever a caller passes as `extra={…}` is a fact: it becomes `key=value` at the end of the line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import StrEnum
from typing import Final, TextIO

from nodeagent.render import visible


class LogFormat(StrEnum):
    """The formats of log lines."""

    TEXT = "text"
    JSON = "json"


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS: Final = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[31m",
}
_PLAIN: Final = "\x1b[0m"


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
            level = f"{_COLOURS[record.levelno]}{level}{_PLAIN}"
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
    handler = logging.StreamHandler(stream)
    if log_format == LogFormat.JSON:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter(colour=colour and stream.isatty()))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("nodeagent").setLevel(logging.DEBUG if verbose else logging.INFO)


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
