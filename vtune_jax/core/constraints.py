"""Constraints: wrappers that take a method and give a method with a promise added."""

import jax.numpy as jnp

from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import LossHistory, Method, Targets, Weights

_LEAST = 1e-2
"""Least own weight of a domain, as a share of the floor."""


def with_floor(method: Method, floor: float) -> Method:
    """Keeps every weight at or above `floor`: `w = floor + (1 - k floor) v`, with v the method's own weights.

    The result is a mixture with uniform, so the floor is a true one; clipping and renormalising, as published code
    does, ends below it. Before the method is asked, v is recovered from w: mixing anew at each update, as smoothing
    does, would drag the weights towards uniform even when the method wants nothing changed.

    Args:
        method: any method.
        floor: smallest weight of a domain, >= 0; times the number of domains at most 1.

    Raises:
        ValueError: floor negative, or, when called for k domains, `floor * k > 1`.
    """
    if floor < 0:
        raise ValueError(f"floor must not be negative, got {floor}.")
    if floor == 0:
        return method

    def init(targets: Targets) -> LossHistory:
        # Told before anything is trained, not when the first update is traced.
        _assert_room(floor, targets.prior.shape[0])
        return method.init(targets)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        domains = weights.shape[0]
        _assert_room(floor, domains)
        # A prior below the floor has no v; a small one instead of zero lets the domain rise again.
        own = jnp.maximum(weights - floor, _LEAST * floor)
        return mix_with_uniform(method.update(own / own.sum(), history, targets), floor * domains)

    return method._replace(init=init, update=update)


def _assert_room(floor: float, domains: int) -> None:
    if floor * domains > 1:
        raise ValueError(f"floor must be at most 1/{domains} for {domains} domains, got {floor}.")
