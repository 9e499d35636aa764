"""Hypothesis strategies for nodes: every state that a real node can be in, and a little more."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from hypothesis import strategies as st

from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.attributes import rows
from nodeagent.state.dcb import App, Buffers, Dcb, Ets, Pfc, Selector, Tsa
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.lag import MULTIPATH, Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import (
    NO_DRIVER,
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    PodNetdev,
    RdmaDevice,
    Representor,
    Subfunction,
    Vdpa,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.rates import Rate
from nodeagent.state.roce import RocePort
from nodeagent.state.stack import (
    QDISC_ROOT,
    Address,
    Child,
    Membership,
    Neighbour,
    Nexthop,
    NexthopObject,
    Qdisc,
    Route,
    Stack,
    Token,
)
from nodeagent.state.tuning import Tuned
from nodeagent.state.vf import LinkState, VfAttributes, VlanProtocol
from tests.support import fake_sysctls
from tests.support.simulate import (
    FRESH_DRIVERINIT,
    FRESH_ETHTOOL,
    FRESH_REPORTERS,
    MULTIPORT,
    MULTIPORT_ON,
    with_stack,
)

DRIVER = "mlx5_core"
ZERO = Mac("00:00:00:00:00:00")

macs = st.integers(0, 2**32 - 1).map(
    lambda n: Mac("02:00:" + ":".join(f"{n:08x}"[i : i + 2] for i in (0, 2, 4, 6)))
)
# not the names that the kernel itself gives (ethN): such a clash is for the second look
names = st.from_regex(r"[a-df-z][a-z0-9]{0,8}", fullmatch=True).filter(lambda name: name != "lo")
mtus = st.sampled_from((576, 1400, 1500, 4000, 9000))


settings = st.one_of(
    st.none(),
    st.just(FRESH_ETHTOOL),
    st.builds(
        lambda usecs, gro, rx: (
            ("coalesce.adaptive-rx", usecs is None),
            *(() if usecs is None else (("coalesce.rx-usecs", usecs),)),
            ("features.rx-gro", gro),
            ("rings.rx", rx),
            ("rings.tx", 256),
        ),
        st.sampled_from((None, 3, 50)),
        st.booleans(),
        st.sampled_from((256, 512)),
    ),
)
"""ethtool's, with one that the driver moves by itself while another is on."""


DEFAULTS = tuple(sorted(fake_sysctls.DEFAULTS.items()))
sysctls: st.SearchStrategy[tuple[tuple[str, int], ...] | None] = st.sampled_from(
    (
        *(None, (), (("ipv4.rp_filter", 2),)),
        (("ipv4.rp_filter", 1), ("ipv6.accept_ra", 0)),
    )
)
"""Those that differ from the node's defaults."""


@st.composite
def netdevs(draw: st.DrawFn, name: str, mac: Mac, mtu: int) -> Netdev:
    """An interface with the attributes that any has."""
    return Netdev(
        name=name,
        mac=mac,
        mtu=mtu,
        up=draw(st.booleans()),
        altnames=draw(st.sampled_from(((), (f"{name}-alt",), (f"{name}-alt", f"{name}-b")))),
        promisc=draw(st.booleans()),
        allmulti=draw(st.booleans()),
        arp=draw(st.booleans()),
        multicast=draw(st.booleans()),
        txqueuelen=draw(st.sampled_from((0, 1000, 5000))),
        group=draw(st.sampled_from((0, 7))),
        alias=draw(st.sampled_from(("", "rack 4, port 'b'"))),
        gso_max_size=draw(st.sampled_from((None, 65536, 190000))),
        gso_ipv4_max_size=draw(st.sampled_from((None, 30000, 65536))),
        gso_max_segs=draw(st.sampled_from((None, 65535, 9))),
        gro_max_size=draw(st.sampled_from((None, 30000, 65536))),
        ethtool=draw(settings),
        sysctls=draw(sysctls),
    )


driverinits = st.sampled_from(
    (
        *(None, None, (), FRESH_DRIVERINIT),
        (Param("enable_roce", 6, False), Param("event_eq_size", 3, 4096)),
        (Param("enable_roce", 6, False), Param("event_eq_size", 3, 64), Param("max_macs", 3, 1)),
    )
)


reporters = st.sampled_from(
    (
        *((), FRESH_REPORTERS, (("reporter.fw.auto_dump", False),)),
        (("reporter.fw.auto_dump", False), ("reporter.fw.grace_period", 5)),
        (("port-reporter.tx.grace_period", 500), ("reporter.fw.grace_period", 600)),
    )
)


@st.composite
def tunings(draw: st.DrawFn, *, is_bound: bool = True, is_vf: bool = True) -> tuple[Tuned, ...]:
    """What is tuned of a function, with its driver or without."""
    found: list[Tuned] = [*draw(reporters)] if is_bound else []
    if is_vf and draw(st.booleans()):
        found += [("function.roce", draw(st.booleans())), ("msix", draw(st.sampled_from((4, 8))))]
    return tuple(sorted(found))


@st.composite
def vfs(draw: st.DrawFn, index: int, pf_mtu: int) -> Vf:
    driver = draw(st.sampled_from((DRIVER, DRIVER, DRIVER, NO_DRIVER, "vfio-pci")))
    admin = draw(st.one_of(st.just(ZERO), macs))
    own = draw(st.one_of(st.just(admin), macs)) if not admin.is_zero else draw(macs)
    netdev = None
    if driver == DRIVER and draw(st.integers(0, 9)) != 0:
        mtu = min(draw(mtus), pf_mtu)
        netdev = draw(netdevs(f"vf{index}", own, mtu))
    vlan = draw(st.sampled_from((0, 100, 4094)))
    return Vf(
        index=index,
        address=f"0000:00:00.{index}",
        driver=driver,
        driver_override=driver if driver == "vfio-pci" else "",
        admin_mac=admin,
        vlan=vlan,
        qos=draw(st.integers(0, 7)) if vlan else 0,
        vlan_proto=draw(st.sampled_from(VlanProtocol)) if vlan else VlanProtocol.Q,
        trust=draw(st.booleans()),
        spoofchk=draw(st.booleans()),
        link_state=draw(st.sampled_from(LinkState)),
        min_tx_rate=draw(st.sampled_from((0, 10))),
        max_tx_rate=draw(st.sampled_from((0, 100))),
        query_rss=None,
        node_guid=draw(st.sampled_from((None, Guid("02:11:22:33:44:55:66:77")))),
        port_guid=draw(st.sampled_from((None, Guid("02:11:22:33:44:55:66:88")))),
        netdev=netdev,
        rdma=draw(st.none() | rdma_devices(f"mlx5_{index}")) if netdev else None,
        driverinit=draw(driverinits) if driver == DRIVER else None,
        tuning=draw(st.none() | tunings(is_bound=driver == DRIVER)),
        vdpa=draw(vdpas(f"vf{index}")) if driver == DRIVER else None,
    )


def vdpas(owner: str) -> st.SearchStrategy[tuple[Vdpa, ...] | None]:
    """None, or one device of a function, whose driver offers some features."""
    device = st.builds(
        Vdpa,
        st.just(f"{owner}:0"),
        driver=st.sampled_from(("vhost_vdpa", "virtio_vdpa", NO_DRIVER)),
        mac=st.none() | macs,
        mtu=st.sampled_from((None, 1400)),
        max_vqp=st.sampled_from((None, 4)),
        features=st.sampled_from((None, 0x3, 0x1)),
        supported=st.sampled_from((None, 0x3)),
    )
    return st.none() | st.just(()) | device.map(lambda each: (each,))


def rdma_devices(name: str) -> st.SearchStrategy[RdmaDevice]:
    """Of that name, with one port or two."""
    ports = st.lists(st.builds(RocePort, port=st.integers(1, 2), mode=..., tos=st.integers(0, 255)))
    known = ports.map(
        lambda drawn: tuple(
            port for _, port in sorted({p.port: p for p in drawn}.items()) if not port.is_fresh
        )
    )
    return st.builds(RdmaDevice, st.just(name), roce=st.none() | known)


def _eight(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=8, max_size=8).map(tuple)


bandwidths = _eight(st.sampled_from((0, 30, 100)))
classes = _eight(st.integers(0, 7))
tsas = _eight(st.sampled_from(Tsa))
dcbs = st.builds(
    Dcb,
    ets=st.builds(
        Ets,
        willing=st.booleans(),
        tc_tsa=tsas,
        tc_bw=bandwidths,
        pg_bw=bandwidths,
        prio_tc=classes,
        reco_tc_tsa=tsas,
        reco_tc_bw=bandwidths,
        reco_prio_tc=classes,
    ),
    maxrate=st.none() | _eight(st.sampled_from((0, 100_000, 2**64 - 1))),
    pfc=st.builds(
        Pfc,
        prio_pfc=_eight(st.booleans()),
        macsec_bypass=st.booleans(),
        delay=st.integers(0, 0xFFFF),
    ),
    buffer=st.none()
    | st.builds(Buffers, prio_buffer=classes, buffer_size=_eight(st.integers(0, 2**32 - 1))),
    app=st.none()
    | st.sets(
        st.builds(App, st.sampled_from(Selector), st.integers(0, 0xFFFF), st.integers(0, 7)),
        max_size=3,
    ).map(lambda apps: tuple(sorted(apps))),
)
"""Of one driver's ports: all have it, or none has it (`pfs`)."""
FEW_DCBS = (None, *(Dcb(maxrate=(rate,) * 8) for rate in (0, 1)), Dcb(maxrate=(7,) * 8, app=()))


PARAMS = ((), (Param("flow_steering_mode", 5, "smfs"),), (MULTIPORT_ON,))


@st.composite
def rates(draw: st.DrawFn, numvfs: int) -> tuple[Rate, ...]:
    """Leafs and nodes of an eswitch: two levels, as mlx5 has them."""
    nodes = draw(st.sets(st.sampled_from(("gold", "silver it", "7"))))
    values = {
        "tx_share": st.sampled_from((0, 125_000)),
        "tx_max": st.sampled_from((0, 2**64 - 1)),
        "tx_priority": st.sampled_from((0, 7)),
        "tx_weight": st.sampled_from((0, 2**32 - 1)),
    }
    leaf = st.builds(
        Rate, name=st.just("0"), parent=st.sampled_from((None, *sorted(nodes))), **values
    )
    leafs = (dataclasses.replace(draw(leaf), name=str(index + 1)) for index in range(numvfs))
    groups = (
        draw(st.builds(Rate, name=st.just(name), is_node=st.just(True), **values)) for name in nodes
    )
    return tuple(sorted((*leafs, *groups), key=lambda each: each.key))


lags = st.sampled_from(
    (
        *(None, Lag(), Lag(True, "roce", "hash"), Lag(True, MULTIPATH, "queue_affinity")),
        *(Lag(True, "switchdev", mode) for mode in ("hash", "queue_affinity")),
        Lag(True, MULTIPORT, "mpesw"),
    )
)


@st.composite
def subfunctions(draw: st.DrawFn) -> tuple[Subfunction, ...]:
    """Up to two, each with an interface or none."""
    ports = draw(st.sets(st.sampled_from(("pf0sf0", "pf0sf88")), min_size=1))
    return tuple(draw(subfunction(port, index)) for index, port in enumerate(sorted(ports)))


@st.composite
def subfunction(draw: st.DrawFn, port: str, index: int) -> Subfunction:
    active = draw(st.booleans())
    has_netdev = active and draw(st.booleans())
    return Subfunction(
        port=port,
        index=index,
        hw_addr=draw(macs),
        active=active,
        roce=draw(st.none() | st.booleans()),
        max_io_eqs=draw(st.sampled_from((None, 8))),
        driverinit=draw(driverinits) if active else None,
        netdev=draw(netdevs(f"own{port}", Mac("02:00:00:00:00:88"), 1500)) if has_netdev else None,
        vdpa=draw(vdpas(port)) if active else None,
    )


@st.composite
def pfs(draw: st.DrawFn, number: int) -> Pf:
    mtu = draw(mtus)
    numvfs = draw(st.integers(0, 4))
    mode = draw(st.sampled_from((EswitchMode.LEGACY, EswitchMode.LEGACY, *EswitchMode)))
    is_switchdev = mode is not EswitchMode.LEGACY
    ports = [f"pf0vf{index}" for index in range(numvfs)] if is_switchdev else []
    own: tuple[Subfunction, ...] | None = draw(st.none() | st.just(()))
    if is_switchdev and own is not None:
        own = draw(st.just(()) | subfunctions())
        ports = sorted([*ports, *(each.port for each in own)])
    return Pf(
        handle=DeviceHandle("pci", f"0000:{number:02x}:00.0"),
        numvfs=numvfs,
        autoprobe=draw(st.booleans()),
        netdev=draw(netdevs(f"pf{number}", Mac(f"52:54:00:00:00:{number:02x}"), mtu)),
        vfs=tuple(draw(vfs(index, mtu)) for index in range(numvfs)),
        eswitch_mode=mode,
        params=draw(st.sampled_from(PARAMS)),
        driverinit=draw(driverinits),
        tuning=draw(st.none() | tunings(is_vf=False)),
        representors=tuple(Representor(p, draw(netdevs(p, ZERO, 1500))) for p in ports),
        dcb=draw(st.one_of(st.sampled_from(FEW_DCBS), dcbs)),
        rates=draw(st.none() | rates(numvfs)) if is_switchdev else None,
        lag=draw(lags),
        subfunctions=own,
    )


@st.composite
def states(draw: st.DrawFn, max_pfs: int = 2, *, stacked: bool = True) -> NodeState:
    count = draw(st.integers(0, max_pfs))
    state = NodeState(DRIVER, (), sysctls=DEFAULTS)
    made = tuple(draw(pfs(number + 1)) for number in range(count))
    unnamed = sum(1 for pf in made for _ in pf.netdevs())
    chosen = iter(draw(st.lists(names, min_size=unnamed, max_size=unnamed, unique=True)))
    state = dataclasses.replace(state, pfs=tuple(_renamed(pf, chosen) for pf in made))
    state = state if stacked else without_rdma(state)
    return dataclasses.replace(state, stack=draw(stacks(state)) if stacked else None)


def without_rdma(state: NodeState) -> NodeState:
    """As a node without RDMA has it, and so without LAG; and without what is tuned."""
    pfs = (
        dataclasses.replace(
            pf,
            rdma=None,
            lag=None,
            tuning=None,
            vfs=tuple(dataclasses.replace(vf, rdma=None, tuning=None) for vf in pf.vfs),
        )
        for pf in state.pfs
    )
    return dataclasses.replace(state, pfs=tuple(pfs))


@st.composite
def stacks(draw: st.DrawFn, state: NodeState) -> Stack | None:
    """What may stand on the netdevs of `state`: each kind on some of them."""
    netdevs = list(state.netdevs())
    if not netdevs or not draw(st.booleans()):
        return None
    names = [netdev.name for netdev in netdevs]
    up = [netdev.name for netdev in netdevs if netdev.up]
    children = tuple(
        Child(f"{name}.Z", name, "vlan", (("id", draw(st.integers(1, 3))),), mtu=1500, up=False)
        for name in _some(draw, names)
    )
    children = tuple(
        dataclasses.replace(
            child,
            sysctls=draw(sysctls.map(lambda found: found or ())),
            alias=draw(st.sampled_from((None, "", "x", " "))),
            arp=draw(st.sampled_from((None, True, False))),
            multicast=draw(st.sampled_from((None, True, False))),
        )
        for child in children
    )
    children += tuple(
        Child(f"{child.dev}.Y", child.dev, "macvlan", (("mode", 4),), mtu=1500, up=False)
        for child in children[:1]
    )
    devices = names + [child.dev for child in children]
    objects = [NexthopObject(1 + n, (name,)) for n, name in enumerate(_some(draw, up))]
    if objects:
        devs = tuple(dict.fromkeys(dev for each in objects for dev in each.devs))
        weights = tuple((each.id, draw(st.integers(1, 3))) for each in objects)
        objects.append(NexthopObject(100, devs, group=weights))
    return Stack(
        children=children,
        memberships=tuple(
            Membership(name, "br7", "bridge", (("cost", draw(st.integers(1, 3))),))
            if draw(st.booleans())
            else Membership(name, "bond7", "bond")
            for name in _some(draw, devices)
        ),
        tokens=tuple(
            Token(name, draw(st.sampled_from(("::77", "::88")))) for name in _some(draw, devices)
        ),
        addresses=tuple(
            Address(name, f"10.0.0.{n}/24", flags=draw(st.sampled_from((0, 0x200))))
            for n, name in enumerate(_some(draw, devices))
        ),
        neighbours=tuple(Neighbour(n, "10.0.0.9", "02:00:00:00:00:09") for n in _some(draw, up)),
        nexthops=tuple(objects),
        routes=(
            *(
                Route("10.7.0.0/16", (Nexthop(name), Nexthop(up[0], "10.0.0.9", 2)), 100 + n)
                for n, name in enumerate(_some(draw, up))
            ),
            *(
                Route(f"10.8.{each.id}.0/24", tuple(map(Nexthop, each.devs)), nhid=each.id)
                for each in objects
            ),
        ),
        qdiscs=tuple(
            Qdisc(name, "fq", 0x10000, QDISC_ROOT, draw(st.sampled_from(("", "08000100a0860100"))))
            for name in _some(draw, devices)
        ),
    )


def _some(draw: st.DrawFn, names: list[str]) -> list[str]:
    return [name for name in names if draw(st.integers(0, 3)) == 0]


def called(netdev: Netdev, name: str) -> Netdev:
    """The interface with another name, and altnames to match: no two share a name of any kind."""
    altnames = tuple(alt.replace(netdev.name, name, 1) for alt in netdev.altnames or ())
    return dataclasses.replace(netdev, name=name, altnames=altnames)


def _renamed(pf: Pf, chosen: object) -> Pf:
    def rename(netdev: Netdev | None) -> Netdev | None:
        if netdev is None:
            return None
        return called(netdev, next(chosen))  # type: ignore[call-overload] # an iterator

    return dataclasses.replace(
        pf,
        netdev=rename(pf.netdev),
        vfs=tuple(dataclasses.replace(vf, netdev=rename(vf.netdev)) for vf in pf.vfs),
        representors=tuple(
            Representor(each.port, rename(each.netdev) or each.netdev) for each in pf.representors
        ),
        subfunctions=pf.subfunctions
        and tuple(dataclasses.replace(f, netdev=rename(f.netdev)) for f in pf.subfunctions),
    )


def some_of(*names: str) -> st.SearchStrategy[set[str]]:
    """A few of these names, often none."""
    return st.one_of(st.just(set()), st.sets(st.sampled_from(names), max_size=4))


# where these alone are unknown no order may lead there: a VF's own MAC needs the admin MAC, a bind
# a driver_override that allows it, the eswitch's mode and a LAG their VFs unbound (`but_for_one`
# draws them)
some_of_vfs = some_of(*(set(rows(VfAttributes)) - {"admin_mac"}), "driverinit")
some_of_links = some_of(*(set(rows(LinkAttributes)) - {"name"}), "ethtool", "sysctls")
some_of_pfs = some_of("autoprobe", "driverinit", "eswitch_mode", "numvfs")


@st.composite
def _blurred_vf(draw: st.DrawFn, vf: Vf) -> Vf:
    """A VF of which not all is known."""
    unknown: dict[str, Any] = {"query_rss": draw(st.sampled_from((None, True, False)))}
    unknown |= dict.fromkeys(draw(some_of_vfs))
    return dataclasses.replace(vf, **unknown)


@st.composite
def _blurred_pf(draw: st.DrawFn, pf: Pf) -> Pf:
    unknown: dict[str, Any] = dict.fromkeys(draw(some_of_pfs))
    if "eswitch_mode" in unknown:
        unknown |= {"representors": (), "subfunctions": None}
    if "numvfs" in unknown:
        unknown |= dict.fromkeys(("eswitch_mode", "lag", "driverinit", "subfunctions"))
        unknown |= {"representors": (), "vfs": (), "params": ()}
    else:
        unknown |= {"vfs": tuple(draw(_blurred_vf(vf)) for vf in pf.vfs)}
    inline, encap = draw(st.sampled_from(INLINE_ENCAP))
    return dataclasses.replace(pf, inline_mode=inline, encap_mode=encap, **unknown)


INLINE_ENCAP = tuple(itertools.product((None, *list(InlineMode)[:2]), (None, *EncapMode)))


@st.composite
def blurred(draw: st.DrawFn, state: NodeState) -> NodeState:
    """`state` where not all is known: each field that can be None sometimes is."""
    if draw(st.booleans()):
        return state
    pfs = tuple(draw(_blurred_pf(pf)) for pf in state.pfs)
    return with_stack(dataclasses.replace(state, pfs=pfs), {})


@st.composite
def _vague_netdev(draw: st.DrawFn, netdev: Netdev) -> Netdev:
    unknown: dict[str, Any] = dict.fromkeys(draw(some_of_links))
    return dataclasses.replace(netdev, **unknown)


@st.composite
def vague(draw: st.DrawFn, state: NodeState) -> NodeState:
    """`state` with interfaces that are missing, of which not all is known, or that are in pods.

    A plan for it is legal, but only time, or a pod, could make it true.
    """
    used: set[int] = set()

    def vague_netdev(netdev: Netdev | None) -> Netdev | None:
        return (
            None if netdev is None or draw(st.integers(0, 5)) == 0 else draw(_vague_netdev(netdev))
        )

    def vague_vf(vf: Vf, name: str) -> Vf:
        netdev = vague_netdev(vf.netdev)
        if netdev is None or draw(st.booleans()):
            return dataclasses.replace(vf, netdev=netdev)
        namespace = draw(st.sampled_from(PODS))
        used.add(namespace.inode)
        rdma = draw(st.sampled_from((None, "mlx5_9")))
        inside = PodNetdev(namespace.inode, called(netdev, name), rdma=rdma)
        return dataclasses.replace(vf, netdev=None, inside=inside)

    pfs = tuple(
        dataclasses.replace(
            pf,
            netdev=vague_netdev(pf.netdev),
            vfs=tuple(vague_vf(vf, f"net{number}-{vf.index}") for vf in pf.vfs),
        )
        for number, pf in enumerate(state.pfs)
    )
    # the second may be another namespace by now, with the number of the one that is gone
    reused = dataclasses.replace(PODS[1], cookie=draw(st.sampled_from((17, 18))))
    namespaces = tuple(each for each in (PODS[0], reused) if each.inode in used)
    return with_stack(dataclasses.replace(state, pfs=pfs, namespaces=namespaces), {})


PODS = tuple(Namespace(4, inode, "b", (Holder(pid=1, started=1),), cookie=17) for inode in (7, 8))


@st.composite
def legal_pairs(draw: st.DrawFn) -> tuple[NodeState, NodeState]:
    """Want and have as the types allow them, whether or not a plan could ever be carried out."""
    want, have = draw(pairs())
    if draw(st.booleans()):
        want = draw(vague(draw(blurred(want))))
        return want, draw(but_for_one(want))
    return draw(vague(draw(blurred(want)))), draw(vague(draw(blurred(have))))


@st.composite
def but_for_one(draw: st.DrawFn, state: NodeState) -> NodeState:
    """`state`, but one thing of one PF or VF is not known: that alone has to make a plan."""
    if not state.pfs:
        return state
    pf = draw(st.sampled_from(state.pfs))
    if not pf.vfs or draw(st.booleans()):
        of_pf = ("autoprobe", "driverinit", "netdev", "numvfs", *rows(EswitchAttributes))
        name = draw(st.sampled_from(of_pf))
        gone = {"vfs": (), "representors": ()} if name == "numvfs" else {}
        changed = dataclasses.replace(pf, **{name: None}, **gone)  # type: ignore[arg-type] # by name
    else:
        vf = draw(st.sampled_from(pf.vfs))
        whole = ("driver", "driver_override", "driverinit", "netdev", "inside")
        of_vf = (*whole, *rows(VfAttributes))
        name = draw(st.sampled_from(of_vf))
        blank = dataclasses.replace(vf, **{name: None})  # type: ignore[arg-type] # by name
        vfs = tuple(blank if each is vf else each for each in pf.vfs)
        changed = dataclasses.replace(pf, vfs=vfs)
    pfs = tuple(changed if each is pf else each for each in state.pfs)
    return with_stack(dataclasses.replace(state, pfs=pfs), {})


@st.composite
def partly_known_pairs(draw: st.DrawFn) -> tuple[NodeState, NodeState]:
    """The same as `pairs`, where of both not all may be known."""
    known, have = draw(pairs())
    want, have = draw(blurred(known)), draw(blurred(have))
    # a PF that is bound anew probes its VFs: that has to be known, to be held
    pfs = tuple(
        pf if have.pf(pf.handle) else dataclasses.replace(pf, autoprobe=was.autoprobe)
        for pf, was in zip(want.pfs, known.pfs, strict=True)
    )
    want = dataclasses.replace(want, pfs=pfs)
    return want, with_stack(_own_names(want, _visible(have)), {})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NodeState, NodeState]:
    """Want and have of one node: the same PFs, any VFs, sometimes with each other's names."""
    want = draw(states())
    if draw(st.booleans()):
        return want, with_stack(_own_names(want, _visible(draw(disturbed(want)))), {})
    other = draw(states())
    have = tuple(
        dataclasses.replace(known, handle=pf.handle)
        for pf, known in zip(want.pfs, other.pfs, strict=False)
    )
    return want, with_stack(_own_names(want, _visible(dataclasses.replace(want, pfs=have))), {})


def _own_names(want: NodeState, have: NodeState) -> NodeState:
    """No wanted name is held by a netdev that is not ours to write: nobody could free it."""
    number = iter(range(1000))

    def pf_with_own_names(pf: Pf) -> Pf:
        wanted = want.pf(pf.handle)
        return dataclasses.replace(
            pf,
            vfs=tuple(
                vf
                if vf.netdev is None or (wanted and wanted.netdev_of(vf.index))
                else dataclasses.replace(
                    vf, netdev=dataclasses.replace(vf.netdev, name=f"e{next(number)}")
                )
                for vf in pf.vfs
            ),
            representors=tuple(
                each
                if wanted and wanted.netdev_of(each.port)
                else Representor(
                    each.port, dataclasses.replace(each.netdev, name=f"e{next(number)}")
                )
                for each in pf.representors
            ),
            subfunctions=pf.subfunctions
            and tuple(
                each
                if each.netdev is None or (wanted and wanted.netdev_of(each.own_port))
                else dataclasses.replace(each, netdev=called(each.netdev, f"e{next(number)}"))
                for each in pf.subfunctions
            ),
        )

    return dataclasses.replace(have, pfs=tuple(map(pf_with_own_names, have.pfs)))


def _visible(state: NodeState) -> NodeState:
    """No VF that is bound but whose netdev is away: only time, and no action, brings that back."""
    return dataclasses.replace(
        state,
        pfs=tuple(
            dataclasses.replace(
                pf,
                vfs=tuple(
                    dataclasses.replace(
                        vf, driver=NO_DRIVER, driverinit=None, tuning=None, vdpa=None
                    )
                    if vf.driver == DRIVER and vf.netdev is None
                    else vf
                    for vf in pf.vfs
                ),
            )
            for pf in state.pfs
        ),
    )


@st.composite
def disturbed(draw: st.DrawFn, state: NodeState) -> NodeState:
    """The same node after a few things were changed by hand: names shuffled, VFs altered."""
    netdevs = list(state.netdevs())
    order = draw(st.permutations([netdev.name for netdev in netdevs]))
    chosen = iter(order)
    shuffled = tuple(_renamed(pf, chosen) for pf in state.pfs)
    return dataclasses.replace(
        state, pfs=tuple(draw(_disturbed_pf(pf)) for pf in shuffled if draw(st.integers(0, 9)))
    )


@st.composite
def _disturbed_pf(draw: st.DrawFn, pf: Pf) -> Pf:
    if draw(st.booleans()):
        return pf
    mtu = pf.netdev.mtu or 1500 if pf.netdev else 1500
    replaced = []
    for vf in pf.vfs:
        fresh = draw(vfs(vf.index, mtu))
        netdev = None
        if fresh.netdev is not None:
            name = vf.netdev.name if vf.netdev is not None else None
            netdev = called(fresh.netdev, name) if name else None
        replaced.append(dataclasses.replace(fresh, netdev=netdev))
    return dataclasses.replace(pf, autoprobe=draw(st.booleans()), vfs=tuple(replaced))
