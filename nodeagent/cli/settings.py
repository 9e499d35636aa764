"""`nodeagent settings`: the environment variables, their values and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from nodeagent.cli.commands import Call, page
from nodeagent.cli.output import Output, screen, write_json, write_lines
from nodeagent.render import Screen, marked, visible, wrapped

if TYPE_CHECKING:
    from nodeagent.settings import Variable


@click.command("settings")
@click.option("--all", "whole", is_flag=True, help="Also those that have their default.")
@page
@click.pass_obj
def show(call: Call, whole: bool, output: Output) -> None:
    """The environment variables that are set: value, default and purpose.

    As markdown: the whole table of nodeagent/README.md, with the defaults whatever is set here.
    """
    from nodeagent import settings

    if output == Output.MARKDOWN:
        write_lines(settings.markdown_table())
        return
    loaded = call.settings()
    rows = [
        (row, getattr(loaded, attribute), getattr(settings.Settings(), attribute))
        for attribute, row in settings.rows()
        if whole or settings.origin(row) == settings.Origin.ENVIRONMENT
    ]
    if output == Output.JSON:
        write_json([_plain(*row) for row in rows])
        return
    place = screen(loaded)
    for row in rows:
        write_lines(_lines(*row, place))
    if not rows:
        write_lines([f"none of the {len(settings.rows())} is set; --all shows their defaults"])


def _plain(row: Variable, value: object, default: object) -> dict[str, str | None]:
    from nodeagent import settings

    return {
        "variable": row.name,
        "value": _text(row, value),
        "default": _text(row, default),
        "unit": row.unit or None,
        "origin": settings.origin(row),
        "reason": row.reason,
    }


def _text(row: Variable, value: object) -> str | None:
    """A value as the environment has it; None if there is none."""
    return None if value is None else "" if value == () else row.shown(value)


def _lines(row: Variable, value: object, default: object, place: Screen) -> Iterator[str]:
    """The name and the value whole, however long, and below them what they mean."""
    text = visible(row.shown(value))
    yield f"{row.name}  {text if value == default else marked(text, place)}"
    if value != default:
        yield from wrapped(f"default: {row.shown(default)}", place, indent="    ")
    unit = f" ({'seconds' if row.unit == 's' else row.unit})" if row.unit else ""
    yield from wrapped(f"{row.reason}{unit}", place, indent="    ")
