"""The manual page is that of the commands as they are, and one that troff reads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from nodeagent import cli, settings
from nodeagent.cli.main import nodeagent
from nodeagent.cli.manual import roff
from nodeagent.cli.page import EXIT
from tests.unit.test_cli import leaves

PAGE = Path(cli.__file__).parents[1] / "nodeagent.8"


def test_the_page_is_the_present_help() -> None:
    """scripts/man-page writes it."""
    assert PAGE.read_text() == roff(nodeagent)


def test_the_wheel_and_the_image_install_it() -> None:
    root = PAGE.parents[1]
    assert '"share/man/man8" = ["nodeagent/nodeagent.8"]' in (root / "pyproject.toml").read_text()
    assert "usr/share/man/man8" in (root / "scripts/container/install").read_text()


@pytest.fixture(scope="module")
def shown() -> str:
    """The page as man(1) shows it."""
    if shutil.which("man") is None:
        pytest.skip("no man on this machine to show the page")
    argv = ["man", "--warnings", "-E", "UTF-8", "-l", str(PAGE)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={"MANWIDTH": "200", "LANG": "C"}
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@pytest.mark.parametrize(("path", "command"), [*leaves(nodeagent)])
def test_every_command_is_in_it(path: tuple[str, ...], command: click.Command, shown: str) -> None:
    start = rf"^   nodeagent {' '.join(path)}(?: .*)?$"
    body = re.split(start, shown, flags=re.MULTILINE)[1].partition("\n   nodeagent ")[0]
    for each in command.params:
        if isinstance(each, click.Option) and not each.hidden:
            assert each.opts[-1] in body
    assert "lock-fd" not in body


def test_every_setting_and_status_is_in_it(shown: str) -> None:
    text = " ".join(shown.split())
    for _, row in settings.rows():
        assert row.name in shown
    for _, meaning in EXIT:
        assert meaning in text
