"""Held-out loss per domain, as sums with counts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from vtune_jax.core.losses import token_nats
from vtune_jax.core.types import LossSums
from vtune_jax.models import Model

Evaluate = Callable[[PyTree, Int[Array, "domains rows tokens"]], LossSums]


def make_evaluate(model: Model, rows_at_once: int) -> Evaluate:
    """A pure function of parameters and held-out rows, for use inside the train step or by itself.

    Args:
        model: the decoder.
        rows_at_once: most rows whose logits are in memory together. The number used is the largest divisor of the
            number of rows below it, so that no row is padded.

    Returns:
        `evaluate(params, heldout)`; `heldout` is [domains, rows, sequence + 1] tokens, and all domains have equally
        many rows. Nats are summed in float32 per row, then per domain.
    """

    def row_nats(params: PyTree, rows: Int[Array, "rows tokens"]) -> Float[Array, " rows"]:
        rows = jnp.asarray(rows, jnp.int32)
        return token_nats(model.logits(params, rows[:, :-1]), rows[:, 1:]).sum(axis=1)

    def evaluate(params: PyTree, heldout: Int[Array, "domains rows tokens"]) -> LossSums:
        domains, rows, window = heldout.shape
        chunk = max(size for size in range(1, rows_at_once + 1) if (domains * rows) % size == 0)
        chunks = heldout.reshape(-1, chunk, window)
        nats = jax.lax.map(lambda part: row_nats(params, part), chunks)
        return LossSums(
            nats=nats.reshape(domains, rows).sum(axis=1),
            tokens=jnp.full(domains, rows * (window - 1), jnp.int32),
        )

    return evaluate


def mean_loss(sums: LossSums) -> np.ndarray:
    """Nats per token on the host, float64; NaN where there are no tokens."""
    nats, tokens = np.asarray(sums.nats, np.float64), np.asarray(sums.tokens)
    return np.divide(nats, tokens, out=np.full(nats.shape, np.nan), where=tokens > 0)
