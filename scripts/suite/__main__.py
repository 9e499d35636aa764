"""Every check there is: linters, unit tests and cluster tests on this host, lab tests inside the
emulated node. The cluster tests need kube-apiserver and etcd, in $KUBEBUILDER_ASSETS or on $PATH.
Several checks run at the same time, one more than there are processors, because some sleep while
others work.
All of them run even if one fails. Exit status 0 only if all of them passed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from suite import checks
from suite.changed import Broken, Change, ChangeError, broken_by, change
from suite.checks import Check
from suite.run import Lanes, Result

TREE = Path(__file__).parent.parent.parent
MOST_LANES = 4
STOPPED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    arguments = _parse()
    environment = Path(sys.prefix)
    os.environ["PATH"] = f"{environment / 'bin'}:{os.environ['PATH']}"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.pop("PYTHONPATH", None)  # it was for this program
    os.chdir(TREE)
    try:
        differing = None if arguments.changed is None else change(TREE, arguments.changed)
    except ChangeError as error:
        print(f"scripts/test: {error}", file=sys.stderr)
        return 2
    broken = None if differing is None else _broken(differing, arguments)
    processors = len(os.sched_getaffinity(0))
    lanes = Lanes(min(processors + 1, MOST_LANES))
    stop_by_signals(lanes)
    # In CI the absence of an API server is a failure, which the tests themselves report.
    cluster = checks.have_api_server() or bool(os.environ.get("CI"))
    with tempfile.TemporaryDirectory() as work:
        chosen = [*checks.linters(TREE, environment)]
        if broken is None:
            chosen += _chosen(arguments, Path(work), cluster=cluster)
        else:
            kept = broken if cluster else replace(broken, cluster=())
            chosen += checks.for_a_change(TREE, Path(work), kept)
        results = lanes.run(chosen)
    return _summary(results, list(_left_out(arguments, broken, cluster=cluster)))


def _broken(differing: Change, arguments: argparse.Namespace) -> Broken:
    """What the change can have broken; printed, because it decides what is run."""
    broken = broken_by(TREE, differing.files)
    if arguments.no_lab:
        broken = replace(broken, igb=(), connectx=(), launcher=())
    if arguments.no_connectx:
        broken = replace(broken, connectx=())
    print(f"changed since {differing.commit[:12]}: {len(differing.files)} files")
    for name in differing.files:
        print(f"  {name}")
    print(
        f"can have broken: {len(broken.unit)} files of unit tests, "
        f"{len(broken.cluster)} of cluster tests; {len(broken.launcher)} tests of the launcher, "
        f"{len(broken.igb)} in the emulated node, {len(broken.connectx)} on the ConnectX",
        flush=True,
    )
    return broken


def _chosen(arguments: argparse.Namespace, work: Path, *, cluster: bool) -> Iterator[Check]:
    """What takes longest begins first, once the linters have begun."""
    if not arguments.no_lab:
        which = {"wide": not arguments.fast, "every_point": arguments.every_point}
        if not arguments.no_connectx:
            yield from checks.on_the_connectx(TREE, work, **which)
        yield from checks.in_the_node(TREE, work, **which)
        chosen = ("-m", "not connectx") if arguments.no_connectx else ()
        yield checks.on_this_host("launcher", work, *chosen)
    if cluster:
        yield checks.on_this_host("cluster", work)
    yield checks.on_this_host("unit", work)


def _left_out(
    arguments: argparse.Namespace, broken: Broken | None, *, cluster: bool
) -> Iterator[str]:
    if broken is not None:
        if broken.cluster and not cluster:
            yield "cluster: no kube-apiserver and etcd in $KUBEBUILDER_ASSETS or $PATH"
        if number := len(broken.left_out):
            yield f"{number} tests that the change can have broken too, and that are not short"
        if arguments.no_lab:
            yield "lab (--no-lab): nothing was tested in the emulated node"
        return
    if not cluster:
        yield "cluster: no kube-apiserver and etcd in $KUBEBUILDER_ASSETS or $PATH"
    if arguments.no_lab:
        yield "lab (--no-lab): nothing was tested in the emulated node"
        return
    if not arguments.every_point:
        yield "points between which nothing changes, 15 of 20 phases (--every-point runs them)"
    if arguments.fast:
        yield "lab, 8 PFs (--fast)"
    if arguments.no_connectx:
        yield "connectx (--no-connectx): nothing was tested on the genuine mlx5_core"


def _summary(results: list[Result], left_out: list[str]) -> int:
    print("\nsummary")
    for result in results:
        print(result)
    for what in left_out:
        print(f"SKIPPED {what}")
    # at the end, because a report of CI shows what was printed last
    for result in results:
        for line in result.failures:
            print(f"FAILED  {result.check.name}: {line}")
    passed, failed, skipped = (
        sum(getattr(result, key) for result in results) for key in ("passed", "failed", "skipped")
    )
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0 if all(result.good for result in results) else 1


def stop_by_signals(lanes: Lanes) -> None:
    """From now on a signal ends what runs, and then us.

    The handler takes the lanes' lock, which otherwise only workers hold. A second signal must not
    interrupt it there: timeout(1) sends one to us, and one to our process group.
    """

    def stop(number: int, _frame: object) -> None:
        for each in STOPPED_BY:
            signal.signal(each, signal.SIG_IGN)
        lanes.end()
        sys.exit(128 + number)

    for each in STOPPED_BY:
        signal.signal(each, stop)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument(
        "--every-point",
        action="store_true",
        help="end nodeagent at each point of a sweep. Without it, once at each place: points "
        "between which nothing changes but the log, or only an fsync(2) is done, are one place; a "
        "second signal while it ends comes at every other place; on a ConnectX at 8 places; and "
        "CNIs are at work in 5 phases of a reload, not in 20",
    )
    how_much.add_argument(
        "--changed",
        nargs="?",
        const="",
        metavar="COMMIT",
        help="only what a change can have broken: the linters, the tests that import or name a "
        "changed file, directly or through others, and of the tests in the emulated node those "
        "marked `short` and those of changed test files. What changed: all that differs from "
        "COMMIT; without one, from where the branch left main, or if that is nothing, from HEAD^",
    )
    parser.add_argument(
        "--fast", action="store_true", help="without the tests that need a node with 8 PFs"
    )
    parser.add_argument(
        "--no-lab",
        action="store_true",
        help="without the emulated node at all: linters, unit and cluster tests only",
    )
    parser.add_argument(
        "--no-connectx",
        action="store_true",
        help="without the node with a ConnectX, where its QEMU cannot be built",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
