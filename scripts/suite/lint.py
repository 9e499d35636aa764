"""The linters alone, one after the other: all of them, or those that are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from suite import checks

TREE = Path(__file__).parent.parent.parent


def main(names: list[str]) -> int:
    environment = Path(sys.prefix)
    os.environ["PATH"] = f"{environment / 'bin'}:{os.environ['PATH']}"
    os.environ.pop("PYTHONPATH", None)  # it was for this program
    found = {check.name: check for check in checks.linters(TREE, environment)}
    if unknown := [name for name in names if name not in found]:
        said = f"no linter {', '.join(unknown)}: there are {', '.join(found)}"
        print(f"lint: {said}", file=sys.stderr)
        return 2
    chosen = [found[name] for name in names or found]
    ended = [subprocess.run(check.argv, cwd=TREE, check=False).returncode for check in chosen]
    return 1 if any(ended) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
