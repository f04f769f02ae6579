"""A batch as named arrays, and its loss token by token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from vtune_jax.core.losses import token_nats
from vtune_jax.models import Model

Batch = dict[str, Array]
"""`tokens` [rows, sequence + 1]; or packed: `inputs`, `labels`, `segments` (0: padding), `positions` [rows, sequence].

A training batch also has `domain` [rows], `cursor` (where the data stand after it) and `available` [domains].
"""


def batch_nats(
    model: Model, params: PyTree, batch: Batch
) -> tuple[Float[Array, "rows tokens"], Bool[Array, "rows tokens"]]:
    """Nats of every place, and which places count."""
    if "labels" not in batch:
        tokens = jnp.asarray(batch["tokens"], jnp.int32)
        nats = token_nats(model.logits(params, tokens[:, :-1]), tokens[:, 1:])
        return nats, jnp.ones(nats.shape, bool)
    inputs, labels = (jnp.asarray(batch[name], jnp.int32) for name in ("inputs", "labels"))
    nats = token_nats(model.logits(params, inputs, batch["segments"], batch["positions"]), labels)
    return nats, batch["segments"] > 0
