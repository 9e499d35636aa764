"""The manual page nodeagent(8), made from the help texts.

`scripts/man-page` writes it. The macros are those of man(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import click

from nodeagent import __version__, settings
from nodeagent.cli.page import EXIT, FILES, SECTIONS

SEE_ALSO: Final = ("ip-link(8)", "devlink(8)", "modprobe(8)", "modinfo(8)", "udevadm(8)")

_OPTION: Final = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")


def roff(group: click.Group) -> str:
    """The page as troff's source."""
    return "\n".join(_lines(group)) + "\n"


def _lines(group: click.Group) -> Iterator[str]:
    title, *rest = _paragraphs(group.help)
    yield '.\\" written by scripts/man-page'
    yield f'.TH NODEAGENT 8 "" "nodeagent {__version__}" "System Administration"'
    yield ".nh"  # names must not be hyphenated
    yield ".ad l"
    yield ".SH NAME"
    yield f"nodeagent \\- {_text(title[:1].lower() + title[1:].removesuffix('.'))}"
    yield ".SH SYNOPSIS"
    yield "\\fBnodeagent\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR ..."
    yield ".SH DESCRIPTION"
    yield from _joined(rest)
    yield ".SH OPTIONS"
    yield from _options(group, ["nodeagent"])
    for section, names in SECTIONS.items():
        yield f'.SH "COMMANDS: {section.upper()}"'
        for name in names:
            yield from _command(group.commands[name], ["nodeagent", name])
    yield '.SH "EXIT STATUS"'
    for number, meaning in EXIT:
        yield from _definition(f"\\fB{number}\\fR", _text(meaning))
    yield ".SH FILES"
    yield "In /run/mellanox/drivers, unless a variable says otherwise:"
    for name, meaning in FILES:
        yield from _definition(f"\\fI{_text(name)}\\fR", _text(meaning))
    yield ".SH ENVIRONMENT"
    for _, row in settings.rows():
        default = f" Default: {row.default}." if row.default else ""
        unit = f" Unit: {row.unit}." if row.unit else ""
        reason = f"{row.reason[:1].upper()}{row.reason[1:]}.{unit}{default}"
        yield from _definition(f"\\fB{row.name}\\fR", _text(reason))
    yield '.SH "SEE ALSO"'
    yield ", ".join(_text(each) for each in SEE_ALSO)


def _command(command: click.Command, path: list[str]) -> Iterator[str]:
    """The entry of a command, or of each command of a group."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _command(each, [*path, name])
        return
    pieces = " ".join(command.collect_usage_pieces(_context(command, path)))
    yield f'.SS "{_text(" ".join(path))} {_text(pieces)}"'
    yield from _joined(_paragraphs(command.help))
    yield from _options(command, path)


def _options(command: click.Command, path: list[str]) -> Iterator[str]:
    context = _context(command, path)
    for each in command.params:
        record = each.get_help_record(context) if isinstance(each, click.Option) else None
        if record is not None:
            yield from _definition(_text(record[0]), _text(record[1]))


def _context(command: click.Command, path: list[str]) -> click.Context:
    """A context as the program has it: click keeps the help option that it creates first."""
    return click.Context(command, info_name=path[-1], help_option_names=["-h", "--help"])


def _definition(term: str, meaning: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield meaning


def _paragraphs(text: str | None) -> list[str]:
    """The paragraphs of a help text, their lines joined except where click must not wrap."""
    return [
        part.removeprefix("\b\n") if part.startswith("\b") else " ".join(part.split())
        for part in re.split(r"\n\s*\n", (text or "").strip())
    ]


def _joined(paragraphs: Sequence[str]) -> Iterator[str]:
    for each in paragraphs:
        if "\n" in each:
            yield from (".PP", ".nf", *map(_text, each.splitlines()), ".fi")
        else:
            yield from (".PP", _text(each))


def _text(text: str) -> str:
    """Text as troff prints it: no escape, no request, no hyphen in an option."""
    plain = text.replace("\\", "\\e").replace('"', "\\(dq")
    plain = _OPTION.sub(lambda found: f"\\fB{found[1]}\\fR".replace("-", "\\-"), plain)
    return re.sub(r"^([.'])", r"\\&\1", plain)
