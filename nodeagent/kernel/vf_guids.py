"""What a PF holds for its VFs on InfiniBand, where it has no IPoIB interface that tells of it.

DOCA-OFED's mlx5_core has it in the PF's directory, /sys/class/infiniband/mlx5_0/device/sriov/N:
`node` and `port` are GUIDs, `policy` is the link's state. The kernel's own driver has no such
files, and an Ethernet port has others there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.kernel.rtnl import VfInfo
from nodeagent.kernel.sysfs import write
from nodeagent.state.addresses import Guid
from nodeagent.state.vf import POLICIES, VfAttributes

_STATES: Final = {word: state for state, word in POLICIES.items()}
_NOT_SET: Final = "00:00:00:00:00:00:00:00"


def read(device: Path) -> dict[int, VfInfo]:
    """By VF; empty where the driver does not tell. A GUID that is zero has not been set."""
    found = {}
    for policy in device.glob("sriov/[0-9]*/policy"):
        with suppress(OSError):
            number, guids = int(policy.parent.name), [_guid(policy, n) for n in ("node", "port")]
            state = _STATES.get(policy.read_text().strip())
            found[number] = VfInfo(number, node_guid=guids[0], port_guid=guids[1], link_state=state)
    return found


def _guid(policy: Path, name: str) -> Guid | None:
    text = policy.with_name(name).read_text().strip()
    return None if text == _NOT_SET else Guid(text)


def set_vf(device: Path, index: int, wanted: VfAttributes) -> None:
    """Set what is not None and is told here. KernelError when refused."""
    directory = device / "sriov" / str(index)
    for name, guid in (("node", wanted.node_guid), ("port", wanted.port_guid)):
        if guid is not None:
            write(directory / name, guid)
    if wanted.link_state is not None:
        write(directory / "policy", POLICIES[wanted.link_state])
