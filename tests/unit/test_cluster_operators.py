"""What logs, certificates and objects tell, without a server."""

from __future__ import annotations

import base64
import json
import math
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster import capture, device_plugin, kinds, networks, operators
from nodeagent.cluster.announce import MAX_MESSAGE_LENGTH, Announced, _unannounced, driver_events
from nodeagent.cluster.networks import incomplete
from nodeagent.record.journal import Note, Record, RecordKind

STAMP = "2025-11-11T12:43:30.447698451Z"
START = f"{STAMP} {STAMP}\tINFO\tcontroller/controller.go:234\tStarting workers\t"
OURS = (
    '{"controller": "sriovnetwork", "controllerGroup": "sriovnetwork.openshift.io", '
    '"worker count": 1}'
)
OTHER = (
    '{"controller": "sriovnetworknodepolicy", "controllerGroup": "sriovnetwork.openshift.io", '
    '"controllerKind": "SriovNetworkNodePolicy", "worker count": 1}'
)
RECONCILING = (
    f"{STAMP} {STAMP}\tINFO\tcontrollers/sriovnetwork_controller.go:42\tReconciling SriovNetwork\t"
    '{"SriovNetwork": {"name":"25960-cx7anl244","namespace":"openshift-sriov-network-operator"}}'
)
POLICY = f'{STAMP} INFO Reconciling {{"sriovnetworknodepolicy": "a/b"}}'


def test_silent_log() -> None:
    log = operators.read_log([START + OURS, POLICY])
    assert log.started == datetime(2025, 11, 11, 12, 43, 30, 447698, UTC)
    assert log.reconciled == 0


def test_other_controllers_start_later_and_reset_nothing() -> None:
    log = operators.read_log([START + OURS, RECONCILING, START + OTHER, RECONCILING])
    assert log.reconciled == 2


def test_only_what_follows_the_last_start_counts() -> None:
    assert operators.read_log([START + OURS, RECONCILING, START + OURS]).reconciled == 0


def test_plain_start_lines_and_torn_ones() -> None:
    log = operators.read_log([f"{STAMP} Starting workers: 1", "torn", ""])
    assert log.started is not None
    assert operators.read_log([f"torn {OURS}"]).started is None


def test_ca_bundles(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert operators.ca_trouble("", now) == "is empty"
    assert "not a certificate" in operators.ca_trouble("###", now)
    assert "not a certificate" in operators.ca_trouble(base64.b64encode(b"text").decode(), now)
    path = tmp_path / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=ca", "-keyout", str(tmp_path / "ca.key"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    bundle = base64.b64encode(path.read_bytes()).decode()
    assert operators.ca_trouble(bundle, now) == ""
    assert operators.ca_trouble(bundle, now + timedelta(days=3)) == "has expired"


def test_selectors_are_grouped_by_key() -> None:
    found = device_plugin.grouped(["app=a", "name=n", "app=b"])
    assert found == ("app in (a,b)", "name in (n)")


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        ("", []),
        ('{"type": "bridge"}', []),
        ('{"plugins": [{"type": "sriov"}, {"type": "tuning"}]}', ["no-resource-in-config"]),
        ('{"plugins": [{"type": "ib-sriov", "resourceName": "r"}]}', []),
        ("[]", []),
        ("{", ["config-not-json"]),
    ],
)
def test_incomplete_networks(config: str, codes: list[str]) -> None:
    annotations = {"k8s.v1.cni.cncf.io/resourceName": "r"}
    found = incomplete({"metadata": {"annotations": annotations}, "spec": {"config": config}})
    assert [code for code, _, _ in found] == codes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "plugins", "resourceName", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(config=st.text() | JSON.map(json.dumps), spec=JSON)
def test_whatever_stands_in_a_network_it_is_judged(config: str, spec: object) -> None:
    """A config is anybody's text; where a cluster's CRD has no schema, so is all of spec."""
    for each in ({"config": config}, {"config": spec}, spec):
        nad = {"metadata": {"name": "n", "namespace": "s", "uid": "u"}, "spec": each}
        network = {"metadata": {"name": "n", "namespace": "s", "creationTimestamp": STAMP}}
        view = networks.View(
            node={"metadata": {"name": "node"}},
            attachments=[nad],
            networks=[{**network, "spec": each}],
            policies=[{"metadata": {"name": "p"}, "spec": each}],
            namespaces={},
            operator_namespaces=["s"],
        )
        for finding in networks.findings(view):
            assert str(finding)


def test_what_the_server_populates_does_not_travel() -> None:
    meta = {
        "name": "n",
        "uid": "u",
        "resourceVersion": "1",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "yes"},
    }
    plain = capture.stripped({"metadata": meta, "status": {}, "spec": {"a": 1}}, kinds.SUBSCRIPTION)
    assert plain == {
        "apiVersion": "operators.coreos.com/v1alpha1",
        "kind": "Subscription",
        "metadata": {"name": "n", "annotations": {"mine": "yes"}},
        "spec": {"a": 1},
    }


def test_difference_names_each_leaf() -> None:
    before, after = {"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": math.pi}
    assert [*capture.diff(before, after)] == [
        "a.b: 1 → nothing",
        "a.c: [1] → [2]",
        f"d: nothing → {math.pi}",
    ]


def test_reasons() -> None:
    def record(kind: str, name: str, **facts: str) -> Record:
        return Record("2026-11-21T03:00:00.000Z", 1.0, "b", "r", 1, RecordKind(kind), name, facts)

    found = driver_events(
        [
            record("start", "build"),
            record("failed", "preflight", message="no"),
            record("failed", "build", message="x" * 5000),
            record("interrupted", "restart"),
            record("note", "ready"),
        ]
    )
    assert [each.reason for each in found] == [
        "DriverReloadRefused",
        "DriverReloadFailed",
        "DriverReady",
    ]
    assert [each.is_warning for each in found] == [True, True, False]
    assert len(found[1].message) == MAX_MESSAGE_LENGTH


def test_what_happened_in_one_millisecond_is_said_once_each() -> None:
    now = datetime.now(UTC).isoformat()

    def record(kind: str, name: str, **facts: str) -> Record:
        return Record(now, 1.0, "b", "r", 1, RecordKind(kind), name, facts)

    found = driver_events(
        [
            record("start", "restart"),
            record("note", Note.POD_INTERFACE_LOST, namespace="a", pod="b", message="net1"),
            record("note", Note.POD_INTERFACE_LOST, namespace="a", pod="b", message="net2"),
            record("note", "ready"),
        ]
    )
    assert len(found) == 4
    for number, each in enumerate(found, 1):
        assert _unannounced(found, Announced(each.at, each.key)) == found[number:]
