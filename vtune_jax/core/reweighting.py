"""Steps: from weights and scores to new weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import Scalar, Weights


def exponentiated_gradient(
    weights: Weights,
    scores: Float[Array, " domains"],
    seen: Bool[Array, " domains"],
    *,
    step_size: Scalar,
    smoothing: Scalar = 0.0,
) -> Weights:
    """`w' = (1 - c) softmax(log w + eta s) + c / k`, the step that half of the published methods share.

    A domain without evidence keeps its weight, and the others share the rest among themselves; with no evidence at
    all nothing moves. A weight of zero stays zero, except for the smoothing's share.

    Args:
        weights: on the simplex.
        scores: dimensionless; larger gets more weight. Ignored where `seen` is False or the score is not finite.
        seen: whether there is evidence on the domain.
        step_size: eta >= 0.
        smoothing: c in [0, 1], the share of the result that is uniform.
    """
    seen = seen & jnp.isfinite(scores)
    # A bounded exponent keeps log w + eta s free of inf - inf; beyond it softmax is one-hot anyway.
    exponent = jnp.clip(step_size * jnp.where(seen, scores, 0.0), -1e30, 1e30)
    movable = seen & (weights > 0)
    logits = jnp.where(movable, jnp.log(jnp.where(movable, weights, 1.0)) + exponent, 0.0)
    return mix_with_uniform(share_out(weights, logits, movable), smoothing).astype(weights.dtype)


def share_out(weights: Weights, logits: Float[Array, " domains"], movable: Bool[Array, " domains"]) -> Weights:
    """Shares the total weight of the movable domains among them by `softmax(logits)`; the others keep their weight.

    Args:
        weights: on the simplex.
        logits: finite.
        movable: the domains that take part; if there are none, nothing moves.
    """
    logits = jnp.where(movable, logits, -jnp.inf)
    peak = jnp.where(movable.any(), logits.max(), 0.0)
    raised = jnp.where(movable, jnp.exp(logits - jax.lax.stop_gradient(peak)), 0.0)
    mass = jnp.where(movable, weights, 0.0).sum()
    return jnp.where(movable, mass * raised / jnp.where(movable.any(), raised.sum(), 1.0), weights)
