"""Bad input to the commands in the cluster: a message and a status, no traceback, nobody asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.cli.main import status_of

NOBODY = {
    "KUBERNETES_SERVICE_HOST": "127.0.0.1",
    "KUBERNETES_SERVICE_PORT": "1",
    "NODE_NAME": "node",
    "API_TIMEOUT": "0.1",
    "NO_COLOR": "1",
}
COMMANDS = (
    "device-plugin restart",
    "device-plugin record",
    "device-plugin prune --watch-nodeeni",
    "node announce",
    "node after-reload",
    "node wait-safe-load",
    "node wait-mofed",
    "node report",
    "network check",
)
"""Those that are about this node."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("KUBECONFIG", "CLUSTER_INTEGRATION", "OPERATOR_NAMESPACES"):
        monkeypatch.delenv(name, raising=False)
    paths = {"STATE_DIR": tmp_path / "state", "SERVICE_ACCOUNT_DIR": tmp_path / "none"}
    paths["DEVICE_PLUGIN_CONFIG"] = tmp_path / "config.json"
    for name, value in {**NOBODY, **paths}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("network check -n ../../secrets", 64, "name of a Kubernetes object"),
        ("network check -n ''", 64, "name of a Kubernetes object"),
        ("network check --output yaml", 64, "yaml"),
        ("network wait", 64, "NAME"),
        ("network wait net", 64, "namespace"),
        ("network wait a/b -n ns", 64, "'a/b' is not the name"),
        ("network wait net -n NS", 64, "'NS' is not the name"),
        ("network wait net -n ns --timeout -1", 64, "-1"),
        ("network wait net -n ns --timeout nan", 64, "nan"),
        ("network wait net -n ns --timeout soon", 64, "soon"),
        ("node wait-safe-load --timeout nan", 64, "nan"),
        ("node after-reload --patience nan", 64, "nan"),
        ("node report x", 64, "x"),
        ("device-plugin record --at yesterday", 64, "yesterday"),
        ("device-plugin restart --wait=5", 64, "wait"),
        ("device-plugin prune --watch-nodeeni --dry-run", 64, "exclude each other"),
        ("operator capture", 64, "--file"),
        ("operator restore", 64, "FILE"),
        ("operator restore none.json", 66, "none.json"),
        ("operator restore .", 66, "cannot read ."),
        ("operator", 64, ""),
    ],
)
def test_wrong_arguments(
    environment: Path, capsys: pytest.CaptureFixture[str], line: str, status: int, words: str
) -> None:
    arguments = [each if each != "''" else "" for each in line.split()]
    assert status_of(arguments) == status
    assert words in _said(capsys)


@pytest.mark.parametrize("line", COMMANDS)
def test_without_a_node_name_nobody_is_asked(
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    monkeypatch.delenv("NODE_NAME")
    assert status_of(line.split()) == 78
    assert "NODE_NAME is not set" in _said(capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "has no resourceList"),
        ('{"resourceList": 5}', "has no resourceList"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_list_that_is_none(
    environment: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = environment / "config.json"
    path.write_text(text)
    assert status_of(["device-plugin", "prune"]) == 65
    assert words in _said(capsys)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {}}]}',
        '{"items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "../x"}}]}',
        '{"items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": 5}}]}',
        '{"items": [{"apiVersion": ["v1"], "kind": "Namespace", "metadata": {"name": "x"}}]}',
        '{"items": [5]}',
        '{"items": 5}',
        "5",
    ],
)
def test_a_captured_file_that_is_none(
    environment: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    directory = environment / "none"
    directory.mkdir()
    (environment / "operator.json").write_text(text)
    (environment / "kubeconfig").write_text(
        '{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user":'
        ' "u"}}], "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],'
        ' "users": [{"name": "u", "user": {}}]}'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(environment / "kubeconfig"))
        assert status_of(["operator", "restore", "operator.json"]) == 65
    assert "operator.json was not written by" in _said(capsys)


@pytest.mark.parametrize("group", ["device-plugin", "node", "network", "operator"])
def test_no_line_of_help_is_cut(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert status_of([group, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]
