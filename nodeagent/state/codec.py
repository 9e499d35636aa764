"""Snapshots as JSON, both ways.

Fields that are None are left out, so that a reader sees only what is known. Reading checks every
member: one that is missing, unknown or of another type is refused, and `DataError` names the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from nodeagent.errors import DataError
from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.model import (
    DeviceHandle,
    Inside,
    Netdev,
    NodeState,
    Param,
    Pf,
    RdmaDevice,
    Representor,
    Setting,
    Snapshot,
    Sysctl,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.stack import Stack, stack_from_plain

SCHEMA: Final = 2
READ: Final = (1, SCHEMA)
"""1 is the same without what it did not know yet, which so is not known: None."""

T = TypeVar("T")

_PAIRS: Final = ("srcversions", "ethtool", "sysctls")
"""Fields that are tuples of pairs, and objects in JSON."""


def to_plain(value: Any) -> Any:
    """A value of the model as what `json` can write: dicts, lists, strings, numbers."""
    if isinstance(value, DeviceHandle):
        return str(value)
    if dataclasses.is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {
            name: dict(item) if name in _PAIRS else to_plain(item)
            for name, item in items
            if item is not None
        }
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


_LONGEST: Final = 400
"""Characters of a reason: enough for the longest that quotes no more than it must."""


def snapshot_to_json(snapshot: Snapshot) -> str:
    """The snapshot as people and programs read it: sorted keys, indented, one final newline."""
    plain = to_plain(snapshot)
    return json.dumps({"schema": SCHEMA, **plain}, indent=2, sort_keys=True) + "\n"


def snapshot_from_json(text: str, source: str) -> Snapshot:
    """The reverse of `snapshot_to_json`. DataError names `source` and what is wrong with it."""
    try:
        return _snapshot(json.loads(text))
    except RecursionError:
        raise DataError(f"{source} is not a snapshot: nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{source} is not a snapshot that this version can read: {_brief(error)}",
            hint="it is left as it is; `nodeagent snapshot` shows what the format looks like",
        ) from error


def _brief(error: Exception) -> str:
    """What is quoted in it may be as large as the file."""
    text = str(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _snapshot(plain: Any) -> Snapshot:
    fields = _Fields("snapshot", plain)
    schema = fields.take("schema", _integer)
    if schema not in READ:
        which = "newer" if schema > SCHEMA else "older"
        raise ValueError(
            f"its schema is {schema}, which is {which} than this version's: it writes {SCHEMA} "
            f"and reads {', '.join(map(str, READ))}"
        )
    return fields.build(
        Snapshot,
        taken_at=fields.take("taken_at", _string),
        machine_id=fields.take("machine_id", _string),
        boot_id=fields.take("boot_id", _string),
        kernel=fields.take("kernel", _string),
        srcversions=fields.take("srcversions", _string_pairs),
        state=fields.take("state", _node_state),
    )


def _node_state(plain: Any) -> NodeState:
    fields = _Fields("state", plain)
    return fields.build(
        NodeState,
        driver=fields.take("driver", _string),
        pfs=fields.take("pfs", _tuple_of(_pf)),
        stack=fields.maybe("stack", stack_from_plain),
        sysctls=fields.maybe("sysctls", _sysctls) or (),
        namespaces=fields.maybe("namespaces", _tuple_of(_namespace)) or (),
    )


def _namespace(plain: Any) -> Namespace:
    fields = _Fields("namespace", plain)
    return fields.build(
        Namespace,
        device=fields.take("device", _integer),
        inode=fields.take("inode", _integer),
        boot=fields.take("boot", _string),
        holders=fields.take("holders", _tuple_of(_holder)),
        cookie=fields.maybe("cookie", _integer),
        process=fields.maybe("process", _string) or "",
        pod=fields.maybe("pod", _string) or "",
        container=fields.maybe("container", _string) or "",
        stack=fields.maybe("stack", stack_from_plain) or Stack(),
        sysctls=fields.maybe("sysctls", _sysctls) or (),
    )


def _holder(plain: Any) -> Holder:
    fields = _Fields("holder", plain)
    return fields.build(
        Holder,
        pid=fields.maybe("pid", _integer),
        started=fields.maybe("started", _integer),
        mount=fields.maybe("mount", _string),
    )


def _inside(plain: Any) -> Inside:
    fields = _Fields("interface in a namespace", plain)
    return fields.build(
        Inside,
        namespace=fields.take("namespace", _integer),
        netdev=fields.take("netdev", _netdev),
        carrier=fields.take("carrier", _boolean),
        rdma=fields.maybe("rdma", _string),
    )


def _pf(plain: Any) -> Pf:
    fields = _Fields("PF", plain)
    return fields.build(
        Pf,
        handle=DeviceHandle.parse(fields.take("handle", _string)),
        numvfs=fields.maybe("numvfs", _integer),
        autoprobe=fields.maybe("autoprobe", _boolean),
        netdev=fields.maybe("netdev", _netdev),
        vfs=fields.take("vfs", _tuple_of(_vf)),
        eswitch_mode=fields.maybe("eswitch_mode", _string),
        inline_mode=fields.maybe("inline_mode", _string),
        encap_mode=fields.maybe("encap_mode", _string),
        params=fields.maybe("params", _tuple_of(_devlink_param)) or (),
        representors=fields.maybe("representors", _tuple_of(_representor)) or (),
        rdma=fields.maybe("rdma", _rdma),
    )


def _devlink_param(plain: Any) -> Param:
    fields = _Fields("parameter", plain)
    return fields.build(
        Param,
        name=fields.take("name", _string),
        kind=fields.take("kind", _integer),
        value=fields.take("value", _anything),
    )


def _representor(plain: Any) -> Representor:
    fields = _Fields("representor", plain)
    return fields.build(
        Representor, port=fields.take("port", _string), netdev=fields.take("netdev", _netdev)
    )


def _rdma(plain: Any) -> RdmaDevice:
    fields = _Fields("RDMA device", plain)
    return fields.build(
        RdmaDevice,
        name=fields.take("name", _string),
        soft=fields.maybe("soft", _boolean) or False,
    )


def _anything(plain: Any) -> Any:
    return plain


def _vf(plain: Any) -> Vf:
    fields = _Fields("VF", plain)
    return fields.build(
        Vf,
        index=fields.take("index", _integer),
        address=fields.maybe("address", _string),
        driver=fields.maybe("driver", _string),
        driver_override=fields.maybe("driver_override", _string),
        admin_mac=fields.maybe("admin_mac", _mac),
        vlan=fields.maybe("vlan", _integer),
        qos=fields.maybe("qos", _integer),
        vlan_proto=fields.maybe("vlan_proto", _string),
        trust=fields.maybe("trust", _boolean),
        spoofchk=fields.maybe("spoofchk", _boolean),
        link_state=fields.maybe("link_state", _string),
        min_tx_rate=fields.maybe("min_tx_rate", _integer),
        max_tx_rate=fields.maybe("max_tx_rate", _integer),
        query_rss=fields.maybe("query_rss", _boolean),
        node_guid=fields.maybe("node_guid", _guid),
        port_guid=fields.maybe("port_guid", _guid),
        rdma=fields.maybe("rdma", _rdma),
        netdev=fields.maybe("netdev", _netdev),
        inside=fields.maybe("inside", _inside),
    )


def _netdev(plain: Any) -> Netdev:
    fields = _Fields("netdev", plain)
    return fields.build(
        Netdev,
        name=fields.take("name", _string),
        mac=fields.maybe("mac", _mac),
        mtu=fields.maybe("mtu", _integer),
        up=fields.maybe("up", _boolean),
        altnames=fields.maybe("altnames", _tuple_of(_string)),
        promisc=fields.maybe("promisc", _boolean),
        allmulti=fields.maybe("allmulti", _boolean),
        arp=fields.maybe("arp", _boolean),
        multicast=fields.maybe("multicast", _boolean),
        txqueuelen=fields.maybe("txqueuelen", _integer),
        group=fields.maybe("group", _integer),
        alias=fields.maybe("alias", _string),
        ethtool=fields.maybe("ethtool", _settings),
        sysctls=fields.maybe("sysctls", _sysctls),
        manager=fields.maybe("manager", _string),
    )


class _Fields:
    """The members of one JSON object: each is taken once, by name and parser, and none is left."""

    def __init__(self, what: str, plain: Any) -> None:
        if not isinstance(plain, Mapping):
            raise TypeError(f"{what} is not an object")
        self.what = what
        self.left = dict(plain)

    def take(self, name: str, parse: Callable[[Any], T]) -> T:
        if name not in self.left:
            raise ValueError(f"{self.what} has no {name!r}")
        return self._parsed(name, parse)

    def maybe(self, name: str, parse: Callable[[Any], T]) -> T | None:
        return self._parsed(name, parse) if name in self.left else None

    def build(self, make: Callable[..., T], /, **values: object) -> T:
        if self.left:
            raise ValueError(f"{self.what} has unknown members: {', '.join(sorted(self.left))}")
        return make(**values)

    def _parsed(self, name: str, parse: Callable[[Any], T]) -> T:
        try:
            return parse(self.left.pop(name))
        except TypeError as error:
            raise TypeError(f"{name!r} of {self.what}: {error}") from None


def _exactly(kind: type[T]) -> Callable[[Any], T]:
    def parse(plain: Any) -> T:
        # bool is a subclass of int: `type() is` keeps `true` out of numbers
        if type(plain) is not kind:
            raise TypeError(f"{plain!r} is not of type {kind.__name__}")
        return plain

    return parse


_string = _exactly(str)
_integer = _exactly(int)
_boolean = _exactly(bool)


def _mac(plain: Any) -> Mac:
    return Mac(_string(plain))


def _guid(plain: Any) -> Guid:
    return Guid(_string(plain))


def _tuple_of(parse: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def parse_all(plain: Any) -> tuple[T, ...]:
        if not isinstance(plain, list):
            raise TypeError(f"{plain!r} is not a list")
        return tuple(parse(item) for item in plain)

    return parse_all


def _settings(plain: Any) -> tuple[Setting, ...]:
    if not isinstance(plain, Mapping):
        raise TypeError(f"{plain!r} is not an object")
    for key, value in plain.items():
        if type(value) not in {bool, int}:
            raise TypeError(f"{key}: {value!r} is neither a number nor on or off")
    return tuple(sorted(plain.items()))


def _sysctls(plain: Any) -> tuple[Sysctl, ...]:
    if not isinstance(plain, Mapping):
        raise TypeError(f"{plain!r} is not an object")
    return tuple(sorted((key, _integer(value)) for key, value in plain.items()))


def _string_pairs(plain: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(plain, Mapping):
        raise TypeError(f"{plain!r} is not an object")
    return tuple(sorted((_string(key), _string(value)) for key, value in plain.items()))
