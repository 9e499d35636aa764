"""The timeline as SVG: what a reader must see, and that any text makes a valid document."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.record import chart
from nodeagent.record.gaps import VfGap
from nodeagent.record.timeline import Echoes, Phase, Result, Run, Window, runs_of
from tests.unit.test_timeline import COMPLETE, record

SVG = "{http://www.w3.org/2000/svg}"
NOON = "2026-11-21T12:00:00.000Z"


def drawn(runs: tuple[Run, ...]) -> ET.Element:
    return ET.fromstring(chart.svg(runs))  # noqa: S314  it is ours


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def bars(root: ET.Element) -> dict[str, tuple[float, float]]:
    """Left edge and width of each bar, by the first word of its title."""
    return {
        title.text.split(":")[0].split(" from")[0]: (float(rect.get("x", "")), width_of(rect))
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None and title.text
    }


def width_of(rect: ET.Element) -> float:
    return float(rect.get("width", ""))


def run_of(**changed: Any) -> Run:
    phases, windows, checkpoints = (), (), ()
    plain = Run("r1", NOON, "sources", "25.10", Result.READY, "", 10, phases, windows, checkpoints)
    return dataclasses.replace(plain, **changed)


def phase(name: str, second: float, seconds: float | None, result: Result = Result.DONE) -> Phase:
    whole, part = divmod(second, 60)
    return Phase(name, f"2026-11-21T12:{int(whole):02}:{part:06.3f}Z", seconds, result, "")


def test_phases_and_window_are_to_scale() -> None:
    root = drawn(runs_of(COMPLETE))
    assert bars(root).keys() == {"build", "restart", "restore", "VFs gone"}
    (build, one), (restart, seven) = bars(root)["build"], bars(root)["restart"]
    gone, nine = bars(root)["VFs gone"]
    assert build < restart < gone
    assert seven / one == pytest.approx(7 / 1.5, rel=0.01)
    assert nine / seven == pytest.approx(9 / 7, rel=0.01)
    assert (gone - build) / seven == pytest.approx(3 / 7, rel=0.01)


def test_what_can_be_read() -> None:
    root = drawn(runs_of(COMPLETE))
    said = texts(root)
    assert said[0] == "run r1 · sources · 2026-11-21 12:00:00.000 UTC · ready after 15.0 s"
    for text in ("build", "1.5 s", "restart", "7.0 s", "restore", "5.6 s", "VFs gone", "9.0 s"):
        assert text in said
    assert root.findtext(f"{SVG}title") == "nodeagent timeline: r1"


def test_the_time_without_vfs_is_a_band_behind_all_rows() -> None:
    root = drawn(runs_of(COMPLETE))
    (band,) = (each for each in root.iter(f"{SVG}rect") if each.get("opacity"))
    assert float(band.get("height", "")) == 20 * 4
    assert (float(band.get("x", "")), width_of(band)) == bars(root)["VFs gone"]


def test_runs_have_one_scale() -> None:
    slow = run_of(run="slow", seconds=40.0, phases=(phase("restore", 0, 40.0),))
    quick = run_of(run="quick", seconds=10.0, phases=(phase("verify", 0, 10.0),))
    found = bars(drawn((slow, quick)))
    assert found["restore"][1] / found["verify"][1] == pytest.approx(4, rel=0.01)


def test_a_run_that_failed_says_why() -> None:
    restart = phase("restart", 1, 2.0, Result.FAILED)
    message = "openibd restart failed: <no driver> & none\n" + "long " * 60
    root = drawn((run_of(result=Result.FAILED, message=message, phases=(restart,)),))
    said = texts(root)
    assert "2.0 s failed" in said
    assert "openibd restart failed: <no driver> & none" in said
    assert len([each for each in said if each.startswith("long ")]) == 2


def test_a_phase_without_an_end_and_vfs_that_are_not_back() -> None:
    records = (*COMPLETE[:7],)
    said = texts(drawn(runs_of(records)))
    assert "cut short" in said
    assert "not back" in said


def test_a_window_that_a_killed_run_began_starts_at_the_edge() -> None:
    again = (
        record(20, "note", "run", run="r2", mode="sources"),
        record(20, "start", "restore", run="r2"),
        record(23, "note", "vfs-back", run="r2"),
        record(24, "done", "restore", run="r2"),
    )
    _, second = runs_of((*COMPLETE[:7], *again))
    found = bars(drawn((second,)))
    assert found["VFs gone"][0] == found["restore"][0]
    assert "20.0 s" in texts(drawn((second,)))


def test_a_long_build_leaves_room_for_the_rest() -> None:
    phases = (phase("build", 0, 1800.0), phase("restart", 1800, 8.0), phase("restore", 1808, 8.0))
    root = drawn((run_of(seconds=1816.0, phases=phases),))
    assert bars(root)["restart"][1] > 200
    assert "1800.0 s, before this scale" in texts(root)


def test_probes() -> None:
    echoes = (Echoes("10.1.0.2@apps/web-0", 400, 37, 4.2, "2026-11-21T12:00:03+00:00"),)
    said = texts(drawn((run_of(echoes=echoes),)))
    assert "to 10.1.0.2@apps/web-0" in said
    assert "37 of 400 lost, longest gap 4.2 s" in said


@pytest.mark.parametrize("bad", [{"gap": "nan"}, {"gap": "1e99"}, {"gap": "-1"}, {"at": "12:00"}])
def test_a_probes_record_that_is_damaged_is_left_out(bad: dict[str, str]) -> None:
    good = {"target": "x", "sent": "1", "lost": "0", "gap": "0.1", "at": "2026-11-21T12:00:00Z"}
    (run,) = runs_of((record(0, "note", "probe", **good), record(1, "note", "probe", **good | bad)))
    assert len(run.echoes) == 1


def test_nothing_on_record() -> None:
    assert texts(drawn(())) == ["no run on record"]


def test_nothing_is_written_beyond_the_edge() -> None:
    echoes = (Echoes("x" * 200, 400, 37, 9.9, "2026-11-21T12:00:00+00:00"),)
    root = drawn((run_of(echoes=echoes, phases=(phase("restart", 0, 10.0, Result.RUNNING),)),))
    for element in root.iter(f"{SVG}text"):
        x, length = float(element.get("x", "")), len(element.text or "") * 6.2
        anchor = element.get("text-anchor", "start")
        assert x - {"start": 0, "middle": length / 2, "end": length}[anchor] >= 0
        assert x + {"start": length, "middle": length / 2, "end": 0}[anchor] <= chart.WIDTH + 20


def test_each_vf_has_a_row_of_its_moments() -> None:
    gaps = (
        VfGap("pci/0000:01:00.0 vf 2", gone=0.25),
        VfGap("pci/0000:01:00.0 vf 9", gone=1, bound=5, settled=6, set_up=8, seconds=7),
        VfGap("pci/0000:01:00.0 vf 10", gone=0, bound=4, in_pod=8, seconds=8),
    )
    window = Window("2026-11-21T12:00:01.000Z", "2026-11-21T12:00:09.000Z", 8.0, gaps)
    root = drawn((run_of(windows=(window,)),))
    said = texts(root)
    assert said.index("not back") < said.index("7.0 s") < said.index("until in its pod")
    rows = [
        (title.text or "", float(rect.get("x", "")), width_of(rect))
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    ]
    gone, *_ = (row for row in rows if row[0].startswith("VFs gone"))
    two, nine, ten = (
        [row for row in rows if row[0].startswith(f"pci/0000:01:00.0 vf {n}:")] for n in (2, 9, 10)
    )
    second = gone[2] / 8
    assert [round(row[2] / second) for row in two] == [8]
    assert [round(row[2] / second) for row in nine] == [4, 1, 2]
    assert [round(row[2] / second) for row in ten] == [4, 4]
    assert round((nine[0][1] - gone[1]) / second) == 1
    said_of_it = "gone 4.0 s, until udev is done 1.0 s, until set up 2.0 s"
    assert nine[0][0] == f"pci/0000:01:00.0 vf 9: {said_of_it}"


def test_moments_that_are_not_in_their_order_draw_nothing_backwards() -> None:
    gaps = (
        VfGap("vf 1", gone=3, bound=2, settled=5, set_up=4, seconds=2),
        VfGap("vf 2", gone=3, bound=2, seconds=-1),
    )
    window = Window("2026-11-21T12:00:01.000Z", None, None, gaps)
    root = drawn((run_of(windows=(window,)),))
    assert all(width_of(rect) >= 0 for rect in root.iter(f"{SVG}rect") if rect.get("x"))


NUMBERS = st.floats(0, 1e6)


@given(
    *(st.text(), st.text(), st.text(), st.lists(st.tuples(st.text(), NUMBERS, NUMBERS), max_size=4))
)
def test_any_text_makes_a_document(
    name: str, target: str, message: str, phases: list[tuple[str, float, float]]
) -> None:
    run = run_of(
        run=name,
        message=message,
        phases=tuple(
            phase(text, second % 3600, seconds, Result.CUT_SHORT)
            for text, second, seconds in phases
        ),
        windows=(Window("2026-11-21T11:59:00Z", None, None),),
        echoes=(Echoes(target, 1, 1, 0.5, "2026-11-21T12:00:01+00:00"),),
    )
    root = drawn((run, run))
    assert root.tag == f"{SVG}svg"
    assert {element.tag for element in root.iter()} == {
        f"{SVG}{tag}" for tag in ("svg", "title", "rect", "line", "text")
    }
