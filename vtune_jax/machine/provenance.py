"""Where results come from: commit, versions, machine."""

import dataclasses
import functools
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "vtune-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "tokenizers",
)
"""The packages whose versions may change results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Program and machine that computed something."""

    commit: str  # see `commit`
    versions: dict[str, str]  # of Python and of `PACKAGES`
    machine: str  # processor, number and kind of devices

    @staticmethod
    @functools.cache
    def here() -> "Provenance":
        """The provenance of what this process computes."""
        import jax

        return Provenance(
            commit=commit(),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            machine=f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
        )


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
