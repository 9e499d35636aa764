"""Children of our interfaces in other namespaces are told, and nobody else's."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nodeagent.kernel import rtnl
from nodeagent.kernel.netns import NamespaceGone, Namespaces
from nodeagent.kernel.rooms import children_in_other_namespaces
from nodeagent.kernel.rtnl import Link, Rtnl
from nodeagent.kernel.stack import linkinfo
from nodeagent.state.namespaces import Holder, Namespace

MACVLAN = linkinfo.child_info("macvlan", (("mode", 4),))


def child(name: str, elsewhere: tuple[int, int] | None, index: int = 2) -> Link:
    here = Link(
        index=index,
        name=name,
        mac=None,
        mtu=1500,
        up=True,
        carrier=True,
        bus=None,
        device=None,
        phys_port_name=None,
    )
    return Link(**{**vars(here), "info": MACVLAN, "foreign_parent": elsewhere})


class Told(Namespaces):
    """Two namespaces, of which one has gone by the time it is looked at."""

    def scan(self) -> dict[int, tuple[Holder, ...]]:
        return {7: (Holder(pid=4, started=1),), 8: ()}

    @contextmanager
    def seen(self, inode: int, holders: Iterable[Holder]) -> Iterator[int]:
        if not holders:
            raise NamespaceGone("nobody holds it any more")
        yield inode

    def described(self, fd: int, holders: tuple[Holder, ...]) -> Namespace:
        return Namespace(4, fd, "boot", holders, process="sleep")


class Room:
    """The host's namespace has number 5 in there, or none."""

    def __init__(self, links: list[Link], number: int | None = 5) -> None:
        self.rtnl: Any = self
        self._links, self._number = links, number

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def links(self) -> dict[int, Link]:
        return dict(enumerate(self._links))

    def number_of(self, fd: int) -> int | None:
        assert os.fstat(fd)
        return self._number


@pytest.mark.parametrize(
    ("elsewhere", "number", "count"),
    [((3, 5), 5, 1), ((4, 5), 5, 0), ((3, 6), 5, 0), (None, 5, 0), ((3, 5), None, 0)],
)
def test_only_ours_and_only_in_this_namespace(
    elsewhere: tuple[int, int] | None, number: int | None, count: int
) -> None:
    def room(_fd: int) -> Any:
        return Room([child("lo", None), child("net1", elsewhere)], number)

    found = list(children_in_other_namespaces(Told(), {3: "enp1s0"}, room))
    assert [text.partition(" in ")[0] for text in found] == ["macvlan net1 on enp1s0"] * count


def test_the_number_of_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rtnl() as edge:
        for answer, number in ((3, 3), (-1, None)):
            body = bytes(20) + struct.pack("=HHi", 8, rtnl.NETNSA_NSID, answer)
            monkeypatch.setattr(edge, "ask", lambda _, body=body: [body])
            assert edge.number_of(0) == number
