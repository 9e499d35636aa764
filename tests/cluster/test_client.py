"""The client against a real server, and against everything that can go wrong in front of it."""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from nodeagent.cluster import kinds
from nodeagent.cluster.access import Access, find
from nodeagent.cluster.client import Client, Objects
from nodeagent.cluster.failures import Conflict, Forbidden, NotFound, Refused, Unreachable
from nodeagent.settings import Settings
from tests.cluster import proxy as proxies
from tests.cluster.proxy import Proxy
from tests.cluster.server import ADMIN_TOKEN, Server


def test_first_request_is_the_only_one(client: Client, proxy: Proxy) -> None:
    client.get(kinds.NAMESPACE, "default")
    assert [(seen.method, seen.path) for seen in proxy.seen] == [
        ("GET", "/api/v1/namespaces/default")
    ]
    assert proxy.seen[0].user_agent == "nodeagent"
    assert client.traffic.requests == 1
    assert client.traffic.received == proxy.seen[0].sent


def test_refusals_are_four_different_failures(
    client: Client, proxy: Proxy, namespace: str, credentials: Path
) -> None:
    with pytest.raises(NotFound, match="not found"):
        client.get(kinds.NAMESPACE, "nowhere")
    with pytest.raises(Conflict, match="already exists"):
        client.create(kinds.NAMESPACE, {"metadata": {"name": namespace}})
    with pytest.raises(Refused, match="Invalid"):
        client.create(kinds.NAMESPACE, {"metadata": {"name": "UPPER"}})
    (credentials / "token").write_text("expired")
    client.pause = lambda _: None
    with pytest.raises(Forbidden, match="rejects the token"):
        client.get(kinds.NAMESPACE, "default")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(client: Client, proxy: Proxy, status: int) -> None:
    client.pause = lambda seconds: None
    proxy.fail(status=status, times=2)
    client.get(kinds.NAMESPACE, "default")
    assert [seen.status for seen in proxy.seen] == [status, status, 200]


def test_retry_after_is_honoured(client: Client, proxy: Proxy) -> None:
    proxy.fail(status=429, headers={"Retry-After": "2"})
    client.get(kinds.NAMESPACE, "default")
    first, second = proxy.seen
    assert 2 <= second.at - first.at <= 3.5


def test_retry_after_as_a_date_is_honoured(client: Client, proxy: Proxy) -> None:
    """As RFC 9110 allows, and load balancers do; what is neither counts as not said."""
    pauses: list[float] = []
    client.pause = pauses.append
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    proxy.fail(status=503, headers={"Retry-After": at})
    proxy.fail(status=503, headers={"Retry-After": "soon"})
    client.get(kinds.NAMESPACE, "default")
    assert 2 < pauses[0] <= 5
    assert pauses[1] <= 1


def test_retry_after_is_honoured_by_a_watch(client: Client, proxy: Proxy, namespace: str) -> None:
    proxy.fail(path="watch=true", status=429, headers={"Retry-After": "1"})
    client.follow(kinds.POD, lambda _: math.inf, namespace=namespace, timeout=2.5)
    refused, again = [seen for seen in proxy.seen if "watch=true" in seen.path]
    assert again.at - refused.at >= 1


@pytest.mark.parametrize("text", ["[]", "{}", '{"items": [{}], "metadata": {}}', "<html>", "null"])
def test_an_answer_that_is_none(client: Client, proxy: Proxy, text: str) -> None:
    """What stands in between may answer in the API server's place."""
    proxy.fail(status=200, text=text)
    with pytest.raises(Unreachable, match=r"cannot list pods.*: the answer is no"):
        client.list_all(kinds.POD, "default")


@pytest.mark.parametrize("text", ["[]", '{"type": "ADDED"}', '{"type": 1, "object": []}', "<p>"])
def test_a_watch_that_is_none(client: Client, proxy: Proxy, namespace: str, text: str) -> None:
    proxy.fail(path="watch=true", status=200, text=f"{text}\n")
    assert not client.follow(kinds.POD, lambda _: math.inf, namespace=namespace, timeout=1)


def test_retry_after_beyond_our_patience_is_given_up_at_once(client: Client, proxy: Proxy) -> None:
    proxy.fail(status=429, headers={"Retry-After": "3600"})
    began = time.monotonic()
    with pytest.raises(Unreachable, match="429"):
        client.get(kinds.NAMESPACE, "default")
    assert time.monotonic() - began < 2


def test_pauses_grow(client: Client, proxy: Proxy) -> None:
    pauses: list[float] = []
    client.pause = pauses.append
    proxy.fail(status=500, times=4)
    client.get(kinds.NAMESPACE, "default")
    assert len(pauses) == 4
    assert all(a <= b for a, b in zip([0.25, 0.5, 1, 2], pauses, strict=True))
    assert pauses[3] <= 4


def test_cut_connection(client: Client, proxy: Proxy) -> None:
    proxy.fail(cut=True, times=2)
    client.get(kinds.NAMESPACE, "default")
    assert proxy.count() == 3


def test_slow_answer_is_waited_for(client: Client, proxy: Proxy) -> None:
    proxy.fail(delay=1)
    client.get(kinds.NAMESPACE, "default")
    assert proxy.count() == 1


def test_slow_beyond_our_patience(client: Client, proxy: Proxy) -> None:
    client.patience = 1
    proxy.fail(delay=3, times=9)
    began = time.monotonic()
    with pytest.raises(Unreachable, match="not reachable"):
        client.get(kinds.NAMESPACE, "default")
    assert time.monotonic() - began < 3


def test_nobody_listens(credentials: Path) -> None:
    client = Client(Access("https://127.0.0.1:1", credentials), patience=1)
    with pytest.raises(Unreachable, match=r"https://127.0.0.1:1 is not reachable"):
        client.get(kinds.NAMESPACE, "default")


def test_expired_token_is_read_anew(client: Client, proxy: Proxy, credentials: Path) -> None:
    (credentials / "token").write_text("expired")
    # as the kubelet does, at once: a file that is written in place is empty for a moment
    newer = credentials / "newer"
    newer.write_text(ADMIN_TOKEN)
    timer = threading.Timer(0.4, newer.rename, (credentials / "token",))
    timer.start()
    client.get(kinds.NAMESPACE, "default")
    statuses = [seen.status for seen in proxy.seen]
    assert statuses[0] == 401
    assert statuses[-1] == 200


def test_no_credentials_at_all(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="there is no"):
        Client(Access("https://127.0.0.1:1", tmp_path))
    with pytest.raises(Unreachable, match="this process is not in a pod"):
        find(Settings())


def test_list_goes_page_by_page(
    client: Client, proxy: Proxy, server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.cluster.client.PAGE_SIZE", 2)
    for number in range(5):
        server.create(f"/api/v1/namespaces/{namespace}/pods", _pod(f"p{number}"))
    assert len(client.list_all(kinds.POD, namespace)) == 5
    assert proxy.count() == 3


def _pod(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def _names(objects: Objects) -> set[str]:
    return {each["metadata"]["name"] for each in objects.values()}


def _create_later(server: Server, namespace: str, *names: str) -> threading.Timer:
    def create() -> None:
        for name in names:
            server.create(f"/api/v1/namespaces/{namespace}/pods", _pod(name))

    timer = threading.Timer(0.5, create)
    timer.start()
    return timer


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"gone": True},
        {"status": 410},
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 401},
        {"cut": True},
        {"cut_after": 0},
        {"cut_after": 1},
        {"delay": 1.5},
    ],
    ids=str,
)
def test_follow_sees_what_comes_whatever_happens_to_the_watch(
    client: Client, proxy: Proxy, server: Server, namespace: str, fault: dict[str, object]
) -> None:
    if fault:
        proxy.fail(path="watch=true", **fault)
    timer = _create_later(server, namespace, "a", "b")
    began = time.monotonic()
    assert client.follow(
        kinds.POD,
        lambda objects: 0.0 if _names(objects) == {"a", "b"} else math.inf,
        namespace=namespace,
        timeout=20,
    )
    assert time.monotonic() - began < 4
    timer.join()


def test_follow_sees_what_goes(client: Client, server: Server, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    server.create(path, _pod("a"))
    threading.Timer(0.5, server.delete, (f"{path}/a",)).start()
    assert client.follow(
        kinds.POD, lambda seen: math.inf if seen else 0.0, namespace=namespace, timeout=10
    )


def test_follow_keeps_its_deadline_with_one_watch(
    client: Client, proxy: Proxy, namespace: str
) -> None:
    began = time.monotonic()
    assert not client.follow(kinds.POD, lambda _: math.inf, namespace=namespace, timeout=1)
    assert 1 <= time.monotonic() - began < 3
    assert proxy.count() == 2


def test_follow_looks_again_when_asked_to(client: Client, namespace: str) -> None:
    looks: list[float] = []

    def look(_: Objects) -> float:
        looks.append(time.monotonic())
        return 0.0 if len(looks) == 3 else 1.0

    assert client.follow(kinds.POD, look, namespace=namespace, timeout=10)
    assert looks[2] - looks[0] >= 2


def test_follow_survives_an_outage_and_ends_at_its_deadline(
    client: Client, proxy: Proxy, namespace: str
) -> None:
    client.patience = 0.5
    proxy.fail(path="watch=true", cut=True, times=99)
    proxy.faults.append(proxies.Fault(path="limit=", cut=True, times=0))
    began = time.monotonic()
    assert not client.follow(kinds.POD, lambda _: math.inf, namespace=namespace, timeout=2)
    assert time.monotonic() - began < 5
    assert proxy.count() < 12
