"""What is to be said of a state beside what differs: lines for the log."""

from __future__ import annotations

from nodeagent.state.model import NodeState


def shared_macs(state: NodeState) -> tuple[str, ...]:
    """A line for each MAC that more than one VF's interface has: a race's work, or a person's.

    A PF's interface and a representor may share a VF's address; two VFs may not (SNO#720).
    """
    owners: dict[str, list[str]] = {}
    for pf in state.pfs:
        for vf in pf.vfs:
            if vf.netdev is not None and vf.netdev.mac is not None and not vf.netdev.mac.is_zero:
                owners.setdefault(vf.netdev.mac, []).append(f"{pf.handle} vf {vf.index}")
    return tuple(f"{mac}: {', '.join(vfs)}" for mac, vfs in owners.items() if len(vfs) > 1)


def made_up(state: NodeState) -> tuple[str, ...]:
    """A line for each VF whose MAC its driver made up: its PF has none for it (admin MAC zero)."""
    return tuple(
        f"{pf.handle} vf {vf.index} {vf.netdev.mac}"
        for pf in state.pfs
        for vf in pf.vfs
        if vf.netdev is not None and vf.admin_mac is not None and vf.admin_mac.is_zero
    )


def unseen(state: NodeState) -> tuple[str, ...]:
    """VFs bound to the NIC's own driver whose interface is in no namespace that can be seen."""
    return tuple(
        f"{pf.handle} vf {vf.index}"
        for pf in state.pfs
        for vf in pf.vfs
        if vf.driver == state.driver and vf.netdev is None and vf.inside is None
    )


def headless(state: NodeState) -> tuple[str, ...]:
    """PFs with VFs whose own interface is not here: nobody tells what they hold for their VFs."""
    return tuple(str(pf.handle) for pf in state.pfs if pf.numvfs and pf.netdev is None)
