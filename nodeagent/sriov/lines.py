"""Actions as lines that an engineer could paste into a root shell: ip(8), and echo into sysfs.

Interface names are looked up in the state the node has, then in the one it shall have.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from nodeagent.sriov.actions import (
    Action,
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetEswitch,
    SetEthtool,
    SetLink,
    SetParam,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.sriov.ethtool import commands as ethtool_commands
from nodeagent.sriov.model import DeviceHandle, NodeState, Port


def lines(stages: Iterable[Stage], want: NodeState, have: NodeState) -> list[str]:
    """The plan as lines for a root shell: `# stage` comments, ip(8), and echo into sysfs."""
    text = []
    for stage in stages:
        text.append(f"# {stage.name}")
        text.extend(line(action, want, have) for action in stage.actions)
    return text


def line(action: Action, want: NodeState, have: NodeState) -> str:
    """One action as a shell line."""
    bus, pf = f"/sys/bus/{action.pf.bus}", f"/sys/bus/{action.pf.bus}/devices/{action.pf.name}"
    match action:
        case BindPf():
            text = f"echo {action.pf.name} > {bus}/drivers_probe"
        case SetAutoprobe():
            text = f"echo {int(action.on)} > {pf}/sriov_drivers_autoprobe"
        case CreateVfs():
            text = f"echo {action.count} > {pf}/sriov_numvfs"
        case SetParam(param=param):
            value = str(param.value).lower() if isinstance(param.value, bool) else param.value
            text = (
                f"devlink dev param set {action.pf} name {param.name} value {value} cmode runtime"
            )
        case SetEswitch():
            text = f"devlink dev eswitch set {action.pf} {' '.join(_eswitch_words(action))}"
        case OverrideDriver():
            text = f"echo {action.driver} > {pf}/virtfn{action.index}/driver_override"
        case UnbindVf():
            text = f"echo {action.address} > {bus}/drivers/{action.driver}/unbind"
        case BindVf(override=True):
            text = f"echo {action.address} > {bus}/drivers_probe"
        case BindVf():
            text = f"echo {action.address} > {bus}/drivers/{action.driver}/bind"
        case SetVf():
            name = _name(action.pf, None, have, want)
            text = f"ip link set dev {name} vf {action.index} {' '.join(_vf_words(action))}"
        case SetLink():
            name = _name(action.pf, action.index, have, want)
            text = "; ".join(_link_commands(action, name))
        case SetEthtool():
            name = _name(action.pf, action.index, have, want)
            text = "; ".join(ethtool_commands(action.values, name))
    return text


def _name(pf: DeviceHandle, port: Port, *states: NodeState) -> str:
    """The netdev's name in the first state that knows it, else what it belongs to."""
    for state in states:
        known = state.pf(pf)
        netdev = None if known is None else known.netdev_of(port)
        if netdev is not None:
            return netdev.name
    return str(pf) if port is None else f"{pf}/{port}"


def _eswitch_words(action: SetEswitch) -> Iterator[str]:
    for word, value in (
        ("mode", action.mode),
        ("inline-mode", action.inline_mode),
        ("encap-mode", action.encap_mode),
    ):
        if value is not None:
            yield f"{word} {value}"


def _vf_words(action: SetVf) -> Iterator[str]:
    if action.admin_mac is not None:
        yield f"mac {action.admin_mac}"
    for word, guid in (("node_guid", action.node_guid), ("port_guid", action.port_guid)):
        if guid is not None:
            yield f"{word} {guid}"
    if action.vlan is not None:
        yield f"vlan {action.vlan} qos {action.qos or 0}"
        if action.vlan_proto is not None and action.vlan:
            yield f"proto {action.vlan_proto}"
    if action.min_tx_rate is not None:
        yield f"min_tx_rate {action.min_tx_rate}"
    if action.max_tx_rate is not None:
        yield f"max_tx_rate {action.max_tx_rate}"
    for word, flag in (("spoofchk", action.spoofchk), ("query_rss", action.query_rss)):
        if flag is not None:
            yield f"{word} {'on' if flag else 'off'}"
    if action.link_state is not None:
        yield f"state {action.link_state}"
    if action.trust is not None:
        yield f"trust {'on' if action.trust else 'off'}"


def _link_commands(action: SetLink, name: str) -> Iterator[str]:
    words = list(_link_words(action))
    if words:
        yield f"ip link set dev {name} {' '.join(words)}"
    for altname in action.altnames or ():
        yield f"ip link property add dev {action.name or name} altname {shlex.quote(altname)}"


def _link_words(action: SetLink) -> Iterator[str]:
    if action.mac is not None:
        yield f"address {action.mac}"
    if action.mtu is not None:
        yield f"mtu {action.mtu}"
    if action.name is not None:
        yield f"name {action.name}"
    if action.txqueuelen is not None:
        yield f"txqueuelen {action.txqueuelen}"
    if action.group is not None:
        yield f"group {action.group}"
    if action.alias is not None:
        yield f"alias {shlex.quote(action.alias)}"
    for word, flag in (("promisc", action.promisc), ("allmulticast", action.allmulti)):
        if flag is not None:
            yield f"{word} {'on' if flag else 'off'}"
    if action.up is not None:
        yield "up" if action.up else "down"
