"""Failures while a plan is performed: pairs of a target and a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nodeagent.errors import WaitTimeout
from nodeagent.state.model import Target

if TYPE_CHECKING:
    from nodeagent.plan.actions import Action, UnbindPf

Failures = list[tuple[Target, str]]


def target_of(action: Action | UnbindPf) -> Target:
    """The target of an action: its PF if it has no index."""
    return Target(action.pf, getattr(action, "index", None))


def timed_out(
    late: WaitTimeout, targets: Iterable[Target], why: Callable[[Target], str | None]
) -> Failures:
    """A message for each target that is missing after a wait timed out."""
    named = ((target, why(target)) for target in targets)
    return [
        (target, f"{text} after {late.seconds:g} s") for target, text in named if text is not None
    ]
