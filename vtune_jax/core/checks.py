"""Refuses numbers outside their range where they are defined."""

import math

from vtune_jax.core.types import Scalar

MOST = 2**31 - 1
"""The largest number of steps, rows or sizes: what 32-bit integers on an accelerator can count."""


FAR = 2**16


def assert_within(low: int | float = 0.0, high: int | float = math.inf, **values: int | Scalar) -> None:
    """Refuses numbers outside [low, high], NaN included.

    Traced values (hyper-parameters under `jit`, `vmap` or `grad`) have no known size while building and pass.

    Raises:
        ValueError: naming argument and value.
    """
    for name, value in values.items():
        if not isinstance(value, int | float) or low <= value <= high:
            continue
        # Of a wide range only the end that was passed is of use.
        if high == math.inf or (value < low and high >= FAR):
            raise ValueError(f"{name} must {'not be negative' if low == 0 else f'be at least {low:g}'}, got {value}.")
        raise ValueError(f"{name} must lie in [{low:g}, {high:.10g}], got {value}.")
