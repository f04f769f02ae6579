"""Operations on weights: mixing with uniform, effective number, and the fixed-point form that the plan reads."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from vtune_jax.core.checks import given, is_traced
from vtune_jax.core.types import Scalar, Weights

QUOTA_BITS = 24
QUOTA_ONE = 1 << QUOTA_BITS
"""What the fixed-point weights sum to. 2**24 keeps every quota exact in float32."""


def mix_with_uniform(weights: Weights, mass: Scalar) -> Weights:
    """`(1 - mass) w + mass / k`: no weight ends below `mass / k`.

    Clipping and renormalising, as some published code does, can end below the floor it states; this cannot.
    """
    return (1.0 - mass) * weights + mass / weights.shape[0]


def to_quota(weights: Weights) -> UInt32[Array, " domains"]:
    """Rounds weights to multiples of 2**-24 that sum to one exactly, by largest remainder.

    A zero weight stays zero and every quota is within one unit (plus float32's own rounding) of `w * 2**24`. This is
    the only place where a float weight becomes an integer: the plan of the data never sees floats, so that numpy and
    jax.numpy, one host or many, take the same rows.

    Args:
        weights: on the simplex up to rounding.

    Returns:
        uint32, summing to `QUOTA_ONE`.

    Raises:
        ValueError: weights of another shape; where they are not traced, weights that are negative, NaN or all zero.
        TypeError: what is no array of floats.
    """
    if not (hasattr(weights, "dtype") and jnp.issubdtype(weights.dtype, jnp.floating)):
        raise TypeError(f"weights must be an array of floats, got {given(weights)}.")
    if weights.ndim != 1 or not weights.size:
        raise ValueError(f"weights must hold one share per domain, got shape {weights.shape}.")
    if not is_traced(weights) and not ((weights >= 0).all() and 0 < weights.sum() < jnp.inf):
        raise ValueError(f"weights must be finite shares, none negative, got {given(weights.tolist())}.")
    exact = weights / weights.sum() * QUOTA_ONE
    whole = jnp.floor(exact)
    quota = whole.astype(jnp.int32)
    left = QUOTA_ONE - quota.sum()
    # Rank 0 is the largest remainder; zero weights queue last and get nothing.
    order = jnp.argsort(jnp.where(weights > 0, whole - exact, jnp.inf), stable=True)
    rank = jnp.argsort(order, stable=True)
    quota = quota + (rank < jnp.minimum(left, (weights > 0).sum()))
    # Rounding in float32 can leave the sum a few units off either way: the largest share absorbs them unharmed.
    largest = jnp.argmax(quota)
    return quota.at[largest].add(QUOTA_ONE - quota.sum()).astype(jnp.uint32)


def from_quota(quota: UInt32[Array, " domains"]) -> Float[Array, " domains"]:
    """The weights that a quota stands for, exact in float32."""
    return quota.astype(jnp.float32) / QUOTA_ONE


def effective_domains(weights: Weights) -> Float[Array, ""]:
    """`exp(entropy)`: k for uniform weights, 1 when one domain has everything."""
    safe = jnp.where(weights > 0, weights, 1.0)
    return jnp.exp(-(weights * jnp.log(safe)).sum())
