"""The settings of nodeagent: for each one its variable, parser, default, unit and purpose.

Each field of `Settings` is a row of the table. The variables have no prefix, as those of the driver
container, so that both share one `env:` list. A variable that is set but empty counts as unset,
except for space-separated lists, where it means an empty list, as for the driver container.
`load()` is the only reader of os.environ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from nodeagent.errors import ConfigError
from nodeagent.modes import RELOAD_MODES, Mode
from nodeagent.parse import (
    Secret,
    absolute_path,
    boolean,
    file_path,
    host,
    label_selectors,
    member_of,
    module_name,
    module_names,
    module_words,
    names_or_addresses,
    object_name,
    object_names,
    pause,
    port,
    present,
    seconds,
    secret,
    shell_words,
    version,
    words_of,
)

STATE_FILES: Final = (
    "open-snapshot.json",
    "last-snapshot.json",
    "set-aside-snapshot.json",
    "journal.jsonl",
    "journal.old.jsonl",
)
"""The files that nodeagent/record/journal.py keeps in STATE_DIR."""

_WRITTEN: Final = {
    "ready_path",
    "lock_path",
    "state_dir",
    "blacklist_file",
    "udev_rules_file",
    "debug_log_file",
}


class AfterReboot(StrEnum):
    """What to do with a snapshot that was open when the node rebooted."""

    KEEP = "keep"
    SET_ASIDE = "set-aside"


class PodInterfaces(StrEnum):
    """What to do after a reload about VFs that were in the network namespaces of pods."""

    RESTORE = "restore"
    REPORT = "report"


class HoldOff(StrEnum):
    """What is kept from using VFs during a reload."""

    CNI = "cni"
    CORDON = "cordon"
    PLUGIN = "plugin"


class Quiesce(StrEnum):
    """What is unbound side by side before the driver is unloaded: VFs and PFs, VFs, or nothing."""

    AUTO = "auto"
    VFS = "vfs"
    OFF = "off"


class PodLosses(StrEnum):
    """Whether the permanent loss of a pod's device blocks a reload."""

    BLOCK = "block"
    ACCEPT = "accept"


class ClusterIntegration(StrEnum):
    """Whether nodeagent reports to the cluster; AUTO: if it runs in a pod that has NODE_NAME."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Origin(StrEnum):
    """The source of a setting's value."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"


SPACE_SEPARATED: Final = "space-separated"
_SEPARATORS: Final = {"colon-separated": ":", "comma-separated": ",", SPACE_SEPARATED: " "}

T = TypeVar("T")


@dataclass(frozen=True)
class Variable:
    """A row of the table: the environment variable, its default as text, unit and purpose."""

    name: str
    parse: Callable[[str], object]
    default: str | None
    unit: str
    reason: str

    def given(self, environ: Mapping[str, str]) -> str | None:
        """The variable's text; None if it counts as unset."""
        text = environ.get(self.name)
        return text if text or self.unit == SPACE_SEPARATED else None

    def shown(self, value: object) -> str:
        """A value as text of the environment; `-` for None."""
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
    """A field of `Settings` with its row. The default is parsed like any value."""
    row = Variable(name, parse, default, unit, reason)
    value = None if default is None else parse(default)
    return cast(T, field(default=cast(Any, value), metadata={"variable": row}))


@dataclass(frozen=True)
class Settings:
    """The settings. All values are parsed and valid."""

    nic_driver_ver: str | None = variable(
        "NVIDIA_NIC_DRIVER_VER",
        version,
        None,
        "the driver version that this node should run; part of the name of the toolkit's done "
        "flag; required by `run`",
    )
    nic_driver_path: Path | None = variable(
        "NVIDIA_NIC_DRIVER_PATH",
        absolute_path,
        None,
        "the directory of the driver's sources; required in sources mode",
    )
    nic_container_ver: str | None = variable(
        "NVIDIA_NIC_CONTAINER_VER",
        version,
        None,
        "the version of the driver container, for the log",
    )
    inventory: Path | None = variable(
        "NVIDIA_NIC_DRIVERS_INVENTORY_PATH",
        file_path,
        None,
        "a directory on the host that keeps built packages; unset: each start builds them",
    )
    append_build_flags: str | None = variable(
        "APPEND_DRIVER_BUILD_FLAGS",
        shell_words,
        None,
        "additional arguments for the sources' install.pl",
    )
    use_dkms: bool = variable(
        "USE_DKMS",
        boolean,
        "false",
        "must be false: nodeagent builds packages of modules and does not support DKMS",
    )
    ubuntu_pro_token: Secret | None = variable(
        "UBUNTU_PRO_TOKEN",
        secret,
        None,
        "accepted, not used and never shown; for FIPS, attach the build of the image to Ubuntu Pro",
    )
    dtk_build: bool = variable(
        "DTK_OCP_DRIVER_BUILD",
        boolean,
        "false",
        "the OpenShift Driver Toolkit sidecar builds the driver; nodeagent waits for its done flag",
    )
    dtk_shared_dir: Path = variable(
        "DTK_OCP_NIC_SHARED_DIR",
        absolute_path,
        "/mnt/shared-nvidia-nic-driver-toolkit",
        "the directory shared with that sidecar; it has a subdirectory for each kernel",
    )
    dtk_compiled_ver: str | None = variable(
        "DTK_OCP_COMPILED_DRIVER_VER",
        version,
        None,
        "dtk-build: the driver version to build; set by dtk.env",
    )
    dtk_start_flag: Path | None = variable(
        "DTK_OCP_START_COMPILE_FLAG",
        file_path,
        None,
        "dtk-build: the file that exists once the sources are complete; set by dtk.env",
    )
    dtk_done_flag: Path | None = variable(
        "DTK_OCP_DONE_COMPILE_FLAG",
        file_path,
        None,
        "dtk-build: the file to create once the packages are complete; set by dtk.env",
    )
    blacklist_file: Path = variable(
        "OFED_BLACKLIST_MODULES_FILE",
        file_path,
        "/host/etc/modprobe.d/blacklist-ofed-modules.conf",
        "the modprobe.d file that keeps the host from loading its own modules during a reload",
    )
    blacklist_modules: tuple[str, ...] = variable(
        "OFED_BLACKLIST_MODULES",
        module_names,
        "mlx5_core:mlx5_ib:ib_umad:ib_uverbs:ib_ipoib:rdma_cm:rdma_ucm:ib_core:ib_cm",
        "the modules listed in that file",
        unit="colon-separated",
    )
    auxiliary_modules: tuple[str, ...] = variable(
        "MLX5_AUXILIARY_MODULES",
        module_words,
        "mlx5_vdpa mlx5_fwctl mlx5_dpll",
        "modules that use the driver and that an older openibd does not unload: nodeagent unloads "
        "them before a reload and loads them again afterwards",
        unit=SPACE_SEPARATED,
    )
    unload_storage_modules: bool = variable(
        "UNLOAD_STORAGE_MODULES",
        boolean,
        "false",
        "whether a reload may unload storage modules; false: a loaded one blocks the reload",
    )
    storage_modules: tuple[str, ...] = variable(
        "STORAGE_MODULES",
        module_words,
        "ib_iser ib_isert ib_srp ib_srpt nvme_rdma nvmet_rdma rpcrdma xprtrdma",
        "the storage modules",
        unit=SPACE_SEPARATED,
    )
    unload_third_party_modules: bool = variable(
        "UNLOAD_THIRD_PARTY_RDMA_MODULES",
        boolean,
        "false",
        "whether a reload may unload other vendors' RDMA modules, and blacklist them meanwhile",
    )
    third_party_modules: tuple[str, ...] = variable(
        "THIRD_PARTY_RDMA_MODULES",
        module_words,
        "bnxt_re efa erdma iw_cxgb4 hfi1 hns_roce ionic_rdma irdma ib_qib mana_ib ocrdma qedr "
        "rdma_rxe siw vmw_pvrdma",
        "the other vendors' RDMA modules",
        unit=SPACE_SEPARATED,
    )
    skip_preflight: bool = variable(
        "SKIP_PREFLIGHT_CHECKS",
        boolean,
        "true",
        "false: every finding of `nodeagent preflight` blocks a reload; true: only those do that "
        "would leave the node without its driver",
    )
    allow_uplink_reload: bool = variable(
        "ALLOW_UPLINK_RELOAD",
        boolean,
        "false",
        "reload even if the node's uplink is on these PFs; the node is cut off meanwhile",
    )
    enable_nfsrdma: bool = variable(
        "ENABLE_NFSRDMA",
        boolean,
        "false",
        "treat nvme_rdma and rpcrdma as part of the driver; rpcrdma is loaded after a reload",
    )
    ready_path: Path = variable(
        "DRIVER_READY_PATH",
        file_path,
        "/run/mellanox/drivers/.driver-ready",
        "the ready flag: exists only while the node is verified to be as it was; other pods wait "
        "for it",
    )
    driver_ready_path: Path = variable(
        "DRIVER_CONTAINER_READY_PATH",
        file_path,
        "/run/mellanox/drivers/.driver-ready",
        "`sidecar`: the driver container's ready flag; DRIVER_READY_PATH is then nodeagent's own",
    )
    lock_path: Path = variable(
        "LOCK_FILE_PATH",
        file_path,
        "/run/mellanox/drivers/.lock",
        "the lock file that admits one driver container per node; a second one exits",
    )
    driver_lock_path: Path = variable(
        "DRIVER_CONTAINER_LOCK_PATH",
        file_path,
        "/run/mellanox/drivers/.lock",
        "`sidecar`: the driver container's lock file; LOCK_FILE_PATH is then nodeagent's own",
    )
    companion_lock_path: Path = variable(
        "COMPANION_LOCK_PATH",
        file_path,
        "/run/mellanox/drivers/.nodeagent-lock",
        "the LOCK_FILE_PATH of a companion: while one holds it, VFs in pods that are not visible "
        "here are left to it, and do not block a reload",
    )
    beat_limit: float = variable(
        "BEAT_LIMIT",
        seconds,
        "300",
        "`probe live` fails if a working agent has not updated its heartbeat for this long",
        unit="s",
    )
    state_dir: Path = variable(
        "STATE_DIR",
        file_path,
        "/run/mellanox/drivers/.nodeagent",
        "the directory of snapshots and journal; the default survives the container, a hostPath "
        "also a reboot",
    )
    after_reboot: AfterReboot = variable(
        "OPEN_SNAPSHOT_AFTER_REBOOT",
        member_of(AfterReboot),
        "keep",
        "after a reboot in the middle of a reload: keep restores the VFs of the PFs that still "
        "match the snapshot; set-aside leaves the node as it booted",
    )
    driver_module: str = variable(
        "DRIVER_MODULE",
        module_name,
        "mlx5_core",
        "the driver to reload; nodeagent manages the PFs that are bound to it",
    )
    driver_root: Path = variable(
        "DRIVER_ROOT",
        absolute_path,
        "/",
        "the root directory of modinfo and openibd; for a sidecar, that of the driver container",
    )
    vf_timeout: float = variable(
        "VF_TIMEOUT",
        seconds,
        "150",
        "time limit for every VF to get its driver and netdev, and for udev to process it; it "
        "starts again with each VF that is done",
        unit="s",
    )
    vfio_timeout: float = variable(
        "VFIO_TIMEOUT",
        seconds,
        "60",
        "time limit for a process to close a VF that it has open through VFIO, if POD_LOSSES is "
        "accept; after that the reload is refused",
        unit="s",
    )
    pf_timeout: float = variable(
        "PF_TIMEOUT", seconds, "120", "time limit for every PF to return after a restart", unit="s"
    )
    build_timeout: float = variable(
        "BUILD_TIMEOUT", seconds, "3600", "time limit for the build of the driver", unit="s"
    )
    restart_timeout: float = variable(
        "RESTART_TIMEOUT", seconds, "600", "time limit for openibd to restart the driver", unit="s"
    )
    restore_driver: bool = variable(
        "RESTORE_DRIVER_ON_POD_TERMINATION",
        boolean,
        "false",
        "on SIGTERM, load the host's own driver again, and restore the VFs on it",
    )
    grace_period: float = variable(
        "TERMINATION_GRACE_PERIOD",
        seconds,
        "300",
        "the pod's terminationGracePeriodSeconds, the time between SIGTERM and SIGKILL; openibd "
        "may run for nearly all of it",
        unit="s",
    )
    create_ifnames_udev: bool = variable(
        "CREATE_IFNAMES_UDEV",
        boolean,
        "false",
        "write a udev rule that keeps interface names without npN if the previous driver made "
        "such names",
    )
    udev_rules_file: Path = variable(
        "MLX_UDEV_RULES_FILE",
        file_path,
        "/host/etc/udev/rules.d/77-mlnx-net-names.rules",
        "the file of that udev rule; removed at start and at termination",
    )
    drivers_mount: Path = variable(
        "MLX_DRIVERS_MOUNT",
        file_path,
        "/run/mellanox/drivers",
        "the mount shared with the host and the GPU driver, for the kernel headers",
    )
    headers_dir: Path = variable(
        "SHARED_KERNEL_HEADERS_DIR",
        file_path,
        "/usr/src/",
        "the kernel headers to share: the GPU driver builds nvidia-peermem with them",
    )
    pod_interfaces: PodInterfaces = variable(
        "POD_INTERFACES",
        member_of(PodInterfaces),
        "restore",
        "VFs in the network namespaces of pods: restore them there after a reload, or only report "
        "them",
    )
    pod_losses: PodLosses = variable(
        "POD_LOSSES",
        member_of(PodLosses),
        "block",
        "if a pod would lose a device for good (it holds it open, or its namespace is not "
        "visible): block the reload, or accept and report the loss",
    )
    quiesce: Quiesce = variable(
        "QUIESCE",
        member_of(Quiesce),
        "auto",
        "auto: before the driver is unloaded, unbind its VFs side by side, then its PFs; vfs: "
        "remove the VFs, and leave the PFs to the unload; off: leave both to the unload, which "
        "removes one after the other",
    )
    hold_off: tuple[HoldOff, ...] = variable(
        "HOLD_OFF",
        words_of(HoldOff),
        "cni",
        "what is kept from using VFs, from the snapshot until they are restored: cni: SR-IOV CNI, "
        "by its own records; cordon: new pods, by a cordon of the node; plugin: the kubelet, by a "
        "restart of device plugins while QUIESCE has removed the VFs; or none",
        unit="comma-separated",
    )
    restore_first: tuple[str, ...] | None = variable(
        "RESTORE_FIRST",
        names_or_addresses,
        None,
        "the VFs to bind and set up first: Kubernetes namespaces of their pods, their PCI "
        "addresses, or those of their PFs",
        unit="comma-separated",
    )
    cni_data_dir: Path = variable(
        "CNI_DATA_DIR",
        file_path,
        "/var/lib/cni/sriov",
        "the directory on the host of SR-IOV CNI's records: which pod has a VF, and the VF's "
        "settings before",
    )
    debug: bool = variable(
        "ENTRYPOINT_DEBUG",
        boolean,
        "false",
        "log every command to DEBUG_LOG_FILE, and wait before exiting after a failure",
    )
    debug_log_file: Path = variable(
        "DEBUG_LOG_FILE",
        file_path,
        "/tmp/entrypoint_debug_cmds.log",  # noqa: S108  the container's; links are not followed
        "the log of commands with ENTRYPOINT_DEBUG",
    )
    debug_sleep: float = variable(
        "DEBUG_SLEEP_SEC_ON_EXIT",
        pause,
        "300",
        "how long `run` waits after a failure with ENTRYPOINT_DEBUG; a signal ends the wait",
        unit="s",
    )
    bind_delay_sec: str | None = variable(
        "BIND_DELAY_SEC", str, None, "accepted and ignored: nodeagent waits for events", unit="s"
    )
    watch_drift: bool = variable(
        "WATCH_DRIFT",
        boolean,
        "false",
        "once ready, report changes of the node's configuration in log and timeline, without "
        "reverting them; the agent then keeps the memory that it needs for its work",
    )
    cluster_integration: ClusterIntegration = variable(
        "CLUSTER_INTEGRATION",
        member_of(ClusterIntegration),
        "auto",
        "after a reload, announce it to the cluster and restart device plugins; auto: in a pod "
        "that has NODE_NAME",
    )
    node_name: str | None = variable(
        "NODE_NAME",
        object_name,
        None,
        "this node's name in the cluster, from the downward API (spec.nodeName)",
    )
    api_host: str | None = variable(
        "KUBERNETES_SERVICE_HOST",
        host,
        None,
        "the API server's address; set by the kubelet in a pod",
    )
    api_port: int | None = variable(
        "KUBERNETES_SERVICE_PORT",
        port,
        None,
        "the API server's port; set by the kubelet in a pod",
    )
    service_account_dir: Path = variable(
        "SERVICE_ACCOUNT_DIR",
        absolute_path,
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "the directory of the pod's token and ca.crt; the token is read for each request",
    )
    kubeconfig: Path | None = variable(
        "KUBECONFIG",
        file_path,
        None,
        "for use by hand: replaces the pod's ServiceAccount",
    )
    api_timeout: float = variable(
        "API_TIMEOUT",
        seconds,
        "30",
        "time limit for a request to the API server, including its retries",
        unit="s",
    )
    device_plugin_namespaces: tuple[str, ...] = variable(
        "DEVICE_PLUGIN_NAMESPACES",
        object_names,
        "kube-system,sriov-network-operator,openshift-sriov-network-operator,"
        "intel-device-plugins-operator,nvidia-network-operator,default",
        "the namespaces of device plugin pods",
        unit="comma-separated",
    )
    device_plugin_selectors: tuple[str, ...] = variable(
        "DEVICE_PLUGIN_SELECTORS",
        label_selectors,
        "app=sriov-device-plugin,app=kube-sriov-device-plugin,app=sriovdp,"
        "name=sriov-device-plugin,component=sriov-device-plugin",
        "the labels of device plugin pods; a pod needs one of them",
        unit="comma-separated",
    )
    device_plugin_config: Path = variable(
        "DEVICE_PLUGIN_CONFIG",
        file_path,
        "/etc/pcidp/config.json",
        "the device plugin's resource list on the host",
    )
    device_plugin_timeout: float = variable(
        "DEVICE_PLUGIN_TIMEOUT",
        seconds,
        "180",
        "time limit for new device plugin pods to become ready, and for the node's allocatable to "
        "become what it was",
        unit="s",
    )
    allocatable_settle: float = variable(
        "ALLOCATABLE_SETTLE",
        seconds,
        "12",
        "how long to wait before an unchanged allocatable is taken to be current; the kubelet "
        "reports it every 10 s",
        unit="s",
    )
    node_events: bool = variable(
        "NODE_EVENTS", boolean, "true", "create Events on the node about its driver"
    )
    node_condition: bool = variable(
        "NODE_CONDITION", boolean, "false", "set the condition NicDriverReady of the node"
    )
    node_annotations: bool = variable(
        "NODE_ANNOTATIONS",
        boolean,
        "false",
        "annotate the node with srcversion, time and duration of the last reload",
    )
    operator_namespaces: tuple[str, ...] = variable(
        "OPERATOR_NAMESPACES",
        object_names,
        "openshift-sriov-network-operator,sriov-network-operator",
        "the namespace of the SR-IOV operator; the first one that exists is used",
        unit="comma-separated",
    )
    trace_points: Path | None = variable(
        "TRACE_POINTS",
        file_path,
        None,
        "for tests only: a directory where the agent logs its trace points in the file points; the "
        "file end there lists the points at which it sends itself a signal",
    )
    metrics_port: int | None = variable(
        "METRICS_PORT", port, None, "the port of `nodeagent metrics`; unset: no metrics"
    )
    metrics_address: str = variable(
        "METRICS_ADDRESS", host, "127.0.0.1", "the address on which `nodeagent metrics` listens"
    )
    no_color: bool = variable("NO_COLOR", present, "", "do not use colour on a terminal")

    @property
    def beat_path(self) -> Path:
        """The agent's heartbeat, beside the lock: the uptime in seconds of its last beat."""
        return self.lock_path.with_name(f"{self.lock_path.name}.beat")

    @property
    def work_path(self) -> Path:
        """The file that is locked while devices are changed."""
        return self.lock_path.with_name(f"{self.lock_path.name}.work")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Parse every variable of the table; ConfigError names variable, value and what is allowed.

        Variables that are not in the table are ignored.
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
        """ConfigError if a variable that `mode` requires is missing, or one is not supported.

        `run` (`whole_life`) requires the driver version, as the driver container does. `reload` by
        hand in precompiled mode does not need it.
        """
        if mode not in RELOAD_MODES:
            raise ConfigError(f"the mode is {mode!r}; allowed are {' and '.join(RELOAD_MODES)}")
        if self.nic_driver_ver is None and (whole_life or mode == Mode.SOURCES):
            raise ConfigError(
                "NVIDIA_NIC_DRIVER_VER is not set; it names the driver version for this node",
                hint="set it in the pod's environment, for example 25.07-0.9.7.0",
            )
        if self.nic_driver_path is None and mode == Mode.SOURCES:
            raise ConfigError(
                "NVIDIA_NIC_DRIVER_PATH is not set; in sources mode it names the directory of the "
                "driver's sources",
                hint="set it in the pod's environment, or use precompiled",
            )
        if self.use_dkms:
            raise ConfigError(
                "USE_DKMS is true, but nodeagent does not support DKMS",
                hint="set it to false. DKMS rebuilds modules when a kernel is installed on the "
                "same file system; a container's file system ends with the container. For a new "
                "kernel nodeagent builds at its next start, or uses packages of the inventory",
            )

    def _check_paths(self) -> None:
        """ConfigError if two settings name the same file to write.

        The same for a setting that names a file of STATE_DIR, or one beside the lock.
        """
        seen = {self.state_dir / name: f"{name} in STATE_DIR" for name in STATE_FILES}
        seen |= dict.fromkeys((self.beat_path, self.work_path), "a file beside LOCK_FILE_PATH")
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


def markdown_table() -> list[str]:
    """The table as Markdown, for nodeagent/README.md: variable, default, unit, purpose."""
    lines = ["| variable | default | unit | purpose |", "|---|---|---|---|"]
    for _, row in rows():
        default = "" if row.default is None else f"`{row.default}`"
        cells = (f"`{row.name}`", default, row.unit, row.reason.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return lines


def load() -> Settings:
    """The settings of this process. The only reader of os.environ."""
    return Settings.from_environment(os.environ)


def origin(row: Variable) -> Origin:
    """The source of a row's value in this process."""
    return Origin.DEFAULT if row.given(os.environ) is None else Origin.ENVIRONMENT


def _parsed(row: Variable, text: str) -> object:
    try:
        return row.parse(text)
    except ValueError as error:
        shown = ascii(text if len(text) <= 80 else text[:77] + "...")
        if row.parse is secret:
            shown = "not shown"
        raise ConfigError(f"{row.name} is {shown}; allowed: {error}") from None
