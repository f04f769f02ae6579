"""Held-out loss per domain, as sums with counts."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from vtune_jax.core.types import LossSums
from vtune_jax.machine.mesh import constrain, everywhere, in_rows
from vtune_jax.models import Batch, Model

Heldout = dict[str, Int[Array, "domains rows tokens"]]
"""Rows as a batch names them, equally many of each domain."""
Evaluate = Callable[[PyTree, Heldout], LossSums]


def make_evaluate(model: Model, rows_at_once: int, mesh: Mesh | None = None) -> Evaluate:
    """A pure function of parameters and held-out rows, for use inside the train step or by itself.

    The rows are split over the devices of the mesh, so that n devices do the work once, not n times.

    Args:
        model: whose loss is measured.
        rows_at_once: most rows of one device whose logits are in memory together. The number used is the largest
            divisor of the device's rows up to that.
        mesh: the devices on which parameters and rows lie whole; None for one device.

    Returns:
        `evaluate(params, heldout)`. Nats are summed in float32 per row, then per domain; the sums lie on every device.
    """
    devices = 1 if mesh is None else mesh.size

    def row_sums(params: PyTree, rows: Batch, real: Bool[Array, " rows"] | None) -> LossSums:
        nats, counted = model.losses(params, rows)
        if real is not None:
            counted = counted & real[:, None]
        nats = jnp.where(counted, nats, 0.0)
        return LossSums(nats.sum(axis=1), counted.sum(axis=1, dtype=jnp.int32), (nats**2).sum(axis=1))

    def evaluate(params: PyTree, heldout: Heldout) -> LossSums:
        domains, rows = next(iter(heldout.values())).shape[:2]
        total = domains * rows
        share = -(-total // devices)
        padding = share * devices - total
        chunk = max(size for size in range(1, rows_at_once + 1) if share % size == 0)

        def chunked(array: Array) -> Array:
            # Rows of zeros fill the last device's share; their places do not count.
            flat = jnp.pad(array.reshape(total, -1), ((0, padding), (0, 0))) if padding else array
            return constrain(flat.reshape(-1, chunk * devices, array.shape[-1]), mesh, partial(in_rows, axis=1))

        parts = {name: chunked(array) for name, array in heldout.items()}
        if padding:
            real = (jnp.arange(total + padding) < total).reshape(-1, chunk * devices)
            of_rows = jax.lax.map(lambda part: row_sums(params, *part), (parts, real))
        else:
            of_rows = jax.lax.map(lambda part: row_sums(params, part, None), parts)

        def per_domain(column: Array) -> Array:
            flat = constrain(column, mesh, everywhere).reshape(-1)[:total] if devices > 1 else column
            return flat.reshape(domains, rows).sum(axis=1)

        summed: LossSums = jax.tree.map(per_domain, of_rows)
        return summed

    return evaluate


def mean_loss(sums: LossSums) -> np.ndarray:
    """Nats per token on the host, float64; NaN where there are no tokens."""
    nats, tokens = np.asarray(sums.nats, np.float64), np.asarray(sums.tokens)
    mean: np.ndarray = np.divide(nats, tokens, out=np.full(nats.shape, np.nan), where=tokens > 0)
    return mean
