"""Plain text for terminals and pipes: tables, and text without control characters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TextIO

MIN_COLUMN_WIDTH: Final = 8
"""Characters. No column is made narrower than this to fit a terminal."""

MIN_TEXT_WIDTH: Final = 20
"""Characters. No text is wrapped to less."""


class Colour(StrEnum):
    """Parameters of the control sequence SGR (ECMA-48)."""

    FAINT = "2"
    RED = "31"
    YELLOW = "33"
    BOLD_RED = "1;31"

    def of(self, text: str) -> str:
        """The text in this colour."""
        return f"\x1b[{self}m{text}\x1b[0m"


@dataclass(frozen=True)
class Screen:
    """Where a table is printed: the width in characters (None: unlimited), and colour or none."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None, *, colour: bool) -> Screen:
        """A terminal has a width and, if `colour`, colour. A pipe has neither: nothing is cut."""
        stream = stream or sys.stdout
        if not stream.isatty():
            return cls()
        import shutil  # noqa: PLC0415  10 ms that only a terminal costs

        return cls(shutil.get_terminal_size().columns, colour)


@dataclass(frozen=True)
class Marked:
    """A cell whose value is not the wanted one; it is printed in colour."""

    text: str


Cell = str | Marked


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], screen: Screen, *, indent: str = ""
) -> list[str]:
    """The lines of a table. The widest columns are cut if it does not fit the screen.

    The first column names the row, and is never cut.
    """
    body = [tuple(row) for row in rows]
    texts = [tuple(headers), *(tuple(_text(cell) for cell in row) for row in body)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headers))]
    if screen.width is not None:
        widths = _fitted(widths, screen.width - len(indent))
    head = _line([*headers], widths, screen)
    return [(indent + line).rstrip() for line in [head, *(_line(r, widths, screen) for r in body)]]


def wrapped(text: str, screen: Screen, *, indent: str = "", hanging: str = "") -> list[str]:
    """The lines of a text, the first after `indent`, the others after `hanging` beyond it.

    A line of the text begins a line. On a terminal long ones are wrapped between words, and no word
    is cut: it may be a path or a command to paste.
    """
    import textwrap  # noqa: PLC0415  2 ms that only long texts cost

    first, rest = indent, indent + hanging
    lines: list[str] = []
    for line in map(visible, text.splitlines()):
        room = max(screen.width or 0, len(rest) + MIN_TEXT_WIDTH)
        if screen.width is None:
            lines.append(first + line)
        else:
            lines += textwrap.wrap(
                line,
                room,
                initial_indent=first,
                subsequent_indent=rest,
                break_long_words=False,
                break_on_hyphens=False,
            )
        first = rest
    return lines


def marked(text: str, screen: Screen) -> str:
    """The text, in colour if the screen has any: it is not as it should be."""
    return Colour.BOLD_RED.of(text) if screen.colour else text


def visible(text: str) -> str:
    """`text` with unprintable characters escaped, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fitted(widths: list[int], room: int) -> list[int]:
    widths = list(widths)
    while len(widths) > 1 and sum(widths) + 2 * (len(widths) - 1) > room:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        if widths[widest] <= MIN_COLUMN_WIDTH:
            break
        widths[widest] -= 1
    return widths


def _line(cells: Sequence[Cell], widths: Sequence[int], screen: Screen) -> str:
    return "  ".join(_padded(cell, n, screen) for cell, n in zip(cells, widths, strict=True))


def _padded(cell: Cell, width: int, screen: Screen) -> str:
    text = _text(cell)
    if len(text) > width:
        text = text[: width - 1] + "…"
    padding = " " * (width - len(text))
    if screen.colour and isinstance(cell, Marked):
        return Colour.BOLD_RED.of(text) + padding
    return text + padding


def _text(cell: Cell) -> str:
    return visible(cell.text if isinstance(cell, Marked) else cell)
