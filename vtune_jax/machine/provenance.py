"""Where results come from: commit, versions, machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def commit() -> str:
    """The commit of the source tree, with `+` if it has changes; empty when it is not a git checkout."""
    source = Path(sys.modules["vtune_jax"].__path__[0]).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()
