"""The timeline as a chart: SVG 1.1, for a ticket or a document.

Each run is a panel with a row for each phase, for the time without VFs and for each probe. All
panels have one scale, in seconds, so that runs can be compared. A build that takes most of a run is
not drawn to scale: else nothing could be seen of the seconds that follow.
"""

from __future__ import annotations

import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from nodeagent.record.timeline import Result, Run
from nodeagent.render import visible

WIDTH: Final = 960
_LEFT: Final = 230
"""Where the scale begins: the rows' names are left of it."""
_SCALE: Final = 620
"""Pixels that the longest run takes; what is written beside a bar needs the rest."""
_ROW: Final = 20
_BAR: Final = 12
_MARGIN: Final = 16
_SMALL: Final = 6.2
"""Pixels that a character takes on average, at a size of 11."""
_NAME: Final = 34
"""Characters that a row's name can have."""
_MOST_TICKS: Final = 10

_GREY: Final = "#57606a"
_WINDOW: Final = "#8250df"
_ECHOES: Final = "#bc4c00"
_COLOURS: Final = {
    Result.DONE: "#0969da",
    Result.RUNNING: "#54aeff",
    Result.FAILED: "#cf222e",
    Result.INTERRUPTED: "#bf8700",
    Result.CUT_SHORT: "#bf8700",
}


@dataclass(frozen=True)
class _Bar:
    """A row. `start` and `end` are seconds of the panel's scale; `text` stands beside the bar."""

    name: str
    start: float
    end: float
    colour: str
    text: str
    detail: str


@dataclass(frozen=True)
class _Panel:
    title: str
    bars: tuple[_Bar, ...]
    window: tuple[tuple[float, float], ...]
    """The times without VFs: a band behind all rows."""
    end: float
    message: tuple[str, ...]

    @property
    def height(self) -> int:
        return _ROW * (len(self.bars) + len(self.message) + 3)


def svg(runs: Sequence[Run]) -> str:
    """The chart, one panel a run: an XML document in ASCII, whatever the locale is."""
    panels = [_panel(run) for run in runs]
    longest = max((panel.end for panel in panels), default=0) or 1
    height = 2 * _MARGIN + (sum(panel.height for panel in panels) or _ROW)
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "role": "img",
            "font-family": "system-ui, sans-serif",
            "font-size": "11",
        },
    )
    ET.SubElement(root, "title").text = _subject(runs)
    ET.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    top = _MARGIN
    for panel in panels:
        _draw(root, panel, top, longest)
        top += panel.height
    if not panels:
        _text(root, _MARGIN, top + _BAR, "no run on record")
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="us-ascii")
    return document.decode() + "\n"


def _subject(runs: Sequence[Run]) -> str:
    return (
        f"nodeagent timeline: {', '.join(visible(run.run) for run in runs) or 'no run on record'}"
    )


def _panel(run: Run) -> _Panel:
    began = _moment(run.at) + timedelta(seconds=_long_build(run))

    def at(moment: str) -> float:
        return (_moment(moment) - began).total_seconds()

    bars: list[_Bar] = []
    for phase in run.phases:
        start = at(phase.at)
        took = _for(phase.seconds)
        text = took if phase.result == Result.DONE else f"{took} {phase.result}".strip()
        text = f"{text}, before this scale" if start < 0 else text
        end = start + (phase.seconds or 0)
        detail = f"{phase.name}: {phase.result}, {phase.at}"
        bars.append(_Bar(phase.name, start, end, _COLOURS[phase.result], text, detail))
    end = max([run.seconds - _long_build(run), *(bar.end for bar in bars)])
    windows = []
    for window in run.windows:
        gone = at(window.gone)
        back = end if window.back is None else at(window.back)
        windows.append((gone, back))
        text = "not back" if window.seconds is None else _for(window.seconds)
        detail = f"VFs gone from {window.gone} to {window.back or 'now'}"
        bars.append(_Bar("VFs gone", gone, back, _WINDOW, text, detail))
    for echo in run.echoes:
        start = at(echo.at)
        text = f"{echo.lost} of {echo.sent} lost, longest gap {_for(echo.gap)}"
        detail = f"echoes to {echo.target}: no answer from {echo.at}"
        bars.append(_Bar(f"to {echo.target}", start, start + echo.gap, _ECHOES, text, detail))
    end = max([end, *(bar.end for bar in bars)])
    return _Panel(_title(run), tuple(bars), tuple(windows), end, _message(run))


def _long_build(run: Run) -> float:
    """The seconds from the run's start to the end of a build that takes most of it; else 0."""
    first = run.phases[0] if run.phases else None
    if first is None or first.name != "build" or (first.seconds or 0) <= run.seconds / 2:
        return 0
    return (_moment(first.at) - _moment(run.at)).total_seconds() + (first.seconds or 0)


def _title(run: Run) -> str:
    date = run.at.replace("T", " ").replace("Z", " UTC")
    ended = f"{run.result} {'for' if run.result == Result.RUNNING else 'after'} {_for(run.seconds)}"
    return " · ".join(filter(None, (f"run {run.run}", run.mode, run.driver, date, ended)))


def _message(run: Run) -> tuple[str, ...]:
    """What the run ended with: a few lines, since the text of a ticket has all of it."""
    width = int((WIDTH - 2 * _MARGIN) / _SMALL)
    lines = [part for line in run.message.splitlines() for part in textwrap.wrap(line, width)]
    return tuple(lines[:6])


def _draw(root: ET.Element, panel: _Panel, top: int, longest: float) -> None:
    """The panel's rows below each other: title, bars, the scale's numbers, message."""

    def x(seconds: float) -> float:
        return _LEFT + max(seconds, 0) * _SCALE / longest

    _text(root, _MARGIN, top + _BAR, panel.title, **{"font-weight": "bold", "font-size": "12"})
    first, last = top + _ROW, top + _ROW * (len(panel.bars) + 1)
    for gone, back in panel.window:
        size = x(back) - x(gone), last - first
        _rect(root, (x(gone), first), size, fill=_WINDOW, opacity="0.08")
    for tick in _ticks(panel.end, longest):
        line = {"x1": _px(x(tick)), "x2": _px(x(tick)), "y1": str(first), "y2": str(last)}
        ET.SubElement(root, "line", {**line, "stroke": _GREY, "stroke-opacity": "0.25"})
        _text(root, x(tick), last + _BAR, f"{tick:g} s", fill=_GREY, **{"text-anchor": "middle"})
    for bar, y in zip(panel.bars, count(first, _ROW), strict=False):
        _text(root, _LEFT - 8, y + _BAR + 1, _cut(bar.name), **{"text-anchor": "end"})
        width = max(x(bar.end) - x(bar.start), 1)
        corner = x(bar.start), y + (_ROW - _BAR) / 2
        drawn = _rect(root, corner, (width, _BAR), fill=bar.colour)
        ET.SubElement(drawn, "title").text = visible(bar.detail)
        _beside(root, x(bar.start), x(bar.start) + width, y + _BAR + 1, bar.text)
    for line_of_text, y in zip(panel.message, count(last + _ROW + _BAR, _ROW), strict=False):
        _text(root, _MARGIN, y, line_of_text, fill=_COLOURS[Result.FAILED])


def _beside(root: ET.Element, start: float, end: float, y: float, text: str) -> None:
    """The text right of a bar; left of it or on it where there is no room."""
    needed = len(text) * _SMALL + 6
    if end + needed <= WIDTH:
        _text(root, end + 6, y, text)
    elif start - needed >= _LEFT:
        _text(root, start - 6, y, text, **{"text-anchor": "end"})
    else:
        _text(root, end - 6, y, text, fill="#ffffff", **{"text-anchor": "end"})


def _ticks(end: float, longest: float) -> Iterator[float]:
    """Round numbers of seconds from 0 to a panel's end, not too many in the longest one."""
    steps = (base * 10**power for power in range(-3, 7) for base in (1, 2, 5))
    step = next(step for step in steps if longest / step <= _MOST_TICKS)
    for number in range(int(end / step) + 1):
        yield number * step


def _rect(
    root: ET.Element, corner: tuple[float, float], size: tuple[float, float], **more: str
) -> ET.Element:
    (x, y), (width, height) = corner, size
    place = {"x": _px(x), "y": _px(y), "width": _px(width), "height": _px(height)}
    return ET.SubElement(root, "rect", {**place, **more})


def _text(root: ET.Element, x: float, y: float, text: str, **more: str) -> None:
    ET.SubElement(root, "text", {"x": _px(x), "y": _px(y), **more}).text = visible(text)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _px(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _moment(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _for(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"
