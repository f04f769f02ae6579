"""The constants of a run as arrays: initial and target losses, the prior, and what else a method needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vtune_jax.core.checks import as_numbers, given
from vtune_jax.core.types import Targets

Numbers = Any
"""Anything that `numpy.asarray` takes: a list, an array, a tensor on the CPU."""


def make_targets(
    initial: Numbers,
    target: Numbers,
    target_error: Numbers,
    prior: Numbers,
    constants: Mapping[str, Numbers] | None = None,
) -> Targets:
    """Targets in float32, from anything that numpy reads.

    Args:
        initial: losses of the base model, nats per token; NaN where unknown.
        target: losses predicted for the end of the run; NaN where unknown.
        target_error: their standard errors; NaN where unknown.
        prior: reference weights.
        constants: what else the method needs, by name: "sizes" and "budget" in tokens, "graph" [domains, domains].

    Raises:
        ValueError: arrays of different lengths, a prior that is negative or not finite, constants of another shape,
            sizes or a budget that are not positive.
        TypeError: what are no numbers.
    """
    shares = as_numbers("prior", prior)
    if shares.ndim != 1 or not shares.size or not ((shares >= 0) & (shares < math.inf)).all():
        raise ValueError(f"prior must be one finite number per domain, none negative, got {given(shares.tolist())}.")
    columns = {"initial": initial, "target": target, "target_error": target_error}
    losses = {name: single(as_numbers(name, values, shares.shape)) for name, values in columns.items()}
    if constants is not None and not isinstance(constants, Mapping):
        raise TypeError(f"constants must be numbers by name, got {given(constants)}.")
    shapes = {"sizes": shares.shape, "budget": (), "graph": shares.shape * 2}
    others = {name: as_numbers(name, values, shapes.get(name)) for name, values in (constants or {}).items()}
    for name in ("sizes", "budget"):
        if name in others and not ((others[name] > 0) & (others[name] < math.inf)).all():
            raise ValueError(f"{name} must be positive and finite, got {given(others[name].tolist())}.")
    return Targets(
        **losses, prior=single(shares), constants={name: single(values) for name, values in others.items()} or ()
    )


def single(values: np.ndarray) -> Array:
    """In float32 on the device; what it cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return jnp.asarray(values.astype(np.float32))


def blank_targets(prior: Numbers) -> Targets:
    """Targets of a run whose method reads nothing but the prior: every loss is NaN."""
    nothing = np.full(np.shape(prior), np.nan)
    return make_targets(nothing, nothing, nothing, prior)
