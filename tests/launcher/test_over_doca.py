"""The target over-doca: its name, what it installs where, an image on a stand-in for NVIDIA's."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from container import names, smoke  # noqa: E402 - scripts/ is no installed package
from emulator.host import LabError  # noqa: E402 - likewise


def image(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [str(ROOT / "scripts/image"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


# The name


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("25.10-1.2.8.0-0", "ubuntu24.04", "amd64", ""), "25.10-1.2.8.0-0-ubuntu24.04-amd64"),
        (("25.10-1.2.8.0-0", "rhel9.4", "arm64", ""), "25.10-1.2.8.0-0-rhel9.4-arm64"),
        (
            ("25.10-1.2.8.0-0", "ubuntu22.04", "amd64", "5.15.0-25-generic"),
            "25.10-1.2.8.0-0-5.15.0-25-generic-ubuntu22.04-amd64",
        ),
        (
            ("doca3.2.0-25.10-1.2.8.0-0", "rhcos4.17", "amd64", ""),
            "doca3.2.0-25.10-1.2.8.0-0-rhcos4.17-amd64",
        ),
    ],
)
def test_the_name_is_the_one_that_the_operator_makes(
    arguments: tuple[str, str, str, str], name: str
) -> None:
    version, system, arch, kernel = arguments
    made = names.tag_for(version, system, arch=arch, kernel=kernel)
    assert made == f"nodeagent-doca:{name}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("25.10", "ubuntu24.04", "amd64", ""), "--tag-for is '25.10'"),
        (("25.10-1.2.8.0-0", "", "amd64", ""), "--os is ''"),
        (("25.10-1.2.8.0-0", "Ubuntu 24.04", "amd64", ""), "--os is 'Ubuntu 24.04'"),
        (("25.10-1.2.8.0-0", "ubuntu24.04", "x86_64", ""), "--arch is 'x86_64'"),
        (("25.10-1.2.8.0-0", "rhel9.4", "arm64", "5.14.0+64k"), "--kernel is '5.14.0+64k'"),
        (("25.10-1.2.8.0-0", "rhel9.4", "arm64", "5" * 99), "has 129 characters"),
    ],
)
def test_what_can_be_no_such_name_is_refused(
    arguments: tuple[str, str, str, str], said: str
) -> None:
    version, system, arch, kernel = arguments
    with pytest.raises(LabError) as refused:
        names.tag_for(version, system, arch=arch, kernel=kernel)
    assert said in str(refused.value)


def test_the_command_prints_it() -> None:
    asked = ("--tag-for", "25.10-1.2.8.0-0", "--os", "ubuntu24.04", "--arch", "amd64")
    assert image(*asked).stdout == "nodeagent-doca:25.10-1.2.8.0-0-ubuntu24.04-amd64\n"
    there = image(*asked, "--repository", "registry.example/drivers/").stdout
    assert there == "registry.example/drivers/nodeagent-doca:25.10-1.2.8.0-0-ubuntu24.04-amd64\n"
    refused = image("--tag-for", "25.10-1.2.8.0-0")
    assert refused.returncode == 125
    assert "--os is ''" in refused.stderr


# What it installs


OLD = "#!/bin/sh\nexit 1\n"
STUB = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'


def installed(tmp_path: Path, os_release: str, *there: str, stage: str = "over-doca") -> str:
    """What a base's package manager is asked for; `there` are the commands that the base has."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (tmp_path / "os-release").write_text(os_release)
    script = (ROOT / "scripts/container/packages").read_text()
    (tmp_path / "packages").write_text(script.replace("/etc/os-release", f"{tmp_path}/os-release"))
    for name in ("grep", "basename"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    stubs = {"python3": OLD, "rm": STUB} | dict.fromkeys(there, STUB)
    for name, text in stubs.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    argv = ["/bin/sh", str(tmp_path / "packages"), stage]
    environment = {"PATH": str(programs), "CALLS": str(calls)}
    subprocess.run(argv, env=environment, check=True, capture_output=True, text=True)
    return calls.read_text()


UBUNTU = 'ID=ubuntu\nVERSION_ID="{}"\n'
RHEL = 'ID="rhel"\nVERSION_ID="9.4"\n'
TOOLS = ("modprobe", "depmod", "ip", "nsenter", "lsof", "pgrep", "lspci", "ethtool", "logger")


@pytest.mark.parametrize(("version", "python"), [("22.04", "python3.11"), ("24.04", "python3")])
def test_on_ubuntu(tmp_path: Path, version: str, python: str) -> None:
    calls = installed(tmp_path, UBUNTU.format(version), *TOOLS, "apt-get", "dpkg").splitlines()
    assert f"apt-get -q -y install --no-install-recommends {python}" in calls


def test_on_ubuntu_neither_rpm_nor_a_loss_of_perl(tmp_path: Path) -> None:
    calls = installed(tmp_path, UBUNTU.format("24.04"), "apt-get", "dpkg")
    assert "kmod iproute2 util-linux" in calls
    assert "rpm" not in calls
    assert "perl" not in calls


def test_a_driver_of_ours_has_rpm_and_no_perl(tmp_path: Path) -> None:
    calls = installed(tmp_path, "ID=debian\n", "apt-get", "dpkg", stage="driver")
    assert " rpm\n" in calls
    assert "rm -rf /usr/share/perl" in calls


def test_on_rhel(tmp_path: Path) -> None:
    calls = installed(tmp_path, RHEL, *TOOLS[:-1], "dnf").splitlines()
    wanted = "install -y --nodocs --setopt=install_weak_deps=0 util-linux python3.12"
    assert calls[0] == f"dnf {wanted}"


def test_the_builder_of_ubuntu_22_has_pip_for_the_newer_python(tmp_path: Path) -> None:
    calls = installed(tmp_path, UBUNTU.format("22.04"), "apt-get", "dpkg", stage="builder")
    assert "install --no-install-recommends python3.11 python3.11-venv\n" in calls


# The image


def test_it_is_built_over_a_stand_in_and_keeps_what_that_has() -> None:
    done = image("--target", "over-doca", "--quiet")
    assert done.returncode == 0, done.stderr
    with tarfile.open(done.stdout.strip()) as archive:

        def blob(digest: str) -> dict[str, Any]:
            file = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
            content: dict[str, Any] = json.load(file or pytest.fail(digest))
            return content

        index = json.load(archive.extractfile("index.json") or pytest.fail("no index"))
        config = blob(blob(index["manifests"][0]["digest"])["config"]["digest"])["config"]
    assert config["Entrypoint"] == ["nodeagent", "run"]
    assert config["Cmd"] == ["sources"]
    assert "NVIDIA_NIC_DRIVER_VER=25.10-1.2.8.0" in config["Env"]
    assert "NVIDIA_NIC_DRIVER_PATH=/opt/driver-sources" in config["Env"]


def test_a_base_whose_environment_is_lost_is_refused() -> None:
    labels = ("title", "description", "licenses", "version", "revision")
    config = {
        "Entrypoint": ["nodeagent", "run"],
        "Cmd": ["sources"],
        "StopSignal": "SIGTERM",
        "Env": ["NVIDIA_NIC_DRIVER_VER=1"],
        "Labels": {f"org.opencontainers.image.{name}": "it" for name in labels},
    }
    with pytest.raises(LabError, match="NVIDIA_NIC_DRIVER_PATH of the base is lost"):
        smoke._check_config({"config": config}, "over-doca")


ENGINE = """#!/bin/sh
# podman, as far as scripts/image calls it
echo "$*" >>"$CALLS"
case "$1 $*" in
run*--help) echo "Reload if needed, restore, verify, be ready, stay" ;;
run*" no-such-mode") echo "no-such-mode"; exit 64 ;;
image*) echo 190000000 ;;
esac
"""


def with_an_engine(tmp_path: Path, *argv: str) -> list[str]:
    """What an engine is called with, that only writes it down: no such image can be had here."""
    (tmp_path / "podman").write_text(ENGINE)
    (tmp_path / "podman").chmod(0o755)
    calls = tmp_path / "calls"
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


def test_the_lines_of_the_readme(tmp_path: Path) -> None:
    """They build and push the image that the example of a policy makes the operator pull."""
    text = (ROOT / "manifests/README.md").read_text()
    section = text.partition("\n## Through the Network Operator's policy\n")[2]
    section = section.partition("\n## ")[0]
    lines = "\n".join(re.findall(r"^    (.*)$", section, re.MULTILINE))
    calls = with_an_engine(tmp_path, "sh", "-ec", lines.replace("REPOSITORY", "registry.example/r"))
    policy = yaml.safe_load((ROOT / "manifests/network-operator/nicclusterpolicy.yaml").read_text())
    driver = policy["spec"]["ofedDriver"]
    architecture = names.ARCHITECTURES[platform.machine()]
    asked = f"registry.example/r/{driver['image']}:{driver['version']}-ubuntu24.04-{architecture}"
    (build,) = (line for line in calls if line.startswith("build"))
    assert f"--tag {asked} " in build
    assert "DOCA_DRIVER=DRIVER_IMAGE" in build
    assert calls[-1] == f"push {asked}"


def test_on_an_image_that_is_named(tmp_path: Path) -> None:
    asked = ("--doca-driver", "registry.example/doca:1", "--tag-for", "25.10-1.2.8.0-0")
    calls = with_an_engine(tmp_path, "scripts/image", *asked, "--os", "rhel9.4", "--arch", "arm64")
    (build,) = (line for line in calls if line.startswith("build"))
    assert "--target over-doca --build-arg DOCA_DRIVER=registry.example/doca:1 " in build
    assert "--tag nodeagent-doca:25.10-1.2.8.0-0-rhel9.4-arm64 " in build
