"""The ways to an API server: a pod's ServiceAccount, KUBECONFIG, IPv6; and TLS in trouble."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.cluster import kinds
from nodeagent.cluster.access import Access, find
from nodeagent.cluster.client import Client, Objects
from nodeagent.cluster.failures import Unreachable
from nodeagent.settings import Settings
from tests.cluster import proxy as proxies
from tests.cluster.commands import Pod
from tests.cluster.proxy import Proxy
from tests.cluster.server import ADMIN_TOKEN, Server


def test_ipv6(server: Server, credentials: Path) -> None:
    environment = {
        "KUBERNETES_SERVICE_HOST": "::1",
        "SERVICE_ACCOUNT_DIR": str(credentials),
    }
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 on loopback")
    with proxies.in_front_of(server, address="::1") as proxy:
        environment["KUBERNETES_SERVICE_PORT"] = str(proxy.port)
        access = find(Settings.from_environment(environment))
        assert access.host == f"https://[::1]:{proxy.port}"
        Client(access, patience=5).get(kinds.NAMESPACE, "default")
        assert proxy.count() == 1


# KUBECONFIG


def _kubeconfig(path: Path, server: str, authority: Path, **user: str) -> Path:
    plain = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": server, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(plain))
    return path


@pytest.fixture
def person(pod: Pod) -> Pod:
    """Somebody outside of a pod."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "SERVICE_ACCOUNT_DIR"):
        del pod.environment[name]
    return pod


def test_kubeconfig(person: Pod, proxy: Proxy, server: Server, tmp_path: Path) -> None:
    assert person.run("operator", "check").returncode == 69
    url = f"https://127.0.0.1:{proxy.port}"
    path = _kubeconfig(tmp_path / "config", url, server.certificate, token=ADMIN_TOKEN)
    person.environment["KUBECONFIG"] = str(path)
    done = person.run("node", "wait-safe-load", "--timeout", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.count() == 1
    _kubeconfig(path, url, server.certificate, token="wrong")
    refused = person.run("node", "wait-safe-load", "--timeout", "5")
    assert refused.returncode == 77
    assert "rejects the token" in refused.stderr


def test_a_token_file_that_is_renewed(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    """In a call, and in the watch that follows it."""
    url, token = f"https://127.0.0.1:{proxy.port}", tmp_path / "token"
    token.write_text("expired")
    path = _kubeconfig(tmp_path / "config", url, server.certificate, tokenFile=str(token))
    client = Client(Access("", tmp_path, path), patience=10)
    token.write_text(ADMIN_TOKEN)
    assert client.get(kinds.NAMESPACE, "default")["metadata"]["name"] == "default"
    assert proxy.count() == 2
    listing = client.listing(kinds.NAMESPACE)
    client.create(kinds.NAMESPACE, {"metadata": {"name": "renewed"}})
    token.write_text("expired")
    client = Client(Access("", tmp_path, path), patience=10)
    token.write_text(ADMIN_TOKEN)
    assert client.follow_from(listing, _without_renewed, timeout=10)


def _without_renewed(objects: Objects) -> float:
    names = {each["metadata"]["name"] for each in objects.values()}
    return 0.0 if "renewed" in names else 60.0


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "text",
        "a: [b",
        "\0",
        '{"current-context": "x", "contexts": [], "clusters": [], "users": []}',
        '{"current-context": 5}',
        '{"clusters": 1, "contexts": 2, "users": 3, "current-context": "x"}',
    ],
)
def test_kubeconfig_that_is_none(person: Pod, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    person.environment["KUBECONFIG"] = str(path)
    done = person.run("operator", "check")
    assert done.returncode == 78, done.stderr
    assert f"KUBECONFIG: {path} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


# TLS, and what is no TLS


def _certificate(
    directory: Path, *, san: str = "IP:127.0.0.1", expired: bool = False
) -> tuple[str, str]:
    certificate, key = str(directory / "other.crt"), str(directory / "other.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
         "-addext", f"subjectAltName={san}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    if expired:
        subprocess.run(
            ["openssl", "x509", "-in", certificate, "-signkey", key, "-days", "-1",
             "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
    return certificate, key


def _refused(client: Client) -> str:
    """The message of a refusal that comes at once: nothing of this passes by being asked again."""
    began = time.monotonic()
    with pytest.raises(Unreachable) as error:
        client.get(kinds.NAMESPACE, "default")
    assert time.monotonic() - began < 2
    return error.value.message


def test_certificates_that_are_not_to_be_trusted(
    server: Server, credentials: Path, tmp_path: Path
) -> None:
    """Of another CA, of another host, and one that ran out: the message says which."""
    other = _certificate(tmp_path)
    with proxies.in_front_of(server, certificate=other) as proxy:
        access = Access(f"https://127.0.0.1:{proxy.port}", credentials)
        assert "cannot be verified: " in (said := _refused(Client(access, patience=5)))
        assert "self-signed" in said or "self signed" in said
    other = _certificate(tmp_path, san="IP:127.0.0.9")
    (credentials / "ca.crt").write_text(Path(other[0]).read_text())
    with proxies.in_front_of(server, certificate=other) as proxy:
        access = Access(f"https://127.0.0.1:{proxy.port}", credentials)
        assert "IP address mismatch" in _refused(Client(access, patience=5))
    other = _certificate(tmp_path, expired=True)
    (credentials / "ca.crt").write_text(Path(other[0]).read_text())
    with proxies.in_front_of(server, certificate=other) as proxy:
        access = Access(f"https://127.0.0.1:{proxy.port}", credentials)
        assert "certificate has expired" in _refused(Client(access, patience=5))


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN CERTIFICATE-----\nA\n"])
def test_authority_that_is_damaged(pod: Pod, credentials: Path, text: str) -> None:
    (credentials / "ca.crt").write_text(text)
    done = pod.run("node", "wait-safe-load", "--timeout", "1")
    assert done.returncode == 69, done.stderr
    assert str(credentials / "ca.crt") in done.stderr
    assert "Traceback" not in done.stderr


def test_somebody_who_speaks_no_tls(credentials: Path) -> None:
    with _listening(b"HTTP/1.0 400 Bad Request\r\n\r\n") as port:
        client = Client(Access(f"https://127.0.0.1:{port}", credentials), patience=1)
        with pytest.raises(Unreachable, match="is not reachable"):
            client.get(kinds.NAMESPACE, "default")


def test_somebody_who_says_nothing(credentials: Path) -> None:
    with _listening(b"") as port:
        client = Client(Access(f"https://127.0.0.1:{port}", credentials), patience=1)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="is not reachable"):
            client.get(kinds.NAMESPACE, "default")
        assert time.monotonic() - began < 3


@contextmanager
def _listening(answer: bytes) -> Iterator[int]:
    """Somebody who takes every connection, and says that or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)
                    if answer:
                        connection.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in held:
                each.close()
