"""Devices that a plan creates: PFs bound, VFs created or bound again; and their initial state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nodeagent.plan import dcb
from nodeagent.plan.driverinit import must_reload
from nodeagent.plan.lag import must_make
from nodeagent.plan.subfunctions import as_made
from nodeagent.plan.tuning import must_unbind
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import fresh, given
from nodeagent.state.drivers import Trait, has
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.lag import Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import NO_DRIVER, SUBFUNCTION, NodeState, Pf, Vf
from nodeagent.state.vf import VfAttributes


@dataclass(frozen=True)
class Binding:
    """Whether a VF has to be bound, and whether it has to be unbound first."""

    binds: bool = False
    unbinds: bool = False

    @property
    def is_anew(self) -> bool:
        """Its interface, if it has one, is a new one afterwards."""
        return self.binds or self.unbinds


def once_made(want: NodeState, have: NodeState) -> NodeState:
    """`have` with the PFs of `want` bound, and their VFs created and bound.

    A PF that is not bound counts as fresh. New VFs are fresh; a VF that is bound again has no
    interface yet, and what was on it is gone. The values that their driver starts with are not
    known.
    """
    pfs = tuple(_made(pf, have.pf(pf.handle) or untouched(pf), want.driver) for pf in want.pfs)
    return have.with_pfs(pfs)


def untouched(want: Pf) -> Pf:
    """A PF that has just been bound."""
    return Pf(
        want.handle,
        numvfs=None if want.numvfs is None else 0,
        autoprobe=None if want.autoprobe is None else True,
        lag=want.lag and Lag(),
        subfunctions=want.subfunctions and (),
    )


def reloaded(pf: Pf) -> Pf:
    """A PF after its driver was loaded again: down, with defaults, without VFs, in legacy mode."""
    new: dict[str, Any] = {
        **given(fresh(LinkAttributes)),
        "mtu": 1500,
        "up": False,
        "ethtool": None,
        "sysctls": (),
    }
    return replace(
        pf,
        numvfs=None if pf.numvfs is None else 0,
        vfs=(),
        driverinit=None,
        tuning=None,
        eswitch_mode=pf.eswitch_mode and EswitchMode.LEGACY,
        representors=(),
        dcb=dcb.reset(pf.dcb),
        rates=None,
        lag=pf.lag and Lag(),
        subfunctions=pf.subfunctions and (),
        netdev=pf.netdev and replace(pf.netdev, **new),
    )


def must_create(want: Pf, have: Pf) -> bool:
    """Whether the VFs must be created.

    The number differs, a function is missing, or the PF is reloaded, which removes its VFs.
    """
    if want.numvfs is None:
        return False
    if want.numvfs != have.numvfs:
        return True
    return any(have.vf(vf.index) is None for vf in want.vfs) or (
        bool(have.numvfs) and must_reload(want, have)
    )


def goes_to_legacy(want: Pf, have: Pf) -> bool:
    """Whether a PF in switchdev mode must be in legacy mode while its VFs are created."""
    return bool(want.numvfs) and want.is_switchdev and have.is_switchdev and must_create(want, have)


def bindings(pf: Pf, now: Pf, driver: str) -> dict[int, Binding]:
    """How each wanted VF of `pf`, which is as in `now`, gets its driver, by index.

    `driver`: that of the PF.
    """
    have = {} if must_create(pf, now) else {vf.index: vf for vf in now.vfs}
    any_mac = takes_any_vf_mac(pf, driver)
    return {vf.index: _binding(pf, now, vf, have.get(vf.index), any_mac) for vf in pf.vfs}


def _binding(pf: Pf, now: Pf, want: Vf, have: Vf | None, any_mac: bool) -> Binding:
    """How a VF gets its driver; `have` is None for one that does not exist yet.

    mlx5 wants to see its VFs unbound when the eswitch's mode changes, or a LAG is made. An admin
    MAC reaches the netdev at bind only: a VF that came up with another one is bound again, unless
    it takes any. So is one that came up with other GUIDs.
    """
    has = NO_DRIVER if have is None else have.driver
    if want.driver is None:
        return Binding()
    if has is None:  # not known: the performer does nothing if it is as wanted
        return Binding(binds=want.driver != NO_DRIVER, unbinds=want.driver == NO_DRIVER)
    bound = has != NO_DRIVER
    if want.driver != has:
        return Binding(binds=want.driver != NO_DRIVER, unbinds=bound)
    new_mode = pf.eswitch_mode not in {None, now.eswitch_mode}
    needs_mac = have is not None and not any_mac and _needs_another_bind(want, have)
    needs_guid = have is not None and _has_other_guids(want, have)
    stale = (
        bound
        and have is not None
        and (new_mode or needs_mac or needs_guid or must_make(pf, now) or must_unbind(want, have))
    )
    return Binding(stale, stale)


def takes_any_vf_mac(pf: Pf, driver: str) -> bool:
    """Whether an interface of its VFs takes another MAC than the admin MAC, at any time."""
    return pf.eswitch_mode is not None and has(driver, Trait.ANY_VF_MAC)


def needs_temporary_mac(pf: Pf, want: Vf, driver: str) -> bool:
    """Whether a VF is bound with its own MAC as the admin MAC, and the real admin MAC follows.

    It had its own MAC before an administrator set another one, and was not bound since. Once an
    admin MAC is set, igb refuses the VF another one (EADDRNOTAVAIL). mlx5 does not, and makes a
    node GUID of each admin MAC (mlx5_eswitch_set_vport_mac()), which mlx5_ib reads at the bind: a
    temporary one would leave an RDMA device with the GUID of another MAC.
    """
    own = mac_of(want)
    if own is None or want.admin_mac is None or want.admin_mac.is_zero:
        return False
    return own != want.admin_mac and not takes_any_vf_mac(pf, driver)


def mac_of(vf: Vf) -> Mac | None:
    """The MAC of its interface, in any namespace."""
    netdev = vf.netdev if vf.inside is None else vf.inside.netdev
    return netdev.mac if netdev is not None else None


def _made(want: Pf, have: Pf, driver: str) -> Pf:
    creates, legacy = must_create(want, have), goes_to_legacy(want, have)
    have = replace(have, subfunctions=as_made(want, have))
    if must_reload(want, have):
        new = replace(reloaded(have), driverinit=have.driverinit, rdma=None)
        have = replace(new, netdev=new.netdev and replace(new.netdev, mac=None))
    if creates:
        mode = EswitchMode.LEGACY if legacy else have.eswitch_mode
        vfs = tuple(map(_new_vf, want.vfs))
        kept = (
            () if legacy else tuple(r for r in have.representors if SUBFUNCTION.fullmatch(r.port))
        )
        have = replace(have, representors=kept, eswitch_mode=mode)
        if legacy:
            have = replace(have, subfunctions=have.subfunctions and ())
        return replace(have, numvfs=want.numvfs, vfs=vfs)
    how = bindings(want, have, driver)
    return replace(have, vfs=tuple(_bound(want.vf(vf.index), vf, how) for vf in have.vfs))


def _new_vf(want: Vf) -> Vf:
    """InfiniBand's have no MAC, and mlx5 presets their link state by a policy, which is Down."""
    new = Vf(want.index, driver=want.driver, driver_override="", **given(fresh(VfAttributes)))
    new = replace(new, vdpa=want.vdpa and ())
    return replace(new, link_state=None) if want.admin_mac is None else new


def _bound(want: Vf | None, vf: Vf, how: Mapping[int, Binding]) -> Vf:
    if want is None:
        return vf
    gone: dict[str, Any] = dict.fromkeys(("netdev", "inside", "rdma"))
    gone["vdpa"] = want.vdpa and ()
    if not how[vf.index].is_anew:
        return replace(vf, tuning=None, **gone) if must_reload(want, vf) else vf
    if vf.driver is None:  # not known: it may be bound already, and keep its interface
        return replace(vf, driver=want.driver)
    return replace(vf, driver=want.driver, driverinit=None, tuning=None, **gone)


def _has_other_guids(want: Vf, have: Vf) -> bool:
    """GUIDs reach the VF's RDMA device at bind only (mlx5_ib)."""
    guids = (want.node_guid, have.node_guid), (want.port_guid, have.port_guid)
    return any(wanted not in {None, now} for wanted, now in guids)


def _needs_another_bind(want: Vf, have: Vf) -> bool:
    """An admin MAC reaches the netdev at bind only, and igb then refuses the VF any other one."""
    own, now = mac_of(want), mac_of(have)
    if own is None or now is None or own == now:
        return False
    return want.admin_mac is not None and not want.admin_mac.is_zero
