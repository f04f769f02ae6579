"""The mixture in accelerator memory: batches are planned and gathered inside `jit`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from vtune_jax.core.types import Cursor
from vtune_jax.data.plan import PlanSpec, plan_steps
from vtune_jax.data.rows import TokenRows


class TokenTable(NamedTuple):
    """The tokens of all domains, one after another."""

    tokens: Array  # 1-D, in the files' dtype
    start: UInt32[Array, " domains"]  # where each domain begins


def build_table(stores: Sequence[TokenRows]) -> TokenTable:
    """Copies all domains' tokens to the device.

    Raises:
        ValueError: 2**31 tokens or more; such corpora are for the host engine.
    """
    used = [store.tokens[: len(store) * store.length + 1] for store in stores]
    ends = np.cumsum([len(tokens) for tokens in used])
    if ends[-1] >= 2**31:
        raise ValueError(f"stores must hold fewer than 2**31 tokens for the device engine, got {ends[-1]}.")
    start = np.concatenate([[0], ends[:-1]]).astype(np.uint32)
    return TokenTable(tokens=jnp.asarray(np.concatenate(used)), start=jnp.asarray(start))


def draw(
    spec: PlanSpec, length: int, table: TokenTable, step: Any, quota: Any, cursor: Cursor
) -> tuple[dict[str, Array], Cursor]:
    """The global batch of a step, and the cursor after it; the same batch as the host engine's.

    Args:
        spec: of the plan.
        length: predicted tokens per row.
        table: of tokens.
        step: uint32.
        quota: weights in fixed point.
        cursor: rows read before this step.

    Returns:
        `tokens` [batch, length + 1] and `domain` [batch]; the cursor.
    """
    plan, cursor = plan_steps(jnp, spec, step, 1, quota, cursor)
    domain, row = plan.domain[0], plan.row[0]
    first = table.start[domain] + row * np.uint32(length)
    place = first[:, None] + jnp.arange(length + 1, dtype=jnp.uint32)
    return {"tokens": table.tokens[place], "domain": domain}, cursor
