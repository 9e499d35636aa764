"""What is planted on the way, or in a file's place, is refused at once; what is not is found."""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from errno import ELOOP
from pathlib import Path

import pytest

from nodeagent import hostpath
from nodeagent.agent import hold
from nodeagent.driver import (
    copies,
    distribution,
    dtk,
    exports,
    host_tree,
    openibd,
    packages,
    sources,
)
from nodeagent.driver.inventory import Inventory
from nodeagent.errors import (
    AgentError,
    ConfigError,
    DataError,
    KernelError,
    NoInputError,
    StorageError,
    UnavailableError,
)
from nodeagent.kernel import managers, modules, mounts, udev
from nodeagent.kernel.events import FileWatch
from nodeagent.settings import Settings


def link(path: Path) -> None:
    (path.parent / "precious").write_text("precious")
    path.symlink_to("precious")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    """Without a driver behind it: to open it would fail otherwise than it shall."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(240, 255))
    except PermissionError:
        pytest.skip("only root makes devices")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, hostpath.MAX_FILE_BYTES + 1)


PLANTED: list[Callable[[Path], None]] = [link, os.mkfifo, unix_socket, device, huge, Path.mkdir]
planted = pytest.mark.parametrize("plant", PLANTED)


@planted
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    path = tmp_path / "x"
    plant(path)
    with pytest.raises(OSError, match=r"regular file|symbolic links"):
        hostpath.read_text(path)


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\xff\n")
    assert hostpath.read_text(tmp_path / "x") == "a\ufffd\n"
    with pytest.raises(FileNotFoundError):
        hostpath.read_text(tmp_path / "y")


def test_a_link_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with (
        pytest.raises(OSError, match="symbolic links") as caught,
        hostpath.directory(tmp_path / "link/below"),
    ):
        pytest.fail("it was followed")
    assert (caught.value.errno, caught.value.filename) == (ELOOP, str(tmp_path / "link"))


def test_the_kernels_own_link_to_a_process_root_is_followed() -> None:
    """DRIVER_ROOT=/proc/PID/root of a sidecar; nothing else below /proc."""
    root = Path(f"/proc/{os.getpid()}/root")
    with hostpath.directory(root / "etc") as there, hostpath.directory(Path("/etc")) as own:
        assert os.path.sameopenfile(there, own)
    for other in ("/proc/self/root", f"/proc/{os.getpid()}/cwd"):
        with pytest.raises(OSError, match="symbolic links"), hostpath.directory(Path(other)):
            pytest.fail("it was followed")


def test_an_anchor_stays_where_it_was(tmp_path: Path) -> None:
    """Whoever exchanges the directory afterwards exchanges another one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "evil").mkdir()
    with hostpath.directory_path(tmp_path / "a") as anchor:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").symlink_to("evil")
        (anchor / "file").touch()
    assert (tmp_path / "b/file").exists()
    assert not list((tmp_path / "evil").iterdir())


@pytest.mark.parametrize(
    ("links", "below", "leads"),
    [
        ({}, "etc/os-release", "etc/os-release"),
        ({"lib": "usr/lib"}, "lib/modules", "usr/lib/modules"),
        ({"lib": "/usr/lib"}, "/lib/modules", "usr/lib/modules"),
        ({"etc": "../../../up"}, "etc/x", "up/x"),
        ({"a": "b", "b": "./c/../d"}, "a/e", "d/e"),
    ],
)
def test_links_stay_inside(tmp_path: Path, links: dict[str, str], below: str, leads: str) -> None:
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    assert hostpath.resolve_in_root(tmp_path, Path(below)) == tmp_path / leads


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        hostpath.read_text(hostpath.resolve_in_root(tmp_path, Path("a")))
    settings = replace(Settings(), driver_root=tmp_path)
    (tmp_path / "etc").symlink_to("etc")
    with pytest.raises(UnavailableError, match="there is no"):
        openibd.check(settings)
    with pytest.raises(NoInputError, match=r"no install\.pl"):
        sources.directory(replace(settings, nic_driver_path=Path("/etc/driver")))
    assert distribution.of_root(tmp_path).family == ""


# each who writes or reads below the host's directories


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Where a planted link leads; nothing may ever be made or removed in it."""
    directory = tmp_path / "evil"
    (directory / "x").mkdir(parents=True)
    (directory / "x/precious").write_text("precious")
    return directory


def content(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_copies(tmp_path: Path, evil: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    (tmp_path / "host").symlink_to(evil)
    calls: tuple[Callable[[], None], ...] = (
        lambda: copies.tree(source, tmp_path / "host/x"),
        lambda: copies.files([source / "file"], tmp_path / "host/y/z"),
        lambda: copies.remove(tmp_path / "host/x"),
        lambda: copies.sweep(tmp_path / "host/x"),
    )
    for call in calls:
        with pytest.raises(StorageError):
            call()
    assert content(evil) == ["x", "x/precious"]


@pytest.mark.parametrize("plant", [plant for plant in PLANTED if plant is not huge])
def test_a_package(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """What is in a package's place is never read as one; only large it may be."""
    plant(tmp_path / "x.rpm")
    with pytest.raises((DataError, AgentError)):
        copies.files([tmp_path / "x.rpm"], tmp_path / "target")


@planted
def test_the_inventory(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """A package that was exchanged is built anew; so is one that has a second name."""
    (tmp_path / "built.rpm").write_text("package")
    (tmp_path / "inventory").mkdir()
    store = Inventory(tmp_path / "inventory", "6.1", "25.07")
    (kept,) = store.store([tmp_path / "built.rpm"], "config")
    assert store.packages("config") == (kept,)
    (tmp_path / "second").hardlink_to(kept)
    assert store.packages("config") == ()
    (tmp_path / "second").unlink()
    assert store.packages("config") == (kept,)
    kept.unlink()
    if plant is not huge:
        plant(kept)
        assert store.packages("config") == ()
    (tmp_path / "link").symlink_to("inventory")
    with pytest.raises(ConfigError, match="which is not a directory: ELOOP"):
        Inventory(tmp_path / "link", "6.1", "25.07").require()


def test_the_hosts_module_tree(tmp_path: Path, evil: Path) -> None:
    settings = replace(Settings(), driver_root=tmp_path)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr/lib/modules").mkdir(parents=True)
    (tmp_path / "usr/lib/modules/6.1").symlink_to(evil)
    (evil / "extra").mkdir()
    (evil / "extra/mlnx-ofa_kernel").symlink_to("../x")
    with pytest.raises(StorageError):
        host_tree.unlink(settings, "6.1")
    assert content(evil) == ["extra", "extra/mlnx-ofa_kernel", "x", "x/precious"]


def test_the_headers_mount(tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/usr").symlink_to(evil)
    (tmp_path / "root/usr/src").mkdir(parents=True)
    settings = replace(Settings(), drivers_mount=tmp_path / "run", driver_root=tmp_path / "root")
    monkeypatch.setattr(mounts, "on", lambda path: [path] if path == tmp_path / "run" else [])
    monkeypatch.setattr(mounts, "propagate", lambda *_: None)
    with pytest.raises(StorageError, match="is a symbolic link, which nodeagent does not follow"):
        exports.ensure(settings, tmp_path)
    with pytest.raises(KernelError, match="ELOOP"):
        mounts.bind(tmp_path / "root/usr/src", tmp_path / "run/usr/x")
    with pytest.raises(KernelError, match="ELOOP"):
        mounts.unmount(tmp_path / "run/usr/x/y")
    assert content(evil) == ["x", "x/precious"]


def test_the_holders_flag(tmp_path: Path, evil: Path) -> None:
    (tmp_path / "drivers").symlink_to(evil / "x")
    with pytest.raises(NotADirectoryError):
        hold._remove(str(tmp_path / "drivers/precious"))
    assert content(evil) == ["x", "x/precious"]


@planted
def test_what_others_say_of_interfaces(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """udevd's database, networkd's and NetworkManager's words: something else says nothing."""
    for place in ("data", "systemd/netif/links", "NetworkManager/devices"):
        (tmp_path / place).mkdir(parents=True)
    for path in (tmp_path / "data/n7", *managers.files(7, tmp_path)):
        plant(path)
    assert managers.manager_of(7, tmp_path) is None
    assert not udev.is_initialized(7, tmp_path)
    assert udev.property_of(7, "ID_NET_NAME_PATH", tmp_path) == ""


@planted
def test_the_toolkits_words(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    settings = replace(Settings(), dtk_shared_dir=tmp_path, nic_driver_ver="25.07")
    shared = dtk.hand_over(settings, "6.1")
    shared.directory.mkdir()
    plant(shared.failed)
    plant(shared.environment) if plant is not link else None
    with pytest.raises(AgentError, match="its log cannot be read"):
        dtk.wait_for_build(settings, "6.1", None)
    assert dtk._given(shared) is None


def test_os_release_is_a_link_inside(tmp_path: Path) -> None:
    """As every distribution has it; one that leads outside leads inside."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=rhel\nNAME=x\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("/usr/lib/os-release")
    assert distribution.of_root(tmp_path).family == "redhat"
    (tmp_path / "usr/lib/os-release").unlink()
    os.mkfifo(tmp_path / "usr/lib/os-release")
    assert distribution.of_root(tmp_path).family == ""


NO_FILE = pytest.mark.parametrize("plant", [plant for plant in PLANTED if plant is not huge])


@NO_FILE
def test_a_flag(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """Only a plain file is one, and a wait for it ends as soon as something else is there."""
    settings = replace(Settings(), dtk_shared_dir=tmp_path, nic_driver_ver="25.07")
    shared = dtk.hand_over(settings, "6.1")
    shared.directory.mkdir()
    plant(shared.done)
    assert not dtk._is_done(settings, shared, "")
    with pytest.raises(DataError, match=rf"{shared.done.name} is not a regular file"):
        dtk.wait_for_build(settings, "6.1", None)


def test_a_link_on_the_way_to_a_flag(tmp_path: Path, evil: Path) -> None:
    settings = replace(Settings(), dtk_shared_dir=tmp_path / "shared", nic_driver_ver="25.07")
    shared = dtk.hand_over(settings, "6.1")
    (tmp_path / "shared").symlink_to(evil)
    (evil / "6.1").mkdir()
    (evil / "6.1" / shared.done.name).touch()
    assert not dtk._is_begun(shared, "")
    with pytest.raises(DataError, match=f"{tmp_path}/shared is a symbolic link"):
        dtk.wait_for_build(settings, "6.1", None)


def test_no_link_is_watched(tmp_path: Path, evil: Path) -> None:
    """What is made behind it is not told of; a directory that takes its place is."""
    (tmp_path / "link").symlink_to(evil)
    with FileWatch(tmp_path / "link/x/flag") as watch:
        (evil / "x/flag").touch()
        assert not select.select([watch], [], [], 0)[0]
        (tmp_path / "link").unlink()
        (tmp_path / "link/x").mkdir(parents=True)
        watch.drain()
        (tmp_path / "link/x/flag").touch()
        assert select.select([watch], [], [], 0)[0]


@NO_FILE
def test_what_is_built(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """rpm(8) would wait for a FIFO's writer, and read whatever a link leads to."""
    place = tmp_path / "RPMS/rhel9" / os.uname().machine
    place.mkdir(parents=True)
    (place / "good.rpm").touch()
    assert packages.built(tmp_path) == (place / "good.rpm",)
    plant(place / "x.rpm")
    with pytest.raises(DataError, match=r"x\.rpm is not a regular file"):
        packages.built(tmp_path)


def test_a_link_on_the_way_to_what_is_built(tmp_path: Path, evil: Path) -> None:
    place = evil / "rhel9" / os.uname().machine
    place.mkdir(parents=True)
    (place / "x.rpm").touch()
    (tmp_path / "RPMS").symlink_to(evil)
    with pytest.raises(DataError, match="is reached through a symbolic link"):
        packages.built(tmp_path)


def test_scripts_are_looked_for_where_they_are_run(tmp_path: Path, evil: Path) -> None:
    """RHEL's /etc/init.d is a link; an absolute one stays inside, for whoever has that root."""
    settings = replace(Settings(), driver_root=tmp_path / "root")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/init.d").symlink_to(evil)
    (evil / "openibd").touch(0o755)
    with pytest.raises(UnavailableError, match="there is no"):
        openibd.check(settings)
    (tmp_path / f"root{evil}").mkdir(parents=True)
    (tmp_path / f"root{evil}/openibd").touch(0o755)
    openibd.check(settings)


@planted
def test_a_module_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """A link is the distribution's (weak-updates) and followed inside; no other thing is opened."""
    note = b"\4\0\0\0\x14\0\0\0\3\0\0\0GNU\0" + bytes(20)
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("/usr/lib")
    on_disk = modules.Installed(str(tmp_path / "lib/m.ko"), {})
    assert modules.build_id_of(on_disk, tmp_path) is None
    (tmp_path / "usr/lib/other.ko").write_bytes(note)
    (tmp_path / "usr/lib/m.ko").symlink_to("/usr/lib/other.ko")
    assert modules.build_id_of(on_disk, tmp_path) == "00" * 20
    (tmp_path / "usr/lib/m.ko").unlink()
    plant(tmp_path / "usr/lib/m.ko")
    assert modules.build_id_of(on_disk, tmp_path) is None
