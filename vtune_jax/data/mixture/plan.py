"""The plan: which rows make up the global batch of a step, as a pure function of integers.

The same code serves numpy and jax.numpy (the `xp` argument) and gives the same integers in both, on every host and
inside `jit`. Nothing here reads data or computes with floats: weights arrive in fixed point (`core.simplex.to_quota`).

- *How many rows of each domain*: `mixture.allocation`.
- *Which rows*: each domain is an endless stream; epoch e reads all its rows in the order of a bijection keyed by
  (seed, domain, epoch), `mixture.order`. Weights decide how many rows are taken next, never their order.
- *In which place of the batch*: permuted by a hash of (seed, step), so that any slice of the batch (a host's, a
  micro-batch) is a fair sample of the mixture.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32, UInt32

from vtune_jax.core.checks import MOST, assert_whole, given, is_traced
from vtune_jax.core.hashing import key, mix
from vtune_jax.core.simplex import QUOTA_ONE
from vtune_jax.core.types import AnyArray, Cursor, Seed
from vtune_jax.data.mixture.allocation import allocate, rows_left
from vtune_jax.data.mixture.order import OrderCache, block_at, shuffle
from vtune_jax.data.mixture.spec import MOST_STEPS, PlanSpec, Purpose

_MOST_CACHED = 64  # domains; with more, each gives too few rows at a time for a cache of its order to pay
_LANES = (0x01000193, 0x2C1B3C6D)  # odd multipliers of the rolling hash


class Plan(NamedTuple):
    """The rows of consecutive steps."""

    domain: Int32[AnyArray, "steps batch"]
    row: UInt32[AnyArray, "steps batch"]  # within the domain, in file order
    counts: UInt32[AnyArray, "steps domains"]  # rows taken from each domain
    after: Cursor  # after each step: every field has a leading axis of steps
    short: Bool[AnyArray, " steps"]  # True: a limit ends the run before this step, whose rows mean nothing


def plan_steps(
    xp: ModuleType,
    spec: PlanSpec,
    first_step: Any,
    steps: int,
    quota: Any,
    cursor: Cursor,
    *,
    seed: Seed | None = None,
    orders: OrderCache | None = None,
) -> tuple[Plan, Cursor]:
    """Plans several steps under the same weights; planning them one by one gives the same rows.

    Args:
        xp: numpy or jax.numpy.
        spec: lengths, batch, seed.
        first_step: index of the first of them; uint32 under `jit`.
        steps: how many, static.
        quota: uint32 [domains], weights times 2**24, summing to 2**24 exactly.
        cursor: before the first step.
        seed: in place of the spec's; a traced uint32 can be mapped over.
        orders: a cache of the domains' orders, for numpy; it changes the speed only.

    Returns:
        the plan, and the cursor after it.

    Raises:
        ValueError: `orders` are those of another seed, arrays of other shapes than the spec's domains ask, a number
            out of its range, numpy's quota without the sum 2**24.
        TypeError: what is no spec, no cursor, no whole numbers.
    """
    _assert_arguments(xp, spec, first_step, steps, quota, cursor)
    if seed is None:
        seed = spec.seed
    elif xp is np:
        seed = int(seed)
    if orders is not None and orders.seed != seed:
        raise ValueError(f"orders must be those of seed {seed}, got those of seed {orders.seed}.")
    domains = len(spec.rows)
    step = xp.asarray(first_step).astype(np.uint32) + xp.arange(steps, dtype=np.uint32)
    allocated = allocate(xp, spec, step, quota, cursor, seed=seed)
    counts = allocated.rows
    if spec.limited:
        # A step that cannot be made takes no row; its places are filled with the last domain, to keep the shapes.
        counts = xp.where(allocated.short[:, None], np.uint32(0), counts)
        filler = xp.where(allocated.short, np.uint32(spec.batch), np.uint32(0))
        filled = xp.concatenate([counts[:, :-1], counts[:, -1:] + filler[:, None]], axis=1)
    else:
        filled = counts

    place = xp.tile(xp.arange(domains, dtype=np.int32), steps)
    ordered = _repeat(xp, place, filled.reshape(-1), steps * spec.batch).reshape(steps, spec.batch)
    read = xp.cumsum(counts, axis=0, dtype=np.uint32)
    rows = xp.asarray(np.array(spec.rows, np.uint32))
    if orders is None or domains > _MOST_CACHED:
        row = _rows(xp, spec, seed, ordered, filled, cursor.row[None, :] + read - counts, cursor)
    else:
        row = _rows_from(orders, ordered, filled.sum(axis=0), cursor)

    slot = xp.arange(spec.batch, dtype=np.uint32)[None, :]
    # Sixteen bits are sorted several times faster; equal ones stay in the order of their domains.
    shuffled = _argsort(xp, (key(xp, seed, Purpose.PLACE, step[:, None], slot) >> 16).astype(np.uint16))
    flat = shuffled + xp.arange(steps, dtype=shuffled.dtype)[:, None] * spec.batch
    domain, row = ordered.reshape(-1)[flat], row.reshape(-1)[flat]
    ends = cursor.row[None, :] + read
    after = Cursor(
        epoch=cursor.epoch[None, :] + ends // rows,
        row=ends % rows,
        credit=allocated.credit,
        order=_roll(xp, cursor.order, domain, row),
    )
    return Plan(domain, row, counts, after, allocated.short), cursor_at(after, -1)


def _assert_arguments(xp: Any, spec: Any, first_step: Any, steps: Any, quota: Any, cursor: Any) -> None:
    """Looks at types and shapes, and at numbers where they are on the host: what is traced has none yet."""
    if xp is not np and xp is not jax.numpy:
        raise TypeError(f"xp must be numpy or jax.numpy, got {given(xp)}.")
    if not isinstance(spec, PlanSpec):
        raise TypeError(f"spec must be a PlanSpec, got {given(spec)}.")
    assert_whole(1, MOST, steps=steps)
    if not is_traced(first_step):
        assert_whole(0, MOST_STEPS, first_step=first_step)
    shape = (len(spec.rows),)
    if np.dtype(getattr(quota, "dtype", float)).kind not in "iu":
        raise TypeError(f"quota must be an array of whole numbers, as to_quota makes it, got {given(quota)}.")
    if quota.shape != shape or (isinstance(quota, np.ndarray) and quota.sum(dtype=np.int64) != QUOTA_ONE):
        raise ValueError(f"quota must be {shape[0]} numbers with sum {QUOTA_ONE}, got {given(quota)}.")
    if not isinstance(cursor, Cursor):
        raise TypeError(f"cursor must be a Cursor, such as start_cursor gives it, got {given(cursor)}.")
    for name, column in cursor._asdict().items():
        wanted = (2,) if name == "order" else shape
        if np.shape(column) != wanted:
            raise ValueError(f"cursor.{name} must have shape {wanted}, got {np.shape(column)}.")


def cursor_at(cursors: Cursor, step: int) -> Cursor:
    """The cursor of one step out of `Plan.after`."""
    return Cursor(*(column[step] for column in cursors))


def available(xp: ModuleType, spec: PlanSpec, cursor: Cursor) -> Any:
    """Which domains may give another row, bool [domains]."""
    return rows_left(xp, spec, cursor) > 0


def blocks_ahead(
    spec: PlanSpec, domain: int, epoch: int, row: int, count: int, *, seed: Seed | None = None
) -> list[int]:
    """The next `count` blocks of a domain's stream from `row` of `epoch` on; they do not depend on weights."""
    size = spec.block_by_domain[domain]
    per_epoch = -(-spec.rows[domain] // size)
    places = row // size + np.arange(count, dtype=np.uint32)
    epochs = np.uint32(epoch) + places // np.uint32(per_epoch)
    index = np.full(count, domain, np.int32)
    return [int(block) for block in block_at(np, spec, index, epochs, places % np.uint32(per_epoch), seed=seed)]


def _rows(xp: ModuleType, spec: PlanSpec, seed: Seed, ordered: Any, counts: Any, offset: Any, cursor: Cursor) -> Any:
    """The row at each place of batches that are in the order of their domains."""
    starts = xp.cumsum(counts, axis=1, dtype=np.uint32) - counts
    slot = xp.arange(spec.batch, dtype=np.uint32)[None, :]
    position = xp.take_along_axis(offset, ordered, axis=1) + (slot - xp.take_along_axis(starts, ordered, axis=1))
    length = xp.asarray(np.array(spec.rows, np.uint32))[ordered]
    epoch = xp.asarray(cursor.epoch)[ordered] + position // length
    return shuffle(xp, spec, ordered, epoch, position % length, seed=seed)


def _rows_from(orders: OrderCache, ordered: np.ndarray, counts: np.ndarray, cursor: Cursor) -> np.ndarray:
    """What `_rows` gives, looked up: over the steps each domain goes on reading from its place in the cursor."""
    parts: list[np.ndarray] = []
    for domain, count in enumerate(counts.tolist()):
        parts += orders.rows(domain, int(cursor.epoch[domain]), int(cursor.row[domain]), count)
    row = np.empty(ordered.shape, np.uint32)
    row.reshape(-1)[np.argsort(ordered.reshape(-1).astype(np.uint16), kind="stable")] = np.concatenate(parts)
    return row


def _roll(xp: ModuleType, order: Any, domain: Any, row: Any) -> Any:
    """The rolling hash after each step, [steps, 2]: two polynomials of one hash per batch."""
    slot = mix(xp.arange(domain.shape[1], dtype=np.uint32) + np.uint32(1))[None, :]
    word = mix((row ^ (domain.astype(np.uint32) * np.uint32(0x9E3779B1))) + slot)
    again = (word ^ (word >> 15)) * np.uint32(0x2C1B3C6D)
    lanes = [lane.sum(axis=1, dtype=np.uint32) for lane in (word, again)]
    if xp is np:
        columns = []
        for lane, factor in enumerate(_LANES):
            rolled, column = int(order[lane]), []
            for word_sum in lanes[lane].tolist():
                rolled = (rolled * factor + word_sum + 1) & 0xFFFFFFFF
                column.append(rolled)
            columns.append(column)
        return np.array(columns, np.uint32).T
    factor = xp.asarray(np.array(_LANES, np.uint32))

    def turn(rolled: Any, words: Any) -> Any:
        rolled = rolled * factor + words + np.uint32(1)
        return rolled, rolled

    return jax.lax.scan(turn, xp.asarray(order), xp.stack(lanes, axis=1))[1]


def _repeat(xp: ModuleType, values: Any, counts: Any, total: int) -> Any:
    if xp is np:
        return np.repeat(values, counts)
    return xp.repeat(values, counts, total_repeat_length=total)


def _argsort(xp: ModuleType, keys: Any) -> Any:
    # Both are stable sorts, so equal hashes keep their order alike.
    return np.argsort(keys, axis=-1, kind="stable") if xp is np else xp.argsort(keys, axis=-1, stable=True)


def steps_left(
    spec: PlanSpec, first_step: int, steps: int, quota: np.ndarray, cursor: Cursor, *, seed: Seed | None = None
) -> int:
    """How many of the next `steps` can be made before a limit ends the run; on the host, `seed` as for `plan_steps`."""
    if not spec.limited:
        return steps
    step = np.uint32(first_step) + np.arange(steps, dtype=np.uint32)
    host = Cursor(*(np.asarray(column) for column in cursor))
    short = allocate(np, spec, step, np.asarray(quota), host, seed=None if seed is None else int(seed)).short
    return int(short.argmax()) if short.any() else steps
