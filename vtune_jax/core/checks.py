"""Refuses numbers outside their range and names that are no names, where they are defined."""

import math
import re

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


NAME_CHARACTERS, LONGEST_NAME = "letters (a to z), digits, '_', '-' and '.'", 64
"""What names of experiments, domains and arms are made of; they become folders, file names, table cells and HTML."""


def assert_name(**values: str) -> None:
    """Refuses what cannot name a file anywhere: see `NAME_CHARACTERS`; the first is a letter or digit.

    Raises:
        ValueError: naming argument and value, of which at most the first characters are shown.
    """
    for name, value in values.items():
        if len(value) > LONGEST_NAME:
            raise ValueError(
                f"{name} must have at most {LONGEST_NAME} characters, got {len(value)}: {value[:16]!r} and on."
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            raise ValueError(f"{name} must be {NAME_CHARACTERS}, the first a letter or digit, got {value!r}.")


def name_from(words: str) -> str:
    """The nearest name that `assert_name` accepts: other characters become '-'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", words).lstrip("-_.")[:LONGEST_NAME] or "experiment"
