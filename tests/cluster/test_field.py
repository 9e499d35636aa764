"""The field's operators in real time: slow, and silent after a restart. tests/cluster/field.py."""

from __future__ import annotations

from concurrent.futures import Future

from tests.cluster.field import SLOW, Story

Field = dict[str, Future[Story]]


def test_slow_operator_is_waited_for(field_cases: Field) -> None:
    done = field_cases["slow"].result(120)["wait"]
    assert done.status == 0, done.stderr
    (arrival,) = done.json()
    assert 30 < arrival["seconds"] < SLOW + 10
    assert done.seconds < arrival["seconds"] + 10


def test_silent_operator_is_named_within_30_seconds(field_cases: Field) -> None:
    story = field_cases["silent after a restart"].result(120)
    assert story["good"].status == 0, story["good"].stderr
    check = story["check"]
    assert check.seconds < 30
    assert check.status == 1, check.stderr
    verdict = check.json()
    assert verdict["state"] == "silent"
    (finding,) = verdict["findings"]
    assert finding["code"] == "controller-silent"
    assert "0 times Reconciling since" in finding["evidence"]
    assert "/after waits" in finding["evidence"]
    assert "/before waits" in finding["evidence"], "it was changed, and nothing came of it"
    assert "delete the pod" in finding["change"]
    late = story["late"]
    assert late.status == 75
    assert "controller-silent" in late.stderr
