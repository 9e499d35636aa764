"""scripts/image: build nodeagent's image, try it, and write it as an OCI archive."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from signal import Signals

from emulator import cache, host
from emulator.host import FAILED, LabError

from container import names, public
from container.local import Local
from container.recipe import OVER_DOCA, TARGETS

EPILOG = """\
Without --base the base is a Debian made here of this machine's own packages (buildah: no daemon, no
registry; on Debian, as root; what is missing is installed by apt). With --base it is that image,
pulled and built upon with podman, docker or buildah, whichever there is:

  scripts/image                                both targets, tried, on a local Debian
  scripts/image --base debian:12-slim          the same on a public base
  scripts/image --base redhat/ubi9-minimal     the default base of the Containerfile

The target over-doca puts nodeagent over NVIDIA's driver image, for a NicClusterPolicy. Without
--doca-driver it is built on a stand-in for that image, to be tried, not to be used:

  scripts/image --tag-for 25.10-1.2.8.0-0 --os ubuntu24.04
  scripts/image --doca-driver IMAGE --tag-for 25.10-1.2.8.0-0 --os ubuntu24.04

What was built is kept; a second call only prints where it is. Exit status 125: it could not be
built, or does not do what it must.
"""


def main() -> int:
    arguments = _parse(sys.argv[1:])
    try:
        if arguments.tag_for and not arguments.doca_driver:
            print(_name(arguments))
            return 0
        with host.terminated_by_signals():
            if arguments.doca_driver:
                image = _name(arguments) if arguments.tag_for else f"nodeagent:{OVER_DOCA}"
                public.over(arguments.doca_driver, image)
            elif arguments.base:
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


def _name(arguments: argparse.Namespace) -> str:
    """As the Network Operator asks for it."""
    image = names.tag_for(
        arguments.tag_for, arguments.os or "", arch=arguments.arch, kernel=arguments.kernel
    )
    return f"{arguments.repository.rstrip('/')}/{image}" if arguments.repository else image


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
    parser.add_argument(
        "--target",
        action="append",
        choices=(*TARGETS, OVER_DOCA),
        help=f"default: {' and '.join(TARGETS)}",
    )
    parser.add_argument("--base", metavar="IMAGE", help="a public base image")
    parser.add_argument("--doca-driver", metavar="IMAGE", help="build over-doca on this image")
    parser.add_argument(
        "--tag-for",
        metavar="VERSION",
        help="print the name that the Network Operator asks for, for this ofedDriver.version; "
        "with --doca-driver, build it under that name",
    )
    parser.add_argument("--os", metavar="IDVERSION", help="with --tag-for: ubuntu24.04, rhel9.4")
    parser.add_argument("--arch", help="with --tag-for: amd64, arm64; default: this machine's")
    parser.add_argument("--kernel", default="", help="with --tag-for: precompiled for this kernel")
    parser.add_argument("--repository", help="with --tag-for: ofedDriver.repository")
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy the OCI archives there")
    parser.add_argument("--quiet", action="store_true", help="print the archive's path only")
    arguments = parser.parse_args(argv)
    arguments.target = arguments.target or list(TARGETS)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
