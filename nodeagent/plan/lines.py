"""Actions as lines that an engineer could paste into a root shell: ip(8), and echo into sysfs.

Interfaces have the names that the previous lines have set; one that does not exist yet has its
wanted name.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator

from nodeagent.plan.actions import (
    Action,
    AddStacked,
    AddSubfunction,
    AwaitLag,
    BindPf,
    BindVf,
    CreateVfs,
    InPod,
    MoveRdma,
    MoveVf,
    OverrideDriver,
    SetAutoprobe,
    SetDcb,
    SetDriverinit,
    SetEswitch,
    SetEthtool,
    SetLink,
    SetParam,
    SetRates,
    SetRdma,
    SetRoce,
    SetSysctls,
    SetTuning,
    SetVdpa,
    SetVf,
    Stage,
    StartSubfunction,
    UnbindVf,
)
from nodeagent.plan.driverinit import param_command, reload_commands
from nodeagent.plan.ethtool import commands as ethtool_commands
from nodeagent.plan.lines_pods import inside_line, move_line, move_rdma_line
from nodeagent.plan.stages import AFTER_UDEV
from nodeagent.plan.subfunctions import add_commands, own_device, start_commands
from nodeagent.plan.tuning import commands as tuning_commands
from nodeagent.plan.vdpa import commands as vdpa_commands
from nodeagent.state.attributes import words
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Port
from nodeagent.state.rates import commands as rate_commands
from nodeagent.state.sysctls import commands as sysctl_commands
from nodeagent.state.vf import POLICIES

Known = dict[tuple[DeviceHandle, Port], Netdev]


def lines(stages: Iterable[Stage], want: NodeState, have: NodeState) -> list[str]:
    """The plan as lines for a root shell: `# stage` comments, ip(8), and echo into sysfs."""
    text = []
    for name, commands in by_stage(stages, want, have):
        text += [f"# {name}", *commands]
    return text


def by_stage(
    stages: Iterable[Stage], want: NodeState, have: NodeState
) -> Iterator[tuple[str, list[str]]]:
    """Each stage's name and its lines, one an action."""
    known = {(pf.handle, port): netdev for pf in have.pfs for port, netdev in pf.netdevs()}
    for stage in stages:
        commands = []
        for action in stage.actions:
            commands.append(_line(action, want, known))
            _follow(action, known)
        if stage.name in AFTER_UDEV:
            commands[0] = f"udevadm settle; {commands[0]}"
        yield stage.name, commands


def _follow(action: Action, known: Known) -> None:
    """Apply `action` to the known interfaces: removed ones, and new names."""
    match action:
        case CreateVfs():
            gone = [key for key in known if key[0] == action.pf and key[1] is not None]
        case UnbindVf() | SetDriverinit(index=int()):
            gone = [(action.pf, action.index)]
        case SetEswitch(eswitch_mode=str()):
            gone = [key for key in known if key[0] == action.pf and isinstance(key[1], str)]
        case StartSubfunction():
            gone = [(action.pf, action.subfunction.own_port)]
        case SetLink() if (now := known.get((action.pf, action.index))) is not None:
            altnames = now.altnames if action.altnames is None else action.altnames
            renamed = dataclasses.replace(now, name=action.name or now.name, altnames=altnames)
            known[action.pf, action.index] = renamed
            return
        case _:
            return
    for key in gone:
        known.pop(key, None)


def _line(action: Action, want: NodeState, known: Known) -> str:
    bus, pf = f"/sys/bus/{action.pf.bus}", f"/sys/bus/{action.pf.bus}/devices/{action.pf.name}"
    match action:
        case BindPf():
            text = f"echo {action.pf.name} > {bus}/drivers_probe"
        case SetAutoprobe():
            text = f"echo {int(action.on)} > {pf}/sriov_drivers_autoprobe"
        case CreateVfs():
            text = f"echo {action.count} > {pf}/sriov_numvfs"
        case SetParam() | SetDriverinit():
            text = "; ".join(_param_commands(action))
        case SetEswitch():
            text = f"devlink dev eswitch set {action.pf} {' '.join(words(action))}"
        case SetDcb():
            text = "; ".join(action.dcb.commands(_name(action.pf, None, want, known)))
        case SetRates() | AddSubfunction() | StartSubfunction() | SetVdpa():
            text = "; ".join(_port_commands(action))
        case SetTuning():
            text = "; ".join(_tuning_commands(action, want, known))
        case OverrideDriver():
            text = f"echo {shlex.quote(action.driver)} > {pf}/virtfn{action.index}/driver_override"
        case UnbindVf():
            at = f"drivers/{action.driver}" if action.driver else f"devices/{action.address}/driver"
            text = f"echo {action.address} > {bus}/{at}/unbind"
        case BindVf(override=True):
            text = f"echo {action.address} > {bus}/drivers_probe"
        case BindVf():
            text = f"echo {action.address} > {bus}/drivers/{action.driver}/bind"
        case SetVf():
            text = _vf_line(
                action, _name(action.pf, None, want, known), f"{pf}/sriov/{action.index}"
            )
        case SetLink():
            name = _name(action.pf, action.index, want, known)
            text = "; ".join(_link_commands(action, name, known.get((action.pf, action.index))))
        case AddStacked():
            removal = action.thing.removal() if action.anew else ()
            text = "; ".join((*removal, *action.thing.commands()))
        case AwaitLag():
            text = _await_lag_line(action)
        case SetEthtool():
            text = "; ".join(
                ethtool_commands(action.values, _name(action.pf, action.index, want, known))
            )
        case SetSysctls():
            text = "; ".join(
                sysctl_commands(action.values, _name(action.pf, action.index, want, known))
            )
        case SetRdma() | SetRoce():
            text = "; ".join(_rdma_commands(action))
        case MoveVf():
            text = move_line(action)
        case MoveRdma():
            text = move_rdma_line(action)
        case InPod():
            text = inside_line(action.namespace, _line(action.action, want, _inside(want)))
    return text


def _tuning_commands(action: SetTuning, want: NodeState, known: Known) -> Iterator[str]:
    ports = (action.index, _representor(action.pf, action.index, want))
    own, representor = (_name(action.pf, port, want, known) for port in ports)
    return tuning_commands(action, own, representor)


def _representor(pf: DeviceHandle, index: int | None, want: NodeState) -> Port:
    """The port of a VF's representor; the VF itself where there is none."""
    wanted = want.pf(pf)
    ports = () if wanted is None else (each.port for each in wanted.representors)
    return next((port for port in ports if re.fullmatch(rf"pf\d+vf{index}", port)), index)


def _vf_line(action: SetVf, name: str, files: str) -> str:
    """By the PF's interface, or where it has none by DOCA-OFED's files for InfiniBand."""
    if name != str(action.pf):
        # the kernel takes one GUID of a command
        port_guid = SetVf(action.pf, action.index, port_guid=action.port_guid)
        parts = (dataclasses.replace(action, port_guid=None), port_guid)
        told = (" ".join(words(part)) for part in parts)
        return "; ".join(f"ip link set dev {name} vf {action.index} {w}" for w in told if w)
    values = {
        "node": action.node_guid,
        "port": action.port_guid,
        "policy": action.link_state and POLICIES[action.link_state],
    }
    return "; ".join(f"echo {value} > {files}/{name}" for name, value in values.items() if value)


def _port_commands(
    action: SetRates | AddSubfunction | StartSubfunction | SetVdpa,
) -> Iterator[str]:
    match action:
        case SetRates():
            return rate_commands(str(action.pf), action.rates, action.now)
        case AddSubfunction():
            return add_commands(str(action.pf), action.subfunction, action.now)
        case StartSubfunction():
            return start_commands(action.pf, action.subfunction, action.now)
        case SetVdpa():
            return _vdpa_commands(action)


def _vdpa_commands(action: SetVdpa) -> Iterator[str]:
    manager = str(action.pf.with_name(action.address or ""))
    if isinstance(action.index, str):
        yield own_device(action.pf, action.index)
        manager = "auxiliary/$sf"
    yield from vdpa_commands(action.vdpa, action.now, manager)


def _rdma_commands(action: SetRdma | SetRoce) -> Iterator[str]:
    if isinstance(action, SetRdma):
        there = f'"$(ls /sys/bus/{action.pf.bus}/devices/{action.address}/infiniband)"'
        yield f"rdma dev set {action.now or there} name {action.name}"
        return
    group = f"/sys/kernel/config/rdma_cm/{action.name}"
    yield f"mkdir {group}"
    for port in action.ports:
        to = f"{group}/ports/{port.port}/default_roce"
        yield f"echo '{port.mode}' >{to}_mode; echo {port.tos} >{to}_tos"
    yield f"rmdir {group}"


def _param_commands(action: SetParam | SetDriverinit) -> Iterator[str]:
    if isinstance(action, SetParam):
        yield param_command(str(action.pf), action.param, "runtime")
        return
    yield from reload_commands(str(action.pf.with_name(action.address)), action.params)
    if action.has_netdev:
        yield "udevadm settle"


def _await_lag_line(action: AwaitLag) -> str:
    state = f"/sys/kernel/debug/mlx5/{action.pf.name}/lag/state"
    return f"timeout 60 sh -c 'until grep -q active {state}; do sleep 1; done'"


def _inside(want: NodeState) -> Known:
    """The interfaces of VFs in pods, with their names there."""
    return {
        (pf.handle, vf.index): vf.inside.netdev
        for pf in want.pfs
        for vf in pf.vfs
        if vf.inside is not None
    }


def _name(pf: DeviceHandle, port: Port, want: NodeState, known: Known) -> str:
    """For a shell: the netdev's present name, else its wanted name, else its PF or VF."""
    netdev = known.get((pf, port))
    if netdev is None and (wanted := want.pf(pf)) is not None:
        netdev = wanted.netdev_of(port)
    if netdev is not None:
        return shlex.quote(netdev.name)
    return str(pf) if port is None else f"{pf}/{port}"


def _link_commands(action: SetLink, name: str, now: Netdev | None) -> Iterator[str]:
    altnames = (now and now.altnames) or ()
    wanted = altnames if action.altnames is None else action.altnames
    for altname in sorted({*altnames} - {*wanted}):
        yield f"ip link property del dev {name} altname {shlex.quote(altname)}"
    if settings := " ".join(words(action)):
        yield f"ip link set dev {name} {settings}"
    name = name if action.name is None else shlex.quote(action.name)
    for altname in sorted({*wanted} - {*altnames}):
        yield f"ip link property add dev {name} altname {shlex.quote(altname)}"
