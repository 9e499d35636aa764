"""The image on a public base, by whichever of podman, docker and buildah there is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from emulator.host import LabError, say

from container.recipe import ROOT

ENGINES = ("podman", "docker", "buildah")


def build(base: str, targets: Sequence[str]) -> None:
    """Build each target on `base` and try it; LabError when there is no engine or it fails."""
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        raise LabError(
            f"none of {', '.join(ENGINES)} is here", hint="install one, or build without --base"
        )
    for target in targets:
        image = f"nodeagent:{target}"
        say(f"{engine}: {image} on {base}")
        _run(engine, "build", "--target", target, "--build-arg", f"BASE={base}", "--tag", image,
             "--file", str(ROOT / "Containerfile"), str(ROOT))  # fmt: skip
        if engine != "buildah":
            _run(engine, "run", "--rm", "--network=none", image, "--help")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False)
    if done.returncode:
        raise LabError(
            f"{' '.join(argv[:2])} exited {done.returncode}", hint="see its output above"
        )
