"""Every setting of nodeagent, field by field: its variable, its parser, its default, its unit, why.

`Settings` is the one table: a row is a field. Names without a prefix, in the driver container's own
style, so that an operator's `env:` list carries both kinds. A variable that is set but empty counts
as not set, which is what an empty `value:` in a pod's manifest means; only for lists of words does
it mean none, as the driver container has it.
`load()` is the only reader of os.environ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from nodeagent.errors import ConfigError
from nodeagent.parse import (
    Secret,
    absolute_path,
    boolean,
    file_path,
    host,
    label_selectors,
    module_name,
    module_names,
    module_words,
    object_name,
    object_names,
    one_of,
    pause,
    port,
    present,
    seconds,
    secret,
    shell_words,
    version,
)

STATE_FILES: Final = (
    "open-snapshot.json",
    "last-snapshot.json",
    "set-aside-snapshot.json",
    "journal.jsonl",
    "journal.old.jsonl",
)
"""What nodeagent/record/journal.py keeps in STATE_DIR."""

_WRITTEN: Final = {
    "ready_path",
    "lock_path",
    "state_dir",
    "blacklist_file",
    "udev_rules_file",
    "debug_log_file",
}

MODES: Final = ("sources", "precompiled")
BUILD_MODE: Final = "dtk-build"
"""The toolkit's side: no driver is loaded there."""

WORDS: Final = "space-separated"
_SEPARATORS: Final = {"colon-separated": ":", "comma-separated": ",", WORDS: " "}

T = TypeVar("T")


@dataclass(frozen=True)
class Variable:
    """One row: a field's name in the environment, its default as text there, unit and reason."""

    name: str
    parse: Callable[[str], object]
    default: str | None
    unit: str
    reason: str

    def given(self, environ: Mapping[str, str]) -> str | None:
        """The variable's text; None when it counts as not set."""
        text = environ.get(self.name)
        return text if text or self.unit == WORDS else None

    def shown(self, value: object) -> str:
        """A value as it would stand in the environment; `-` for none."""
        match value:
            case None:
                return "-"
            case bool():
                return str(value).lower()
            case float():
                return f"{value:g}"
            case tuple():
                return _SEPARATORS[self.unit].join(value) or "(none)"
        return str(value)


def variable(
    name: str, parse: Callable[[str], T], default: str | None, reason: str, *, unit: str = ""
) -> T:
    """A field of `Settings` with its row; the default goes through the same parser."""
    row = Variable(name, parse, default, unit, reason)
    value = None if default is None else parse(default)
    return cast(T, field(default=cast(Any, value), metadata={"variable": row}))


@dataclass(frozen=True)
class Settings:
    """The settings, parsed once at the edge: whoever holds one holds valid values."""

    nic_driver_ver: str | None = variable(
        "NVIDIA_NIC_DRIVER_VER",
        version,
        None,
        "the driver version this node should run; names the toolkit's done flag; `run` needs it",
    )
    nic_driver_path: Path | None = variable(
        "NVIDIA_NIC_DRIVER_PATH",
        absolute_path,
        None,
        "where the driver's sources are; needed in sources mode",
    )
    nic_container_ver: str | None = variable(
        "NVIDIA_NIC_CONTAINER_VER", version, None, "the driver container's version, for the log"
    )
    inventory: Path | None = variable(
        "NVIDIA_NIC_DRIVERS_INVENTORY_PATH",
        file_path,
        None,
        "keeps built packages, on the host; unset: each start builds",
    )
    append_build_flags: str | None = variable(
        "APPEND_DRIVER_BUILD_FLAGS",
        shell_words,
        None,
        "further arguments of the sources' install.pl",
    )
    use_dkms: bool = variable(
        "USE_DKMS", boolean, "false", "true is refused: packages of modules are built, and no DKMS"
    )
    ubuntu_pro_token: Secret | None = variable(
        "UBUNTU_PRO_TOKEN",
        secret,
        None,
        "accepted and not used: attach the image's build to Ubuntu Pro for FIPS; never shown",
    )
    dtk_build: bool = variable(
        "DTK_OCP_DRIVER_BUILD",
        boolean,
        "false",
        "the OpenShift Driver Toolkit sidecar compiles the driver; wait for its done flag",
    )
    dtk_shared_dir: Path = variable(
        "DTK_OCP_NIC_SHARED_DIR",
        absolute_path,
        "/mnt/shared-nvidia-nic-driver-toolkit",
        "the directory shared with that sidecar; below it one directory a kernel",
    )
    dtk_compiled_ver: str | None = variable(
        "DTK_OCP_COMPILED_DRIVER_VER",
        version,
        None,
        "dtk-build: the version to build; dtk.env sets it",
    )
    dtk_start_flag: Path | None = variable(
        "DTK_OCP_START_COMPILE_FLAG",
        file_path,
        None,
        "dtk-build: exists when the sources are complete; dtk.env sets it",
    )
    dtk_done_flag: Path | None = variable(
        "DTK_OCP_DONE_COMPILE_FLAG",
        file_path,
        None,
        "dtk-build: made when the packages are complete; dtk.env sets it",
    )
    blacklist_file: Path = variable(
        "OFED_BLACKLIST_MODULES_FILE",
        file_path,
        "/host/etc/modprobe.d/blacklist-ofed-modules.conf",
        "keeps the host from loading its own modules while the driver is away",
    )
    blacklist_modules: tuple[str, ...] = variable(
        "OFED_BLACKLIST_MODULES",
        module_names,
        "mlx5_core:mlx5_ib:ib_umad:ib_uverbs:ib_ipoib:rdma_cm:rdma_ucm:ib_core:ib_cm",
        "the modules that file names",
        unit="colon-separated",
    )
    auxiliary_modules: tuple[str, ...] = variable(
        "MLX5_AUXILIARY_MODULES",
        module_words,
        "mlx5_vdpa mlx5_fwctl mlx5_dpll",
        "hold the driver and openibd does not unload them: unloaded before, loaded again after",
        unit=WORDS,
    )
    unload_storage_modules: bool = variable(
        "UNLOAD_STORAGE_MODULES",
        boolean,
        "false",
        "storage modules may be unloaded for a reload; false: one that is loaded stops it",
    )
    storage_modules: tuple[str, ...] = variable(
        "STORAGE_MODULES",
        module_words,
        "ib_iser ib_isert ib_srp ib_srpt nvme_rdma nvmet_rdma rpcrdma xprtrdma",
        "which those are",
        unit=WORDS,
    )
    unload_third_party_modules: bool = variable(
        "UNLOAD_THIRD_PARTY_RDMA_MODULES",
        boolean,
        "false",
        "other vendors' RDMA modules may be unloaded, and are kept away, for a reload",
    )
    third_party_modules: tuple[str, ...] = variable(
        "THIRD_PARTY_RDMA_MODULES",
        module_words,
        "bnxt_re efa erdma iw_cxgb4 hfi1 hns_roce ionic_rdma irdma ib_qib mana_ib ocrdma qedr "
        "rdma_rxe siw vmw_pvrdma",
        "which those are",
        unit=WORDS,
    )
    skip_preflight: bool = variable(
        "SKIP_PREFLIGHT_CHECKS",
        boolean,
        "true",
        "false: every finding of `nodeagent preflight` stops a reload; what would leave the node "
        "without its driver always does",
    )
    allow_uplink_reload: bool = variable(
        "ALLOW_UPLINK_RELOAD",
        boolean,
        "false",
        "reload although the node's own uplink is on these PFs: it is cut off meanwhile",
    )
    enable_nfsrdma: bool = variable(
        "ENABLE_NFSRDMA",
        boolean,
        "false",
        "nvme_rdma and rpcrdma belong to the driver too; rpcrdma is loaded after a reload",
    )
    ready_path: Path = variable(
        "DRIVER_READY_PATH",
        file_path,
        "/run/mellanox/drivers/.driver-ready",
        "exists only while the node is proven to be as it was; others wait for it",
    )
    driver_ready_path: Path = variable(
        "DRIVER_CONTAINER_READY_PATH",
        file_path,
        "/run/mellanox/drivers/.driver-ready",
        "beside a driver container: that one's flag; DRIVER_READY_PATH is nodeagent's own then",
    )
    lock_path: Path = variable(
        "LOCK_FILE_PATH",
        file_path,
        "/run/mellanox/drivers/.lock",
        "one driver container a node: a second one exits",
    )
    beat_limit: float = variable(
        "BEAT_LIMIT",
        seconds,
        "300",
        "an agent at work that gave no sign of life for that long hangs: `probe live` fails",
        unit="s",
    )
    state_dir: Path = variable(
        "STATE_DIR",
        file_path,
        "/run/mellanox/drivers/.nodeagent",
        "snapshot and journal; the default outlives the container, a hostPath a reboot too",
    )
    after_reboot: str = variable(
        "OPEN_SNAPSHOT_AFTER_REBOOT",
        one_of("keep", "set-aside"),
        "keep",
        "a reload that a reboot cut short: keep, and the PFs that still match get their VFs back; "
        "set-aside, and the node stays as it booted",
    )
    driver_module: str = variable(
        "DRIVER_MODULE", module_name, "mlx5_core", "the PFs bound to this driver are ours"
    )
    driver_root: Path = variable(
        "DRIVER_ROOT", absolute_path, "/", "where modinfo and openibd look, for a sidecar"
    )
    vf_timeout: float = variable(
        "VF_TIMEOUT",
        seconds,
        "120",
        "until every VF has its driver and its netdev, and udev has finished with it",
        unit="s",
    )
    pf_timeout: float = variable(
        "PF_TIMEOUT", seconds, "120", "until every PF is back after the restart", unit="s"
    )
    build_timeout: float = variable(
        "BUILD_TIMEOUT", seconds, "3600", "until the toolkit's done flag exists", unit="s"
    )
    restart_timeout: float = variable(
        "RESTART_TIMEOUT", seconds, "600", "until openibd has ended", unit="s"
    )
    restore_driver: bool = variable(
        "RESTORE_DRIVER_ON_POD_TERMINATION",
        boolean,
        "false",
        "on SIGTERM the host's own driver is put back, and then the VFs",
    )
    grace_period: float = variable(
        "TERMINATION_GRACE_PERIOD",
        seconds,
        "300",
        "the pod's terminationGracePeriodSeconds: until SIGKILL after SIGTERM; openibd is left to "
        "finish for nearly as long",
        unit="s",
    )
    create_ifnames_udev: bool = variable(
        "CREATE_IFNAMES_UDEV",
        boolean,
        "false",
        "keep interface names without npN where the driver before made such; false: no rule",
    )
    udev_rules_file: Path = variable(
        "MLX_UDEV_RULES_FILE",
        file_path,
        "/host/etc/udev/rules.d/77-mlnx-net-names.rules",
        "the udev rule that does it; removed at start and at termination",
    )
    drivers_mount: Path = variable(
        "MLX_DRIVERS_MOUNT",
        file_path,
        "/run/mellanox/drivers",
        "shared with the host and the GPU driver; the headers are mounted below it",
    )
    headers_dir: Path = variable(
        "SHARED_KERNEL_HEADERS_DIR",
        file_path,
        "/usr/src/",
        "the headers that the GPU driver builds nvidia-peermem from; mounted below that",
    )
    pod_interfaces: str = variable(
        "POD_INTERFACES",
        one_of("restore", "report"),
        "restore",
        "VFs in pods' network namespaces: put back there after a reload, or only reported",
    )
    pod_losses: str = variable(
        "POD_LOSSES",
        one_of("block", "accept"),
        "block",
        "a pod would lose a device for good (held open, or in a namespace that can't be seen): "
        "that blocks a reload, or is accepted and reported",
    )
    debug: bool = variable(
        "ENTRYPOINT_DEBUG",
        boolean,
        "false",
        "write every command to the file below; wait before exiting after a failure",
    )
    debug_log_file: Path = variable(
        "DEBUG_LOG_FILE",
        file_path,
        "/tmp/entrypoint_debug_cmds.log",  # noqa: S108  the container's; links are not followed
        "that file",
    )
    debug_sleep: float = variable(
        "DEBUG_SLEEP_SEC_ON_EXIT",
        pause,
        "300",
        "how long `run` waits after a failure with ENTRYPOINT_DEBUG; a signal ends it at once",
        unit="s",
    )
    bind_delay_sec: str | None = variable(
        "BIND_DELAY_SEC", str, None, "accepted and ignored: nodeagent waits for events", unit="s"
    )
    watch_drift: bool = variable(
        "WATCH_DRIFT",
        boolean,
        "false",
        "once ready, report what no longer is as it was then (log, timeline), and touch nothing; "
        "the agent then stays as large as it is while it works",
    )
    cluster_integration: str = variable(
        "CLUSTER_INTEGRATION",
        one_of("auto", "on", "off"),
        "auto",
        "tell the cluster after a reload; auto: in a pod that knows its NODE_NAME",
    )
    node_name: str | None = variable(
        "NODE_NAME",
        object_name,
        None,
        "this node's name in the cluster, from the downward API (spec.nodeName)",
    )
    api_host: str | None = variable(
        "KUBERNETES_SERVICE_HOST", host, None, "the API server; the kubelet sets it in a pod"
    )
    api_port: int | None = variable(
        "KUBERNETES_SERVICE_PORT", port, None, "its port; the kubelet sets it in a pod"
    )
    service_account_dir: Path = variable(
        "SERVICE_ACCOUNT_DIR",
        absolute_path,
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "the pod's token and ca.crt; read anew for each request",
    )
    kubeconfig: Path | None = variable(
        "KUBECONFIG", file_path, None, "for people: used in place of the pod's ServiceAccount"
    )
    api_timeout: float = variable(
        "API_TIMEOUT",
        seconds,
        "30",
        "until a request that fails is given up, all its retries counted",
        unit="s",
    )
    device_plugin_namespaces: tuple[str, ...] = variable(
        "DEVICE_PLUGIN_NAMESPACES",
        object_names,
        "kube-system,sriov-network-operator,openshift-sriov-network-operator,"
        "intel-device-plugins-operator,nvidia-network-operator,default",
        "where device plugin pods are looked for",
        unit="comma-separated",
    )
    device_plugin_selectors: tuple[str, ...] = variable(
        "DEVICE_PLUGIN_SELECTORS",
        label_selectors,
        "app=sriov-device-plugin,app=kube-sriov-device-plugin,app=sriovdp,"
        "name=sriov-device-plugin,component=sriov-device-plugin",
        "labels of device plugin pods; any one of them makes it one",
        unit="comma-separated",
    )
    device_plugin_config: Path = variable(
        "DEVICE_PLUGIN_CONFIG",
        file_path,
        "/etc/pcidp/config.json",
        "the device plugin's resource list, on the host",
    )
    device_plugin_timeout: float = variable(
        "DEVICE_PLUGIN_TIMEOUT",
        seconds,
        "180",
        "until new device plugin pods are ready and the node's allocatable is what it was",
        unit="s",
    )
    allocatable_settle: float = variable(
        "ALLOCATABLE_SETTLE",
        seconds,
        "12",
        "an allocatable that never changed is believed after that long: the kubelet reports "
        "each 10 s",
        unit="s",
    )
    node_events: bool = variable(
        "NODE_EVENTS", boolean, "true", "an Event on the node for what happened to its driver"
    )
    node_condition: bool = variable(
        "NODE_CONDITION", boolean, "false", "a condition NicDriverReady on the node"
    )
    node_annotations: bool = variable(
        "NODE_ANNOTATIONS",
        boolean,
        "false",
        "annotations on the node: srcversion, last reload, its duration",
    )
    operator_namespaces: tuple[str, ...] = variable(
        "OPERATOR_NAMESPACES",
        object_names,
        "openshift-sriov-network-operator,sriov-network-operator",
        "where the SR-IOV operator is; the first that exists is taken",
        unit="comma-separated",
    )
    trace_points: Path | None = variable(
        "TRACE_POINTS",
        file_path,
        None,
        "for tests only: a directory; every point at which the agent could be cut off is written "
        "to points there, and a file end there says at which of them it gets a signal",
    )
    metrics_port: int | None = variable(
        "METRICS_PORT", port, None, "where `nodeagent metrics` serves Prometheus; unset: nowhere"
    )
    metrics_address: str = variable(
        "METRICS_ADDRESS", host, "127.0.0.1", "on which of the node's addresses it does"
    )
    no_color: bool = variable("NO_COLOR", present, "", "no colour, whatever the terminal can do")

    @property
    def beat_path(self) -> Path:
        """The agent's sign of life, beside the lock: the second of its last beat."""
        return self.lock_path.with_name(f"{self.lock_path.name}.beat")

    @property
    def work_path(self) -> Path:
        """The file that is locked while devices are changed."""
        return self.lock_path.with_name(f"{self.lock_path.name}.work")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Parse every variable of the table; ConfigError names variable, value and what is allowed.

        Variables that are not in the table are not looked at.
        """
        given: dict[str, Any] = {}
        for attribute, row in rows():
            text = row.given(environ)
            if text is not None:
                given[attribute] = _parsed(row, text)
        settings = cls(**given)
        settings._check_paths()
        return settings

    def check_mode(self, mode: str, *, whole_life: bool) -> None:
        """ConfigError when `mode` lacks a variable it needs, or has one that is not supported.

        `run` takes the driver container's place (`whole_life`) and asks for the version as that
        does; a reload by hand of what is installed needs to know no version.
        """
        if mode not in MODES:
            raise ConfigError(f"the mode is {mode!r}; allowed are {' and '.join(MODES)}")
        if self.nic_driver_ver is None and (whole_life or mode == "sources"):
            raise ConfigError(
                "NVIDIA_NIC_DRIVER_VER is not set; it says which driver version this node runs",
                hint="set it in the pod's environment, for example 25.07-0.9.7.0",
            )
        if self.nic_driver_path is None and mode == "sources":
            raise ConfigError(
                "NVIDIA_NIC_DRIVER_PATH is not set; in sources mode it says where the sources are",
                hint="set it in the pod's environment, or use precompiled",
            )
        if self.use_dkms:
            raise ConfigError(
                "USE_DKMS is true, and nodeagent builds and loads packages of modules, no DKMS",
                hint="set it to false. DKMS rebuilds modules when a kernel is installed on the "
                "same file system; this one ends with the container, and a new kernel comes with "
                "a new start, which builds for it or takes what the inventory keeps",
            )

    def _check_paths(self) -> None:
        """No two of what is written may be one and the same file: the flag is removed first thing.

        Nor one of those that are made in STATE_DIR or beside the lock.
        """
        seen = {self.state_dir / name: f"{name} in STATE_DIR" for name in STATE_FILES}
        seen |= dict.fromkeys((self.beat_path, self.work_path), "what is beside LOCK_FILE_PATH")
        for attribute, row in rows():
            if attribute not in _WRITTEN:
                continue
            path: Path = getattr(self, attribute)
            if path in seen:
                raise ConfigError(f"{row.name} and {seen[path]} are the same path, {path}")
            seen[path] = row.name


def rows() -> tuple[tuple[str, Variable], ...]:
    """Pairs of field name and row, in the order of the table."""
    return tuple((each.name, each.metadata["variable"]) for each in fields(Settings))


def page() -> list[str]:
    """The table as Markdown, for the README: variable, default, unit, reason."""
    lines = ["| variable | default | unit | why |", "|---|---|---|---|"]
    for _, row in rows():
        default = "" if row.default is None else f"`{row.default}`"
        cells = (f"`{row.name}`", default, row.unit, row.reason.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return lines


def load() -> Settings:
    """The settings of this process. The only reader of os.environ."""
    return Settings.from_environment(os.environ)


def origin(row: Variable) -> str:
    """Where this process has a row's value from: `environment` or `default`."""
    return "default" if row.given(os.environ) is None else "environment"


def _parsed(row: Variable, text: str) -> object:
    try:
        return row.parse(text)
    except ValueError as error:
        shown = ascii(text if len(text) <= 80 else text[:77] + "...")
        if row.parse is secret:
            shown = "not shown"
        raise ConfigError(f"{row.name} is {shown}; allowed: {error}") from None
