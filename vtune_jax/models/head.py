"""Losses of a large vocabulary: the head's logits are made block by block, forward and backward."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtune_jax.core.losses import token_nats

MOST_LOGITS = 2**26
"""Most logits in memory at once: 256 MiB in float32."""


def head_nats(
    hidden: Float[Array, "rows places width"],
    projection: Float[Array, "width vocab"],
    labels: Int[Array, "rows places"],
    *,
    most: int = MOST_LOGITS,
) -> Float[Array, "rows places"]:
    """Cross entropy of each label under `hidden @ projection`, in float32.

    [rows, places, vocab] never exists: a block of places is projected, reduced to its losses and forgotten, and made
    again in the backward pass. Where all logits fit into `most` there is one block, and nothing is made twice.

    Args:
        hidden: what the head reads.
        projection: from it to logits.
        labels: the next tokens.
        most: logits in memory at once; a block has one place of each row at least.
    """
    rows, places = labels.shape
    block = max(1, most // (rows * projection.shape[1]))
    if block >= places:
        return token_nats(hidden @ projection, labels)
    blocks = -(-places // block)
    padding = ((0, 0), (0, blocks * block - places))

    @jax.checkpoint
    def of_block(part: tuple[Array, Array]) -> Array:
        hidden, labels = part
        return token_nats(hidden @ projection, labels)

    parts = (
        jnp.moveaxis(jnp.pad(hidden, (*padding, (0, 0))).reshape(rows, blocks, block, -1), 1, 0),
        jnp.moveaxis(jnp.pad(labels, padding).reshape(rows, blocks, block), 1, 0),
    )
    nats = jax.lax.map(of_block, parts)
    return jnp.moveaxis(nats, 0, 1).reshape(rows, -1)[:, :places]
