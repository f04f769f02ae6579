"""Scores: one number per domain, from its loss and the run's targets."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.types import Scalar, Targets


def reachable(targets: Targets, min_gap: Scalar) -> Bool[Array, " domains"]:
    """Whether a domain's target lies at least `min_gap` nats below its initial loss (False for non-finite values)."""
    gap = targets.initial - targets.target
    return jnp.isfinite(gap) & (gap >= min_gap)


def remaining_fraction(
    loss: Float[Array, " domains"], targets: Targets, *, clamp: bool = True, min_gap: Scalar = 1e-3
) -> Float[Array, " domains"]:
    """The share of the way from its initial loss to its target that a domain has not covered yet.

    `R = (loss - target) / (initial - target)`, 1 at the base model's loss and 0 at the target; learning velocity is
    the share already covered, `V = 1 - R`. A slow domain has a large R.

    Args:
        loss: nats per token now.
        targets: `initial` and `target` are read.
        clamp: limits R to [0, 1], as Velocitune does.
        min_gap: nats. A domain predicted to improve by less gets R = 0, because its R would be a quotient of noise.

    Source: Luo et al. 2025, arXiv:2411.14318. A secondary note on the paper calls R itself the velocity; the update is
    the same. The guard by `min_gap` is ours.
    """
    usable = reachable(targets, min_gap)
    gap = jnp.where(usable, targets.initial - targets.target, 1.0)
    remaining = jnp.where(usable, (loss - jnp.where(usable, targets.target, 0.0)) / gap, 0.0)
    return jnp.clip(remaining, 0.0, 1.0) if clamp else remaining
