"""How to reach the API server: a pod's ServiceAccount, or a kubeconfig for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodeagent.cluster.failures import Forbidden, Unreachable
from nodeagent.errors import ConfigError
from nodeagent.settings import Settings


@dataclass(frozen=True)
class Access:
    """The server's address and the directory with `token` and `ca.crt`; or a kubeconfig file.

    The kubelet renews the token on disk, so it is read for each request and kept nowhere.
    """

    host: str
    directory: Path
    kubeconfig: Path | None = None

    @property
    def certificate(self) -> Path:
        """The CA that the server's certificate must come from."""
        return self.directory / "ca.crt"

    def token(self) -> str:
        """The ServiceAccount's token as it is on disk now. Forbidden when there is none."""
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
    """KUBECONFIG if set, else what a pod has. Unreachable when this is no pod."""
    directory = settings.service_account_dir
    if settings.kubeconfig is not None:
        return Access("", directory, settings.kubeconfig)
    if settings.api_host is None or settings.api_port is None:
        raise Unreachable(
            "no API server is known: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not "
            "set, so this is no pod",
            hint="run it in a pod, or set KUBECONFIG",
        )
    host = settings.api_host
    name = f"[{host}]" if ":" in host else host
    return Access(f"https://{name}:{settings.api_port}", directory)


def node_name(settings: Settings) -> str:
    """This node's name in the cluster. ConfigError when nobody said, before any client is made."""
    if settings.node_name is None:
        raise ConfigError(
            "NODE_NAME is not set; it says which node of the cluster this is",
            hint="set it from the downward API: valueFrom.fieldRef.fieldPath: spec.nodeName",
        )
    return settings.node_name
