"""The ways in which a request to the API server can fail.

| failure | class | exit |
| the server forbids it, or rejects the token | Forbidden | 77 |
| no server answered: network, TLS, time-out, 5xx | Unreachable | 69 |
| the object, its kind or its namespace does not exist | NotFound | 66 |
| another client changed the object first | Conflict | 75 |
| the server rejects the request as invalid | Refused | 65 |
"""

from __future__ import annotations

from nodeagent.errors import (
    AgentError,
    BusyError,
    DataError,
    NoInputError,
    PermissionDenied,
    UnavailableError,
)


class Forbidden(PermissionDenied):
    """401 or 403."""


class Unreachable(UnavailableError):
    """No usable answer within the time limit.

    `after` is the delay in seconds that the server asked for.
    """

    def __init__(self, message: str, *, hint: str | None = None, after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class NotFound(NoInputError):
    """404, or 403 in a namespace that is being deleted."""


class Conflict(BusyError):
    """409: the object exists already, or has been replaced by another."""


class Refused(DataError):
    """400, 422, and other answers that a retry would not change."""


class Gone(Exception):
    """410: the resourceVersion is too old for a watch. Handled within nodeagent.cluster.client."""


def refusal(what: str, status: int, said: str) -> AgentError:
    """The failure for a status that a retry would not change."""
    match status:
        case 401:
            return Forbidden(
                f"cannot {what}: the API server rejects the token: {said}",
                hint="check SERVICE_ACCOUNT_DIR/token, or the user of KUBECONFIG: the token may "
                "have expired, or belong to another cluster",
            )
        case 403 if "because it is being terminated" in said:
            # from the namespace lifecycle admission, so not a matter of permissions
            return NotFound(f"cannot {what}: its namespace is being deleted: {said}")
        case 403:
            return Forbidden(
                f"cannot {what}: forbidden: {said}",
                hint="grant the permission: manifests/README.md says which part has it",
            )
        case 404:
            return NotFound(f"cannot {what}: {said}")
        case 409:
            return Conflict(f"cannot {what}: {said}")
    return Refused(f"cannot {what}: {said}")


def unreachable(what: str, where: str, said: str) -> AgentError:
    """The failure if no server answered, or it is overloaded."""
    return Unreachable(
        f"cannot {what}: {where} is not reachable: {said}",
        hint="try again when the API server answers; completed work is not lost",
    )


def untrusted(what: str, where: str, said: str) -> AgentError:
    """The failure if the server's certificate cannot be verified."""
    return Unreachable(
        f"cannot {what}: the certificate of {where} cannot be verified: {said}",
        hint="check the CA (SERVICE_ACCOUNT_DIR/ca.crt, or that of KUBECONFIG), this machine's "
        "clock, and whether a proxy intercepts the connection",
    )
