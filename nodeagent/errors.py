"""What can go wrong, as values: one message, one hint, one exit code.

Exit codes are those of sysexits(3), so that a script can tell them apart. The driver container's
contract knows 0 and 1 only: `nodeagent run` maps every failure to 1 (CONTRACT.md, "Exit").
An exception that is not an AgentError is a bug and shows its traceback.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable, Sequence

DIFFERS = 1
USAGE = 64
BAD_DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
OS_ERROR = 71
CANNOT_CREATE = 73
IO_ERROR = 74
TRY_AGAIN = 75
NO_PERMISSION = 77
BAD_CONFIG = 78


class AgentError(Exception):
    """Raised once, with operation, target and reason; logged once, at the top.

    `message` says what was tried on what and why it failed; `hint` says what to do next.
    """

    exit_code = DIFFERS

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(AgentError):
    """An environment variable or flag has a value that is not allowed. Nothing was touched."""

    exit_code = BAD_CONFIG


class DataError(AgentError):
    """A file's content is not what it should be: cut short, foreign, of another schema."""

    exit_code = BAD_DATA


class NoInputError(AgentError):
    """A file that was asked for is not there or cannot be read."""

    exit_code = NO_INPUT


class StorageError(AgentError):
    """A file on the host could not be written durably. The old one is as it was."""

    exit_code = IO_ERROR


class UnavailableError(AgentError):
    """Something this node should have is missing: a device, a tool, a driver."""

    exit_code = UNAVAILABLE


class KernelError(AgentError):
    """The kernel refused an operation. `errno` is its number, when there is one."""

    exit_code = OS_ERROR

    def __init__(self, message: str, *, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class PermissionDenied(AgentError):
    """The process lacks a privilege (root, a capability)."""

    exit_code = NO_PERMISSION


class BusyError(AgentError):
    """Another nodeagent holds the lock."""

    exit_code = TRY_AGAIN


class WaitTimeout(AgentError):
    """A wait reached its deadline. `missing` names, one by one, what had not come by then."""

    exit_code = TRY_AGAIN

    def __init__(self, what: str, missing: Sequence[str], seconds: float) -> None:
        self.missing = tuple(missing)
        self.seconds = seconds
        super().__init__(
            f"timed out after {seconds:g} s waiting for {what}; still missing: "
            + ", ".join(self.missing)
        )


class RestoreFailed(AgentError):
    """Some actions failed, or verify found a difference. `failures` has a line for each."""

    exit_code = DIFFERS

    def __init__(self, summary: str, failures: Iterable[str], *, hint: str | None = None) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join([summary, *(f"  {line}" for line in self.failures)]), hint=hint)


class Stopped(AgentError):
    """SIGTERM or SIGINT arrived: the work unwinds, the open snapshot stays for the next start."""

    exit_code = 143

    def __init__(self) -> None:
        super().__init__("stopped by a signal")


def reason(error: OSError) -> str:
    """The kernel's refusal for a message: `EBUSY: Device or resource busy`."""
    number = error.errno or 0
    name = _KERNEL_NAMES.get(number) or errnos.errorcode.get(number, str(error.errno))
    return f"{name}: {error.strerror}"


# Python's table has the last of two names of one number; people search for the kernel's
_KERNEL_NAMES = {errnos.EOPNOTSUPP: "EOPNOTSUPP", errnos.EDEADLK: "EDEADLK"}
