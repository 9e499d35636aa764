"""What a look before a reload finds, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`check` is what was looked at; `what` is there, `why` it matters, `remedy` what to do."""

    check: str
    what: str
    why: str
    remedy: str
    blocks: bool
    pods: tuple[str, ...] = ()
    """UIDs of the pods that lose something for good."""
