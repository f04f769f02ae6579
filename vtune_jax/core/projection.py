"""The nearest weights, in relative entropy, that obey a bound."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vtune_jax.core.types import Scalar, Weights

_LEAST = 1e-30
"""Stands for a weight of zero where a logarithm is taken; far below what float32 can add to one."""
_HALVINGS = 80


def to_box(weights: Weights, low: Float[Array, " domains"], high: Float[Array, " domains"]) -> Weights:
    """The weights in `low <= w <= high` nearest to the given ones: `w_i = clip(c p_i, low_i, high_i)` with sum one.

    This minimises `KL(w || p)` over the box. Domains within their bounds keep their proportions; a zero weight is
    raised to its lower bound, and further only when all others are at their upper bounds.

    Args:
        weights: p, on the simplex.
        low: at most `high`, with a sum of at most one.
        high: with a sum of at least one; else nothing fits, and the result does not sum to one.
    """
    positive = jnp.maximum(weights, _LEAST)

    def halve(_: Any, span: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = span
        middle = 0.5 * (below + above)
        short = jnp.clip(jnp.exp(middle) * positive, low, high).sum() < 1.0
        return jnp.where(short, middle, below), jnp.where(short, above, middle)

    ends = jnp.log(jnp.asarray(_LEAST, weights.dtype)), -jnp.log(jnp.asarray(_LEAST, weights.dtype))
    scale = jnp.exp(jax.lax.stop_gradient(jax.lax.fori_loop(0, _HALVINGS, halve, ends)[1]))
    # Now that the domains at a bound are known, the scale of the others follows exactly and is differentiable.
    at_low, at_high = scale * positive <= low, scale * positive >= high
    free = ~at_low & ~at_high
    fixed = jnp.where(at_low, low, jnp.where(at_high, high, 0.0)).sum()
    exact = (1.0 - fixed) / jnp.where(free.any(), jnp.where(free, positive, 0.0).sum(), 1.0)
    within = jnp.clip(jnp.where(free, exact * positive, positive), low, high)
    return jnp.where(free, within, jnp.where(at_low, low, high)).astype(weights.dtype)


def divergence(weights: Weights, prior: Weights) -> Float[Array, ""]:
    """`KL(w || prior) = sum w log(w / prior)` in nats; infinite where a weight stands on a prior of zero."""
    safe = jnp.where(weights > 0, weights, 1.0)
    base = jnp.where(weights > 0, jnp.maximum(prior, 0.0), 1.0)
    return jnp.where(weights > 0, weights * (jnp.log(safe) - jnp.log(base)), 0.0).sum()


def within_divergence(weights: Weights, prior: Weights, radius: Scalar) -> Weights:
    """The weights with `KL(w || prior) <= radius` nearest to the given ones in relative entropy.

    The minimum of `KL(w || p)` under that bound lies on the geometric path `w` proportional to
    `prior^(1 - s) p^s`, along which the divergence from the prior grows with s: s is found by halving.

    Args:
        weights: p, on the simplex.
        prior: on the simplex; where it is zero, so is the result if the bound is active.
        radius: nats, >= 0.
    """
    logs = jnp.log(jnp.maximum(weights, _LEAST)), jnp.log(jnp.maximum(prior, _LEAST))

    def on_path(share: Scalar) -> Weights:
        return jax.nn.softmax(jnp.where(prior > 0, (1.0 - share) * logs[1] + share * logs[0], -jnp.inf))

    share = largest_share(lambda share: divergence(on_path(share), prior) <= radius, weights)
    return jnp.where(divergence(weights, prior) <= radius, weights, on_path(share).astype(weights.dtype))


def largest_share(holds: Callable[[Array], Array], like: Weights) -> Float[Array, ""]:
    """The largest s in [0, 1] at which a condition holds, by halving.

    Args:
        holds: the condition on s; where it holds, it must hold at every smaller s too, 0 included.
        like: gives the dtype.
    """

    def halve(_: Any, span: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = span
        middle = 0.5 * (below + above)
        fits = holds(middle)
        return jnp.where(fits, middle, below), jnp.where(fits, above, middle)

    ends = jnp.zeros((), like.dtype), jnp.ones((), like.dtype)
    share: Array = jax.lax.fori_loop(0, 40, halve, ends)[0]
    return jax.lax.stop_gradient(share)
