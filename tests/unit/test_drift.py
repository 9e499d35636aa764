"""WATCH_DRIFT: what changes after ready is told, once, and nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.agent import drift
from nodeagent.errors import KernelError, Stopped
from nodeagent.kernel.rtnl import VfInfo
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.record.journal import Journal, Note
from nodeagent.record.timeline import lines, runs_of
from nodeagent.render import Screen
from nodeagent.settings import Settings
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        made.create_vfs(made.pfs[PF1], 2)
        made.settle()
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return dataclasses.replace(Settings(), state_dir=tmp_path)


class Script:
    """Between two looks something happens to the node; at the end a stop comes."""

    def __init__(self, node: Node, *driver_events: object) -> None:
        self.node, self.left = node, list(driver_events)

    def __call__(self, *_: object) -> None:
        if not self.left:
            raise Stopped
        happening = self.left.pop(0)
        if callable(happening):
            happening()


def watched(
    fake: FakeNode, settings: Settings, monkeypatch: pytest.MonkeyPatch, *driver_events: object
) -> Journal:
    journal = Journal(settings)
    with fake.node(settings) as node:
        monkeypatch.setattr(drift, "_sleep", Script(node, *driver_events))
        with pytest.raises(Stopped):
            drift.watch(node, journal)
    return journal


def hold(fake: FakeNode, index: int, **changes: object) -> None:
    vf = fake.pfs[PF1].vfs[index]
    vf.held = dataclasses.replace(vf.held, **changes)  # type: ignore[arg-type] # by name
    assert isinstance(vf.held, VfInfo)


def test_a_drift_is_told_once_and_its_end_too(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    journal = watched(
        fake,
        settings,
        monkeypatch,
        None,
        lambda: hold(fake, 1, vlan=7),
        None,
        lambda: hold(fake, 1, vlan=8),
        lambda: hold(fake, 1, vlan=0),
    )
    said = [record.message for record in caplog.records if "drift" in record.message][1:]
    assert said == [
        f"drift: pci/{PF1} vf 1 vlan: want 0, have 7",
        f"drift: pci/{PF1} vf 1 vlan: want 0, have 8",
        f"drift over: pci/{PF1} vf 1 vlan is 0 again",
    ]
    assert [record.name for record in journal.records()] == ["drift", "drift", "drift-over"]
    assert fake.writes == []


def test_vfs_that_are_gone(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched(fake, settings, monkeypatch, lambda: fake.remove_vfs(fake.pfs[PF1]))
    assert f"drift: pci/{PF1} numvfs: want 2, have 0" in caplog.text
    assert fake.writes == []


def test_a_look_that_fails_is_not_the_end(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = [False]

    def sometimes(node: Node) -> object:
        if broken[0]:
            broken[0] = False
            raise KernelError("cannot list links: they changed during each of 8 dumps")
        return observe(node)

    monkeypatch.setattr(drift, "observe", sometimes)
    watched(
        fake,
        settings,
        monkeypatch,
        lambda: broken.__setitem__(0, True),
        lambda: hold(fake, 0, trust=True),
    )
    assert "cannot look for drift: cannot list links" in caplog.text
    assert f"drift: pci/{PF1} vf 0 trust: want False, have True" in caplog.text


def test_the_first_look_may_fail_too(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it is compared with is the first look that does not."""
    left = [2]

    def later(node: Node) -> object:
        if left[0]:
            left[0] -= 1
            raise KernelError("cannot list links: they changed during each of 8 dumps")
        return observe(node)

    monkeypatch.setattr(drift, "observe", later)
    watched(fake, settings, monkeypatch, None, None, lambda: hold(fake, 0, trust=True))
    assert f"drift: pci/{PF1} vf 0 trust: want False, have True" in caplog.text


def test_where_events_never_pause_the_looks_become_rare(
    fake: FakeNode, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def sleep(*given: object) -> bool:
        pauses.append(float(str(given[3])))
        if len(pauses) == 9:
            raise Stopped
        return len(pauses) != 7

    monkeypatch.setattr(drift, "_sleep", sleep)
    with fake.node(settings) as node, pytest.raises(Stopped):
        drift.watch(node, Journal(settings))
    assert pauses == [2, 4, 8, 16, 30, 30, 30, 2, 4]


def test_neither_log_nor_journal_grow_for_ever(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reload's own records are in the same journal, which drops the oldest."""
    monkeypatch.setattr(drift, "MAX_RECORDS", 3)
    monkeypatch.setattr(drift, "MAX_LINES", 2)
    journal = watched(
        fake,
        settings,
        monkeypatch,
        lambda: fake.remove_vfs(fake.pfs[PF1]),
        lambda: fake.create_vfs(fake.pfs[PF1], 2),
        lambda: fake.remove_vfs(fake.pfs[PF1]),
    )
    assert "drift: 1 more lines are left out: see `nodeagent verify`" in caplog.text
    assert "drift: 3 are on record, the others of this run are only logged" in caplog.text
    assert len(journal.records()) == 3


def test_an_event_ends_the_sleep_and_a_storm_is_one_look(
    fake: FakeNode, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: the watches, the quiet after an event, the stop's descriptor."""
    looks: list[int] = []
    with fake.node(settings) as node:

        def counted(node: Node) -> object:
            looks.append(1)
            if len(looks) > 3:
                raise Stopped
            return observe(node)

        monkeypatch.setattr(drift, "observe", counted)
        with pytest.raises(Stopped):
            drift.watch(node, Journal(settings), resync=5.0, quiet=0.01)
    assert len(looks) == 4


def test_the_timeline_shows_it_and_the_run_is_no_longer_for_that(settings: Settings) -> None:
    journal = Journal(settings)
    journal.note(Note.RUN, mode="precompiled")
    journal.note(Note.READY)
    records = journal.records()
    ended = runs_of(records)[0].seconds
    journal.note(Note.DRIFT, target=f"pci/{PF1} vf 1", attribute="vlan", want="5", have="0")
    journal.note(Note.DRIFT_OVER, target=f"pci/{PF1} vf 1", attribute="vlan")
    (run,) = runs_of(journal.records())
    assert run.seconds == ended
    text = "\n".join(lines([run], Screen()))
    assert f"pci/{PF1} vf 1 vlan: was 5, is 0" in text
    assert f"pci/{PF1} vf 1 vlan: as it was" in text
