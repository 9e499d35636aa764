"""scripts/image: build nodeagent's image, try it, and write it as an OCI archive."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from signal import Signals

from emulator import cache, host
from emulator.host import FAILED, LabError

from container import public
from container.local import Local
from container.recipe import TARGETS

EPILOG = """\
Without --base the base is a Debian made here of this machine's own packages (buildah: no daemon, no
registry; on Debian, as root; what is missing is installed by apt). With --base it is that image,
pulled and built upon with podman, docker or buildah, whichever there is:

  scripts/image                                both targets, tried, on a local Debian
  scripts/image --base debian:12-slim          the same on a public base
  scripts/image --base redhat/ubi9-minimal     the default base of the Containerfile

What was built is kept; a second call only prints where it is. Exit status 125: it could not be
built, or does not do what it must.
"""


def main() -> int:
    arguments = _parse(sys.argv[1:])
    try:
        with host.terminated_by_signals():
            if arguments.base:
                public.build(arguments.base, arguments.target)
            else:
                _local(arguments)
    except LabError as error:
        print(f"image: {error}\nhint: {error.hint}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as signal:
        name = str(signal) or "SIGINT"
        print(f"image: stopped by {name}", file=sys.stderr)
        return 128 + Signals[name]
    return 0


def _local(arguments: argparse.Namespace) -> None:
    local = Local(cache.default_root().with_name("image"), cache.default_root() / "apt")
    for target in arguments.target:
        made = local.ready(target)
        print(made / "image.oci.tar" if arguments.quiet else (made / "report.txt").read_text())
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            archive = arguments.out / f"nodeagent-{target}.oci.tar"
            archive.write_bytes((made / "image.oci.tar").read_bytes())


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/image",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--base", metavar="IMAGE", help="a public base image")
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy the OCI archives there")
    parser.add_argument("--quiet", action="store_true", help="print the archive's path only")
    arguments = parser.parse_args(argv)
    arguments.target = arguments.target or list(TARGETS)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
