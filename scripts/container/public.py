"""The image on a public base, by whichever of podman, docker and buildah there is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from emulator.host import LabError, say

from container.recipe import OVER_DOCA, ROOT, revision, version

ENGINES = ("podman", "docker", "buildah")
"""The first that works: a docker client may be there without its daemon."""
Trial = tuple[int, tuple[str, ...], str]
TRIED: tuple[Trial, ...] = (
    (0, ("--help",), "exactly as it was"),
    (1, ("sources",), "NVIDIA_NIC_DRIVER_VER is not set"),
    (64, ("no-such-mode",), "no-such-mode"),
    (1, ("probe", "ready"), "not ready: "),
)
"""What the image is called with, how that ends, and what it says."""
TRIED_OVER_DOCA: tuple[Trial, ...] = (
    (0, ("--help",), "Reload if needed, restore, verify, be ready, stay"),
    (64, ("no-such-mode",), "no-such-mode"),
)
"""It has NVIDIA_NIC_DRIVER_VER of its base, so that `sources` would begin."""


def build(base: str, targets: Sequence[str]) -> None:
    """Build each target on `base` and try it; LabError when there is no engine or it fails."""
    engine = _engine()
    for target in targets:
        _build(engine, target, f"BASE={base}", f"nodeagent:{target}", TRIED)


def over(driver: str, image: str) -> None:
    """Build `image`, nodeagent over the driver image `driver`, and try it; LabError as above."""
    _build(_engine(), OVER_DOCA, f"DOCA_DRIVER={driver}", image, TRIED_OVER_DOCA)


def _engine() -> str:
    engine = next((name for name in ENGINES if _works(name)), None)
    if engine is None:
        raise LabError(
            f"none of {', '.join(ENGINES)} works here", hint="install one, or build without --base"
        )
    return engine


def _build(engine: str, target: str, base: str, image: str, tried: Sequence[Trial]) -> None:
    say(f"{engine}: {image}, {base}")
    arguments = (base, f"VERSION={version()}", f"REVISION={revision()}")
    _run(engine, "build", "--target", target,
         *(word for each in arguments for word in ("--build-arg", each)),
         "--tag", image, "--file", str(ROOT / "Containerfile"), str(ROOT))  # fmt: skip
    if engine == "buildah":  # it keeps images and runs none
        say(f"{image} is built, and not tried")
        return
    for status, words, says in tried:
        _expect(status, (engine, "run", "--rm", "--network=none", image, *words), says)
    size = _said(engine, "image", "inspect", "--format", "{{.Size}}", image).stdout
    print(f"{image}  {int(size) / 1e6:.0f} MB unpacked")


def _works(engine: str) -> bool:
    return shutil.which(engine) is not None and _said(engine, "info").returncode == 0


def _run(*argv: str) -> None:
    # Debian's docker builds with BuildKit, which knows RUN --mount, only when it is told to.
    done = subprocess.run(argv, env=os.environ | {"DOCKER_BUILDKIT": "1"}, check=False)
    if done.returncode:
        raise LabError(
            f"{' '.join(argv[:2])} exited {done.returncode}", hint="see its output above"
        )


def _expect(status: int, argv: tuple[str, ...], says: str) -> None:
    done = _said(*argv)
    if done.returncode != status or says not in done.stdout + done.stderr:
        raise LabError(
            f"{' '.join(argv)} exited {done.returncode}, not {status} with {says!r}: "
            f"{done.stdout[-500:]}{done.stderr[-500:]}",
            hint="the Containerfile and scripts/container decide what is in it",
        )


def _said(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)
