"""The timeline as a chart: SVG 1.1, for a ticket or a document.

Each run is a panel with a row for each phase, for the time without VFs, for each VF and for each
probe. All panels have one scale, in seconds, so that runs can be compared. A build that takes most
of a run is not drawn to scale: else nothing could be seen of the seconds that follow.
"""

from __future__ import annotations

import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from nodeagent.record.gaps import VfGap
from nodeagent.record.journal import Step
from nodeagent.record.timeline import Result, Run, in_seconds
from nodeagent.render import visible

WIDTH: Final = 960
_LEFT: Final = 230
"""Where the scale begins: the rows' names are left of it."""
_SCALE: Final = 620
"""Pixels that the longest run takes; what is written beside a bar needs the rest."""
_ROW: Final = 20
_LOW_ROW: Final = 12
_BAR: Final = 12
_MARGIN: Final = 16
_SMALL: Final = 6.2
"""Pixels that a character takes on average, at a size of 11."""
_NAME: Final = 34
"""Characters that a row's name can have."""
_MOST_TICKS: Final = 10

_GREY: Final = "#57606a"
_PURPLE: Final = "#8250df"
_ORANGE: Final = "#bc4c00"
_BLUE: Final = "#0969da"
_LIGHT_BLUE: Final = "#54aeff"
_GREEN: Final = "#1a7f37"
_RED: Final = "#cf222e"
_YELLOW: Final = "#bf8700"
_COLOURS: Final = {
    Result.DONE: _BLUE,
    Result.RUNNING: _LIGHT_BLUE,
    Result.FAILED: _RED,
    Result.INTERRUPTED: _YELLOW,
    Result.CUT_SHORT: _YELLOW,
}

_WAYS: Final = {
    "bound": ("gone", _PURPLE),
    "settled": ("until udev is done", _LIGHT_BLUE),
    "set_up": ("until set up", _BLUE),
    "in_pod": ("until in its pod", _GREEN),
}
"""The part of a VF's row until each of its moments (`VfGap`): label and colour."""


@dataclass(frozen=True)
class _Part:
    """A stretch of a row, in seconds of the panel's scale."""

    start: float
    end: float
    colour: str


@dataclass(frozen=True)
class _Bar:
    """A row: parts, and the text beside the last of them. VFs have low rows: there can be many."""

    name: str
    parts: tuple[_Part, ...]
    text: str
    detail: str
    is_low: bool = False

    @property
    def height(self) -> int:
        return _LOW_ROW if self.is_low else _ROW

    @property
    def end(self) -> float:
        return self.parts[-1].end


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
        return self.scale + _ROW * (len(self.message) + 3 + self.has_legend)

    @property
    def scale(self) -> int:
        """Pixels from the first row to the numbers of the scale."""
        return sum(bar.height for bar in self.bars)

    @property
    def has_legend(self) -> bool:
        return any(bar.is_low for bar in self.bars)


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
        took = in_seconds(phase.seconds, "")
        text = took if phase.result == Result.DONE else f"{took} {phase.result}".strip()
        text = f"{text}, before this scale" if start < 0 else text
        end = start + (phase.seconds or 0)
        detail = f"{phase.name}: {phase.result}, {phase.at}"
        bars.append(_Bar(phase.name, (_Part(start, end, _COLOURS[phase.result]),), text, detail))
    end = max([run.seconds - _long_build(run), *(bar.end for bar in bars)])
    windows = []
    for window in run.windows:
        gone = at(window.gone)
        back = end if window.back is None else at(window.back)
        windows.append((gone, back))
        text = in_seconds(window.seconds, "not back")
        detail = f"VFs gone from {window.gone} to {window.back or 'now'}"
        bars.append(_Bar("VFs gone", (_Part(gone, back, _PURPLE),), text, detail))
        bars += (_vf(gap, gone, back) for gap in window.vfs)
    for echo in run.echoes:
        start = at(echo.at)
        text = f"{echo.lost} of {echo.sent} lost, longest gap {in_seconds(echo.gap)}"
        detail = f"echoes to {echo.target}: no answer from {echo.at}"
        parts = (_Part(start, start + echo.gap, _ORANGE),)
        bars.append(_Bar(f"to {echo.target}", parts, text, detail))
    end = max([end, *(bar.end for bar in bars)])
    return _Panel(_title(run), tuple(bars), tuple(windows), end, _message(run))


def _vf(gap: VfGap, began: float, ended: float) -> _Bar:
    """A VF's row, from when it was gone. One that is not bound again is gone until `ended`."""
    at = began + gap.gone
    parts, words = [], []
    for moment, (until, colour) in _WAYS.items():
        seconds: float | None = getattr(gap, moment)
        if seconds is not None and began + seconds >= at:
            parts.append(_Part(at, began + seconds, colour))
            words.append(f"{until} {in_seconds(began + seconds - at)}")
            at = began + seconds
    text = in_seconds(gap.seconds, "not back")
    if gap.seconds is None or not parts:
        parts, words = [_Part(began + gap.gone, max(ended, began + gap.gone), _PURPLE)], [text]
    return _Bar(gap.vf, tuple(parts), text, f"{gap.vf}: {', '.join(words)}", is_low=True)


def _long_build(run: Run) -> float:
    """The seconds from the run's start to the end of a build that takes most of it; else 0."""
    first = run.phases[0] if run.phases else None
    if first is None or first.name != Step.BUILD or (first.seconds or 0) <= run.seconds / 2:
        return 0
    return (_moment(first.at) - _moment(run.at)).total_seconds() + (first.seconds or 0)


def _title(run: Run) -> str:
    return " · ".join(filter(None, (f"run {run.run}", run.mode, run.driver, run.date, run.outcome)))


def _message(run: Run) -> tuple[str, ...]:
    """The run's error message, cut to a few lines: the ticket has the whole text."""
    width = int((WIDTH - 2 * _MARGIN) / _SMALL)
    lines = [part for line in run.message.splitlines() for part in textwrap.wrap(line, width)]
    return tuple(lines[:6])


def _draw(root: ET.Element, panel: _Panel, top: int, longest: float) -> None:
    """The panel's rows below each other: title, bars, the scale's numbers, message."""

    def x(seconds: float) -> float:
        return _LEFT + max(seconds, 0) * _SCALE / longest

    _text(root, _MARGIN, top + _BAR, panel.title, **{"font-weight": "bold", "font-size": "12"})
    first, last = top + _ROW, top + _ROW + panel.scale
    for gone, back in panel.window:
        size = x(back) - x(gone), last - first
        _rect(root, (x(gone), first), size, fill=_PURPLE, opacity="0.08")
    for tick in _ticks(panel.end, longest):
        line = {"x1": _px(x(tick)), "x2": _px(x(tick)), "y1": str(first), "y2": str(last)}
        ET.SubElement(root, "line", {**line, "stroke": _GREY, "stroke-opacity": "0.25"})
        _text(root, x(tick), last + _BAR, f"{tick:g} s", fill=_GREY, **{"text-anchor": "middle"})
    y = first
    for bar in panel.bars:
        _draw_bar(root, bar, y, [(x(part.start), x(part.end)) for part in bar.parts])
        y += bar.height
    below = last + _ROW
    if panel.has_legend:
        _legend(root, below)
        below += _ROW
    for line_of_text, at in zip(panel.message, count(below + _BAR, _ROW), strict=False):
        _text(root, _MARGIN, at, line_of_text, fill=_COLOURS[Result.FAILED])


def _draw_bar(root: ET.Element, bar: _Bar, y: int, places: Sequence[tuple[float, float]]) -> None:
    """A row at `y`; `places` are the left and right edges of its parts."""
    high = _BAR - _ROW + bar.height + (4 if bar.is_low else 0)
    base = y + bar.height / 2 + 3
    small = {"font-size": "9"} if bar.is_low else {}
    _text(root, _LEFT - 8, base, _cut(bar.name), **{"text-anchor": "end", **small})
    for part, (left, right) in zip(bar.parts, places, strict=True):
        corner = left, y + (bar.height - high) / 2
        drawn = _rect(root, corner, (max(right - left, 1), high), fill=part.colour)
        ET.SubElement(drawn, "title").text = visible(bar.detail)
    _label(root, places[0][0], max(places[-1][1], places[0][0] + 1), base, bar.text, **small)


def _legend(root: ET.Element, y: int) -> None:
    """What the colours of VFs' rows mean."""
    x = float(_LEFT)
    for words, colour in _WAYS.values():
        _rect(root, (x, y + 4), (8, 8), fill=colour)
        _text(root, x + 12, y + _BAR, words, fill=_GREY, **{"font-size": "9"})
        x += 30 + len(words) * _SMALL


def _label(root: ET.Element, start: float, end: float, y: float, text: str, **more: str) -> None:
    """The text right of a bar; left of it or on it where there is no room."""
    needed = len(text) * _SMALL + 6
    if end + needed <= WIDTH:
        _text(root, end + 6, y, text, **more)
    elif start - needed >= _LEFT:
        _text(root, start - 6, y, text, **more, **{"text-anchor": "end"})
    else:
        _text(root, end - 6, y, text, **more, fill="#ffffff", **{"text-anchor": "end"})


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
