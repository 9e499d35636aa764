"""A small TLS proxy in front of the API server: counts, and misbehaves when it is told to."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.cluster.server import Server

GONE = {
    "type": "ERROR",
    "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"},
}


@dataclass
class Fault:
    """What to do with the next `times` requests of which `method` and a part of the path match.

    `status` answers instead of the server (0: forwards), with `headers`, and with `text` in place
    of a Status; `delay` in seconds comes first; `cut` ends the connection without an answer;
    `cut_after` lines of a watch pass before it is cut; `gone` ends a watch by an ERROR event with
    code 410.
    """

    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    delay: float = 0.0
    cut: bool = False
    cut_after: int | None = None
    gone: bool = False


@dataclass
class Seen:
    """One request as the proxy saw it; `sent` is in bytes of the answer's body."""

    method: str
    path: str
    at: float
    user_agent: str
    status: int = 0
    sent: int = 0


class Proxy:
    """Where it listens, what it saw, what it will do wrong."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.logs: dict[str, Callable[[], str]] = {}
        """By a pod's name: its log, which a server without kubelets cannot give."""
        self.lock = threading.Lock()

    def fail(self, **how: Any) -> None:
        """Plan a fault."""
        with self.lock:
            self.faults.append(Fault(**how))

    def fault_for(self, method: str, path: str) -> Fault:
        """The fault that applies to this request; an empty one when none does."""
        with self.lock:
            for each in self.faults:
                if each.times and each.method in {"", method} and each.path in path:
                    each.times -= 1
                    return each
        return Fault()

    def count(self, since: int = 0) -> int:
        """Requests seen, from the `since`th on."""
        return len(self.seen) - since


class _Listener(ThreadingHTTPServer):
    request_queue_size = 1024


class _Listener6(_Listener):
    address_family = socket.AF_INET6


@contextmanager
def in_front_of(
    server: Server, *, address: str = "127.0.0.1", certificate: tuple[str, str] | None = None
) -> Iterator[Proxy]:
    """A proxy with the server's own certificate, or another one: then TLS cannot be verified."""

    class Handler(_Handler):
        pass

    listener = (_Listener6 if ":" in address else _Listener)((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*(certificate or (str(server.certificate), str(server.key))))
    listener.socket = context.wrap_socket(
        listener.socket, server_side=True, do_handshake_on_connect=False
    )
    listener.daemon_threads = True
    Handler.proxy = Proxy(server, listener.server_address[1])
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Handler.proxy
    finally:
        listener.shutdown()
        listener.socket.close()


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[Proxy]
    seen: Seen
    upstream: http.client.HTTPSConnection | None = None
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's own name
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  http.server's names

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        fault = self.proxy.fault_for(self.command, self.path)
        agent = self.headers.get("User-Agent", "")
        self.seen = Seen(self.command, self.path, time.monotonic(), agent)
        with self.proxy.lock:
            self.proxy.seen.append(self.seen)
        try:
            if fault.delay:
                time.sleep(fault.delay)
            if fault.cut:
                self._cut()
            elif fault.status:
                self._refuse(fault)
            elif "/log?" in self.path and self._log() is not None:
                self._answer(200, "text/plain", self._log() or "")
            else:
                self._forward(body, fault)
        except (OSError, http.client.HTTPException):
            self._leave()
            self._cut()

    def _log(self) -> str | None:
        found = (log for name, log in self.proxy.logs.items() if f"/{name}/log" in self.path)
        log = next(found, None)
        return None if log is None else log()

    def _refuse(self, fault: Fault) -> None:
        reasons = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}
        text = json.dumps(
            {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.status,
             "reason": reasons.get(fault.status, ""), "message": "the proxy says so"}
        )  # fmt: skip
        self._answer(fault.status, "application/json", fault.text or text, **fault.headers)

    def _answer(self, status: int, content_type: str, text: str, **headers: str) -> None:
        body = text.encode()
        self.seen.status, self.seen.sent = status, len(body)
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, body: bytes | None, fault: Fault) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        self.upstream = self.upstream or self.proxy.server.connection(600)
        self.upstream.request(self.command, self.path, body, headers)
        answer = self.upstream.getresponse()
        self.seen.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._pass_on(answer, fault)
        if not answer.isclosed():
            self._leave()

    def finish(self) -> None:
        """The client's connection ends, and ours for it."""
        super().finish()
        self._leave()

    def _leave(self) -> None:
        if self.upstream is not None:
            self.upstream.close()
        self.upstream = None

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        if fault.gone:
            self._chunk(json.dumps(GONE).encode() + b"\n")
            self._chunk(b"")
            return
        lines = 0
        while fault.cut_after is None or lines < fault.cut_after:
            data = answer.read1(65536) if fault.cut_after is None else answer.readline()
            lines += 1
            self._chunk(data)
            if not data:
                return
        self._cut()

    def _chunk(self, data: bytes) -> None:
        self.seen.sent += len(data)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
