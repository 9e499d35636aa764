"""Errors: one message, one hint, one exit status each.

An exception that is not an AgentError is a bug and shows its traceback.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit statuses of sysexits(3), and those that a shell gives to a signal (128 + number).

    The commands that stand in for the driver container (`run`, `terminate`, `sidecar`) exit with 0
    or 1 only, as the driver container does.
    """

    OK = 0
    DIFFERS = 1
    """Something differs, or is left undone."""
    TROUBLE = 2
    """The lowest status of a failed `verify`, whose 1 means that something differs."""
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    """A bug. Python's own status 1 would say that something differs."""
    OS_ERROR = 71
    IO_ERROR = 74
    TRY_AGAIN = 75
    NO_PERMISSION = 77
    BAD_CONFIG = 78
    INTERRUPTED = 130
    """SIGINT."""
    BROKEN_PIPE = 141
    """SIGPIPE: the reader of stdout closed it."""
    TERMINATED = 143
    """SIGTERM."""


class AgentError(Exception):
    """Raised once, with operation, target and reason; logged once, at the top.

    `message` says what was tried on what and why it failed; `hint` says what to do next.
    """

    exit_code = ExitCode.DIFFERS

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(AgentError):
    """An environment variable or flag has a value that is not allowed. Nothing was touched."""

    exit_code = ExitCode.BAD_CONFIG


class DataError(AgentError):
    """A file has the wrong content: it is truncated, foreign, or of another schema."""

    exit_code = ExitCode.BAD_DATA


class NoInputError(AgentError):
    """An input file is missing or cannot be read."""

    exit_code = ExitCode.NO_INPUT


class StorageError(AgentError):
    """A file on the host could not be written durably. The old one is unchanged."""

    exit_code = ExitCode.IO_ERROR


class UnavailableError(AgentError):
    """This node lacks something that it should have: a device, a tool, a driver."""

    exit_code = ExitCode.UNAVAILABLE


class KernelError(AgentError):
    """The kernel refused an operation. `errno` is its error number, if there is one."""

    exit_code = ExitCode.OS_ERROR

    def __init__(self, message: str, *, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class PermissionDenied(AgentError):
    """The process lacks a privilege (root, a capability)."""

    exit_code = ExitCode.NO_PERMISSION


class BusyError(AgentError):
    """Another nodeagent holds the lock."""

    exit_code = ExitCode.TRY_AGAIN


class WaitTimeout(AgentError):
    """A wait reached its deadline. `missing` names each thing that had not arrived.

    `progress`: the time limit began again with each arrival.
    """

    exit_code = ExitCode.TRY_AGAIN

    def __init__(
        self, what: str, missing: Sequence[str], seconds: float, *, progress: bool = False
    ) -> None:
        self.missing = tuple(missing)
        self.seconds = seconds
        without = " without progress" if progress else ""
        super().__init__(
            f"timed out after {seconds:g} s{without} waiting for {what}; still missing: "
            + ", ".join(self.missing)
        )


class RestoreFailed(AgentError):
    """Some actions failed, or verify found a difference. `failures` has one line for each."""

    exit_code = ExitCode.DIFFERS

    def __init__(self, summary: str, failures: Iterable[str], *, hint: str | None = None) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join([summary, *(f"  {line}" for line in self.failures)]), hint=hint)


class Stopped(AgentError):
    """SIGTERM or SIGINT arrived. The snapshot stays open for the next start."""

    exit_code = ExitCode.TERMINATED

    def __init__(self) -> None:
        super().__init__("stopped by a signal")


def reason(error: OSError | AgentError) -> str:
    """An error as text for a message; the kernel's as `EBUSY: Device or resource busy`."""
    if isinstance(error, AgentError):
        return error.message
    number = error.errno or 0
    name = _KERNEL_NAMES.get(number) or errnos.errorcode.get(number, str(error.errno))
    return f"{name}: {error.strerror}"


# Where two names share a number, Python's table has the last one; people search for the kernel's.
_KERNEL_NAMES = {errnos.EOPNOTSUPP: "EOPNOTSUPP", errnos.EDEADLK: "EDEADLK"}
