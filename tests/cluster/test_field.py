"""The field's cases in real time: an operator that is slow, or silent after a restart; allocatable.

They are played by tests/cluster/field.py.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future

from nodeagent.settings import Settings
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


def test_an_unchanged_allocatable_is_believed_after_the_kubelets_interval(
    field_cases: Field,
) -> None:
    """The figures of scripts/README.md, from ready to allocatable: -rP shows them."""
    story = field_cases["device plugins restarted"].result(120)
    unchanged, fell = story["unchanged"], story["fell"]
    assert unchanged.status == 0, unchanged.stderr
    assert fell.status == 0, fell.stderr
    assert unchanged.seconds >= Settings().allocatable_settle
    sys.stdout.write(
        f"device plugins restarted to allocatable: {unchanged.seconds:.1f} s if the kubelet has "
        f"not reported a fall, {fell.seconds:.1f} s if it has\n"
    )
