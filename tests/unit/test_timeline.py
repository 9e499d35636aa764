"""The timeline: what a journal says about a run, complete, failed, stopped or killed."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.record import gaps, report
from nodeagent.record.gaps import Gaps, Moment, VfGap, VfTimes
from nodeagent.record.journal import Note, Record, RecordKind
from nodeagent.record.timeline import lines, runs_of
from nodeagent.render import Screen
from nodeagent.state.model import DeviceHandle, Target


def record(
    clock: float, kind: str, name: str, run: str = "r1", boot: str = "b1", **facts: str
) -> Record:
    at = f"2026-11-21T12:{int(clock) // 60:02d}:{clock % 60:06.3f}Z"
    return Record(at, clock, boot, run, 1, RecordKind(kind), name, facts)


INSTALLED = {"mlx5_core": "B", "mlx5_ib": "C", "ib_core": "none"}

COMPLETE = (
    record(0, "note", "run", mode="sources"),
    record(0, "start", "build"),
    record(1.5, "done", "build"),
    record(1.5, "note", "srcversion", checkpoint="installed", **INSTALLED),
    record(1.5, "note", "srcversion", checkpoint="loaded", **(INSTALLED | {"mlx5_core": "A"})),
    record(2, "start", "restart"),
    record(3, "note", "vfs-gone"),
    record(9, "done", "restart"),
    record(9, "note", "srcversion", checkpoint="installed", **INSTALLED),
    record(9, "note", "srcversion", checkpoint="loaded", **INSTALLED),
    record(9, "start", "restore"),
    record(12, "note", "vfs-back"),
    record(14.6, "done", "restore"),
    record(15, "note", "ready"),
)


def test_a_complete_run() -> None:
    (run,) = runs_of(COMPLETE)
    assert (run.run, run.mode, run.result, run.seconds) == ("r1", "sources", "ready", 15)
    assert [(p.name, p.seconds, p.result) for p in run.phases] == [
        ("build", 1.5, "done"),
        ("restart", 7, "done"),
        ("restore", 5.6, "done"),
    ]
    assert [(w.seconds, w.back) for w in run.windows] == [(9, "2026-11-21T12:00:12.000Z")]


def test_a_complete_run_as_text() -> None:
    assert lines(runs_of(COMPLETE), Screen()) == [
        "run r1  sources  2026-11-21 12:00:00.000 UTC  ready after 15.0 s",
        "  phase    start         duration   result",
        "  build    12:00:00.000      1.5 s  done",
        "  restart  12:00:02.000      7.0 s  done",
        "  restore  12:00:09.000      5.6 s  done",
        "  srcversion  installed  loaded before  loaded after",
        "  mlx5_core   B          A              B",
        "  mlx5_ib     C          C              C",
        "  VFs gone from 12:00:03.000 to 12:00:12.000: 9.0 s",
    ]


def test_a_killed_run_is_cut_short_and_the_next_one_ends_its_window() -> None:
    killed = COMPLETE[:7]
    again = (
        record(20, "note", "run", run="r2", mode="sources"),
        record(20, "start", "restore", run="r2"),
        record(23, "note", "vfs-back", run="r2"),
        record(24, "done", "restore", run="r2"),
        record(24, "note", "ready", run="r2"),
    )
    (alone,) = runs_of(killed)
    assert (alone.result, alone.phases[-1].result) == ("cut short", "cut short")
    assert alone.phases[-1].seconds is None
    assert alone.windows[0].back is None
    assert "they are not back" in lines([alone], Screen())[-1]

    first, second = runs_of(killed + again)
    assert first.windows == ()
    assert (second.result, second.windows[0].seconds) == ("ready", 20)


def test_a_run_that_is_alive_is_running() -> None:
    (run,) = runs_of(COMPLETE[:7], now=5.0)
    assert (run.result, run.seconds) == ("running", 5)
    assert (run.phases[-1].result, run.phases[-1].seconds) == ("running", 3)
    assert lines([run], Screen())[0].endswith("running for 5.0 s")


def test_only_the_last_run_can_be_alive() -> None:
    first, second = runs_of(
        (record(0, "start", "build"), record(9, "start", "build", run="r2")), now=9
    )
    assert (first.result, second.result) == ("cut short", "running")


def test_a_failed_run_says_why_on_a_harmless_terminal() -> None:
    records = (
        record(0, "start", "verify"),
        record(1, "failed", "verify", message="2 differences:\n  \x1b[2Jvf 3"),
        record(1, "note", "failed", message="2 differences:\n  \x1b[2Jvf 3"),
    )
    (run,) = runs_of(records)
    assert run.result == "failed"
    assert lines([run], Screen())[-2:] == ["  2 differences:", "    \\x1b[2Jvf 3"]
    (unfinished,) = runs_of(records[:2])
    assert (unfinished.result, unfinished.message) == ("failed", "2 differences:\n  \x1b[2Jvf 3")


def test_an_interrupted_run() -> None:
    (run,) = runs_of((record(0, "start", "build"), record(1, "interrupted", "build")))
    assert (run.result, run.phases[0].result) == ("interrupted", "interrupted")


def test_over_a_reboot_the_wall_clock_counts() -> None:
    gone = record(600, "note", "vfs-gone")
    back = dataclasses.replace(record(690, "note", "vfs-back", run="r2", boot="b2"), clock=12.0)
    first, second = runs_of((gone, back))
    assert first.windows == ()
    assert second.windows[0].seconds == 90


PF = "pci/0000:01:00.0"


def times(clock: float, run: str = "r1", **facts: str) -> Record:
    return record(clock, "note", Note.VF_TIMES, run=run, **facts)


def test_each_vfs_gap() -> None:
    noted = times(
        12,
        **{
            f"{PF} vf 10": "gone=3.5 bound=10.5 settled=11 set_up=11.5",
            f"{PF} vf 9": "bound=10.25 settled=10.5 in_pod=10.75",
            f"{PF} vf 2": "gone=3.25",
        },
    )
    (run,) = runs_of((*COMPLETE[:11], noted, *COMPLETE[11:]))
    (window,) = run.windows
    assert window.vfs == (
        VfGap(f"{PF} vf 2", gone=0.25),
        VfGap(f"{PF} vf 9", gone=0, bound=7.25, settled=7.5, in_pod=7.75, seconds=7.75),
        VfGap(f"{PF} vf 10", gone=0.5, bound=7.5, settled=8, set_up=8.5, seconds=8),
    )
    assert window.gaps == Gaps(median=7.75, p95=8, worst=8, vf=f"{PF} vf 10")
    assert lines([run], Screen())[-5:] == [
        f"  a VF's gap: median 7.8 s, 95th percentile 8.0 s, worst 8.0 s ({PF} vf 10)",
        "  VF                          gone     bound   settled    set up    in pod       gap",
        "  pci/0000:01:00.0 vf 2      0.2 s         -         -         -         -         -",
        "  pci/0000:01:00.0 vf 9      0.0 s     7.2 s     7.5 s         -     7.8 s     7.8 s",
        "  pci/0000:01:00.0 vf 10     0.5 s     7.5 s     8.0 s     8.5 s         -     8.0 s",
    ]


def test_a_vf_that_went_in_a_run_that_failed_has_gone_then() -> None:
    (first, second) = runs_of(
        (
            record(3, "note", "vfs-gone"),
            times(5, **{f"{PF} vf 0": "gone=3.5"}),
            times(9, "r2", **{f"{PF} vf 0": "gone=7 bound=8"}),
            record(10, "note", "vfs-back", run="r2"),
        )
    )
    assert first.windows == ()
    assert second.windows[0].vfs == (VfGap(f"{PF} vf 0", gone=0.5, bound=5, seconds=4.5),)


def test_times_that_make_no_sense_are_left_out() -> None:
    noted = times(5, **{f"{PF} vf 0": "gone=x bound=nan settled= left=4 in_pod=1e999"})
    (run,) = runs_of((record(3, "note", "vfs-gone"), noted, record(6, "note", "vfs-back")))
    assert run.windows[0].vfs == (VfGap(f"{PF} vf 0", gone=0),)
    assert run.windows[0].gaps is None


def test_what_is_noted_of_a_vf_is_what_is_read() -> None:
    vf, noted = Target(DeviceHandle("pci", "0000:01:00.0"), 3), VfTimes()
    noted.note(vf, Moment.GONE, 3.0)
    noted.note(vf, Moment.GONE, 4.0)
    noted.note(vf, Moment.BOUND, 5.0)
    noted.note(vf, Moment.BOUND, 6.0)
    assert noted.has(vf, Moment.BOUND)
    assert not noted.has(vf, Moment.IN_POD)
    facts = noted.taken()
    assert {name: gaps.moments(fact) for name, fact in facts.items()} == {
        f"{PF} vf 3": {"gone": 3, "bound": 6}
    }
    assert noted.taken() == {}


def test_the_percentiles_are_those_of_the_nearest_rank() -> None:
    found = [VfGap(f"vf {n}", 0, 1, seconds=float(n)) for n in range(1, 101)]
    assert gaps.summary(found) == Gaps(50, 95, 100, "vf 100")
    assert gaps.summary(found[:1]) == Gaps(1, 1, 1, "vf 1")
    assert gaps.summary(()) is None


def test_nothing_on_record() -> None:
    assert runs_of(()) == ()
    assert lines((), Screen()) == []


NAMES = [
    "build",
    "restart",
    "restore",
    "run",
    "ready",
    "failed",
    "vfs-gone",
    "vfs-back",
    "srcversion",
]


@given(
    st.lists(
        st.builds(
            record,
            st.floats(0, 3000),
            st.sampled_from(RecordKind),
            st.sampled_from(NAMES),
            st.sampled_from(["r1", "r2"]),
            st.sampled_from(["b1", "b2"]),
        )
    ),
    st.none() | st.floats(0, 4000),
)
def test_any_order_of_records_is_reported(records: list[Record], now: float | None) -> None:
    runs = runs_of(records, now=now)
    assert {run.run for run in runs} == {record.run for record in records}
    starts = sum(record.kind == "start" for record in records)
    assert sum(len(run.phases) for run in runs) == starts
    assert all(a != b for a, b in itertools.pairwise([run.run for run in runs]))
    assert all(isinstance(line, str) for line in lines(runs, Screen(width=40, colour=True)))


def test_as_a_report_to_hand_on() -> None:
    terminated = (
        record(20, "note", "run", run="r2", mode="terminate"),
        record(21, "note", "terminated", run="r2"),
    )
    told = report.lines(runs_of((*COMPLETE, *terminated)), "mlx5_core")
    assert told[:7] == [
        "## mlx5_core srcversion tracking",
        "",
        "| checkpoint | time | srcversion |",
        "|---|---|---|",
        "| run 1: loaded before | 12:00:01 | `A` |",
        "| run 1: installed | 12:00:09 | `B` |",
        "| run 1: loaded after | 12:00:09 | `B` |",
    ]
    assert "### 12:00:02 -- restart: done (7.0 s)" in told
    assert "VFs gone 12:00:03, back 12:00:12." in told
    assert "## Run 2: terminate, terminated after 1.0 s" in told
    assert told[-1] == "| **run 2: start to terminated** | 12:00:20 | 1.0 s |"
    assert "| run 1: no VFs | 12:00:03 | 9.0 s |" in told


def test_a_report_shows_failures_and_hides_nothing_of_markdown() -> None:
    records = (
        record(0, "note", "run", mode="sources"),
        record(0, "start", "restart"),
        record(1, "note", "vfs-gone"),
        record(2, "failed", "restart", message="no | driver\nat\x1b all"),
        record(2, "note", "failed", message="no driver"),
    )
    told = report.lines(runs_of(records), "mlx5_core")
    assert "- no | driver" in told
    assert not any("\x1b" in line for line in told)
    assert "VFs gone 12:00:01, not back yet." in told
    assert "| run 1: no VFs | 12:00:01 | -- |" in told
