"""Clean-up steps, which run even if an error is being raised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nodeagent.errors import AgentError, Stopped

log = logging.getLogger(__name__)


def attempt(step: Callable[[], object]) -> bool:
    """Call `step`. An AgentError other than Stopped is logged, and False returned."""
    try:
        step()
    except Stopped:
        raise
    except AgentError as error:
        hint = f"; hint: {error.hint}" if error.hint else ""
        log.error("%s%s", error, hint)  # noqa: TRY400 # no trace: it is no bug
        return False
    return True


@contextmanager
def afterwards(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` after the block. If the block fails, its error is raised: `undo`'s is logged."""
    try:
        yield
    except BaseException:
        attempt(undo)
        raise
    undo()
