"""The mixture in accelerator memory: batches are planned and gathered inside `jit`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from vtune_jax.core.checks import MOST, assert_whole, given
from vtune_jax.core.types import Cursor, Seed
from vtune_jax.data.mixture.plan import plan_steps
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore, TokenRows, as_stores


class TokenTable(NamedTuple):
    """The rows of all domains, one domain after another."""

    rows: dict[str, Array]  # `tokens`, 1-D, of which rows are windows; or a packed store's arrays [all rows, length]
    start: UInt32[Array, " domains"]  # where each domain begins: a token, or a row


def build_table(stores: Sequence[RowStore]) -> TokenTable:
    """Copies all domains to the device.

    Raises:
        ValueError: 2**31 tokens or more, which 32-bit indices cannot address; such corpora are for the host engine. Or
            no stores, or stores whose rows have different lengths or arrays.
        TypeError: what are no row stores.
    """
    stores = as_stores(stores)
    if all(isinstance(store, TokenRows) for store in stores):
        used = [{"tokens": _tokens_in_rows(store)} for store in stores]
    else:
        used = [store.read(np.arange(len(store), dtype=np.uint32)) for store in stores]
    if len(kinds := {tuple(part) for part in used}) > 1:
        raise ValueError(f"stores must all be packed, or none of them, got rows of {sorted(kinds)}.")
    sizes = [len(next(iter(part.values()))) for part in used]
    total = sum(next(iter(part.values())).size for part in used)
    if total >= 2**31:
        raise ValueError(f"stores must hold fewer than 2**31 tokens for the device engine, got {total}.")
    start = np.cumsum([0, *sizes[:-1]]).astype(np.uint32)
    rows = {name: jnp.asarray(np.concatenate([part[name] for part in used])) for name in used[0]}
    return TokenTable(rows=rows, start=jnp.asarray(start))


def draw(
    spec: PlanSpec,
    length: int,
    table: TokenTable,
    step: Any,
    quota: Any,
    cursor: Cursor,
    *,
    seed: Seed | None = None,
) -> tuple[dict[str, Array], Cursor]:
    """The global batch of a step, the same as the host engine's, and the cursor after it.

    Args:
        spec: of the plan. If it has limits, call `steps_left` before: inside `jit` nothing can end the run.
        length: predicted tokens per row.
        table: of tokens.
        step: uint32.
        quota: weights in fixed point.
        cursor: rows read before this step.
        seed: in place of the spec's; a traced uint32 can be mapped over.

    Returns:
        the stores' arrays [batch, ...] and `domain` [batch]; the cursor.

    Raises:
        ValueError: a table of other rows than the spec's or of another length; what `plan_steps` refuses.
        TypeError: what is no table, no whole number; what `plan_steps` refuses.
    """
    _assert_table(spec, length, table)
    plan, cursor = plan_steps(jnp, spec, step, 1, quota, cursor, seed=seed)
    return gather(table, length, plan.domain[0], plan.row[0]), cursor


def _assert_table(spec: Any, length: Any, table: Any) -> None:
    if not (isinstance(table, TokenTable) and isinstance(spec, PlanSpec)):
        raise TypeError(f"spec and table must be a PlanSpec and a TokenTable, got {given(spec)} and {given(table)}.")
    assert_whole(1, MOST, length=length)
    domains, rows = len(spec.rows), sum(spec.rows)
    name, array = next(iter(table.rows.items()))
    # Of windows there is one token more than the rows predict, for each domain.
    shape = (rows * length + domains,) if array.ndim == 1 else (rows, length + (name == "tokens"))
    if array.shape != shape or table.start.shape != (domains,):
        raise ValueError(
            f"table must be that of stores with {list(spec.rows)} rows of length {length}, got one with "
            f"{table.start.shape[0]} domains and an array of shape {array.shape}."
        )


def gather(table: TokenTable, length: int, domain: Array, row: Array) -> dict[str, Array]:
    """The rows of one planned batch, and `domain`.

    Args:
        table: of tokens.
        length: predicted tokens per row.
        domain: of each place.
        row: within the domain.
    """
    if set(table.rows) == {"tokens"} and table.rows["tokens"].ndim == 1:
        first = table.start[domain] + row * np.uint32(length)
        place = first[:, None] + jnp.arange(length + 1, dtype=jnp.uint32)
        return {"tokens": table.rows["tokens"][place], "domain": domain}
    place = table.start[domain] + row
    return {**{name: rows[place] for name, rows in table.rows.items()}, "domain": domain}


def _tokens_in_rows(store: RowStore) -> np.ndarray:
    assert isinstance(store, TokenRows)
    return store.tokens[: len(store) * store.length + 1]
