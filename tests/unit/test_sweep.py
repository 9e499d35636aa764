"""Which points of a run are places of their own, and how nodes share them."""

from __future__ import annotations

from tests.support.sweep import Share, places

POINTS = """\
1 lock /run/lock
2 remove /run/ready
3 fsync directory /run
4 append to /state/journal.jsonl
5 fsync /state/journal.jsonl
6 create /state/open-snapshot.json
7 write /state/open-snapshot.json
8 fsync /state/open-snapshot.json
9 name /state/open-snapshot.json
10 fsync directory /state
12 runs /etc/init.d/openibd restart
11 run /etc/init.d/openibd restart
13 append to /state/journal.jsonl
14 send netlink changes 1
""".splitlines()


def test_what_changes_nothing_makes_no_place() -> None:
    """The first point, and each that comes right after a change; threads write in any order."""
    assert places(POINTS) == [1, 2, 3, 7, 8, 10, 12, 13]


def test_nodes_share_all_of_it() -> None:
    numbers = range(1, 78)
    shares = [Share(part, 3, every_point=False) for part in (1, 2, 3)]
    assert sorted(n for share in shares for n in share.of(numbers)) == [*numbers]
    stretches = [share.stretch(77) for share in shares]
    assert [n for first, last in stretches for n in range(first, last + 1)] == [*numbers]
