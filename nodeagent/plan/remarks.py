"""Remarks on a state, for the log."""

from __future__ import annotations

from nodeagent.state.model import NodeState


def shared_macs(state: NodeState) -> tuple[str, ...]:
    """A line for each MAC that several VFs' interfaces have, by mistake or by a race (SNO#720).

    A PF's interface and a representor may have a VF's address.
    """
    owners: dict[str, list[str]] = {}
    for on, vf in state.vfs():
        if vf.netdev is not None and vf.netdev.mac is not None and not vf.netdev.mac.is_zero:
            owners.setdefault(vf.netdev.mac, []).append(str(on))
    return tuple(f"{mac}: {', '.join(vfs)}" for mac, vfs in owners.items() if len(vfs) > 1)


def made_up(state: NodeState) -> tuple[str, ...]:
    """A line for each VF with a random MAC: its PF holds none for it (admin MAC zero)."""
    return tuple(
        f"{on} {vf.netdev.mac}"
        for on, vf in state.vfs()
        if vf.netdev is not None and vf.admin_mac is not None and vf.admin_mac.is_zero
    )


def unseen(state: NodeState) -> tuple[str, ...]:
    """VFs bound to the NIC's own driver whose interface is in no visible namespace."""
    return tuple(
        str(on)
        for on, vf in state.vfs()
        if vf.driver == state.driver and vf.netdev is None and vf.inside is None
        if ("enable_eth", False) not in {(each.name, each.value) for each in vf.driverinit or ()}
    )


def headless(state: NodeState) -> tuple[str, ...]:
    """PFs with VFs and no interface, so that what they hold for their VFs cannot be read.

    But for InfiniBand's with DOCA-OFED, which has that in files.
    """
    return tuple(
        str(pf.handle)
        for pf in state.pfs
        if pf.numvfs and pf.netdev is None and all(vf.link_state is None for vf in pf.vfs)
    )
