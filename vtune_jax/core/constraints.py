"""Constraints: wrappers that take a method and give a method with a promise added."""

from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import LossHistory, Method, Targets, Weights


def with_floor(method: Method, floor: float) -> Method:
    """Keeps every weight at or above `floor`: `w' = (1 - k floor) w + floor`.

    Mixing with uniform keeps the order of the weights and their sum; clipping and renormalising, as published code
    does, ends below the floor. The same as smoothing with `c = k floor`.

    Args:
        method: any method.
        floor: smallest weight of a domain, >= 0; times the number of domains at most 1.

    Raises:
        ValueError: floor negative, or (when called with k domains) `floor * k > 1`.
    """
    if floor < 0:
        raise ValueError(f"floor must not be negative, got {floor}.")

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        domains = weights.shape[0]
        if floor * domains > 1:
            raise ValueError(f"floor must be at most 1/{domains} for {domains} domains, got {floor}.")
        return mix_with_uniform(method.update(weights, history, targets), floor * domains)

    return method._replace(update=update)
