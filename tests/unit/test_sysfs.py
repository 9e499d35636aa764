"""sysfs: real files and symlinks in a directory of the test's own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.state.model import NO_DRIVER
from tests.support.descriptors import open_descriptors
from tests.support.fake_tree import FakeTree

PF, OTHER_PF = "0000:01:00.0", "0000:02:00.0"
VF0, VF1 = "0000:01:10.0", "0000:01:10.2"


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    """A PF with two VFs, of which VF 0 is bound."""
    made = FakeTree(tmp_path / "sys")
    for driver in ("mlx5_core", "vfio-pci"):
        made.make_driver("pci", driver)
    (made.root / "bus/pci/drivers/mlx5_core/module").symlink_to("../../../../module/mlx5_core")
    for pf in (OTHER_PF, PF):
        made.make_device("pci", pf)
        made.drive("pci", pf, "mlx5_core")
        made.set("pci", pf, "sriov_numvfs", "0")
        made.set("pci", pf, "sriov_drivers_autoprobe", "1")
    made.set("pci", PF, "sriov_numvfs", "2")
    made.make_function(PF, 0, VF0)
    made.make_function(PF, 1, VF1)
    made.drive("pci", VF0, "mlx5_core")
    return made


@pytest.fixture
def sysfs(tree: FakeTree) -> Sysfs:
    return Sysfs(tree.root)


def interface(directory: Path, name: str, index: str) -> None:
    (directory / "net" / name).mkdir(parents=True)
    (directory / "net" / name / "ifindex").write_text(index + "\n")


# reading


def test_pfs_are_the_drivers_devices_that_are_not_vfs(sysfs: Sysfs) -> None:
    assert sysfs.physical_functions("mlx5_core") == (("pci", PF), ("pci", OTHER_PF))


def test_auxiliary_devices_that_no_driver_has_taken(sysfs: Sysfs, tree: FakeTree) -> None:
    """Of our driver's making; on a kernel without that bus there are none."""
    assert sysfs.without_driver("mlx5_core") == ()
    for name in ("mlx5_core.eth.3", "mlx5_core.rdma.3", "mlx5_core.eth.2", "ice.rdma.0"):
        tree.make_device("auxiliary", name)
    tree.make_driver("auxiliary", "mlx5_core.eth")
    tree.drive("auxiliary", "mlx5_core.eth.2", "mlx5_core.eth")
    assert sysfs.without_driver("mlx5_core") == ("mlx5_core.eth.3", "mlx5_core.rdma.3")


def test_the_auxiliary_device_of_an_interface_that_has_no_driver(
    sysfs: Sysfs, tree: FakeTree
) -> None:
    assert sysfs.interface_without_driver("pci", PF) is None
    for name in ("mlx5_core.rdma.3", "mlx5_core.eth.3"):
        tree.make_device("auxiliary", name)
        (tree.device(PF) / name).symlink_to(tree.device(name, "auxiliary"))
    assert sysfs.interface_without_driver("pci", PF) == "mlx5_core.eth.3"
    tree.make_driver("auxiliary", "mlx5_core.eth")
    tree.drive("auxiliary", "mlx5_core.eth.3", "mlx5_core.eth")
    assert sysfs.interface_without_driver("pci", PF) is None


def test_pfs_of_every_bus(sysfs: Sysfs, tree: FakeTree) -> None:
    tree.make_driver("netdevsim", "mlx5_core")
    tree.make_device("netdevsim", "netdevsim1")
    tree.drive("netdevsim", "netdevsim1", "mlx5_core")
    assert sysfs.physical_functions("mlx5_core")[0] == ("netdevsim", "netdevsim1")


def test_no_driver_no_pfs(sysfs: Sysfs, tmp_path: Path) -> None:
    assert sysfs.physical_functions("igb") == ()
    assert Sysfs(tmp_path / "nothing").physical_functions("igb") == ()
    (sysfs.root / "bus/pci/drivers/igb").write_text("no directory any more")
    assert sysfs.physical_functions("igb") == ()


def test_a_link_to_a_device_that_is_just_going_is_no_pf(sysfs: Sysfs, tree: FakeTree) -> None:
    tree.remove_device("pci", OTHER_PF)
    assert sysfs.physical_functions("mlx5_core") == (("pci", PF),)


def test_numvfs_and_autoprobe(sysfs: Sysfs, tree: FakeTree) -> None:
    assert sysfs.numvfs("pci", PF) == 2
    assert sysfs.autoprobe("pci", PF) is True
    tree.set("pci", PF, "sriov_drivers_autoprobe", "0")
    assert sysfs.autoprobe("pci", PF) is False


def test_a_device_without_sriov_has_neither(sysfs: Sysfs) -> None:
    assert sysfs.numvfs("pci", VF0) is None
    assert sysfs.autoprobe("pci", VF0) is None


def test_an_attribute_that_cannot_be_read_is_not_there(sysfs: Sysfs, tree: FakeTree) -> None:
    tree.set("pci", PF, "sriov_numvfs", "many")
    assert sysfs.numvfs("pci", PF) is None


def test_functions_by_vf_index(sysfs: Sysfs, tree: FakeTree) -> None:
    (tree.device(PF) / "virtfn").symlink_to(f"../{VF0}")
    (tree.device(PF) / "virtfn2").write_text("no link")
    assert sysfs.functions("pci", PF) == {0: VF0, 1: VF1}
    assert sysfs.functions("pci", OTHER_PF) == {}


def test_functions_of_a_pf_that_is_gone(sysfs: Sysfs) -> None:
    assert sysfs.functions("pci", "0000:99:00.0") == {}


def test_a_function_is_one_only_if_it_points_back(sysfs: Sysfs, tree: FakeTree) -> None:
    assert sysfs.function("pci", PF, 1) == VF1
    assert sysfs.function("pci", PF, 2) is None
    (tree.device(VF1) / "physfn").unlink()
    assert sysfs.function("pci", PF, 1) is None
    (tree.device(VF1) / "physfn").symlink_to(f"../{OTHER_PF}")
    assert sysfs.function("pci", PF, 1) is None


def test_driver(sysfs: Sysfs) -> None:
    assert sysfs.driver("pci", VF0) == "mlx5_core"
    assert sysfs.driver("pci", VF1) == NO_DRIVER
    assert sysfs.driver("pci", "0000:99:00.0") == NO_DRIVER


def test_driver_override(sysfs: Sysfs, tree: FakeTree) -> None:
    assert sysfs.driver_override("pci", VF0) == ""
    tree.set("pci", VF0, "driver_override", "vfio-pci")
    assert sysfs.driver_override("pci", VF0) == "vfio-pci"
    (tree.device(VF0) / "driver_override").unlink()
    assert sysfs.driver_override("pci", VF0) is None


def test_interfaces_lowest_first(sysfs: Sysfs, tree: FakeTree) -> None:
    assert sysfs.interfaces("pci", VF0) == ()
    interface(tree.device(VF0), "ens1", "12")
    interface(tree.device(VF0), "ens2", "9")
    interface(tree.device(VF0), "going", "")
    assert sysfs.interfaces("pci", VF0) == (9, 12)


def test_an_interface_that_is_renamed_in_the_middle_is_found(
    sysfs: Sysfs, tree: FakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By udev, after its directory is read and before its ifindex is."""
    interface(tree.device(VF0), "eth0", "12")
    listed = os.listdir

    def renamed(path: str) -> list[str]:
        names = listed(path)
        if names == ["eth0"]:
            Path(path, "eth0").rename(Path(path, "enp1s0v0"))
        return names

    monkeypatch.setattr(os, "listdir", renamed)
    assert sysfs.interfaces("pci", VF0) == (12,)


def test_interfaces_of_a_device_that_goes_in_the_middle(
    sysfs: Sysfs, tree: FakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hot unplug right before its directory is read."""

    def gone(path: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    interface(tree.device(VF0), "ens1", "12")
    monkeypatch.setattr(os, "listdir", gone)
    assert sysfs.interfaces("pci", VF0) == ()


def test_interfaces_of_a_virtio_device_lie_one_level_down(sysfs: Sysfs, tree: FakeTree) -> None:
    interface(tree.device(VF1) / "virtio3", "ens3", "7")
    assert sysfs.interfaces("pci", VF1) == (7,)


def test_only_pci_has_functions(sysfs: Sysfs) -> None:
    assert sysfs.has_functions("pci")
    assert not sysfs.has_functions("netdevsim")


# writing


def text(tree: FakeTree, path: str) -> str:
    return (tree.root / path).read_text()


def test_every_write_goes_to_its_file(sysfs: Sysfs, tree: FakeTree) -> None:
    device, bus = f"devices/pci0/{PF}", "bus/pci"
    sysfs.set_numvfs("pci", PF, 4)
    assert text(tree, f"{device}/sriov_numvfs").startswith("4")
    sysfs.set_autoprobe("pci", PF, False)
    assert text(tree, f"{device}/sriov_drivers_autoprobe").startswith("0")
    sysfs.bind("pci", VF1, "mlx5_core")
    assert text(tree, f"{bus}/drivers/mlx5_core/bind") == VF1
    sysfs.unbind("pci", VF0, "mlx5_core")
    assert text(tree, f"{bus}/drivers/mlx5_core/unbind") == VF0
    sysfs.probe("pci", VF1)
    assert text(tree, f"{bus}/drivers_probe") == VF1


@pytest.mark.parametrize(("driver", "written"), [("vfio-pci", "vfio-pci\n"), ("", "\n")])
def test_an_empty_override_is_a_bare_newline(
    sysfs: Sysfs, tree: FakeTree, driver: str, written: str
) -> None:
    (tree.device(VF0) / "driver_override").write_text("")
    sysfs.set_driver_override("pci", VF0, driver)
    assert text(tree, f"devices/pci0/{VF0}/driver_override") == written


def test_each_value_is_one_write(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    sysfs.bind("pci", VF1, "mlx5_core")
    assert written == [VF1.encode()]


def test_a_missing_file_is_named_with_what_should_be_written(sysfs: Sysfs, tree: FakeTree) -> None:
    with pytest.raises(KernelError) as caught:
        sysfs.bind("pci", VF1, "igb")
    path = tree.root / "bus/pci/drivers/igb/bind"
    assert caught.value.errno == errno.ENOENT
    assert caught.value.message == (
        f"cannot write '{VF1}' to {path}: ENOENT: {os.strerror(errno.ENOENT)}"
    )


def test_the_kernels_refusal_is_passed_on(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: int, __: bytes) -> int:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(KernelError, match=r"cannot write '8' to .*sriov_numvfs: ERANGE") as caught:
        sysfs.set_numvfs("pci", PF, 8)
    assert caught.value.errno == errno.ERANGE


def test_no_descriptor_is_left_open(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: int, __: bytes) -> int:
        raise OSError(errno.EBUSY, "busy")

    before = open_descriptors()
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(KernelError):
        sysfs.set_numvfs("pci", PF, 3)
    assert open_descriptors() == before


def test_a_symlink_in_an_attributes_place_is_not_followed(sysfs: Sysfs, tree: FakeTree) -> None:
    elsewhere = tree.root / "elsewhere"
    elsewhere.write_text("")
    attribute = tree.device(PF) / "sriov_numvfs"
    attribute.unlink()
    attribute.symlink_to(elsewhere)
    with pytest.raises(KernelError, match="ELOOP"):
        sysfs.set_numvfs("pci", PF, 3)
    assert elsewhere.read_text() == ""
