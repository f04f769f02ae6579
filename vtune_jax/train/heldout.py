"""Held-out loss per domain, as sums with counts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from vtune_jax.core.types import LossSums
from vtune_jax.models import Batch, Model

Heldout = dict[str, Int[Array, "domains rows tokens"]]
"""Rows as a batch names them, equally many of each domain."""
Evaluate = Callable[[PyTree, Heldout], LossSums]


def make_evaluate(model: Model, rows_at_once: int) -> Evaluate:
    """A pure function of parameters and held-out rows, for use inside the train step or by itself.

    Args:
        model: the decoder.
        rows_at_once: most rows whose logits are in memory together. The number used is the largest divisor of the
            number of rows below it, so that no row is padded.

    Returns:
        `evaluate(params, heldout)`. Nats are summed in float32 per row, then per domain.
    """

    def row_sums(params: PyTree, rows: Batch) -> LossSums:
        nats, counted = model.losses(params, rows)
        nats = jnp.where(counted, nats, 0.0)
        return LossSums(nats.sum(axis=1), counted.sum(axis=1, dtype=jnp.int32), (nats**2).sum(axis=1))

    def evaluate(params: PyTree, heldout: Heldout) -> LossSums:
        domains, rows = next(iter(heldout.values())).shape[:2]
        chunk = max(size for size in range(1, rows_at_once + 1) if (domains * rows) % size == 0)
        chunks = {name: array.reshape(-1, chunk, array.shape[2]) for name, array in heldout.items()}
        of_rows = jax.lax.map(lambda part: row_sums(params, part), chunks)
        summed: LossSums = jax.tree.map(lambda column: column.reshape(domains, rows).sum(axis=1), of_rows)
        return summed

    return evaluate


def mean_loss(sums: LossSums) -> np.ndarray:
    """Nats per token on the host, float64; NaN where there are no tokens."""
    nats, tokens = np.asarray(sums.nats, np.float64), np.asarray(sums.tokens)
    mean: np.ndarray = np.divide(nats, tokens, out=np.full(nats.shape, np.nan), where=tokens > 0)
    return mean
