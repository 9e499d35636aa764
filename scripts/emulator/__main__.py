"""scripts/lab: a node with real SR-IOV functions, emulated, for trying and testing nodeagent."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from signal import Signals

from container.local import Local

from emulator import cache, host, roundtrip
from emulator.build import Builder
from emulator.host import FAILED, LabError
from emulator.machine import Nic, Options
from emulator.run import run
from emulator.session import Command

EPILOG = """\
examples:
  scripts/lab run -- ip -br link                  a command in a fresh node; its exit status is ours
  scripts/lab run --pfs 8 -- nodeagent snapshot   nodeagent from the working tree, as it is now
  scripts/lab test -k openibd                     pytest in the node (default: tests/lab)
  scripts/lab test --nic connectx                 on the genuine mlx5_core (tests/lab/connectx)
  scripts/lab roundtrip --seeds 1-20              20 random nodes: the same after a reload?
  scripts/lab shell                               look around

In the node: PFs enp1s0, enp2s0 ... with 7 VFs each to create, on driver build A (lab-driver B puts
the other build on disk), /etc/init.d/openibd, netdevsim, udevd, the working tree in /opt/nodeagent,
and the run's directory on the host as /host (what is left in /host/out goes to --out).

With --nic connectx: PFs enp1s0f0np0, enp1s0f1np1, enp2s0f0np0 ..., two on a card, with --vfs VFs
each, on the genuine mlx5_core and mlx5_ib, which lab-driver inbox|A|B changes. A VF that is bound
takes 7 MiB of the node's memory. The cards' commands are logged in /host/firmware.log, and
/dev/virtio-ports/lab.qmp leads to QEMU's monitor, in which `qom-set` of /machine/peripheral/pf0
makes faults. QEMU is built for it once, in some minutes.

Exit status 125 is the lab's own failure: it could not be built, or the node stalled.
"""

CONNECTX_TESTS = "tests/lab/connectx"
DEFAULT_TESTS = {
    Nic.IGB: ["tests/lab", f"--ignore={CONNECTX_TESTS}"],
    Nic.CONNECTX: [CONNECTX_TESTS],
}


def main() -> int:
    arguments, rest = _parse(sys.argv[1:])
    try:
        with host.terminated_by_signals():
            return _perform(arguments, rest, _builder())
    except LabError as error:
        print(f"lab: {error}\nhint: {error.hint}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return FAILED
    except KeyboardInterrupt as signal:
        name = str(signal) or "SIGINT"
        print(f"lab: stopped by {name}", file=sys.stderr)
        return 128 + Signals[name]


def _builder() -> Builder:
    root = cache.default_root()
    try:
        return Builder(root)
    except OSError as error:
        raise LabError(
            f"cannot keep what the lab is made of in {root}: {error.strerror}",
            hint=f"name another place by XDG_CACHE_HOME. {host.WORKS_WITHOUT_LAB}",
        ) from error


def _perform(arguments: argparse.Namespace, rest: list[str], builder: Builder) -> int:
    match arguments.verb:
        case "build":
            builder.ready(_options(arguments), newer=arguments.newer)
            host.say(f"built: {builder.root}")
            return 0
        case "clean":
            return _clean(builder)
        case "run":
            return _run(arguments, builder, rest)
        case "test":
            return _run(arguments, builder, _pytest(rest, Nic(arguments.nic)))
        case "roundtrip" if arguments.show:
            return roundtrip.show(Nic(arguments.nic), arguments.seeds)
        case "roundtrip":
            return roundtrip.round_trips(builder, Nic(arguments.nic), arguments.seeds)
        case _:
            return _shell(arguments, builder)


def _shell(arguments: argparse.Namespace, builder: Builder) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LabError("the shell needs a terminal", hint="scripts/lab run -- COMMAND needs none")
    return run(builder, _options(arguments), Command(["bash", "-i"], terminal=True))


def _run(arguments: argparse.Namespace, builder: Builder, argv: list[str]) -> int:
    command = Command(argv, arguments.timeout, may_reset=arguments.disk is not None)
    bring = [*arguments.bring]
    if arguments.image:
        root = builder.root.with_name("image")
        made = Local(root, builder.root / "apt").ready("driver")
        bring += [made / "root.ext4", made / "config.json"]
    return run(
        builder,
        _options(arguments),
        command,
        out=arguments.out,
        bring=bring,
        keep=arguments.keep,
    )


def _pytest(arguments: list[str], nic: Nic) -> list[str]:
    given = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    default = [] if given else DEFAULT_TESTS[nic]
    # hypothesis' plugin would build its table of Unicode first: 4 s of every run.
    without = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    return ["python3", "-m", "pytest", *without, *arguments, *default]


def _clean(builder: Builder) -> int:
    used = builder.cache.clean()
    if used:
        raise LabError(
            f"a running lab uses {', '.join(used)}", hint="clean again when it has ended"
        )
    shutil.rmtree(builder.root)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    disk = getattr(arguments, "disk", None)
    return Options(
        Nic(arguments.nic),
        arguments.pfs,
        arguments.vfs,
        arguments.mem,
        arguments.virtual_time,
        disk,
    )


def _pfs(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 8:
        raise argparse.ArgumentTypeError("the node has 1 to 8 PFs")
    return number


def _vfs(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 127:
        raise argparse.ArgumentTypeError("a PF of the ConnectX can make 1 to 127 VFs")
    return number


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} names no seed: say 7, or 1-20")
    return found


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and those for the command or for pytest in the order given."""
    parser = _parser()
    ours, theirs = argv, list[str]()
    if "--" in argv:
        at = argv.index("--")
        ours, theirs = argv[:at], argv[at + 1 :]
    arguments, unknown = parser.parse_known_args(ours)
    rest = [*unknown, *theirs]
    if arguments.verb == "run" and not rest:
        parser.error("nothing to run; scripts/lab run [options] -- COMMAND ...")
    if arguments.verb not in ("run", "test") and rest:
        parser.error(f"don't know what to do with {' '.join(rest)}")
    return arguments, rest


def _parser() -> argparse.ArgumentParser:
    card = argparse.ArgumentParser(add_help=False)
    card.add_argument(
        "--nic",
        choices=[nic.value for nic in Nic],
        default=Nic.IGB,
        help="igb behind a stand-in for mlx5_core (default), or a ConnectX with the genuine one",
    )
    machine = argparse.ArgumentParser(add_help=False, parents=[card])
    machine.add_argument("--pfs", type=_pfs, default=2, metavar="N", help="PFs, 1 to 8 (default 2)")
    machine.add_argument(
        "--vfs",
        type=_vfs,
        default=8,
        metavar="N",
        help="VFs that each PF of the ConnectX can make, 1 to 127 (default 8)",
    )
    machine.add_argument(
        "--mem", type=int, default=1024, metavar="MIB", help="memory in MiB (default 1024)"
    )
    machine.add_argument(
        "--virtual-time",
        action="store_true",
        help="one processor whose clock counts instructions and skips sleep (QEMU's icount)",
    )
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds after which the node counts as stalled (default: run 600, test 2700)",
    )
    limits.add_argument("--out", type=Path, metavar="DIR", help="where /host/out goes at the end")

    limits.add_argument(
        "--bring",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="put a file into /host",
    )
    limits.add_argument(
        "--disk",
        type=Path,
        metavar="FILE",
        help="a disk, /dev/vdb: the node boots with it, and may reset itself (status 121)",
    )
    limits.add_argument(
        "--image", action="store_true", help="bring nodeagent's image, for the tests marked so"
    )
    limits.add_argument(
        "--keep", action="store_true", help="keep the run's directory: /host, serial log"
    )

    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        allow_abbrev=False,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    build = verbs.add_parser("build", parents=[machine], help="make everything that takes time")
    build.add_argument("--newer", action="store_true", help="look for newer packages first")
    in_node = verbs.add_parser(
        "run",
        allow_abbrev=False,
        usage="scripts/lab run [options] -- COMMAND ...",
        parents=[machine, limits],
        help="run a command in a fresh node",
    )
    in_node.set_defaults(timeout=600)
    test = verbs.add_parser(
        "test",
        allow_abbrev=False,
        usage="scripts/lab test [options] [pytest arguments]",
        parents=[machine, limits],
        help="run pytest in a fresh node",
    )
    test.set_defaults(timeout=2700)
    trip = verbs.add_parser(
        "roundtrip",
        parents=[card],
        help="reload a random node, and compare all that its tools print before and after",
    )
    trip.add_argument(
        *("--seed", "--seeds"),
        type=_seeds,
        dest="seeds",
        required=True,
        metavar="N|A-B",
        help="of one node, or of several, each in a fresh node",
    )
    trip.add_argument("--show", action="store_true", help="print the node as a script, run nothing")
    verbs.add_parser("shell", parents=[machine], help="a shell in a fresh node")
    verbs.add_parser("clean", help="remove all that was made, unless a running lab uses it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
