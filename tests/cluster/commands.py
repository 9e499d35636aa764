"""Runs nodeagent's commands as a pod would: its environment and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Pod:
    """The environment of a process on a node."""

    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "nodeagent", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **self.environment},
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """One command that stays."""
        return subprocess.Popen(
            [sys.executable, "-m", "nodeagent", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **self.environment},
        )
