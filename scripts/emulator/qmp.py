"""QEMU's monitor protocol on a socket: commands, and the events that come in between.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, did not answer in time, or is gone."""


class Qmp:
    """A session with one QEMU. Events that come while a command waits are kept for `events()`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""
        self._events: list[dict[str, Any]] = []
        self._answer("QMP", time.monotonic() + 20)
        self.command("qmp_capabilities")

    def fileno(self) -> int:
        return self._socket.fileno()

    def command(
        self, name: str, arguments: dict[str, Any] | None = None, *, timeout: float = 20
    ) -> Any:
        """Run a command and return its answer. QmpError if it fails or takes too long."""
        request = json.dumps({"execute": name, "arguments": arguments or {}})
        try:
            self._socket.sendall(request.encode() + b"\n")
            return self._answer("return", time.monotonic() + timeout)
        except (OSError, QmpError) as error:
            raise QmpError(f"{name}: {error}") from error

    def events(self) -> list[dict[str, Any]]:
        """Events since the last call. Call it when the socket is readable: it may read once."""
        if not self._events:
            self._take(self._messages(time.monotonic() + 1))
        events, self._events = self._events, []
        return events

    def wait_for_event(self, name: str, timeout: float, **data: str) -> None:
        """Return when an event with that data was seen; others before it are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            events, self._events = self._events, []
            for event in events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return
                if event.get("data", {}).get("status") == "failed":
                    raise QmpError(f"{name}: {event['data']}")
            self._take(self._messages(deadline))

    def _answer(self, key: str, deadline: float) -> Any:
        while True:
            messages = self._messages(deadline)
            self._take(messages)
            for message in messages:
                if "error" in message:
                    raise QmpError(message["error"]["desc"])
                if key in message:
                    return message[key]

    def _take(self, messages: list[dict[str, Any]]) -> None:
        self._events += [message for message in messages if "event" in message]

    def _messages(self, deadline: float) -> list[dict[str, Any]]:
        """At least one complete message, as they come."""
        while b"\n" not in self._received:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise QmpError("QEMU's monitor does not answer") from error
            if not data:
                raise QmpError("QEMU has ended")
            self._received += data
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]
