"""How to reach the API server: with a pod's ServiceAccount, or with a kubeconfig by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeagent.cluster.failures import Forbidden, Unreachable
from nodeagent.errors import ConfigError
from nodeagent.settings import Settings


@dataclass(frozen=True)
class Access:
    """The server's address and the directory with `token` and `ca.crt`; or a kubeconfig file.

    The kubelet renews the token on disk, so it is read for each request.
    """

    host: str
    directory: Path
    kubeconfig: Path | None = None

    @property
    def certificate(self) -> Path:
        """The CA certificate that must have signed the server's."""
        return self.directory / "ca.crt"

    def token(self) -> str:
        """The present token of the ServiceAccount. Forbidden if there is none."""
        path = self.directory / "token"
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise Forbidden(
                f"cannot read the ServiceAccount's token {path}: {error}",
                hint="the pod needs a ServiceAccount and automountServiceAccountToken",
            ) from error
        if not text:
            raise Forbidden(f"the ServiceAccount's token {path} is empty")
        return text


def find(settings: Settings) -> Access:
    """KUBECONFIG if it is set, else the pod's ServiceAccount. Unreachable outside a pod."""
    directory = settings.service_account_dir
    if settings.kubeconfig is not None:
        return Access("", directory, settings.kubeconfig)
    if settings.api_host is None or settings.api_port is None:
        raise Unreachable(
            "no API server is known: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not "
            "set, so this process is not in a pod",
            hint="run it in a pod, or set KUBECONFIG",
        )
    host = settings.api_host
    name = f"[{host}]" if ":" in host else host
    return Access(f"https://{name}:{settings.api_port}", directory)


def node_name(settings: Settings) -> str:
    """This node's name in the cluster. ConfigError if NODE_NAME is not set."""
    if settings.node_name is None:
        raise ConfigError(
            "NODE_NAME is not set; it names this node's Node object",
            hint="set it from the downward API: valueFrom.fieldRef.fieldPath: spec.nodeName",
        )
    return settings.node_name
