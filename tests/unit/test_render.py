"""Tables: aligned, as wide as the terminal at most, and harmless to it."""

from __future__ import annotations

import io

from nodeagent.render import Cell, Marked, Screen, marked, table, wrapped

HEADERS = ("target", "want")
ROWS = [("pci/0000:01:00.0 vf 3", "02:11:22:33:44:50"), ("eth0", "1500")]


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    assert table(HEADERS, ROWS, Screen()) == [
        "target                 want",
        "pci/0000:01:00.0 vf 3  02:11:22:33:44:50",
        "eth0                   1500",
    ]


def test_no_rows_leaves_the_headers() -> None:
    assert table(HEADERS, [], Screen(), indent="  ") == ["  target  want"]


def test_the_widest_column_but_the_first_is_cut_to_fit_the_terminal() -> None:
    headers, rows = (*HEADERS, "have"), [(*row, "9000") for row in ROWS]
    lines = table(headers, rows, Screen(width=43), indent="  ")
    assert max(len(line) for line in lines) <= 43
    assert lines[1] == "  pci/0000:01:00.0 vf 3  02:11:22:33…  9000"


def test_a_narrow_terminal_still_shows_something() -> None:
    assert table(HEADERS, ROWS, Screen(width=3))[1] == "pci/0000:01:00.0 vf 3  02:11:2…"
    assert table(("only",), [("a long value",)], Screen(width=3))[1] == "a long value"


def test_text_is_wrapped_between_words() -> None:
    text = "BLOCKS  processes: mlx5_ib is used by /usr/bin/a-long-name-that-is-not-cut\nend it"
    assert wrapped(text, Screen(width=30), indent="  ", hanging="  ") == [
        "  BLOCKS  processes: mlx5_ib",
        "    is used by",
        "    /usr/bin/a-long-name-that-is-not-cut",
        "    end it",
    ]
    assert wrapped("a\x1b b", Screen(), indent="  ") == ["  a\\x1b b"]
    assert wrapped("", Screen(width=30)) == []


def test_a_mark_is_colour_only() -> None:
    assert marked("BLOCKS", Screen()) == "BLOCKS"
    assert marked("BLOCKS", Screen(colour=True)) == "\x1b[1;31mBLOCKS\x1b[0m"


def test_only_marked_cells_are_coloured_and_colour_takes_no_width() -> None:
    rows: list[tuple[str, Cell]] = [("eth0", Marked("1500")), ("eth1", "9000")]
    plain, coloured = table(HEADERS, rows, Screen()), table(HEADERS, rows, Screen(colour=True))
    assert coloured[1] == "eth0    \x1b[1;31m1500\x1b[0m"
    assert (coloured[0], coloured[2]) == (plain[0], plain[2])
    assert plain[1] == "eth0    1500"


def test_a_cell_cannot_steer_the_terminal() -> None:
    assert table(("a",), [("\x1b[2J\n",)], Screen()) == ["a", "\\x1b[2J\\n"]


def test_a_pipe_has_no_width_and_no_colour() -> None:
    assert Screen.of(io.StringIO(), colour=True) == Screen(width=None, colour=False)
