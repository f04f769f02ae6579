"""Refuses numbers outside their range where they are defined."""

import math

from vtune_jax.core.types import Scalar


def assert_within(low: float = 0.0, high: float = math.inf, **values: int | Scalar) -> None:
    """Refuses numbers outside [low, high], NaN included.

    Traced values (hyper-parameters under `jit`, `vmap` or `grad`) have no known size while building and pass.

    Raises:
        ValueError: naming argument and value.
    """
    for name, value in values.items():
        if not isinstance(value, int | float) or low <= value <= high:
            continue
        if high == math.inf:
            raise ValueError(f"{name} must {'not be negative' if low == 0 else f'be at least {low:g}'}, got {value}.")
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}.")
