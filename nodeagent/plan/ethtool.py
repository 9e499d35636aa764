"""ethtool settings: which differ, which a driver does not offer any more, and the commands.

A setting is compared only if the interface offers it. A new driver may lack what the old one
offered: that cannot be restored, so it is logged (`no_longer_offered`) and is no difference.

igb resets its channels when it creates VFs (igb_init_queue_configuration()): those of the PF are
set before it is up, and the next plan sets them again if that was too early.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from nodeagent.state import queues
from nodeagent.state.ethtool import EthtoolKind, Setting, Value
from nodeagent.state.model import Netdev, NodeState

OPTIONS: Final = {
    EthtoolKind.PRIVFLAGS: "--set-priv-flags",
    EthtoolKind.CHANNELS: "-L",
    EthtoolKind.RINGS: "-G",
    EthtoolKind.COALESCE: "-C",
    EthtoolKind.PAUSE: "-A",
    EthtoolKind.FEATURES: "-K",
}
"""ethtool(8)'s option for each kind; the other kinds have a command for each setting."""


def differing(want: Netdev, have: Netdev) -> Iterator[tuple[Setting, Value]]:
    """Each setting that is not as wanted, with its present value. None if either is not known."""
    now = dict(have.ethtool or ())
    for key, value in want.ethtool or ():
        if key in now and not queues.agree(key, value, now[key]):
            yield (key, value), now[key]


def to_set(want: Netdev, have: Netdev | None) -> tuple[Setting, ...]:
    """The settings to set, sorted; none for an interface that does not exist yet.

    The next plan sets those of a new interface. A setting that `have` lacks is set together with
    others of its kind: rx-usecs is not reported while adaptive coalescing is on, and applies again
    once it is off.
    """
    changes = {setting for setting, _ in differing(want, have)} if have is not None else set()
    kinds = {_kind(key) for key, _ in changes}
    now = dict((have and have.ethtool) or ())
    return tuple(
        setting
        for setting in want.ethtool or ()
        if setting in changes or (setting[0] not in now and _kind(setting[0]) in kinds)
    )


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each setting that an interface had and its driver does not offer any more."""
    for on, netdev in want.targets():
        now = have.netdev_of(on)
        if now is None or now.ethtool is None:
            continue
        offered = {key for key, _ in now.ethtool}
        for key, value in netdev.ethtool or ():
            if key not in offered:
                yield f"{now.name} ({on.pf}) {key}: was {_word(value)}"


def commands(values: tuple[Setting, ...], name: str) -> Iterator[str]:
    """Lines for ethtool(8), one a kind: `ethtool -G enp1s0 rx 512 tx 512`."""
    for kind in EthtoolKind:
        own = [(key, value) for key, value in values if _kind(key) == kind]
        if kind not in OPTIONS:
            for key, value in own:
                yield from _receive_commands(key, str(value), name)
        elif own:
            words = (f"{shlex.quote(key.partition('.')[2])} {_word(value)}" for key, value in own)
            yield f"ethtool {OPTIONS[kind]} {name} {' '.join(words)}"


def _receive_commands(key: str, value: str, name: str) -> Iterator[str]:
    """One a setting; comments for what ethtool(8) cannot set."""
    kind, _, word = key.partition(".")
    if key in queues.FILES:
        yield from queues.commands(key, value, name)
        return
    if value.startswith("queues"):
        yield f"# ethtool has no words for this table of {name}: {value}"
    elif word == "table":
        yield f"ethtool -X {name} {value}"
    elif value.startswith("default"):
        digits = 3 * int(value.removeprefix("default")) - 1
        yield f"ethtool -X {name} hkey $(cut -c1-{digits} /proc/sys/net/core/netdev_rss_key)"
    elif kind == EthtoolKind.RSS:
        yield f"ethtool -X {name} {word} {value}"
    elif kind == EthtoolKind.RX_FLOW_HASH:
        yield f"ethtool -N {name} {kind} {word} {value}"
    elif kind == EthtoolKind.NTUPLE:
        yield f"ethtool -n {name} | sed -n 's/^Filter: //p' | xargs -rn1 ethtool -N {name} delete"
        for rule in filter(None, value.split("; ")):
            has_words = not rule.startswith("raw")
            yield f"ethtool -N {name} {rule}" if has_words else f"# no words for {name}'s {rule}"


def _kind(key: str) -> str:
    return key.partition(".")[0]


def _word(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
