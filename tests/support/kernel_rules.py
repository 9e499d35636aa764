"""What the kernel and its drivers refuse: the rules of both nodes of tests.

`fake_rules` is the one, whose files and sockets the program uses, `simulate` the other, of values.

The rules are those of drivers/pci/iov.c, drivers/base/bus.c, net/core/rtnetlink.c, igb and mlx5;
each refusal was seen in the lab or stands in the source. Each function raises the OSError of the
kernel, or returns.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from nodeagent.state.eswitch import EswitchMode


def refusal(number: int) -> OSError:
    """The OSError of an errno."""
    return OSError(number, os.strerror(number))


def check_numvfs(now: int | None, count: int) -> None:
    """sriov_numvfs_store() of drivers/pci/iov.c: VFs are made from none, and all are removed."""
    if count not in {0, now} and now:
        raise refusal(errno.EBUSY)


def takes(driver: str, override: str | None, nic: str, *, autoprobe: bool | None) -> bool:
    """Whether `driver` takes an unbound VF: pci_bus_match() and pci_device_can_probe().

    With driver_override it is that driver alone, autoprobe or not; without it only the NIC's, if
    VFs are probed. None is a value that is not known, and hinders nothing.
    """
    if override:
        return driver == override
    return autoprobe is not False and (override is None or driver == nic)


def check_bind(
    bound: str | None, driver: str, override: str | None, nic: str, *, autoprobe: bool | None
) -> None:
    """bind_store() of drivers/base/bus.c, for a VF whose NIC has the driver `nic`."""
    if bound is not None:
        raise refusal(errno.EBUSY)
    if not takes(driver, override, nic, autoprobe=autoprobe):
        raise refusal(errno.ENODEV)


def check_unbind(bound: str | None, driver: str) -> None:
    """unbind_store() of drivers/base/bus.c."""
    if bound != driver:
        raise refusal(errno.ENODEV)


def check_link(
    attribute: str, value: object, *, up: bool | None, is_taken: Callable[[str], bool]
) -> None:
    """Another name or MAC of an interface; `is_taken`: by another interface. do_setlink()."""
    if attribute in {"name", "mac"} and up:
        raise refusal(errno.EBUSY)
    if attribute == "name" and is_taken(str(value)):
        raise refusal(errno.EEXIST)


def check_vf_mac(mac: object, admin_mac: str | None) -> None:
    """A VF's interface, whose PF has set `admin_mac`, gets another MAC: igbvf_set_mac()."""
    if mac != admin_mac:
        raise refusal(errno.EADDRNOTAVAIL)


def check_vf_mtu(mtu: int, of_pf: int | None) -> None:
    """A VF's interface has no larger MTU than its PF's."""
    if mtu > (of_pf or 0):
        raise refusal(errno.EINVAL)


def check_eswitch_mode(
    now: EswitchMode | None, wanted: EswitchMode | None, bound: Iterable[object]
) -> None:
    """mlx5: the eswitch's mode does not change while a VF is bound."""
    if wanted not in {None, now} and any(bound):
        raise refusal(errno.EBUSY)
