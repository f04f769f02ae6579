"""`vtune-jax doctor`: versions, devices, and what to do about a missing accelerator."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from vtune_jax.machine.provenance import PACKAGES


class Check(NamedTuple):
    """A finding of the doctor, with what to do about it."""

    name: str
    good: bool
    found: str
    advice: str = ""


def checks() -> list[Check]:
    """What is found about the installation and the machine."""
    return [*_versions(), *_devices(), _space()]


def main() -> int:
    """Prints the checks; returns the exit code, 1 if a check failed."""
    found = checks()
    width = max(len(check.name) for check in found)
    for check in found:
        print(f"{'ok ' if check.good else 'NO '} {check.name:{width}}  {check.found}")
        if check.advice:
            print(f"    {'':{width}}  {check.advice}")
    return 0 if all(check.good for check in found) else 1


def _versions() -> list[Check]:
    lines = [Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for package in PACKAGES:
        try:
            lines.append(Check(package, True, version(package)))
        except PackageNotFoundError:
            lines.append(Check(package, False, "not installed", "pip install -e ."))
    return lines


def _devices() -> list[Check]:
    try:
        import jax
        import jax.numpy as jnp

        devices = jax.devices()
        value = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8))))
    # Drivers of accelerators raise many kinds of error; its words are what is found.
    except Exception as error:
        return [
            Check(
                "devices",
                False,
                (str(error).strip() or type(error).__name__).splitlines()[0][:120],
                _no_devices(),
            )
        ]
    lines = [
        Check("devices", True, f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})"),
        Check("a compiled product", value == 512.0, f"{value:g}, expected 512"),
    ]
    missing = missing_accelerator(jax.default_backend(), present_accelerator())
    return [*lines, missing] if missing else lines


def _no_devices() -> str:
    asked = os.environ.get("JAX_PLATFORMS")
    if asked and asked != "cpu":
        return f"unset JAX_PLATFORMS={asked}, or install what it needs: pip install -e '.[{asked.partition(',')[0]}]'"
    return "reinstall with the extra for your accelerator"


def present_accelerator() -> str:
    """`cuda` or `tpu`, by what the operating system shows; empty if it shows neither."""
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    if any(Path("/dev").glob("accel*")) or os.environ.get("TPU_NAME"):
        return "tpu"
    return ""


def missing_accelerator(backend: str, present: str) -> Check | None:
    """The failed check of a machine whose accelerator jax does not use; None if nothing is amiss.

    Args:
        backend: that jax uses.
        present: as `present_accelerator` tells.
    """
    if not present or backend != "cpu":
        return None
    advice = f"pip install -e '.[{present}]'"
    if present == "cuda":
        advice += "   (for a driver that only knows CUDA 12: '.[cuda12]')"
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        advice = "unset JAX_PLATFORMS, which holds jax to the CPU"
    return Check("accelerator", False, f"the machine has an accelerator ({present}), jax uses the CPU", advice)


def _space() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return Check("free disk space here", free > 1, f"{free:.1f} GiB", "" if free > 1 else "the quick start needs 1 GiB")
