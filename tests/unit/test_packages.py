"""The driver's packages: found, checked, installed. rpm and dpkg are small real executables."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import packages
from nodeagent.errors import DataError, NoInputError, StorageError, UnavailableError
from nodeagent.settings import Settings
from tests.support.host import CHROOT, MODINFO

MACHINE = os.uname().machine
MODULE = "/lib/modules/6.1.0/extra/mlnx-ofa_kernel/mlx5_core.ko.xz"

# A package is a file whose first line says what rpm thinks of it; what it lists comes after.
RPM = """#!/bin/sh
echo "rpm $*" >> {root}/calls
for last; do :; done
case "$*" in
-K*) head -n 1 "$last"; test "$(head -n 1 "$last")" = OK ;;
*' -l '*) tail -n +2 "$last" ;;
-qp*) shift 4; for each; do name=${{each##*/}}; echo "${{name%.rpm}} 25.10-1"; done ;;
-q*) cat {root}/installed 2>/dev/null || echo "package x is not installed" ;;
*) test ! -e {root}/broken || {{ cat {root}/broken >&2; exit 2; }} ;;
esac
"""
DPKG = """#!/bin/sh
echo "${{0##*/}} $*" >> {root}/calls
for last; do :; done
test "${{0##*/}}" != dpkg-deb || {{ tail -n +2 "$last"; test "$(head -n 1 "$last")" = OK; }}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory with tools in bin."""
    scripts = {"rpm": RPM, "dpkg": DPKG, "dpkg-deb": DPKG, "depmod": DPKG}
    scripts |= {"modinfo": MODINFO}
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(text.format(root=tmp_path))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines()


def make(root: Path, name: str, *lists: str, verdict: str = "OK") -> Path:
    path = root / name
    path.write_text("\n".join([verdict, *lists]) + "\n")
    return path


HERE = Path("/")


def build(sources: Path, *names: str) -> None:
    for name in names:
        path = sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_what_was_built(tmp_path: Path) -> None:
    build(
        tmp_path,
        f"RPMS/redhat-release-9.4-0.4.el9/{MACHINE}/ofed-scripts.rpm",
        f"RPMS/redhat-release-9.4-0.4.el9/{MACHINE}/mlnx-ofa_kernel.rpm",
        f"RPMS/redhat-release-9.4-0.4.el9/{MACHINE}/mlnx-ofa_kernel.rpm.part",
        "RPMS/redhat-release-9.4-0.4.el9/s390/mlnx-ofa_kernel.rpm",
        "SRPMS/mlnx-ofa_kernel.src.rpm",
    )
    assert [path.name for path in packages.built(tmp_path)] == [
        "mlnx-ofa_kernel.rpm",
        "ofed-scripts.rpm",
    ]


def test_debs_that_were_built(tmp_path: Path) -> None:
    build(tmp_path, f"DEBS/ubuntu22.04/{MACHINE}/mlnx-ofed-kernel-modules.deb")
    (found,) = packages.built(tmp_path)
    assert found.name == "mlnx-ofed-kernel-modules.deb"


def test_nothing_was_built(tmp_path: Path) -> None:
    assert packages.built(tmp_path) == ()
    with pytest.raises(NoInputError, match="there are no packages"):
        packages.kind_of(())


def test_one_name_from_two_distributions(tmp_path: Path) -> None:
    build(
        tmp_path,
        f"RPMS/redhat-release-9.4-0.4.el9/{MACHINE}/mlnx-tools.rpm",
        f"RPMS/redhat-release-9.6-0.1.el9/{MACHINE}/mlnx-tools.rpm",
    )
    with pytest.raises(DataError, match=r"two packages mlnx-tools\.rpm: .*9\.4.* and .*9\.6"):
        packages.built(tmp_path)


def test_rpms_and_debs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both RPMs and debs"):
        packages.kind_of([tmp_path / "a.rpm", tmp_path / "b.deb"])


def test_each_damaged_package_is_named(root: Path) -> None:
    good, bad = make(root, "a.rpm"), make(root, "b.rpm", verdict="b.rpm: DIGESTS NOT OK")
    packages.check([good], HERE)
    with pytest.raises(DataError) as caught:
        packages.check([good, bad], HERE)
    assert caught.value.message == (
        "cannot install damaged or incomplete packages: b.rpm (b.rpm: DIGESTS NOT OK)"
    )
    assert calls(root)[0] == f"rpm -K --nosignature {good}"


@pytest.mark.parametrize(
    "path",
    [
        MODULE,
        "/usr/lib/modules/6.1.0/updates/mlx5_core.ko",
        "/lib/modules/6.1.0/extra/mlx5-core.ko.zst",
    ],
)
def test_the_module_that_a_package_brings(root: Path, path: str) -> None:
    package = make(root, "a.rpm", "/usr/bin/ofed_info", path, "/lib/modules/6.1.0/extra/mlx5_ib.ko")
    brought = packages.brings("mlx5_core", "6.1.0", [make(root, "b.rpm"), package], HERE)
    assert brought == {path.partition("lib/modules/")[2]}


def test_a_deb_lists_its_files_otherwise(root: Path) -> None:
    line = f"-rw-r--r-- root/root    765200 2026-11-21 07:24 .{MODULE}"
    package = make(root, "a.deb", "drwxr-xr-x root/root 0 2026-11-21 07:24 ./lib/modules/", line)
    assert packages.brings("mlx5_core", "6.1.0", [package], HERE) == {
        MODULE.partition("lib/modules/")[2]
    }


@pytest.mark.parametrize("lists", ["/usr/share/doc/mlx5_core.ko", "/lib/modules/6.1.0/mlx5_ib.ko"])
def test_packages_without_the_driver(root: Path, lists: str) -> None:
    said = r"none of the 1 packages has the module mlx5_core for 6\.1\.0: a\."
    with pytest.raises(DataError, match=said):
        packages.brings("mlx5_core", "6.1.0", [make(root, "a.rpm", lists)], HERE)


def test_packages_for_another_kernel(root: Path) -> None:
    package = make(root, "a.rpm", MODULE.replace("6.1.0", "6.1.0-2"))
    said = r"has the module mlx5_core for 6\.1\.0, but for 6\.1\.0-2: a\."
    with pytest.raises(DataError, match=said) as caught:
        packages.brings("mlx5_core", "6.1.0", [package], HERE)
    assert "the kernel that this node runs" in (caught.value.hint or "")


def test_rpm_installs_by_the_contracts_flags(root: Path) -> None:
    first, second = make(root, "a.rpm"), make(root, "b.rpm")
    packages.install([first, second], HERE, None)
    assert calls(root)[-1] == f"rpm -ivh --replacepkgs --nodeps {first} {second}"


@pytest.mark.parametrize(
    ("installed", "verb"),
    [("a 25.10-1", "-ivh"), ("a 25.07-1", "-Uvh"), ("b 25.07-1", "-ivh"), ("a 26.01-1", "-Uvh")],
)
def test_another_version_is_replaced(root: Path, installed: str, verb: str) -> None:
    (root / "installed").write_text(f"{installed}\npackage b is not installed\n")
    packages.install([make(root, "a.rpm")], HERE, None)
    assert calls(root)[-1].split()[1] == verb


def test_rpm_fails(root: Path) -> None:
    (root / "broken").write_text("error: can't create transaction lock\n")
    with pytest.raises(UnavailableError, match=r"rpm exited with status 2: error: can't create"):
        packages.install([make(root, "a.rpm")], HERE, None)


def test_debs_are_installed_by_dpkg(root: Path) -> None:
    package = make(root, "a.deb")
    packages.install([package], HERE, None)
    options = "--force-depends --force-confnew --force-downgrade"
    assert calls(root) == [f"dpkg {options} -i {package}"]


def test_staged_packages_are_seen_from_the_root_and_gone_afterwards(root: Path) -> None:
    (root / "bin/chroot").write_text(CHROOT.replace("root=$1", f"echo $* >> {root}/calls; root=$1"))
    (root / "bin/chroot").chmod(0o755)
    other = root / "other"
    other.mkdir()
    with packages.staged([make(root, "a.rpm")], other, None) as found:
        assert found == [other / packages.STAGE / "a.rpm"]
        packages.install(found, other, None)
    assert not (other / packages.STAGE).exists()
    assert calls(root)[-2] == (
        f"{other} rpm -ivh --replacepkgs --nodeps /var/tmp/nodeagent-packages/a.rpm"
    )


def test_the_tree_for_depmod(root: Path) -> None:
    packages.prepare_tree("6.1.0", root)
    (root / "lib/modules/6.1.0/modules.order").write_text("kernel/a.ko\n")
    packages.prepare_tree("6.1.0", root)
    assert (root / "lib/modules/6.1.0/modules.order").read_text() == "kernel/a.ko\n"
    assert (root / "lib/modules/6.1.0/modules.builtin").read_text() == ""
    (root / "lib/modules/6.2.0").touch()
    with pytest.raises(StorageError, match="is not a directory"):
        packages.prepare_tree("6.2.0", root)


def test_the_tree_of_modules_may_be_below_usr(root: Path, tmp_path: Path) -> None:
    """/lib is a link on most; below it none is followed."""
    merged = tmp_path / "merged"
    (merged / "usr/lib/modules/6.1.0").mkdir(parents=True)
    (merged / "lib").symlink_to("/usr/lib")  # absolute, and stays in its root
    packages.prepare_tree("6.1.0", merged)
    assert (merged / "usr/lib/modules/6.1.0/modules.order").exists()
    (merged / "usr/lib/modules/6.2.0").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is a symbolic link, which nodeagent does not follow"):
        packages.prepare_tree("6.2.0", merged)
    assert not (tmp_path / "modules.order").exists()


def test_the_installed_module_must_be_one_of_theirs(root: Path) -> None:
    """depmod's search order may prefer the host's own: that would be ready on the old driver."""
    brought = frozenset({MODULE.partition("lib/modules/")[2]})
    settings = Settings()
    where(root, MODULE)
    packages.require_installed("mlx5_core", brought, settings)
    where(root, f"/usr{MODULE}")
    packages.require_installed("mlx5_core", brought, settings)
    where(root, f"{root}{MODULE}")
    packages.require_installed("mlx5_core", brought, replace(settings, driver_root=root))
    where(root, "/lib/modules/6.1.0/kernel/mlx5_core.ko")
    with pytest.raises(UnavailableError, match=r"modprobe would load /lib.*, which is in none"):
        packages.require_installed("mlx5_core", brought, settings)


def where(root: Path, filename: str) -> None:
    """What modinfo says of the installed module."""
    (root / "installed").mkdir(exist_ok=True)
    (root / "installed/mlx5_core").touch()
    (root / "installed/mlx5_core.filename").write_text(filename)


def test_depmod(root: Path) -> None:
    (root / "bin/chroot").write_text(CHROOT)
    (root / "bin/chroot").chmod(0o755)
    packages.index("6.1.0", root, "-b", "/host")
    assert calls(root) == ["depmod -b /host 6.1.0"]
    (root / "bin/depmod").write_text("#!/bin/sh\necho 'depmod: ERROR: no space' >&2\nexit 1\n")
    with pytest.raises(UnavailableError, match="depmod exited with status 1: depmod: ERROR"):
        packages.index("6.1.0", root)
