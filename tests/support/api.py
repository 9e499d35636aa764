"""An API server in the lab: as much of one as the agent's processes ask, and a hole it can be in.

It has no TLS and believes everybody: a KUBECONFIG leads to it. tests/cluster has a real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.support import lab

NODE: Final = "lab"
PORT: Final = 6443
NEAR: Final = "10.99.0.1"
FAR: Final = "10.99.0.2"
"""Nobody's address: what is sent there through the dummy vanishes, so that a connect(2) hangs."""

Object = dict[str, Any]


def kubeconfig(path: Path, address: str) -> Path:
    """A KUBECONFIG for the server at that address."""
    plain = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://{address}:{PORT}"}}],
        "users": [{"name": "u", "user": {"token": "any"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(plain))
    return path


def dig_hole() -> None:
    """FAR is routed to a device that sends nothing anywhere."""
    lab.ip("link add hole type dummy", f"address add {NEAR}/24 dev hole", "link set hole up")


def close_hole() -> None:
    """FAR is this node: whoever listens there answers."""
    lab.ip(f"address add {FAR}/24 dev hole")


class Told:
    """What the server was told: events by name, and every POST and PATCH in order."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.requests: list[str] = []
        self.events: dict[str, Object] = {}
        self.reasons: list[str] = []
        """In order: an Event that is counted up is there once more."""


@contextmanager
def listening() -> Iterator[Told]:
    """The server, at all addresses of this node."""

    class Handler(_Handler):
        told = Told()

    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)  # noqa: S104  of the emulated node
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Handler.told
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: ClassVar[Told]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's own name
        pass

    def do_GET(self) -> None:
        path = self._path()
        node = {
            "metadata": {"name": NODE, "uid": NODE, "resourceVersion": "1"},
            "status": {"allocatable": {"openshift.io/vfs": "8"}},
        }
        if path == f"/api/v1/nodes/{NODE}":
            self._answer(200, node)
        elif "/events/" in path:
            self._answer(200, self.told.events[path.rpartition("/")[2]])
        else:
            items = [node] if path == "/api/v1/nodes" else []
            self._answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})

    def do_POST(self) -> None:
        self._path()
        event = self._body()
        with self.told.lock:
            is_new = self.told.events.setdefault(event["metadata"]["name"], event) is event
            self.told.reasons += [event["reason"]] * is_new
        self._answer(201 if is_new else 409, event if is_new else {"kind": "Status", "code": 409})

    def do_PATCH(self) -> None:
        change = self._body()
        with self.told.lock:
            event = self.told.events[self._path().rpartition("/")[2]]
            event["metadata"]["annotations"] |= change["metadata"]["annotations"]
            event["count"] = change["count"]
            self.told.reasons.append(event["reason"])
        self._answer(200, event)

    def _path(self) -> str:
        with self.told.lock:
            self.told.requests.append(f"{self.command} {self.path}")
        return self.path.partition("?")[0]

    def _body(self) -> Object:
        plain: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return plain

    def _answer(self, status: int, plain: Object) -> None:
        body = json.dumps(plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
