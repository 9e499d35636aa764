"""What went wrong while a plan was performed: whom it concerns, and a line for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nodeagent.errors import WaitTimeout
from nodeagent.node.node import Target
from nodeagent.plan.actions import Action

Failures = list[tuple[Target, str]]


def target_of(action: Action) -> Target:
    return action.pf, getattr(action, "index", None)


def timed_out(
    late: WaitTimeout, targets: Iterable[Target], why: Callable[[Target], str | None]
) -> Failures:
    """A line for each target that is still missing, with the wait that gave up on it."""
    named = ((target, why(target)) for target in targets)
    return [
        (target, f"{text} after {late.seconds:g} s") for target, text in named if text is not None
    ]
