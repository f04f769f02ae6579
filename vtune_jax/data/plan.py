"""The plan: which rows make up the global batch of a step, as a pure function of integers.

One body serves numpy and jax.numpy (the `xp` argument) and gives the same bits in both, on every host and inside
`jit`. Nothing here reads data, and no float enters: weights arrive in fixed point (`core.simplex.to_quota`).

- *How many rows of each domain*: by default systematic allocation. With cumulative weights C_j and one offset u in
  [0, 1) per step, domain j gets the whole numbers in `[B C_{j-1} - u, B C_j - u)`: floor or ceil of `B w_j`,
  unbiased exactly. Multinomial allocation, what most published code does, draws each place of the batch by itself:
  unbiased too, with a spread of `sqrt(B w_j (1 - w_j))` rows instead of less than one.
- *Which rows*: each domain is an endless stream; epoch e reads its rows in the order of a bijection keyed by
  (seed, domain, epoch). Weights only decide how many are taken next, never their order.
- *In which place of the batch*: permuted by a hash of (seed, step), so that any slice of the batch (a host's, a
  micro-batch) is a fair sample of the mixture.
"""

import dataclasses
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32, UInt32

from vtune_jax.core.simplex import QUOTA_BITS, QUOTA_ONE
from vtune_jax.core.types import AnyArray, Cursor

PLANNER_VERSION = 1
"""Raised when the same arguments would give other rows; a run begun under another version cannot be resumed."""

MAX_ROWS = 2**31 - 1
MAX_BATCH = 2**19 - 1  # keeps B * 2**12 * 2**12 within two 32-bit words

_ROUNDS = 6  # two rounds (one pair) fewer leave neighbours correlated in domains of a few dozen rows


Allocation = Literal["systematic", "multinomial"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What the plan of a run depends on beside weights and cursor."""

    rows: tuple[int, ...]  # in one epoch of each domain
    batch: int  # rows per step over all hosts
    seed: int
    allocation: Allocation = "systematic"

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows must name at least one domain, got none.")
        if not all(1 <= count <= MAX_ROWS for count in self.rows):
            raise ValueError(f"rows must lie in [1, {MAX_ROWS}], got {list(self.rows)}.")
        if not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch must lie in [1, {MAX_BATCH}], got {self.batch}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {self.seed}.")


class Plan(NamedTuple):
    """The rows of consecutive steps."""

    domain: Int32[AnyArray, "steps batch"]
    row: UInt32[AnyArray, "steps batch"]  # within the domain, in file order
    counts: UInt32[AnyArray, "steps domains"]  # rows taken from each domain


def fingerprint(spec: PlanSpec) -> dict[str, Any]:
    """What must agree for a run to be resumed on the same data."""
    return {**dataclasses.asdict(spec), "rows": list(spec.rows), "planner": PLANNER_VERSION}


def plan_steps(
    xp: ModuleType, spec: PlanSpec, first_step: Any, steps: int, quota: Any, cursor: Cursor
) -> tuple[Plan, Cursor]:
    """Plans several steps under the same weights; the same as planning them one by one.

    Args:
        xp: numpy or jax.numpy.
        spec: lengths, batch, seed.
        first_step: index of the first of them; uint32 under `jit`.
        steps: how many, static.
        quota: uint32 [domains], weights times 2**24, summing to 2**24 exactly.
        cursor: rows of each domain read before the first step.

    Returns:
        the plan, and the cursor after it.
    """
    domains = len(spec.rows)
    step = xp.asarray(first_step).astype(np.uint32) + xp.arange(steps, dtype=np.uint32)
    counts = allocate(xp, spec, step, quota)

    place = xp.arange(steps * domains, dtype=np.int32) % domains
    total = steps * spec.batch
    ordered = _repeat(xp, place, counts.reshape(-1), total).reshape(steps, spec.batch)
    starts = xp.cumsum(counts, axis=1, dtype=np.uint32) - counts
    slot = xp.arange(spec.batch, dtype=np.uint32)[None, :]
    ordinal = slot - xp.take_along_axis(starts, ordered, axis=1)

    before = xp.cumsum(counts, axis=0, dtype=np.uint32) - counts
    offset = cursor.row[None, :] + before
    position = xp.take_along_axis(offset, ordered, axis=1) + ordinal
    length = xp.asarray(np.array(spec.rows, np.uint32))[ordered]
    epoch = xp.asarray(cursor.epoch)[ordered] + position // length
    row = shuffle(xp, spec, ordered, epoch, position % length)

    shuffled = _argsort(xp, _key(xp, spec.seed, 2, step[:, None], slot))
    after = advance(xp, spec, cursor, counts.sum(axis=0, dtype=np.uint32))
    return (
        Plan(
            domain=xp.take_along_axis(ordered, shuffled, axis=1),
            row=xp.take_along_axis(row, shuffled, axis=1),
            counts=counts,
        ),
        after,
    )


def allocate(xp: ModuleType, spec: PlanSpec, step: Any, quota: Any) -> Any:
    """Rows per domain, uint32 [steps, domains], their sum the batch; see the top of this file."""
    cumulative = xp.cumsum(xp.asarray(quota), dtype=np.uint32)
    rule = _multinomial if spec.allocation == "multinomial" else _systematic
    return rule(xp, spec, step, cumulative)


def _systematic(xp: ModuleType, spec: PlanSpec, step: Any, cumulative: Any) -> Any:
    """Each count is floor or ceil of `batch * w`.

    `N_j = ceil(B C_j - u)` with C_j and u multiples of 2**-24, in exact integers: `B C_j` needs up to 43 bits and is
    put together from two products of 12-bit halves.
    """
    half, mask = QUOTA_BITS // 2, (1 << (QUOTA_BITS // 2)) - 1
    batch = np.uint32(spec.batch)
    high = (cumulative >> half) * batch
    low = ((high & mask) << half) + (cumulative & mask) * batch
    whole, fraction = (high >> half) + (low >> QUOTA_BITS), low & (QUOTA_ONE - 1)
    offset = _key(xp, spec.seed, 1, step) >> (32 - QUOTA_BITS)
    ends = whole[None, :] + (fraction[None, :] > offset[:, None])
    ends = ends.astype(np.uint32)
    first = xp.zeros((ends.shape[0], 1), np.uint32)
    return ends - xp.concatenate([first, ends[:, :-1]], axis=1)


def _multinomial(xp: ModuleType, spec: PlanSpec, step: Any, cumulative: Any) -> Any:
    """Each place draws a multiple of 2**-24 and falls to the domain whose stretch of [0, 1) holds it."""
    slot = xp.arange(spec.batch, dtype=np.uint32)
    drawn = _key(xp, spec.seed, 4, step[:, None], slot[None, :]) >> (32 - QUOTA_BITS)
    domains, steps = len(spec.rows), drawn.shape[0]
    domain = xp.searchsorted(cumulative, drawn.reshape(-1), side="right")
    cell = xp.arange(steps).repeat(spec.batch) * domains + domain
    return _histogram(xp, cell, steps * domains).reshape(steps, domains).astype(np.uint32)


def advance(xp: ModuleType, spec: PlanSpec, cursor: Cursor, counts: Any) -> Cursor:
    """The cursor after taking `counts` more rows of each domain."""
    length = xp.asarray(np.array(spec.rows, np.uint32))
    position = cursor.row + counts
    return Cursor(epoch=cursor.epoch + position // length, row=position % length)


def shuffle(xp: ModuleType, spec: PlanSpec, domain: Any, epoch: Any, position: Any) -> Any:
    """The row read at a position of an epoch: a bijection of [0, rows) for each (seed, domain, epoch).

    An alternating Feistel network on just enough bits, applied again while the result lies outside (cycle walking; at
    most two applications on average). Memory does not grow with the corpus, and any position can be asked for.
    """
    bits = np.array([max(1, (count - 1).bit_length()) for count in spec.rows], np.uint32)
    length = xp.asarray(np.array(spec.rows, np.uint32))[domain]
    low_bits = xp.asarray(bits - bits // 2)[domain]
    low_mask = (np.uint32(1) << low_bits) - np.uint32(1)
    high_mask = (np.uint32(1) << xp.asarray(bits // 2)[domain]) - np.uint32(1)
    key = _key(xp, spec.seed, 3, xp.asarray(domain).astype(np.uint32), epoch)

    def encrypt(value: Any) -> Any:
        high, low = value >> low_bits, value & low_mask
        for turn in range(0, _ROUNDS, 2):
            high = high ^ (_mix(low ^ (key + np.uint32(turn * 0x9E3779B1 % 2**32))) & high_mask)
            low = low ^ (_mix(high ^ (key + np.uint32((turn + 1) * 0x9E3779B1 % 2**32))) & low_mask)
        return (high << low_bits) | low

    def walk(value: Any) -> Any:
        return xp.where(value >= length, encrypt(value), value)

    value = encrypt(position)
    if xp is np:
        while (value >= length).any():
            value = walk(value)
        return value
    return jax.lax.while_loop(lambda value: (value >= length).any(), walk, value)


def _mix(word: Any) -> Any:
    """A 32-bit hash: xor-shifts and two odd multipliers (the "lowbias32" constants of C. Wellons' search).

    Our own, since numpy's generators and jax.random promise no stable stream across versions, and resumes must.
    """
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _key(xp: ModuleType, seed: int, purpose: int, *words: Any) -> Any:
    """Hashes a seed, a purpose and any words, one after the other, to uint32."""
    # At least one dimension throughout: numpy warns when a scalar wraps, and never for an array.
    key = _mix(xp.asarray([(seed + purpose * 0x9E3779B9) % 2**32], np.uint32))
    for word in words:
        key = _mix(key ^ _mix(word + np.uint32(0x9E3779B9)))
    return key


def _repeat(xp: ModuleType, values: Any, counts: Any, total: int) -> Any:
    if xp is np:
        return np.repeat(values, counts)
    return xp.repeat(values, counts, total_repeat_length=total)


def _histogram(xp: ModuleType, values: Any, size: int) -> Any:
    return np.bincount(values, minlength=size) if xp is np else xp.bincount(values, length=size)


def _argsort(xp: ModuleType, keys: Any) -> Any:
    # Both are stable sorts, so equal hashes keep their order alike.
    return np.argsort(keys, axis=-1, kind="stable") if xp is np else xp.argsort(keys, axis=-1, stable=True)
