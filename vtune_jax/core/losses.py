"""Loss per token and its sums per domain."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.types import ExcessSums, LossSums


def token_nats(logits: Float[Array, "*rows vocab"], labels: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Cross entropy of each label, `logsumexp(logits) - logits[label]`, in float32."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def domain_sums(
    nats: Float[Array, "rows tokens"],
    mask: Bool[Array, "rows tokens"],
    domain: Int[Array, " rows"],
    domains: int,
) -> LossSums:
    """Adds up the loss of every domain's tokens and its squares, with their number.

    Sums, not means, so that micro-batches, devices and hosts add up exactly.

    Args:
        nats: loss per token; ignored where the mask is False, NaN included.
        mask: which tokens count.
        domain: of each row, in [0, domains).
        domains: their number, k.
    """
    counted = jnp.where(mask, nats, 0.0)
    rows = counted.sum(axis=1), mask.sum(axis=1, dtype=jnp.int32), (counted**2).sum(axis=1)
    return LossSums(*(jax.ops.segment_sum(row, domain, num_segments=domains) for row in rows))


def excess_sums(
    nats: Float[Array, "rows tokens"],
    reference_nats: Float[Array, "rows tokens"],
    mask: Bool[Array, "rows tokens"],
    domain: Int[Array, " rows"],
    domains: int,
) -> ExcessSums:
    """Adds up per domain how far each token's loss lies above the reference model's, clipped at zero and as it is.

    Args:
        nats: loss per token of the model.
        reference_nats: and of the reference model, on the same tokens.
        mask: which tokens count.
        domain: of each row, in [0, domains).
        domains: their number, k.
    """
    excess = jnp.where(mask, nats - reference_nats, 0.0)
    clipped = jnp.maximum(excess, 0.0)
    rows = (
        clipped.sum(axis=1),
        excess.sum(axis=1),
        (clipped > 0).sum(axis=1, dtype=jnp.int32),
        mask.sum(axis=1, dtype=jnp.int32),
    )
    return ExcessSums(*(jax.ops.segment_sum(row, domain, num_segments=domains) for row in rows))
