"""Settings: every variable parsed once, and nothing but Settings or ConfigError comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodeagent.errors import ConfigError
from nodeagent.parse import Secret
from nodeagent.record.journal import Journal
from nodeagent.settings import SPACE_SEPARATED, STATE_FILES, Settings, load, rows

NAMES = [row.name for _, row in rows()]


def test_defaults_are_those_of_the_driver_container() -> None:
    settings = Settings.from_environment({})
    assert settings.ready_path == Path("/run/mellanox/drivers/.driver-ready")
    assert settings.lock_path == Path("/run/mellanox/drivers/.lock")
    assert settings.state_dir == Path("/run/mellanox/drivers/.nodeagent")
    assert settings.driver_module == "mlx5_core"
    assert settings.blacklist_modules[:2] == ("mlx5_core", "mlx5_ib")
    assert (settings.vf_timeout, settings.build_timeout) == (150.0, 3600.0)
    assert settings.dtk_build is False
    assert settings.no_color is False
    assert settings == Settings()


def test_every_row_says_why() -> None:
    assert all(row.reason for _, row in rows())
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_booleans_are_those_of_go(text: str) -> None:
    assert Settings.from_environment({"DTK_OCP_DRIVER_BUILD": text}).dtk_build is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false_booleans_are_those_of_go(text: str) -> None:
    assert Settings.from_environment({"ENABLE_NFSRDMA": text}).enable_nfsrdma is False


@pytest.mark.parametrize("name", [row.name for _, row in rows() if row.unit != SPACE_SEPARATED])
def test_set_but_empty_is_not_set(name: str) -> None:
    assert Settings.from_environment({name: ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("DTK_OCP_DRIVER_BUILD", "yes", "true or false"),
        ("ENABLE_NFSRDMA", "tRUE", "true or false"),
        ("VF_TIMEOUT", "0", "more than 0"),
        ("VF_TIMEOUT", "-1", "more than 0"),
        ("VF_TIMEOUT", "2m", "plain number"),
        ("VF_TIMEOUT", "nan", "plain number"),
        ("BUILD_TIMEOUT", "inf", "plain number"),
        ("BUILD_TIMEOUT", "604801", "a week"),
        ("PF_TIMEOUT", " 5", "plain number"),
        ("PF_TIMEOUT", "٣", "plain number"),
        ("STATE_DIR", "run/state", "absolute path"),
        ("STATE_DIR", "/run/../etc", "without '..'"),
        ("STATE_DIR", "/", "of a file"),
        ("DRIVER_READY_PATH", "/run/a\nb", "absolute path"),
        ("DRIVER_READY_PATH", "/run/\udcff", "absolute path"),
        ("LOCK_FILE_PATH", "/run/a\0b", "absolute path"),
        ("DRIVER_MODULE", "mlx5 core", "letters, digits"),
        ("DRIVER_MODULE", "../core", "letters, digits"),
        ("DRIVER_MODULE", "mlx5_core\n", "letters, digits"),
        ("OFED_BLACKLIST_MODULES", "mlx5_core mlx5_ib", "':' between them"),
        ("OFED_BLACKLIST_MODULES", "mlx5_core::mlx5_ib", "':' between them"),
        ("APPEND_DRIVER_BUILD_FLAGS", "--a '--b c", "every quote closed"),
        ("APPEND_DRIVER_BUILD_FLAGS", "--a\n--b", "on one line"),
        ("NVIDIA_NIC_DRIVER_VER", "-rf", "beginning with neither"),
        ("NVIDIA_NIC_DRIVER_VER", "../25.07", "a version"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({name: text})
    assert caught.value.message.startswith(f"{name} is {text!a}; allowed: ")
    assert allowed in caught.value.message
    assert caught.value.exit_code == 78


ROWS = {
    "NVIDIA_NIC_DRIVER_VER": (None, ("25.10-1.2.8.0", "25.10-1.2.8.0"), "a version"),
    "NVIDIA_NIC_DRIVER_PATH": (None, ("/root/src", Path("/root/src")), "src"),
    "NVIDIA_NIC_CONTAINER_VER": (None, ("1.2", "1.2"), "a b"),
    "DTK_OCP_DRIVER_BUILD": (False, ("1", True), "on"),
    "DTK_OCP_NIC_SHARED_DIR": (
        Path("/mnt/shared-nvidia-nic-driver-toolkit"),
        ("/mnt/shared-doca-driver-toolkit", Path("/mnt/shared-doca-driver-toolkit")),
        "shared",
    ),
    "OFED_BLACKLIST_MODULES_FILE": (
        Path("/host/etc/modprobe.d/blacklist-ofed-modules.conf"),
        ("/etc/modprobe.d/b.conf", Path("/etc/modprobe.d/b.conf")),
        "/",
    ),
    "OFED_BLACKLIST_MODULES": (
        (
            "mlx5_core",
            "mlx5_ib",
            "ib_umad",
            "ib_uverbs",
            "ib_ipoib",
            "rdma_cm",
            "rdma_ucm",
            "ib_core",
            "ib_cm",
        ),
        ("mlx5_core:ib_core", ("mlx5_core", "ib_core")),
        "mlx5_core ib_core",
    ),
    "MLX5_AUXILIARY_MODULES": (
        ("mlx5_vdpa", "mlx5_fwctl", "mlx5_dpll"),
        ("mlx5_vdpa  mlx5-dpll", ("mlx5_vdpa", "mlx5-dpll")),
        "mlx5_vdpa:mlx5_dpll",
    ),
    "UNLOAD_STORAGE_MODULES": (False, ("true", True), "yes"),
    "STORAGE_MODULES": (
        (
            "ib_iser",
            "ib_isert",
            "ib_srp",
            "ib_srpt",
            "nvme_rdma",
            "nvmet_rdma",
            "rpcrdma",
            "xprtrdma",
        ),
        ("", ()),
        "nvme_rdma,rpcrdma",
    ),
    "UNLOAD_THIRD_PARTY_RDMA_MODULES": (False, ("T", True), "2"),
    "THIRD_PARTY_RDMA_MODULES": (
        (
            "bnxt_re",
            "efa",
            "erdma",
            "iw_cxgb4",
            "hfi1",
            "hns_roce",
            "ionic_rdma",
            "irdma",
            "ib_qib",
            "mana_ib",
            "ocrdma",
            "qedr",
            "rdma_rxe",
            "siw",
            "vmw_pvrdma",
        ),
        ("siw", ("siw",)),
        "-r",
    ),
    "SKIP_PREFLIGHT_CHECKS": (True, ("0", False), "no"),
    "ALLOW_UPLINK_RELOAD": (False, ("true", True), "ja"),
    "ENABLE_NFSRDMA": (False, ("true", True), "tRUE"),
    "DRIVER_READY_PATH": (
        Path("/run/mellanox/drivers/.driver-ready"),
        ("/run/ready", Path("/run/ready")),
        "ready",
    ),
    "LOCK_FILE_PATH": (
        Path("/run/mellanox/drivers/.lock"),
        ("/run/lock", Path("/run/lock")),
        "/run/../lock",
    ),
    "STATE_DIR": (
        Path("/run/mellanox/drivers/.nodeagent"),
        ("/var/lib/nodeagent", Path("/var/lib/nodeagent")),
        "state",
    ),
    "DRIVER_MODULE": ("mlx5_core", ("netdevsim", "netdevsim"), "-r"),
    "DRIVER_ROOT": (Path("/"), ("/proc/7/root", Path("/proc/7/root")), "root"),
    "ENTRYPOINT_DEBUG": (False, ("true", True), "verbose"),
    "DEBUG_LOG_FILE": (
        Path("/tmp/entrypoint_debug_cmds.log"),
        ("/run/debug.log", Path("/run/debug.log")),
        "debug.log",
    ),
    "DEBUG_SLEEP_SEC_ON_EXIT": (300.0, ("0", 0.0), "90s"),
    "VF_TIMEOUT": (150.0, ("2.5", 2.5), "2s"),
    "VFIO_TIMEOUT": (60.0, ("2.5", 2.5), "2s"),
    "PF_TIMEOUT": (120.0, ("600", 600.0), "0"),
    "BUILD_TIMEOUT": (3600.0, ("7200", 7200.0), "inf"),
    "RESTART_TIMEOUT": (600.0, ("60", 60.0), "-1"),
    "RESTORE_DRIVER_ON_POD_TERMINATION": (False, ("true", True), "always"),
    "TERMINATION_GRACE_PERIOD": (300.0, ("90", 90.0), "90s"),
    "CREATE_IFNAMES_UDEV": (False, ("true", True), "yes"),
    "MLX_UDEV_RULES_FILE": (
        Path("/host/etc/udev/rules.d/77-mlnx-net-names.rules"),
        ("/etc/udev/rules.d/77.rules", Path("/etc/udev/rules.d/77.rules")),
        "77.rules",
    ),
    "MLX_DRIVERS_MOUNT": (Path("/run/mellanox/drivers"), ("/run/x/", Path("/run/x")), "/"),
    "SHARED_KERNEL_HEADERS_DIR": (Path("/usr/src"), ("/usr/src/", Path("/usr/src")), "usr/src"),
    "CLUSTER_INTEGRATION": ("auto", ("off", "off"), "maybe"),
    "NODE_NAME": (None, ("node-1.example", "node-1.example"), "Node/1"),
    "KUBERNETES_SERVICE_HOST": (None, ("10.96.0.1", "10.96.0.1"), "a host"),
    "KUBERNETES_SERVICE_PORT": (None, ("6443", 6443), "65536"),
    "SERVICE_ACCOUNT_DIR": (
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        ("/run/sa", Path("/run/sa")),
        "sa",
    ),
    "KUBECONFIG": (None, ("/home/k/config", Path("/home/k/config")), "config"),
    "API_TIMEOUT": (30.0, ("5", 5.0), "five"),
    "DEVICE_PLUGIN_NAMESPACES": (
        (
            "kube-system",
            "sriov-network-operator",
            "openshift-sriov-network-operator",
            "intel-device-plugins-operator",
            "nvidia-network-operator",
            "default",
        ),
        ("a,b", ("a", "b")),
        "a b",
    ),
    "DEVICE_PLUGIN_SELECTORS": (
        (
            "app=sriov-device-plugin",
            "app=kube-sriov-device-plugin",
            "app=sriovdp",
            "name=sriov-device-plugin",
            "component=sriov-device-plugin",
        ),
        ("app=x,name=y", ("app=x", "name=y")),
        "app",
    ),
    "DEVICE_PLUGIN_CONFIG": (
        Path("/etc/pcidp/config.json"),
        ("/etc/dp.json", Path("/etc/dp.json")),
        "dp.json",
    ),
    "DEVICE_PLUGIN_TIMEOUT": (180.0, ("60", 60.0), "1m"),
    "ALLOCATABLE_SETTLE": (12.0, ("1", 1.0), "-1"),
    "NODE_EVENTS": (True, ("false", False), "off"),
    "NODE_CONDITION": (False, ("true", True), "on"),
    "NODE_ANNOTATIONS": (False, ("true", True), "on"),
    "OPERATOR_NAMESPACES": (
        ("openshift-sriov-network-operator", "sriov-network-operator"),
        ("op", ("op",)),
        "Op",
    ),
    "OPEN_SNAPSHOT_AFTER_REBOOT": ("keep", ("set-aside", "set-aside"), "drop"),
    "WATCH_DRIFT": (False, ("true", True), "maybe"),
    "TRACE_POINTS": (None, ("/run/trace", Path("/run/trace")), "trace"),
    "NVIDIA_NIC_DRIVERS_INVENTORY_PATH": (None, ("/mnt/inv", Path("/mnt/inv")), "inv"),
    "APPEND_DRIVER_BUILD_FLAGS": (None, ("--with-x  --y", "--with-x  --y"), "a\0b"),
    "USE_DKMS": (False, ("true", True), "dkms"),
    "UBUNTU_PRO_TOKEN": (None, ("C123", Secret("C123")), "a\0b"),
    "DTK_OCP_COMPILED_DRIVER_VER": (None, ("25.10-1.2.8.0", "25.10-1.2.8.0"), "a b"),
    "DTK_OCP_START_COMPILE_FLAG": (None, ("/mnt/s/start", Path("/mnt/s/start")), "start"),
    "DTK_OCP_DONE_COMPILE_FLAG": (None, ("/mnt/s/done", Path("/mnt/s/done")), "done"),
    "BEAT_LIMIT": (300.0, ("60", 60.0), "1m"),
    "DRIVER_CONTAINER_LOCK_PATH": (
        Path("/run/mellanox/drivers/.lock"),
        ("/run/l", Path("/run/l")),
        "lock",
    ),
    "COMPANION_LOCK_PATH": (
        Path("/run/mellanox/drivers/.nodeagent-lock"),
        ("/run/l", Path("/run/l")),
        "lock",
    ),
    "DRIVER_CONTAINER_READY_PATH": (
        Path("/run/mellanox/drivers/.driver-ready"),
        ("/run/theirs", Path("/run/theirs")),
        "theirs",
    ),
    "METRICS_PORT": (None, ("9790", 9790), "65536"),
    "METRICS_ADDRESS": ("127.0.0.1", ("::1", "::1"), "a b"),
    "POD_INTERFACES": ("restore", ("report", "report"), "keep"),
    "POD_LOSSES": ("block", ("accept", "accept"), "ignore"),
    "QUIESCE": ("auto", ("off", "off"), "on"),
    "HOLD_OFF": (("cni",), ("cordon,cni,plugin", ("cordon", "cni", "plugin")), "cni,none"),
    "RESTORE_FIRST": (
        None,
        ("payments,0000:03:00.2", ("payments", "0000:03:00.2")),
        "payments,0000:03",
    ),
    "CNI_DATA_DIR": (Path("/var/lib/cni/sriov"), ("/host/cni", Path("/host/cni")), "cni"),
}
ANY_TEXT = {"BIND_DELAY_SEC", "NO_COLOR"}
"""Variables that no text is wrong for: ignored, or only asked for being there."""


def test_every_variable_has_its_values_here() -> None:
    assert set(NAMES) - ANY_TEXT == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_default_a_good_value_and_a_bad_one(name: str) -> None:
    default, (text, value), bad = ROWS[name]
    attribute = {row.name: attribute for attribute, row in rows()}[name]
    assert getattr(Settings.from_environment({}), attribute) == default
    assert getattr(Settings.from_environment({name: text}), attribute) == value
    shown = "not shown" if isinstance(value, Secret) else re.escape(ascii(bad))
    with pytest.raises(ConfigError, match=f"^{name} is {shown}; allowed: "):
        Settings.from_environment({name: bad})


def test_a_token_is_never_shown() -> None:
    (row,) = [row for _, row in rows() if row.name == "UBUNTU_PRO_TOKEN"]
    settings = Settings.from_environment({"UBUNTU_PRO_TOKEN": "C1secret"})
    assert settings.ubuntu_pro_token is not None
    assert settings.ubuntu_pro_token.value == "C1secret"
    assert "C1secret" not in f"{settings} {settings.ubuntu_pro_token} {settings!r}"
    assert row.shown(settings.ubuntu_pro_token) == "(set, not shown)"
    assert row.shown(Settings().ubuntu_pro_token) == "-"
    with pytest.raises(ConfigError, match="UBUNTU_PRO_TOKEN is not shown; allowed: ") as caught:
        Settings.from_environment({"UBUNTU_PRO_TOKEN": "C1 secret"})
    assert "secret" not in caught.value.message


def test_a_long_bad_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({"DRIVER_MODULE": "x" * 5000})
    assert len(caught.value.message) < 250


def test_the_flag_is_not_the_lock() -> None:
    with pytest.raises(ConfigError, match="LOCK_FILE_PATH and DRIVER_READY_PATH are the same"):
        Settings.from_environment({"LOCK_FILE_PATH": "/run/x", "DRIVER_READY_PATH": "/run/./x"})


def test_bind_delay_is_accepted_whatever_it_says() -> None:
    assert Settings.from_environment({"BIND_DELAY_SEC": "soon"}).bind_delay_sec == "soon"


@pytest.mark.parametrize(
    ("mode", "whole_life", "environ", "missing"),
    [
        ("precompiled", True, {}, "NVIDIA_NIC_DRIVER_VER"),
        ("sources", False, {}, "NVIDIA_NIC_DRIVER_VER"),
        ("precompiled", True, {"NVIDIA_NIC_DRIVER_VER": "1", "USE_DKMS": "1"}, "USE_DKMS is true"),
        ("precompiled", False, {"USE_DKMS": "true"}, "USE_DKMS is true"),
        ("sources", True, {"NVIDIA_NIC_DRIVER_VER": "25.07-0.9.7.0"}, "NVIDIA_NIC_DRIVER_PATH"),
        ("dtk-build", True, {}, "sources and precompiled"),
    ],
)
def test_a_mode_says_what_it_lacks(
    mode: str, whole_life: bool, environ: dict[str, str], missing: str
) -> None:
    with pytest.raises(ConfigError, match=missing):
        Settings.from_environment(environ).check_mode(mode, whole_life=whole_life)


def test_a_reload_by_hand_needs_no_version() -> None:
    Settings().check_mode("precompiled", whole_life=False)


def test_load_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER_MODULE", "netdevsim")
    assert load().driver_module == "netdevsim"


VALUES = st.one_of(
    st.text(),
    st.text(st.characters(codec=None)),
    st.from_regex(r"/[a-z./]{0,12}", fullmatch=True),
    st.from_regex(r"[0-9.e+-]{1,8}", fullmatch=True),
    st.sampled_from(["true", "1", "mlx5_core", "a:b", "/run/x", "25.07-0.9.7.0", "120"]),
)


def outcome(environ: dict[str, str]) -> tuple[Settings, str]:
    try:
        return Settings.from_environment(environ), ""
    except ConfigError as error:
        return Settings(), error.message


@given(st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text()), VALUES))
@example({"VF_TIMEOUT": "9" * 400})
def test_no_environment_makes_anything_but_settings_or_one_message(environ: dict[str, str]) -> None:
    settings, message = outcome(environ)
    assert message.isprintable()
    assert 0 < settings.vf_timeout <= 604800
    assert settings.state_dir.is_absolute()
    assert "\0" not in str(settings.ready_path)
    assert settings.driver_module.isascii()


@pytest.mark.parametrize("path", ["/x" * 2000, f"/run/{'x' * 201}/y", f"/{'é' * 101}"])
def test_a_path_that_is_too_long(path: str) -> None:
    """For what is made beside it, .NAME.0123456789abcdef.tmp: the kernel says ENAMETOOLONG."""
    with pytest.raises(ConfigError, match="a path of at most 3000 bytes, 200 in each name"):
        Settings.from_environment({"STATE_DIR": path})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("DRIVER_READY_PATH", "/s/open-snapshot.json"),
        ("OFED_BLACKLIST_MODULES_FILE", "/s/last-snapshot.json"),
        ("MLX_UDEV_RULES_FILE", "/s/journal.jsonl"),
        ("DEBUG_LOG_FILE", "/s/lock"),
        ("DRIVER_READY_PATH", "/s/lock.work"),
        ("MLX_UDEV_RULES_FILE", "/s/lock.beat"),
        ("DRIVER_READY_PATH", "/s"),
    ],
)
def test_no_setting_is_what_another_keeps(name: str, path: str) -> None:
    """The flag and the udev rule are removed first thing: a snapshot would go with them."""
    paths = {"STATE_DIR": "/s", "LOCK_FILE_PATH": "/s/lock", name: path}
    with pytest.raises(ConfigError, match=rf"are the same path, {path}$"):
        Settings.from_environment(paths)


def test_what_the_journal_keeps() -> None:
    kept = Journal(Settings())
    paths = {path for path in vars(kept).values() if isinstance(path, Path)}
    assert {path.name for path in paths if path.parent == kept.state_dir} == {*STATE_FILES}
