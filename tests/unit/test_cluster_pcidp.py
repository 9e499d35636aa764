"""The device plugin's list: what is gone goes, and nothing else changes by a byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster import pcidp
from nodeagent.errors import DataError, UnavailableError

LIST = """\
{
    "resourceList": [
        { "resourceName": "a",  "selectors": { "pciAddresses": [ "0000:01:00.0" ] } },
        {
            "resourceName": "b", "resourcePrefix": "intel.com",
            "selectors": [ { "pciAddresses": ["0000:01:00.1",   "0000:01:00.2"] } ]
        },
        {"resourceName":"foreign","selectors":{"drivers":["vfio-pci"],"pfNames":["gone0"]}}
    ],
    "note":   "kept \\u00e9"
}
"""


def prune(text: str, *gone: str) -> pcidp.Pruned:
    return pcidp.prune(text, lambda _, address: address in gone, "test")


def test_nothing_gone_nothing_changes() -> None:
    assert prune(LIST) == pcidp.Pruned(LIST, ())


def test_entry_goes_and_the_rest_keeps_its_bytes() -> None:
    pruned = prune(LIST, "0000:01:00.0")
    line = LIST.splitlines(keepends=True)[2]
    assert pruned.text == LIST.replace(line, "")
    assert pruned.removed == ("a: 0000:01:00.0",)


def test_address_goes_from_an_entry_that_lives_on() -> None:
    pruned = prune(LIST, "0000:01:00.2")
    assert pruned.text == LIST.replace(',   "0000:01:00.2"', "")
    assert pruned.removed == ("intel.com/b: 0000:01:00.2",)


def test_foreign_entries_stay() -> None:
    pruned = prune(LIST, "0000:01:00.0", "0000:01:00.1", "0000:01:00.2")
    entries = json.loads(pruned.text)["resourceList"]
    assert [entry["resourceName"] for entry in entries] == ["foreign"]


def test_placeholder_when_none_is_left_and_then_nothing_changes() -> None:
    text = '{"resourceList": [{"resourceName": "a", "selectors": {"pciAddresses": ["x"]}}]}'
    pruned = prune(text, "x")
    assert json.loads(pruned.text) == {"resourceList": [pcidp.PLACEHOLDER]}
    again = prune(pruned.text, pcidp.PLACEHOLDER_ADDRESS)
    assert again == pcidp.Pruned(pruned.text, ())


@pytest.mark.parametrize("text", ["", " \n", '{"resourceList": []}'])
def test_empty_list_becomes_the_placeholder(text: str) -> None:
    pruned = prune(text)
    assert json.loads(pruned.text) == {"resourceList": [pcidp.PLACEHOLDER]}
    assert pruned.removed


@pytest.mark.parametrize("text", ["{", "[]", '{"resourceList": 3}', '{"a": 1} x', '{"a" 1}'])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="test"):
        prune(text)


def test_selector_that_would_select_everything_is_not_made() -> None:
    selectors = [{"pciAddresses": ["x"]}, {"pciAddresses": ["y"]}]
    text = json.dumps({"resourceList": [{"resourceName": "a", "selectors": selectors}]})
    assert prune(text, "x") == pcidp.Pruned(text, ())


addresses = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@given(st.lists(addresses, min_size=1, max_size=5), st.sets(st.sampled_from("abcdef")), st.data())
def test_what_is_left_is_what_json_would_leave(
    lists: list[list[str]], gone: set[str], data: st.DataObject
) -> None:
    entries = [
        {"resourceName": f"r{n}", "selectors": {"pciAddresses": each}}
        for n, each in enumerate(lists)
    ]
    indent = data.draw(st.sampled_from([None, 0, 2, "\t"]))
    text = json.dumps({"resourceList": entries}, indent=indent)
    left: list[dict[str, object]] = [
        {"resourceName": f"r{n}", "selectors": {"pciAddresses": [a for a in each if a not in gone]}}
        for n, each in enumerate(lists)
        if set(each) - gone
    ]
    pruned = prune(text, *gone)
    assert json.loads(pruned.text) == {"resourceList": left or [pcidp.PLACEHOLDER]}
    assert prune(pruned.text, *gone, pcidp.PLACEHOLDER_ADDRESS).text == pruned.text


def test_file_keeps_its_mode_and_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(LIST)
    path.chmod(0o640)
    owed = tmp_path / "state" / "owed"
    pcidp.prune_file(path, lambda _, address: address == "0000:01:00.0", owed=None)
    assert path.read_text() == LIST
    pcidp.prune_file(path, lambda *_: False, owed=owed)
    assert not owed.exists()
    pcidp.prune_file(path, lambda _, address: address == "0000:01:00.0", owed=owed)
    assert owed.exists(), "whoever restarts the plugin removes it"
    assert path.read_text() != LIST
    assert path.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(DataError, match="not a regular file"):
        pcidp.prune_file(link, lambda _, address: True, owed=owed)
    assert pcidp.prune_file(tmp_path / "none.json", lambda _, address: True, owed=owed) is None


def test_what_is_gone_is_told_by_sysfs(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no devices"):
        pcidp.present_on(tmp_path)
    devices = tmp_path / "bus/pci/devices"
    (devices / "0000:01:00.0").mkdir(parents=True)
    is_gone = pcidp.present_on(tmp_path)
    assert not is_gone("a", "0000:01:00.0")
    assert is_gone("a", "0000:01:00.1")
