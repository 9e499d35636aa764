"""The plan as lines for a root shell: each as ip(8), devlink(8) and sysfs take it, in any order."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import HealthCheck, given, settings

from nodeagent.plan.actions import (
    Action,
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetDriverinit,
    SetEswitch,
    SetLink,
    SetParam,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import plan
from nodeagent.plan.stages import StageName
from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.eswitch import EncapMode, EswitchMode, InlineMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Param, Pf, Representor, Vf
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.simulate import perform
from tests.support.strategies import pairs

PF = DeviceHandle("pci", "0000:01:00.0")
SYS = "/sys/bus/pci"
DEVICE = f"{SYS}/devices/0000:01:00.0"


def node(
    name: str = "ens1f0np0", vf: str = "ens1f0v3", altnames: tuple[str, ...] = ()
) -> NodeState:
    function = Vf(3, "0000:01:10.6", "mlx5_core", "", netdev=Netdev(vf, altnames=altnames))
    representor = Representor("pf0vf3", Netdev("rep3"))
    pf = Pf(PF, 7, True, Netdev(name), (function,), representors=(representor,))
    return NodeState("mlx5_core", (pf,))


def text(*actions: Action, have: NodeState | None = None, want: NodeState | None = None) -> str:
    """The lines of actions, one stage each, without the stages' names."""
    stages = [Stage(StageName.BIND_PFS, (action,)) for action in actions]
    found = lines(stages, want or node(), have or node())
    return "\n".join(line for line in found if not line.startswith("#"))


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (BindPf(PF, "mlx5_core"), f"echo 0000:01:00.0 > {SYS}/drivers_probe"),
        (SetAutoprobe(PF, False), f"echo 0 > {DEVICE}/sriov_drivers_autoprobe"),
        (CreateVfs(PF, 7), f"echo 7 > {DEVICE}/sriov_numvfs"),
        (OverrideDriver(PF, 3, "0000:01:10.6", "vfio-pci"),
         f"echo vfio-pci > {DEVICE}/virtfn3/driver_override"),
        (OverrideDriver(PF, 3, "0000:01:10.6", ""), f"echo '' > {DEVICE}/virtfn3/driver_override"),
        (UnbindVf(PF, 3, "0000:01:10.6", "mlx5_core"),
         f"echo 0000:01:10.6 > {SYS}/drivers/mlx5_core/unbind"),
        (BindVf(PF, 3, "0000:01:10.6", "mlx5_core"),
         f"echo 0000:01:10.6 > {SYS}/drivers/mlx5_core/bind"),
        (BindVf(PF, 3, "0000:01:10.6", "vfio-pci", override=True),
         f"echo 0000:01:10.6 > {SYS}/drivers_probe"),
        (SetParam(PF, Param("flow_steering_mode", 5, "smfs")),
         "devlink dev param set pci/0000:01:00.0 name flow_steering_mode value smfs cmode runtime"),
        (SetParam(PF, Param("enable_roce", 6, False)),
         "devlink dev param set pci/0000:01:00.0 name enable_roce value false cmode runtime"),
        (SetDriverinit(PF, 3, "0000:01:10.6", (Param("enable_roce", 6, False),)),
         "devlink dev param set pci/0000:01:10.6 name enable_roce value false cmode driverinit; "
         "devlink dev reload pci/0000:01:10.6"),
        (SetDriverinit(PF, None, "0000:01:00.0", (Param("max_macs", 3, 64),), has_netdev=True),
         "devlink dev param set pci/0000:01:00.0 name max_macs value 64 cmode driverinit; "
         "devlink dev reload pci/0000:01:00.0; udevadm settle"),
        (SetEswitch(PF, eswitch_mode=EswitchMode.SWITCHDEV, inline_mode=InlineMode.LINK,
                    encap_mode=EncapMode.NONE),
         f"devlink dev eswitch set {PF} mode switchdev inline-mode link encap-mode none"),
    ],
)  # fmt: skip
def test_devices(action: Action, line: str) -> None:
    assert text(action) == line


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (SetVf(PF, 3, admin_mac=Mac("02:00:00:00:00:01")), "mac 02:00:00:00:00:01"),
        (SetVf(PF, 3, vlan=100, qos=3, vlan_proto=VlanProtocol.AD), "vlan 100 qos 3 proto 802.1ad"),
        (SetVf(PF, 3, vlan=0, qos=0, vlan_proto=VlanProtocol.Q), "vlan 0 qos 0"),
        (SetVf(PF, 3, min_tx_rate=0, max_tx_rate=100), "min_tx_rate 0 max_tx_rate 100"),
        (SetVf(PF, 3, spoofchk=False, query_rss=True), "spoofchk off query_rss on"),
        (SetVf(PF, 3, link_state=LinkState.ENABLE, trust=True), "state enable trust on"),
        (SetVf(PF, 3, node_guid=Guid("02:11:22:33:44:55:66:77")),
         "node_guid 02:11:22:33:44:55:66:77"),
    ],
)  # fmt: skip
def test_what_a_pf_holds_for_a_vf(action: Action, words: str) -> None:
    assert text(action) == f"ip link set dev ens1f0np0 vf 3 {words}"


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (SetLink(PF, None, mtu=9000, up=True), "ip link set dev ens1f0np0 mtu 9000 up"),
        (SetLink(PF, 3, mac=Mac("02:00:00:00:00:01"), up=False),
         "ip link set dev ens1f0v3 address 02:00:00:00:00:01 down"),
        (SetLink(PF, "pf0vf3", txqueuelen=0, group=7), "ip link set dev rep3 txqueuelen 0 group 7"),
        (  # ip(8) before 6.2 has no word for IPv4's, which follows
            SetLink(PF, 3, gso_max_size=30000, gso_ipv4_max_size=30000),
            "ip link set dev ens1f0v3 gso_max_size 30000",
        ),
        (
            SetLink(PF, 3, gro_max_size=190000, gro_ipv4_max_size=65536),
            "ip link set dev ens1f0v3 gro_max_size 190000 gro_ipv4_max_size 65536",
        ),
        (SetLink(PF, 3, promisc=True, allmulti=False),
         "ip link set dev ens1f0v3 promisc on allmulticast off"),
        (SetLink(PF, 3, alias="rack 4, port 'b'"),
         """ip link set dev ens1f0v3 alias 'rack 4, port '"'"'b'"'"''"""),
        (SetLink(PF, 3, alias=""), "ip link set dev ens1f0v3 alias ''"),
        (SetLink(PF, 3, altnames=("a b",)), "ip link property add dev ens1f0v3 altname 'a b'"),
    ],
)  # fmt: skip
def test_interfaces(action: Action, line: str) -> None:
    assert text(action) == line


def test_an_interface_that_was_renamed_is_called_by_its_new_name() -> None:
    assert text(
        SetLink(PF, 3, name="natmp0"),
        SetLink(PF, None, name="uplink"),
        SetVf(PF, 3, trust=True),
        SetLink(PF, 3, name="mine", altnames=("a",), up=True),
    ).splitlines() == [
        "ip link set dev ens1f0v3 name natmp0",
        "ip link set dev ens1f0np0 name uplink",
        "ip link set dev uplink vf 3 trust on",
        "ip link set dev natmp0 name mine up; ip link property add dev mine altname a",
    ]


def test_an_interface_that_is_made_anew_is_called_what_it_shall_be_called() -> None:
    want = node(vf="wanted")
    for before in (CreateVfs(PF, 0), UnbindVf(PF, 3, "0000:01:10.6", "mlx5_core")):
        assert "dev wanted mtu" in text(before, SetLink(PF, 3, mtu=1400), want=want)


def test_altnames_come_and_go_as_they_have_to() -> None:
    change = SetLink(PF, 3, name="mine", altnames=("b", "c"))
    assert text(change, have=node(altnames=("a", "b"))).split("; ") == [
        "ip link property del dev ens1f0v3 altname a",
        "ip link set dev ens1f0v3 name mine",
        "ip link property add dev mine altname c",
    ]


def test_what_has_no_name_yet_is_named_by_what_it_belongs_to() -> None:
    nobody = NodeState("mlx5_core")
    assert text(SetLink(PF, None, up=True), have=nobody, want=nobody) == (
        "ip link set dev pci/0000:01:00.0 up"
    )
    assert "dev pci/0000:01:00.0/3 " in text(SetLink(PF, 3, up=True), have=nobody, want=nobody)


def test_a_name_cannot_run_anything() -> None:
    """The kernel takes any byte but `/`, `:` and white space."""
    evil = "a;$(reboot)`x`"
    line = text(SetLink(PF, None, name="'b'", altnames=("$x",)), have=node(name=evil))
    assert shlex.split(line) == [
        *("ip", "link", "set", "dev", evil, "name", "'b';"),
        *("ip", "link", "property", "add", "dev", "'b'", "altname", "$x"),
    ]
    param = SetParam(PF, Param("mode", 5, "a; reboot"))
    assert "value 'a; reboot' cmode" in text(param)


@given(pairs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_line_names_the_interface_that_it_means(pair: tuple[NodeState, NodeState]) -> None:
    """Pasted one after the other: what is there has its name of that moment, what comes its own."""
    want, have = pair
    stages = plan(want, have)
    printed = [line for line in lines(stages, want, have) if not line.startswith("#")]
    actions = [action for stage in stages for action in stage.actions]
    there = {(pf.handle, port) for pf in have.pfs for port, _ in pf.netdevs()}
    for line, action in zip(printed, actions, strict=True):
        if isinstance(action, SetLink | SetVf):
            port = action.index if isinstance(action, SetLink) else None
            pf = (have if (action.pf, port) in there else want).pf(action.pf)
            netdev = None if pf is None else pf.netdev_of(port)
            assert netdev is not None
            assert shlex.split(line)[shlex.split(line).index("dev") + 1] == netdev.name
        have = perform(have, action)
        there -= {(pf, port) for pf, port in there if _goes(action, pf, port)}


def _goes(action: Action, pf: DeviceHandle, port: int | str | None) -> bool:
    match action:
        case CreateVfs(pf=own):
            return own == pf and port is not None
        case UnbindVf(pf=own, index=index) | SetDriverinit(pf=own, index=int() as index):
            return (own, index) == (pf, port)
        case SetEswitch(pf=own, eswitch_mode=str()):
            return own == pf and isinstance(port, str)
    return False
