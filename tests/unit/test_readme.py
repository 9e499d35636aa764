"""What the READMEs say of tests, settings, attributes, messages, files and each other is so."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import click
import pytest

from nodeagent import settings
from nodeagent.cli.main import nodeagent
from nodeagent.modes import Mode
from nodeagent.state.attributes import rows
from nodeagent.state.dcb import App, Buffers, Dcb, Ets, Pfc
from nodeagent.state.lag import Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import (
    Netdev,
    NodeState,
    Param,
    Pf,
    RdmaDevice,
    Representor,
    Subfunction,
    Vdpa,
    Vf,
)
from nodeagent.state.rates import Rate
from nodeagent.state.roce import RocePort
from nodeagent.state.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Nexthop,
    NexthopObject,
    Qdisc,
    Route,
    Stack,
    Token,
)
from nodeagent.state.vf import VfAttributes

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PACKAGE = ROOT / "nodeagent"
FOLDERS = ("manifests", "nodeagent", "scripts", "tests")
NAMED = [
    each
    for folder in (TESTS, ROOT / "manifests")
    for each in re.findall(r"`([\w/]+\.py)::(\w+)`", (folder / "README.md").read_text())
]


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_of_the_table_exists(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (TESTS / path).read_text()


def test_the_table_is_read() -> None:
    assert len(NAMED) > 40


def test_the_readme_has_the_settings() -> None:
    """`scripts/readme-settings` writes the table."""
    readme = (PACKAGE / "README.md").read_text()
    table = readme.partition("written by scripts/readme-settings -->\n")[2]
    assert table.partition("<!-- end of settings -->")[0].splitlines() == settings.markdown_table()


# the attributes of nodeagent/README.md


ATTRIBUTES = (PACKAGE / "README.md").read_text()
TABLE = ATTRIBUTES.partition("### Every attribute")[2].partition("### Left out on purpose")[0]
ROWS = [line.split(" | ") for line in TABLE.splitlines() if line.startswith("| `")]
LISTED = dict(re.findall(r"^\| ([unp]\d+) \| (.*) \|$", TABLE, re.MULTILINE))
MODEL = (
    *(NodeState, Pf, Vf, Netdev, Param, Representor, Subfunction, Vdpa, RdmaDevice),
    *(Dcb, Ets, Pfc, Buffers, App, Rate, RocePort, Lag),
    *(Stack, Child, Membership, Address, Neighbour, NexthopObject, Route, Nexthop, Qdisc, Token),
)


def test_every_attribute_has_one_row() -> None:
    """Those of what is put back into pods are those of Netdev and Stack: what holds them is not."""
    fields = {f"{kind.__name__}.{f.name}" for kind in MODEL for f in dataclasses.fields(kind)}
    named = re.findall(r"`([A-Z]\w+\.\w+)`", " ".join(row[0] for row in ROWS))
    assert len(named) == len(set(named))
    assert set(named) == fields


def test_every_row_says_where_it_is_read_restored_and_tested() -> None:
    for name, _, restored, tested in ROWS:
        keys = tested.strip(" |").split()
        assert restored.strip(), name
        assert keys, name
        assert set(keys) <= LISTED.keys(), name
    assert {key for row in ROWS for key in row[3].strip(" |").split()} == LISTED.keys()


@pytest.mark.parametrize("key", sorted(LISTED))
def test_a_test_of_an_attribute_exists(key: str) -> None:
    tests = re.findall(r"`((?:\w+/)+\w+\.py)::(\w+)`", LISTED[key])
    assert tests
    for path, name in tests:
        assert f"\ndef {name}(" in (TESTS / path).read_text(), name


@pytest.mark.parametrize(
    "field",
    [*(f"`Vf.{n}`" for n in rows(VfAttributes)), *(f"`Netdev.{n}`" for n in rows(LinkAttributes))],
)
def test_what_is_planned_is_said_to_be_restored(field: str) -> None:
    (row,) = [row for row in ROWS if field in row[0]]
    assert not row[2].strip().startswith("never")


# troubleshooting by message


DEPLOYMENT = (ROOT / "manifests/README.md").read_text()
TROUBLE = DEPLOYMENT.partition("## Troubleshooting by message\n")[2].partition("\n## ")[0]
CELLS = re.findall(r"^\| (?:probe: )?(`[^|]+`) \|", TROUBLE, re.MULTILINE)
MESSAGES = [message for cell in CELLS for message in re.findall("`([^`]+)`", cell)]


def said_by_the_code() -> list[str]:
    """Every string of the package, with … for what is filled in."""
    texts = [re.sub(r"\$\w+", "…", (PACKAGE / "probe.sh").read_text())]
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%\w", "…", node.value))
    return texts


def is_said(message: str, texts: list[str]) -> bool:
    """Some string begins with, or is, the message; … in either is anything."""

    def pattern(text: str) -> re.Pattern[str]:
        return re.compile(".*".join(map(re.escape, re.split(r"…|\bN\b", text))), re.DOTALL)

    wanted = pattern(message)
    return any(
        wanted.search(text)
        or (len(text.replace("…", "")) >= 12 and pattern(text).fullmatch(message))
        for text in texts
    )


def test_each_message_of_troubleshooting_is_one_that_is_said() -> None:
    texts = said_by_the_code()
    assert len(MESSAGES) >= 10
    for message in MESSAGES:
        assert is_said(message, texts), message
    assert not is_said("programs that a reload calls have gone: …", texts)
    assert not is_said("… is locked by …: another agent runs on that node", texts)


# length and links


PAGES = sorted(
    path
    for pattern in ("*.md", ".github/**/*.md", *(f"{f}/**/*.md" for f in FOLDERS))
    for path in ROOT.glob(pattern)
)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def without_code(page: str) -> str:
    """A page without its blocks of code, where brackets are no links and # is no heading."""
    return re.sub(r"^```[\s\S]*?^```$|^    .*$", "", page, flags=re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Those that GitHub gives headings: lower case, without punctuation, - for each space."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def broken(path: Path) -> list[str]:
    """The page's relative links that lead to no file, or to no heading."""
    links = re.findall(r"\]\(([^()\s]+)\)", without_code(path.read_text()))
    found = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert not broken(path)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# It's `here`\n")
    page = tmp_path / "page.md"
    links = "[1](there.md#its-here) [2](there.md#gone) [3](gone.md) [4](#page) [5](#gone)"
    page.write_text(f"# Page\n\n{links} [6](https://kernel.org/#x)\n\n    # code\n\n[7](#code)\n")
    assert broken(page) == ["there.md#gone", "gone.md", "#gone", "#code"]


def test_the_pages_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", *(f"{each}/README.md" for each in FOLDERS)} <= names


# the commands that they show


DOCUMENTS = [
    path for path in PAGES if path.name != "CHANGELOG.md"
]  # which is of other versions, too


def shown(page: str) -> list[str]:
    """Calls of nodeagent in blocks of code and in backquotes."""
    blocks = re.findall(r"^    (?:[$#] )?(nodeagent .*)$", page, re.MULTILINE)
    return [*blocks, *re.findall(r"`(nodeagent [^`]+)`", " ".join(page.split()))]


def unknown(call: str) -> list[str]:
    """The words of a call that are no command, and the options that its command does not have."""
    command: click.Command = nodeagent
    words = iter(call.split()[1:])
    for word in words:
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z-]*", word):
            if word in {each.value for each in Mode}:  # the image's CMD, which is short for run
                break
            if (found := command.commands.get(word)) is None:
                return [word]
            command = found
        elif word.startswith("#") or word in {"|", ">", "…"}:
            break
        elif re.match(r"-{1,2}[a-z]", word):
            options = {
                name for each in command.params for name in (*each.opts, *each.secondary_opts)
            }
            if word.partition("=")[0] not in {*options, "--help", "--version"}:
                return [word]
    return []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_is_one(path: Path) -> None:
    assert {call: bad for call in shown(path.read_text()) if (bad := unknown(call))} == {}


def test_a_command_that_there_is_not_is_found() -> None:
    page = (
        "    $ nodeagent plan --after-reload\n\n`nodeagent operator chekc`, `nodeagent plan --wet`"
    )
    assert [unknown(call) for call in shown(page)] == [[], ["chekc"], ["--wet"]]
    assert len(shown((ROOT / "README.md").read_text())) > 5


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_and_directory_that_is_shown_is_there(path: Path) -> None:
    blocks = re.findall(r"^    (.*)$", path.read_text(), re.MULTILINE)
    for line in blocks:
        for named in re.findall(r"(?<![\w./-])(?:scripts|manifests)/[\w./-]*\w", line):
            assert (ROOT / named).exists(), line


# the READMEs of the package and of the commands


def named_paths(readme: str) -> set[str]:
    """What is in backquotes and looks like a file or a folder of the tree."""
    words = re.findall(r"`([\w./-]+)`", (ROOT / readme).read_text())
    return {word for word in words if "/" in word or word.endswith((".py", ".md", ".toml"))}


@pytest.mark.parametrize(
    ("readme", "least"), [("nodeagent/README.md", 40), ("scripts/README.md", 15)]
)
def test_paths_that_a_readme_names_exist(readme: str, least: int) -> None:
    named = {path for path in named_paths(readme) if not path.startswith("/")}
    places = (ROOT, PACKAGE)
    assert not {path for path in named if not any((each / path).exists() for each in places)}
    assert len(named) >= least


def test_the_package_readme_has_every_folder() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    text = (PACKAGE / "README.md").read_text()
    assert not {folder for folder in folders if f'["{folder}/' not in text}
