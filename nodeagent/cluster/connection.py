"""A connection to the API server that retries with jitter and honours Retry-After.

This is the only module that imports `kubernetes`. It uses the dynamic client without its discovery
(several requests, and a cache file in /tmp): nodeagent.cluster.kinds has the paths.
"""

from __future__ import annotations

import json
import logging
import random
import select
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.client import DynamicClient

from nodeagent.cluster import failures
from nodeagent.cluster.access import Access
from nodeagent.cluster.failures import Gone, Unreachable
from nodeagent.errors import AgentError, ConfigError

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for a TCP connection. TCP sends a lost SYN again after 1 s and 3 s."""
READ_TIMEOUT: Final = 20.0
"""Seconds for one answer. The server itself ends a request after 60."""
FIRST_BACKOFF: Final = 0.25
MAX_BACKOFF: Final = 30.0
"""Seconds. The first pause of the exponential back-off is at most twice FIRST_BACKOFF."""
RETRIED_STATUSES: Final = {408, 429, 500, 502, 503, 504}

log = logging.getLogger(__name__)


def _pause(seconds: float) -> None:
    # a signal handler that raises ends the pause (PEP 475)
    select.select((), (), (), seconds)


@dataclass
class Traffic:
    """The traffic of a client: the number of requests, and the bytes of the answers' bodies."""

    requests: int = 0
    received: int = 0


@dataclass
class Connection:
    """A connection to one API server.

    `patience` is the time limit in seconds of a call with all its retries. `pause` sleeps between
    retries.
    """

    access: Access
    patience: float = 30.0
    pause: Callable[[float], None] = _pause
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._dynamic = DynamicClient(ApiClient(_configuration(self.access)), None, _NoDiscovery)
        self._dynamic.client.user_agent = "nodeagent"

    def _json(self, what: str, method: str, path: str, **parameters: Any) -> dict[str, Any]:
        data = self._call(what, method, path, **parameters)
        try:
            plain = json.loads(data)
        except ValueError as error:
            raise Unreachable(f"cannot {what}: the answer is not JSON: {error}") from error
        if not isinstance(plain, dict):
            raise Unreachable(f"cannot {what}: the answer is not a JSON object")
        return plain

    def _call(self, what: str, method: str, path: str, **parameters: Any) -> bytes:
        """Send a request, and retry it with growing pauses if the failure may be temporary."""
        deadline = time.monotonic() + self.patience
        attempt = 0
        while True:
            attempt += 1
            left = max(deadline - time.monotonic(), 0.1)
            try:
                data: bytes = self._send(method, path, min(left, READ_TIMEOUT), **parameters).data
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                self._renew(error)
                wait = _worth_waiting(error, attempt)
                left = deadline - time.monotonic()
                if wait is None or wait >= left:
                    raise _failure(what, self.access, error) from error
                log.debug("cannot %s: %s; again in %.1f s", what, _brief(error), wait)
            else:
                self.traffic.received += len(data)
                return data
            self.pause(wait)

    def _open(self, what: str, path: str, timeout: float, **parameters: Any) -> Any:
        """Send a request whose answer is streamed, without retries.

        `after` of Unreachable is the delay in the server's Retry-After.
        """
        try:
            return self._send("get", path, timeout, **parameters)
        except ApiException as error:
            self._renew(error)
            if error.status in RETRIED_STATUSES | {401}:
                said = f"cannot {what}: {_brief(error)}"
                raise Unreachable(said, after=_retry_after(error)) from error
            raise _failure(what, self.access, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"cannot {what}: {_brief(error)}") from error

    def _send(self, method: str, path: str, timeout: float, **parameters: Any) -> Any:
        """The library's response, its body unread."""
        self.traffic.requests += 1
        if self.access.kubeconfig is None:
            self._dynamic.configuration.api_key["BearerToken"] = f"Bearer {self.access.token()}"
        return self._dynamic.request(
            method,
            path,
            serialize=False,
            _request_timeout=(min(timeout, CONNECT_TIMEOUT), timeout),
            **parameters,
        )

    def _renew(self, error: Exception) -> None:
        """Read the kubeconfig again if the server rejects the credentials.

        Its `tokenFile` or `exec` may have newer ones; the library reads them only once.
        """
        if isinstance(error, ApiException) and error.status == 401 and self.access.kubeconfig:
            ours, newer = self._dynamic.configuration, _configuration(self.access)
            ours.api_key = newer.api_key
            # the hook sets api_key before each request
            ours.refresh_api_key_hook = newer.refresh_api_key_hook


class _NoDiscovery:
    """Replaces the dynamic client's discovery."""

    def __init__(self, client: DynamicClient, cache_file: str | None) -> None:
        """The signature is the library's."""


def _configuration(access: Access) -> Configuration:
    configuration = Configuration(host=access.host, retries=False)
    if access.kubeconfig is None:
        _check_authority(access.certificate)
        configuration.ssl_ca_cert = str(access.certificate)
        return configuration
    # half a second of imports (oauth, exec plugins) that a pod never needs
    from kubernetes.config import kube_config  # noqa: PLC0415

    try:
        kube_config.load_kube_config(str(access.kubeconfig), client_configuration=configuration)
    except AgentError:
        raise  # from a signal handler
    except Exception as error:  # the library does not check the file's structure
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"KUBECONFIG: {access.kubeconfig} cannot be used: {said}") from error
    return configuration


def _check_authority(certificate: Path) -> None:
    """Unreachable if ca.crt is missing or not a certificate."""
    hint = "the pod needs a ServiceAccount and automountServiceAccountToken"
    if not certificate.is_file():
        raise Unreachable(f"there is no {certificate} to verify the API server with", hint=hint)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(str(certificate))
    except OSError as error:  # ssl.SSLError among them
        raise Unreachable(f"{certificate} is not a CA certificate: {error}", hint=hint) from error


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: exponential, with jitter over its upper half."""
    ceiling = min(MAX_BACKOFF, FIRST_BACKOFF * float(2 ** min(attempt, 16)))
    return ceiling * random.uniform(0.5, 1)  # noqa: S311  jitter


def _worth_waiting(error: Exception, attempt: int) -> float | None:
    """Seconds until a retry; None if a retry would not help.

    The kubelet renews an expired token on disk shortly after its expiry at the latest, so a 401 is
    retried three times.
    """
    pause = backoff(attempt)
    if isinstance(error, ApiException) and error.status:
        if error.status == 401:
            return pause if attempt <= 3 else None
        if error.status not in RETRIED_STATUSES:
            return None
        return max(pause, _retry_after(error))
    return None if _is_untrusted(error) else pause


def _retry_after(error: ApiException) -> float:
    """The delay of Retry-After in seconds (RFC 9110, 10.2.3), with jitter; 0 if there is none.

    The API server gives seconds, with 429 and 503; a proxy in front of it may give a date.
    """
    asked = str((error.headers or {}).get("Retry-After") or "").strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked) + random.random()  # noqa: S311  jitter
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    left = (until.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, left) + random.random()  # noqa: S311  jitter


def _failure(what: str, access: Access, error: Exception) -> Exception:
    """The failure that corresponds to an error of the library."""
    where = access.host or f"the server of {access.kubeconfig}"
    status = error.status if isinstance(error, ApiException) else 0
    if status == 410:
        return Gone()
    if _is_untrusted(error):
        return failures.untrusted(what, where, _brief(error))
    if not status or status in RETRIED_STATUSES:
        return failures.unreachable(what, where, _brief(error))
    return failures.refusal(what, status, _brief(error))


def _brief(error: Exception) -> str:
    """The message of the server's Status, or of the library's exception, on one line."""
    if isinstance(error, ApiException) and error.body:
        try:
            plain = json.loads(error.body)
            return f"{error.status} {plain.get('reason', '')}: {plain.get('message', '')}"
        except (ValueError, AttributeError):
            return f"{error.status} {error.reason}"
    text = str(getattr(error, "reason", None) or error)
    return " ".join(text.split()) or type(error).__name__


def _is_untrusted(error: Exception) -> bool:
    return "certificate verify failed" in str(error).lower()
