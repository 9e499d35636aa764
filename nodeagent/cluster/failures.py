"""How a request to the API server can fail: each with its own message and exit code.

| what | class | exit |
| the server forbids it, or does not know our token | Forbidden | 77 |
| no server answered: network, TLS, time-out, 5xx | Unreachable | 69 |
| the object or the kind is not there, or its namespace goes | NotFound | 66 |
| somebody else was faster | Conflict | 75 |
| the server calls the request wrong | Refused | 65 |
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
    """No answer, or no useful one, for as long as the caller's patience lasted.

    `after` is how many seconds the server asked to be left alone for.
    """

    def __init__(self, message: str, *, hint: str | None = None, after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class NotFound(NoInputError):
    """404, or 403 in a namespace that is being deleted."""


class Conflict(BusyError):
    """409: the object exists, or is no longer the one that was meant."""


class Refused(DataError):
    """400, 422 and whatever else the server will not do however often it is asked."""


class Gone(Exception):
    """410: the resourceVersion is too old to watch from. Never leaves nodeagent.cluster.client."""


def refusal(what: str, status: int, said: str) -> AgentError:
    """The failure for an answer that will be the same however often it is asked for."""
    match status:
        case 401:
            return Forbidden(
                f"cannot {what}: the API server does not accept our token: {said}",
                hint="look at SERVICE_ACCOUNT_DIR/token, or at KUBECONFIG's user: expired, or of "
                "another cluster",
            )
        case 403 if "because it is being terminated" in said:
            # apiserver's namespace lifecycle admission: no question of rights
            return NotFound(f"cannot {what}: its namespace is being deleted: {said}")
        case 403:
            return Forbidden(
                f"cannot {what}: forbidden: {said}",
                hint="grant it: manifests/base/rbac.yaml has exactly what nodeagent uses",
            )
        case 404:
            return NotFound(f"cannot {what}: {said}")
        case 409:
            return Conflict(f"cannot {what}: {said}")
    return Refused(f"cannot {what}: {said}")


def unreachable(what: str, where: str, said: str) -> AgentError:
    """The failure when nobody answered, or only to say that it is too much now."""
    return Unreachable(
        f"cannot {what}: {where} is not reachable: {said}",
        hint="try again when the API server answers; what was done stays done",
    )


def untrusted(what: str, where: str, said: str) -> AgentError:
    """The failure when somebody answered who may not be the API server."""
    return Unreachable(
        f"cannot {what}: the certificate of {where} is not to be trusted: {said}",
        hint="look at the CA (SERVICE_ACCOUNT_DIR/ca.crt, or KUBECONFIG's), at this machine's "
        "clock, and for a proxy in between",
    )
