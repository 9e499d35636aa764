"""What failed while a plan was performed: the target, and a line for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nodeagent.errors import WaitTimeout
from nodeagent.plan.actions import Action
from nodeagent.state.model import Target

Failures = list[tuple[Target, str]]


def target_of(action: Action) -> Target:
    """The target that an action concerns; its PF where it has no index."""
    return Target(action.pf, getattr(action, "index", None))


def timed_out(
    late: WaitTimeout, targets: Iterable[Target], why: Callable[[Target], str | None]
) -> Failures:
    """A line for each target that is still missing when a wait for them has timed out."""
    named = ((target, why(target)) for target in targets)
    return [
        (target, f"{text} after {late.seconds:g} s") for target, text in named if text is not None
    ]
