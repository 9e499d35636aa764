"""Log lines: what a person reads at night, what a machine parses, what a terminal never sees."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from nodeagent import logs

log = logging.getLogger("nodeagent.test")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("nodeagent")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


def written(*, log_format: str = "text", verbose: bool = False) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(log_format=log_format, verbose=verbose, stream=stream)
    return stream


def test_a_line_ends_in_its_facts() -> None:
    stream = written()
    log.info("restored %d VFs", 14, extra={"step": "restore", "elapsed": 5.6})
    line = stream.getvalue()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO  restored 14 VFs  .*\n", line)
    assert line.endswith("  step=restore elapsed=5.6\n")


def test_a_line_without_facts_ends_with_its_message() -> None:
    stream = written()
    log.warning("careful")
    assert stream.getvalue().endswith(" WARNING careful\n")


def test_facts_with_blanks_are_quoted() -> None:
    stream = written()
    log.info("x", extra={"why": 'a "b" c', "empty": "", "count": 3, "elapsed": 123.456})
    assert stream.getvalue().endswith('why="a \\"b\\" c" empty="" count=3 elapsed=123.5\n')


def test_further_lines_are_indented_and_control_characters_escaped() -> None:
    stream = written()
    log.error("two failures:\n  pci/0000:01:00.0 vf 3\n\x1b[2Jgone", extra={"vf": "a\x1bb"})
    first, second, third = stream.getvalue().splitlines()
    assert first.endswith(' ERROR two failures:  vf="a\\u001bb"')
    assert second == "      pci/0000:01:00.0 vf 3"
    assert third == "    \\x1b[2Jgone"


def test_json_is_one_object_a_line() -> None:
    stream = written(log_format="json")
    log.info("a\nb", extra={"pf": "pci/0000:01:00.0", "vf": 3, "path": object})
    said = json.loads(stream.getvalue())
    assert said["message"] == "a\nb"
    assert (said["level"], said["logger"], said["vf"]) == ("info", "nodeagent.test", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])
    assert stream.getvalue().count("\n") == 1


def test_a_fact_cannot_replace_the_message_in_json() -> None:
    stream = written(log_format="json")
    log.info("true", extra={"level": "lie", "time": "lie"})
    said = json.loads(stream.getvalue())
    assert said["level"] == "info"
    assert said["time"] != "lie"


def test_debug_only_when_verbose_and_libraries_only_warn() -> None:
    quiet, loud = written(), written(verbose=True)
    log.debug("each write")
    logging.getLogger("pyudev").info("chatter")
    logging.getLogger("pyudev").warning("worth it")
    assert quiet.getvalue() == ""
    assert [line.split(maxsplit=1)[1] for line in loud.getvalue().splitlines()] == [
        "DEBUG each write",
        "WARNING worth it",
    ]


@pytest.mark.parametrize(
    ("stream", "colour", "coloured"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
)
def test_colour_only_where_wished_and_on_a_terminal(
    stream: io.StringIO, colour: bool, coloured: bool
) -> None:
    logs.configure(log_format="text", verbose=False, colour=colour, stream=stream)
    log.error("red")
    assert ("\x1b[" in stream.getvalue()) is coloured


ERASED = "\r\x1b[K"


def test_what_is_waited_for_is_one_line_below_the_log() -> None:
    stream = Terminal()
    logs.configure(log_format="text", verbose=False, stream=stream)
    log.log(logs.LIVE, "waiting for VFs: 1 of 50, 1 s")
    log.log(logs.LIVE, "waiting for VFs: 37 of 50, 2 s")
    log.info("a line that stays")
    log.log(logs.LIVE, "%s", "x" * 1000)
    log.log(logs.LIVE, "")
    one, two, kept, gone = stream.getvalue().split(ERASED)
    assert (one, two) == ("waiting for VFs: 1 of 50, 1 s", "waiting for VFs: 37 of 50, 2 s")
    assert re.fullmatch(r".* INFO  a line that stays\nx{79,}", kept)
    assert gone == ""


@pytest.mark.parametrize(("log_format", "verbose"), [("text", True), ("json", False)])
def test_nowhere_else_is_that_shown(log_format: str, verbose: bool) -> None:
    stream = Terminal() if log_format == "json" else io.StringIO()
    logs.configure(log_format=log_format, verbose=verbose, stream=stream)
    log.log(logs.LIVE, "waiting for VFs: 1 of 50, 1 s")
    assert stream.getvalue() == ""


def test_a_traceback_is_kept() -> None:
    stream = written()
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        log.exception("a bug")
    assert "    ZeroDivisionError: division by zero" in stream.getvalue()
