"""The diagnosis of networks, and the wait for them, against real objects and a fake operator."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from nodeagent.cluster import arrivals, networks, operators
from nodeagent.cluster.client import Client
from nodeagent.cluster.findings import Finding
from nodeagent.errors import WaitTimeout
from nodeagent.settings import Settings
from tests.cluster.commands import Pod
from tests.cluster.conftest import eventually
from tests.cluster.operator import CNI, NADS, SRIOV, Operator, attachment, network
from tests.cluster.proxy import Proxy
from tests.cluster.server import Server

VFS = "openshift.io/vfs"
Check = Callable[..., dict[str, Finding]]


@pytest.fixture
def check(client: Client, settings: Settings, node: str, namespace: str) -> Check:
    """Findings about this test's namespace by code, after a look as short as the test wants it."""

    def check(seconds: float = 0.2) -> dict[str, Finding]:
        view = networks.look(client, settings, node, namespace=namespace, seconds=seconds)
        return {each.code: each for each in networks.findings(view)}

    return check


@pytest.fixture
def operator(server: Server, proxy: Proxy, namespace: str) -> Operator:
    return Operator(server, proxy, namespace)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller is given 2 s, not 10; test_field.py has the real ones."""
    monkeypatch.setattr(operators, "NOTICE_SECONDS", 2.0)


@pytest.fixture
def path(namespace: str) -> str:
    return f"{CNI}/namespaces/{namespace}/{NADS}"


def test_a_good_network_has_no_findings(check: Check, server: Server, path: str) -> None:
    server.create(path, attachment("good", VFS))
    assert check() == {}


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("config-not-json", {"config": '{"type": "sriov",'}),
        ("no-resource-annotation", {"annotated": False}),
        ("no-resource-in-config", {"in_config": False}),
        ("resource-mismatch", {"config": '{"type": "sriov", "resourceName": "other"}'}),
        ("owner-missing", {"owner": "sriovnetwork.sriovnetwork.openshift.io/ns/gone"}),
    ],
)
def test_each_flaw_is_named(
    check: Check, server: Server, path: str, code: str, how: dict[str, object]
) -> None:
    server.create(path + "?fieldManager=some-operator", attachment("bad", VFS, **how))  # type: ignore[arg-type] # by the parameters above
    found = check()
    assert list(found) == [code]
    assert found[code].subject.endswith("/bad")
    if "owner" not in how:
        assert found[code].owner == "field manager some-operator"


def test_resources(check: Check, server: Server, path: str, node: str, unique: str) -> None:
    server.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {"nic": unique}}})
    empty = {"status": {"capacity": {"x.io/e": "0"}, "allocatable": {"x.io/e": "0", VFS: "8"}}}
    server.merge(f"/api/v1/nodes/{node}/status", empty)
    policies = f"{SRIOV}/namespaces/default/sriovnetworknodepolicies"
    for name, labels in {"here": {"nic": unique}, "there": {"nic": "another"}}.items():
        server.create(
            policies,
            {
                "apiVersion": "sriovnetwork.openshift.io/v1",
                "kind": "SriovNetworkNodePolicy",
                "metadata": {"name": f"{name}-{unique}"},
                "spec": {"resourceName": f"{name}{unique}", "nodeSelector": labels},
            },
        )
    server.create(path, attachment("empty", "x.io/e"))
    server.create(path, attachment("unknown", "x.io/unknown"))
    server.create(path, attachment("missing", f"openshift.io/here{unique}"))
    server.create(path, attachment("elsewhere", f"openshift.io/there{unique}"))
    found = check()
    assert {code: each.subject.rpartition("/")[2] for code, each in found.items()} == {
        "resource-empty": "empty",
        "resource-unknown": "unknown",
        "resource-missing": "missing",
    }


def test_namespaces(
    client: Client, settings: Settings, server: Server, namespace: str, unique: str
) -> None:
    network(server, namespace, "lost", "vfs", f"nowhere-{unique}")
    network(server, "default", f"misplaced-{unique}", "vfs", namespace)
    dying = f"dying-{unique}"
    server.create("/api/v1/namespaces", {"metadata": {"name": dying}})
    network(server, namespace, "late", "vfs", dying)
    server.delete(f"/api/v1/namespaces/{dying}")
    found = {
        each.subject.rpartition("/")[2]: each
        for each in networks.check(client, settings, str(settings.node_name))
        if unique in each.evidence + each.subject
    }
    assert found["lost"].code == "namespace-missing"
    assert found["late"].code == "namespace-terminating"
    assert found[f"misplaced-{unique}"].code == "no-attachment"
    assert "operator's namespace" in found[f"misplaced-{unique}"].change


def test_two_writers_are_caught_in_the_act(
    check: Check, server: Server, proxy: Proxy, namespace: str, path: str
) -> None:
    operator = Operator(server, proxy, namespace, buggy=True)
    network(server, namespace, "fought", "vfs", namespace)
    complete = {"spec": attachment("fought", VFS)["spec"]}
    with operator.playing():
        _until_there(server, f"{path}/fought")
        timer = threading.Timer(0.8, server.merge, (f"{path}/fought", complete, "workaround"))
        timer.start()
        found = check(networks.WATCH_SECONDS)
        timer.join()
    assert set(found) == {"no-resource-in-config", "overwritten"}
    assert "sriov-network-operator and workaround" in found["overwritten"].evidence
    assert found["overwritten"].owner.endswith("/fought")
    assert [seen for seen in proxy.seen if seen.method != "GET"] == []


def _until_there(server: Server, path: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            server.get(path)
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_a_hundred_networks_at_once_with_one_watch(
    pod: Pod, server: Server, proxy: Proxy, operator: Operator
) -> None:
    """The operator makes each one's NetworkAttachmentDefinition; one process waits for all."""
    names = [f"net{number}" for number in range(100)]
    namespace = operator.namespace
    waiting = pod.start("network", "wait", *names, "-n", namespace, "--output", "json")
    eventually(lambda: any("watch=true" in seen.path for seen in proxy.seen))
    with operator.playing(), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: network(server, namespace, name, "vfs", namespace), names))
        out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    arrived = {each["name"]: each["seconds"] for each in json.loads(out)}
    assert [*arrived] == names
    assert all(seconds > 0 for seconds in arrived.values())
    sys.stdout.write(f"the last of 100 after {max(arrived.values()):.1f} s\n")
    watches = ["watch=true" in seen.path for seen in proxy.seen]
    assert watches.count(False) == 1
    # one, and another for the moment in which all of them have to stay as they are
    assert watches.count(True) <= 3


def test_incomplete_is_not_there_yet(
    client: Client, settings: Settings, server: Server, namespace: str, path: str
) -> None:
    server.create(path, attachment("half", VFS, in_config=False))
    whole = {"spec": attachment("half", VFS)["spec"]}
    threading.Timer(1, server.merge, (f"{path}/half", whole)).start()
    began = time.monotonic()
    (arrival,) = arrivals.wait(client, settings, ["half"], namespace, timeout=20)
    assert 0.8 < arrival.seconds < 3
    assert time.monotonic() - began >= arrival.seconds + arrivals.STABLE_SECONDS - 0.1


def test_overwritten_before_it_was_stable_is_not_there(
    client: Client, settings: Settings, server: Server, namespace: str, path: str
) -> None:
    server.create(path, attachment("n", VFS, in_config=False))
    threading.Timer(
        0.3, server.merge, (f"{path}/n", {"spec": attachment("n", VFS)["spec"]})
    ).start()
    broken = {"spec": attachment("n", VFS, in_config=False)["spec"]}
    threading.Timer(0.6, server.merge, (f"{path}/n", broken)).start()
    with pytest.raises(WaitTimeout, match=r"no resourceName in spec\.config"):
        arrivals.wait(client, settings, ["n"], namespace, timeout=2)


def _late(client: Client, settings: Settings, namespace: str, *, timeout: float = 1) -> WaitTimeout:
    with pytest.raises(WaitTimeout) as error:
        arrivals.wait(client, settings, ["net"], namespace, timeout=timeout)
    return error.value


@pytest.mark.usefixtures("hasty")
def test_causes_of_lateness(
    client: Client, settings: Settings, server: Server, operator: Operator, unique: str
) -> None:
    namespace = operator.namespace
    nowhere = _late(client, settings, f"nowhere-{unique}")
    assert "does not exist: create it" in str(nowhere.hint)
    nobody = _late(client, settings, namespace)
    assert f"no SriovNetwork defines {namespace}/net" in str(nobody.hint)

    held = attachment("net", VFS)
    held["metadata"]["finalizers"] = ["tests/held"]
    path = f"{CNI}/namespaces/{namespace}/{NADS}"
    server.create(path, held)
    server.delete(f"{path}/net")
    assert "being deleted (waiting for tests/held)" in _late(client, settings, namespace).message
    server.merge(f"{path}/net", {"metadata": {"finalizers": None}})

    network(server, namespace, "net", "vfs", namespace)
    operator.make_pod()
    silent = _late(client, settings, namespace)
    assert "controller-silent" in str(silent.hint)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("mode", "state"), [("normal", "working"), ("silent", "silent"), ("slow", "slow")]
)
def test_operator_check(
    client: Client, settings: Settings, operator: Operator, mode: str, state: str
) -> None:
    operator.mode, operator.delay = mode, 99 if mode == "slow" else 0
    server, namespace = operator.server, operator.namespace
    network(server, namespace, "net", "vfs", namespace)
    began = time.monotonic()
    with operator.playing():
        time.sleep(1)
        verdict = operators.check(client, settings)
    assert verdict.state == state, verdict
    assert time.monotonic() - began < 30
    assert any("lease" in line and "renewed" in line for line in verdict.evidence)
    assert [each.code for each in verdict.findings] == (
        ["controller-silent"] if state == "silent" else []
    )


def test_operator_absent_and_its_log_unreadable(
    client: Client, settings: Settings, proxy: Proxy, operator: Operator
) -> None:
    assert operators.check(client, settings).state == "absent"
    operator.make_pod()
    proxy.fail(path="/log?", status=403, times=9)
    verdict = operators.check(client, settings)
    assert verdict.state == "unknown"
    assert any(line.startswith("log: cannot read") for line in verdict.evidence)


def test_webhooks(
    client: Client, settings: Settings, server: Server, operator: Operator, unique: str
) -> None:
    namespace = operator.namespace
    operator.make_pod()
    service = {"namespace": namespace, "name": "webhook", "path": "/"}
    hook = {
        "name": "operator-webhook.sriovnetwork.openshift.io",
        "clientConfig": {"service": service, "caBundle": ""},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
    }
    server.create(
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        {"metadata": {"name": f"sriov-{unique}"}, "webhooks": [hook]},
    )
    codes = [each.code for each in operators.check(client, settings).findings]
    assert codes == ["webhook-without-endpoints", "webhook-ca"]
    subsets = [{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 443}]}]
    endpoints = {"metadata": {"name": "webhook"}, "subsets": subsets}
    server.create(f"/api/v1/namespaces/{namespace}/endpoints", endpoints)
    codes = [each.code for each in operators.check(client, settings).findings]
    assert codes == ["webhook-ca"]


def test_nothing_of_this_writes(
    client: Client, settings: Settings, node: str, proxy: Proxy, namespace: str
) -> None:
    networks.look(client, settings, node, namespace=None, seconds=0.2)
    operators.check(client, replace(settings, operator_namespaces=("default",)))
    assert {seen.method for seen in proxy.seen} == {"GET"}
