"""Mode `sources` from settings to an installed driver; the tools are small real executables.

What rpm, dpkg and depmod really do is tried in the lab (tests/lab/test_delivery.py).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent import trace
from nodeagent.driver import delivery, dtk, packages
from nodeagent.errors import AgentError, ConfigError, DataError, NoInputError, UnavailableError
from nodeagent.settings import Settings
from tests.support.host import CHROOT, MODINFO

RELEASE = "6.1.0"
VERSION = "25.10-1.2.8.0"
MODULE = f"lib/modules/{RELEASE}/extra/mlx5_core.ko"
CALLED = '#!/bin/sh\necho "${{0##*/}} $*" >> {root}/calls\n'
RPM = (
    CALLED
    + """for last; do :; done
case "$*" in
-K*) test -s {root}$last ;;
*-l*) cat {root}$last ;;
-q*) exit 1 ;;
*) test ! -e {root}/rpm-fails ;;
esac
"""
)
INSTALL_PL = f"""#!/bin/sh
cd "$(dirname "$0")"
echo built >> builds
mkdir -p RPMS/rhel9/$(uname -m)
echo /{MODULE} > RPMS/rhel9/$(uname -m)/mlnx-ofa_kernel.rpm
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A driver's root with sources and headers, an inventory, and tools."""
    tools = {"rpm": RPM, "depmod": CALLED, "modinfo": MODINFO}
    for name, text in tools.items():
        executable(tmp_path / "bin" / name, text.format(root=tmp_path))
    executable(tmp_path / "bin/chroot", CHROOT)
    executable(tmp_path / "src/install.pl", INSTALL_PL)
    (tmp_path / f"lib/modules/{RELEASE}/build").mkdir(parents=True)
    (tmp_path / "inventory").mkdir()
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed/mlx5_core").touch()
    (tmp_path / "installed/mlx5_core.filename").write_text(f"{tmp_path}/{MODULE}")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return replace(
        Settings(),
        driver_root=tmp_path,
        nic_driver_ver=VERSION,
        nic_driver_path=Path("/src"),
        inventory=tmp_path / "inventory",
        build_timeout=10.0,
    )


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def calls(settings: Settings) -> list[str]:
    return (settings.driver_root / "calls").read_text().splitlines()


def builds(settings: Settings) -> int:
    return len((settings.driver_root / "src/builds").read_text().splitlines())


def test_built_kept_checked_installed_indexed(settings: Settings) -> None:
    delivery.deliver(settings, RELEASE, None)
    package = "/var/tmp/nodeagent-packages/mlnx-ofa_kernel.rpm"
    said = calls(settings)
    assert said[0] == f"rpm -K --nosignature {package}"
    assert said[-2:] == [
        f"rpm -ivh --replacepkgs --nodeps {package}",
        f"depmod {RELEASE}",
    ]
    assert (settings.driver_root / f"lib/modules/{RELEASE}/modules.order").exists()
    assert not (settings.driver_root / packages.STAGE).exists()
    delivery.deliver(settings, RELEASE, None)
    assert builds(settings) == 1
    assert calls(settings)[-2:] == said[-2:]


def test_without_an_inventory_each_start_builds(settings: Settings) -> None:
    for _ in range(2):
        delivery.deliver(replace(settings, inventory=None), RELEASE, None)
    assert builds(settings) == 2


def damaged(settings: Settings) -> None:
    text = INSTALL_PL + ": > RPMS/rhel9/$(uname -m)/mlnx-ofa_kernel.rpm\n"
    executable(settings.driver_root / "src/install.pl", text)


def without_the_driver(settings: Settings) -> None:
    text = INSTALL_PL.replace("mlx5_core.ko", "mlx5_ib.ko")
    executable(settings.driver_root / "src/install.pl", text)


def without_packages(settings: Settings) -> None:
    executable(settings.driver_root / "src/install.pl", "#!/bin/sh\n")


def rpm_fails(settings: Settings) -> None:
    (settings.driver_root / "rpm-fails").touch()


def another_module_comes_first(settings: Settings) -> None:
    (settings.driver_root / "installed/mlx5_core.filename").write_text("/lib/modules/x.ko")


@pytest.mark.parametrize(
    ("fault", "error", "installs"),
    [
        (damaged, DataError, False),
        (without_the_driver, DataError, False),
        (without_packages, NoInputError, False),
        (rpm_fails, UnavailableError, True),
        (another_module_comes_first, UnavailableError, True),
    ],
)
def test_it_is_not_done_before_the_new_driver_would_be_loaded(
    settings: Settings,
    fault: Callable[[Settings], None],
    error: type[AgentError],
    installs: bool,
) -> None:
    fault(settings)
    with pytest.raises(error):
        delivery.deliver(settings, RELEASE, None)
    log = settings.driver_root / "calls"
    assert ("-ivh" in (log.read_text() if log.exists() else "")) == installs
    assert not (settings.driver_root / packages.STAGE).exists()


def test_damaged_packages_are_not_kept(settings: Settings) -> None:
    damaged(settings)
    for _ in range(2):
        with pytest.raises(DataError):
            delivery.deliver(settings, RELEASE, None)
    assert builds(settings) == 2


def test_the_inventory_must_be_mounted(settings: Settings) -> None:
    missing = replace(settings, inventory=settings.driver_root / "missing")
    with pytest.raises(ConfigError, match="NVIDIA_NIC_DRIVERS_INVENTORY_PATH is"):
        delivery.deliver(missing, RELEASE, None)
    assert not (settings.driver_root / "src/builds").exists()


def test_what_a_killed_start_left_staged_is_gone(settings: Settings) -> None:
    left = settings.driver_root / packages.STAGE
    left.mkdir(parents=True)
    (left / "half.rpm").touch()
    delivery.deliver(settings, RELEASE, None)
    assert not left.exists()


# Killed anywhere


def killed_at(number: int, directory: Path, work: Callable[[], object]) -> bool:
    """Do the work in a process that ends at its trace point of that number; False: it got through.

    The points are those of nodeagent.trace: before each change of what the disk remembers.
    """
    directory.mkdir(exist_ok=True)
    (directory / "end").write_text(f"KILL {number}")
    child = os.fork()
    if child == 0:
        trace.arm(directory)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in {0, signal.SIGKILL}
    return status == signal.SIGKILL


def test_a_hand_over_that_is_killed_anywhere(settings: Settings, tmp_path: Path) -> None:
    """With the start flag everything is there; without it the next start does it all again."""
    giving = replace(settings, dtk_build=True, dtk_shared_dir=tmp_path / "shared")
    files = dtk.hand_over(giving, RELEASE)
    wanted = dtk.environment(giving, files)

    def is_complete() -> bool:
        return (
            (files.sources / "install.pl").read_text() == INSTALL_PL
            and files.environment.read_text() == wanted
            and all((files.directory / name).stat().st_size for name in dtk.SCRIPTS)
        )

    for number in itertools.count(1):
        shutil.rmtree(giving.dtk_shared_dir, ignore_errors=True)
        (files.directory / files.sources.name).mkdir(parents=True)  # a peer's, half copied
        if not killed_at(number, tmp_path / "trace", lambda: dtk.give(giving, files, wanted, None)):
            break
        assert not files.start.exists() or is_complete()
        dtk.give(giving, files, wanted, None)
        assert files.start.exists()
        assert is_complete()
        assert not [path for path in files.directory.iterdir() if path.name.endswith(".tmp")]
    assert number > 20


def test_a_store_that_is_killed_anywhere(settings: Settings, tmp_path: Path) -> None:
    """What is there afterwards is complete or is built anew, never half reused."""
    inventory = delivery.inventory(settings, RELEASE)
    assert inventory is not None
    new = [tmp_path / f"{name}.rpm" for name in "abc"]
    for path in new:
        path.write_text(f"new {path.name}")
    old = tmp_path / "old.rpm"
    old.write_text("old")
    for number in itertools.count(1):
        inventory.store([old], "old")
        killed = killed_at(number, tmp_path / "trace", lambda: inventory.store(new, "new"))
        assert [path.read_text() for path in inventory.packages("old")] in ([], ["old"])
        found = [path.read_text() for path in inventory.packages("new")]
        assert found in ([], [path.read_text() for path in new])
        if not killed:
            break
        inventory.store(new, "new")
        assert len(inventory.packages("new")) == 3
        assert not list(inventory.directory.parent.glob(".*"))
    assert found
    assert number > 15


def test_a_delivery_that_is_killed_anywhere(settings: Settings, tmp_path: Path) -> None:
    """The next start ends as if nothing had happened."""

    def deliver() -> None:
        delivery.deliver(settings, RELEASE, None)

    for number in itertools.count(1):
        shutil.rmtree(tmp_path / "inventory")
        (tmp_path / "inventory").mkdir()
        if not killed_at(number, tmp_path / "trace", deliver):
            break
        deliver()
        assert calls(settings)[-1] == f"depmod {RELEASE}"
        assert "-ivh" in calls(settings)[-2]
        assert not (tmp_path / packages.STAGE).exists()
        assert not list((tmp_path / "inventory" / RELEASE).glob(".*"))
    assert number > 10
