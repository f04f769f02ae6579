"""How many rows of each domain a step takes: integer arithmetic, the same in numpy and jax.numpy.

B is the batch in rows, w_j the weight of domain j.

- *Systematic* (default). With cumulative weights C_j and one offset u in [0, 1) per step, domain j gets as many rows as
  there are whole numbers in `[B C_{j-1} - u, B C_j - u)`. That is the floor or the ceiling of `B w_j`, its expectation
  is `B w_j` exactly, and steps are independent.
- *Multinomial*, what most published code does: the domain of each place of the batch is drawn independently. The
  expectation is `B w_j`, the standard deviation `sqrt(B w_j (1 - w_j))` rows.
- *Deficit*. Each domain has a credit: the rows that it was owed so far and did not get. Every step gives each domain
  the floor of `B w_j`, and the remaining rows, one each, to the domains with the largest credits. Credits are kept when
  weights change, so the rows read of a domain stay within two of the sum of `B w_j` over the whole run, however short
  the intervals. The credit of a domain whose weight is zero stays as it is.

A domain may have a limit, the most rows ever read of it. In the step in which a domain reaches its limit, the rows that
it cannot give are shared among the others in proportion to their weights; after it the domain counts as having weight
zero, and the others' weights are scaled up to sum to one. All arithmetic is in whole numbers and exact.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from vtune_jax.core.hashing import key
from vtune_jax.core.simplex import QUOTA_BITS, QUOTA_ONE
from vtune_jax.core.types import Cursor, Seed
from vtune_jax.data.mixture.spec import PlanSpec, Purpose

PLENTY = 2**31 - 1
"""Rows left of a domain are counted up to this number, which also stands for "no limit"."""

_HALF, _MASK = QUOTA_BITS // 2, (1 << (QUOTA_BITS // 2)) - 1


class Counts(NamedTuple):
    """How many rows consecutive steps take of each domain."""

    rows: Any  # uint32 [steps, domains]; a step's sum is the batch unless it is short
    credit: Any  # int32 [steps, domains], after each step
    short: Any  # bool [steps]; True: the domains cannot fill the batch, and the step cannot be made


def allocate(
    xp: ModuleType, spec: PlanSpec, step: Any, quota: Any, cursor: Cursor, *, seed: Seed | None = None
) -> Counts:
    """Rows per domain for consecutive steps under the same weights; see the top of this file.

    Args:
        xp: numpy or jax.numpy.
        spec: of the plan.
        step: uint32 [steps], consecutive.
        quota: weights in fixed point, uint32 [domains].
        cursor: before the first step.
        seed: in place of the spec's; a traced uint32 can be mapped over.
    """
    quota = xp.asarray(quota)
    seed = spec.seed if seed is None else seed
    if not (spec.limited or spec.allocation == "deficit"):
        return _unlimited(xp, spec, seed, step, quota, cursor.credit)
    if xp is np:
        return _in_stretches(spec, seed, step, quota, cursor)

    def next_step(carried: Any, step: Any) -> Any:
        left, credit = carried
        rows, credit, short = _single(xp, spec, seed, step, quota, left, credit)
        return (left - xp.minimum(rows, left), credit), (rows, credit, short)

    return Counts(*jax.lax.scan(next_step, (rows_left(xp, spec, cursor), cursor.credit), step)[1])


def rows_left(xp: ModuleType, spec: PlanSpec, cursor: Cursor) -> Any:
    """Rows that each domain may still give, uint32 [domains], counted up to `PLENTY`."""
    limits = [limit or 0 for limit in spec.limit_by_domain]
    length = np.array(spec.rows, np.uint32)
    epochs = np.array([limit // rows for rows, limit in zip(spec.rows, limits, strict=True)], np.uint32)
    rest = np.array([limit % rows for rows, limit in zip(spec.rows, limits, strict=True)], np.uint32)
    length, epochs, rest = (xp.asarray(column) for column in (length, epochs, rest))
    whole = epochs - xp.minimum(epochs, cursor.epoch)
    many = whole > np.uint32(PLENTY) // length
    ends = xp.where(many, np.uint32(0), whole) * length + rest
    over = (cursor.epoch > epochs) | (~many & (ends < cursor.row))
    left = xp.where(many, np.uint32(PLENTY), ends - xp.minimum(cursor.row, ends))
    left = xp.where(over, np.uint32(0), xp.minimum(left, np.uint32(PLENTY)))
    unlimited = xp.asarray(np.array([limit is None for limit in spec.limit_by_domain]))
    return xp.where(unlimited, np.uint32(PLENTY), left).astype(np.uint32)


def rescaled(xp: ModuleType, quota: Any, available: Any) -> Any:
    """The weights of the available domains scaled up to sum to one again: largest remainder, exact.

    All zero when none of them has weight.
    """
    kept = xp.where(available, quota, np.uint32(0))
    total = kept.sum(dtype=np.uint32)
    if xp is np and total == QUOTA_ONE:
        return kept
    divisor = xp.maximum(total, np.uint32(1))

    def digit(_: Any, division: Any) -> Any:
        quotient, rest = division
        rest = rest << 1
        fits = rest >= divisor
        return (quotient << 1) | fits.astype(np.uint32), xp.where(fits, rest - divisor, rest)

    # floor(kept * 2**24 / total) by long division, as the product has 48 bits. Only a whole share has 25 bits.
    whole = kept == divisor
    division = (xp.zeros_like(kept), xp.where(whole, np.uint32(0), kept))
    if xp is np:
        for turn in range(QUOTA_BITS):
            division = digit(turn, division)
    else:
        division = jax.lax.fori_loop(0, QUOTA_BITS, digit, division)
    quotient, rest = xp.where(whole, np.uint32(QUOTA_ONE), division[0]), division[1]
    missing = np.uint32(QUOTA_ONE) - quotient.sum(dtype=np.uint32)
    # At most as many units are missing as there are remainders that are not zero.
    rank = _rank(xp, divisor - rest)
    scaled = quotient + (rank.astype(np.uint32) < missing).astype(np.uint32)
    return xp.where(total > 0, scaled, xp.zeros_like(scaled))


def _in_stretches(spec: PlanSpec, seed: Seed, step: np.ndarray, quota: np.ndarray, cursor: Cursor) -> Counts:
    """`allocate` with limits in numpy: the steps before a domain runs out all at once, then that step alone, and so on.

    Deficit allocation carries credits from step to step, so there every step is computed alone.
    """
    left, credit = rows_left(np, spec, cursor), np.asarray(cursor.credit)
    parts: list[Counts] = []
    done = 0
    while done < len(step):
        first = 1
        if spec.allocation != "deficit":
            in_force = rescaled(np, quota, left > 0) if spec.limited else quota
            if in_force.any() and not _stopped(np, spec, quota, left):
                ahead = _unlimited(np, spec, seed, step[done:], in_force, credit)
                read = ahead.rows.cumsum(axis=0, dtype=np.uint32)
                finite = left < PLENTY
                out = (read >= left)[:, finite & (left > 0)].any(axis=1)
                first = int(out.argmax()) if out.any() else len(out)
                if first:
                    parts.append(Counts(*(column[:first] for column in ahead)))
                    left = np.where(finite, left - np.minimum(read[first - 1], left), left)
                    done += first
                    continue
        rows, credit, short = _single(np, spec, seed, step[done], quota, left, credit)
        parts.append(Counts(rows[None], credit[None], np.array([short])))
        left = np.where(left < PLENTY, left - np.minimum(rows, left), left)
        done += 1
    return Counts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _unlimited(xp: ModuleType, spec: PlanSpec, seed: Seed, step: Any, quota: Any, credit: Any) -> Counts:
    cumulative = xp.cumsum(quota, dtype=np.uint32)
    if spec.allocation == "multinomial":
        rows = _multinomial(xp, spec, seed, step, cumulative)
    else:
        rows = _systematic(xp, cumulative, np.uint32(spec.batch), key(xp, seed, Purpose.OFFSET, step))
    credit = xp.broadcast_to(xp.asarray(credit), rows.shape)
    return Counts(rows, credit, xp.zeros(rows.shape[0], bool))


def _single(
    xp: ModuleType, spec: PlanSpec, seed: Seed, step: Any, quota: Any, left: Any, credit: Any
) -> tuple[Any, Any, Any]:
    """One step with limits: rows, credit, and whether the batch cannot be filled."""
    in_force = rescaled(xp, quota, left > 0) if spec.limited else quota
    if spec.allocation == "deficit":
        wanted, credit = _deficit(xp, spec, seed, step, in_force, credit)
    else:
        wanted = _unlimited(xp, spec, seed, xp.asarray(step).reshape(1), in_force, credit).rows[0]
        wanted = xp.where(in_force.any(), wanted, np.uint32(0))
    if not spec.limited:
        return wanted, credit, xp.asarray(False)
    stops = xp.asarray(np.array(spec.stop_by_domain))
    stopped = (stops & (wanted > left)).any() | _stopped(xp, spec, quota, left)
    rows = xp.minimum(wanted, left)

    def lacking(shared: Any) -> Any:
        _, rows = shared
        return (rows.sum(dtype=np.uint32) < spec.batch) & ((rows < left) & (quota > 0)).any()

    def share(shared: Any) -> Any:
        turn, rows = shared
        scaled = rescaled(xp, quota, rows < left)
        lack = np.uint32(spec.batch) - rows.sum(dtype=np.uint32)
        offset = key(xp, seed, Purpose.SHARED, xp.asarray(step).reshape(1), turn)
        more = _systematic(xp, xp.cumsum(scaled, dtype=np.uint32), lack, offset)[0]
        return turn + np.uint32(1), xp.minimum(rows + more, left)

    shared = (xp.zeros(1, np.uint32), rows)
    if xp is np:
        while lacking(shared):
            shared = share(shared)
    else:
        shared = jax.lax.while_loop(lacking, share, shared)
    rows = shared[1]
    return rows, credit, stopped | (rows.sum(dtype=np.uint32) < spec.batch)


def _stopped(xp: ModuleType, spec: PlanSpec, quota: Any, left: Any) -> Any:
    """Whether a domain that has weight and ends the run has nothing left."""
    return (xp.asarray(np.array(spec.stop_by_domain)) & (left == 0) & (quota > 0)).any()


def _systematic(xp: ModuleType, cumulative: Any, batch: Any, hashed: Any) -> Any:
    """`N_j = ceil(B C_j - u)` with C_j and u multiples of 2**-24, [steps, domains]."""
    whole, fraction = _times(cumulative, batch)
    offset = hashed >> (32 - QUOTA_BITS)
    ends = (whole[None, :] + (fraction[None, :] > offset[:, None])).astype(np.uint32)
    first = xp.zeros((ends.shape[0], 1), np.uint32)
    return ends - xp.concatenate([first, ends[:, :-1]], axis=1)


def _times(quota: Any, batch: Any) -> tuple[Any, Any]:
    """Whole part and 24-bit fraction of `batch * quota / 2**24`; the product needs up to 43 bits, hence the halves."""
    high = (quota >> _HALF) * batch
    low = ((high & _MASK) << _HALF) + (quota & _MASK) * batch
    return (high >> _HALF) + (low >> QUOTA_BITS), low & (QUOTA_ONE - 1)


def _multinomial(xp: ModuleType, spec: PlanSpec, seed: Seed, step: Any, cumulative: Any) -> Any:
    """Each place draws a multiple of 2**-24 in [0, 1) and takes the domain j with `C_{j-1} <= draw < C_j`."""
    slot = xp.arange(spec.batch, dtype=np.uint32)
    drawn = key(xp, seed, Purpose.DRAW, step[:, None], slot[None, :]) >> (32 - QUOTA_BITS)
    domains, steps = len(spec.rows), drawn.shape[0]
    # Where all weights are zero every draw lies past the last domain; the caller sets these rows to zero.
    domain = xp.minimum(xp.searchsorted(cumulative, drawn.reshape(-1), side="right"), domains - 1)
    cell = xp.arange(steps).repeat(spec.batch) * domains + domain
    return _histogram(xp, cell, steps * domains).reshape(steps, domains).astype(np.uint32)


def _deficit(xp: ModuleType, spec: PlanSpec, seed: Seed, step: Any, quota: Any, credit: Any) -> tuple[Any, Any]:
    """The floor of `B w_j` to each domain, and one more row to those that are owed most: rows, credit after them."""
    whole, fraction = _times(quota, np.uint32(spec.batch))
    owed = xp.asarray(credit) + fraction.astype(np.int32)
    # Where all weights are zero nothing is given out: the caller sees a step without rows.
    extra = xp.where(quota.any(), np.uint32(spec.batch) - whole.sum(dtype=np.uint32), np.uint32(0))
    # Equal claims, as at the start, are put in an order that a hash of the step chooses.
    domains = xp.arange(len(spec.rows), dtype=np.uint32)
    tie = _argsort(xp, key(xp, seed, Purpose.TIE, xp.asarray(step).reshape(1), domains))
    claim = xp.where(quota > 0, -owed, np.int32(PLENTY))[tie]
    order = tie[_argsort(xp, claim)]
    rank = _argsort(xp, order)
    gets = rank.astype(np.uint32) < extra
    owed = xp.where(quota > 0, owed, credit)
    return whole + gets.astype(np.uint32), owed - (gets.astype(np.int32) << QUOTA_BITS)


def _rank(xp: ModuleType, keys: Any) -> Any:
    return _argsort(xp, _argsort(xp, keys))


def _histogram(xp: ModuleType, values: Any, size: int) -> Any:
    return np.bincount(values, minlength=size) if xp is np else xp.bincount(values, length=size)


def _argsort(xp: ModuleType, keys: Any) -> Any:
    # Both are stable sorts, so equal keys keep their order alike.
    return np.argsort(keys, axis=-1, kind="stable") if xp is np else xp.argsort(keys, axis=-1, stable=True)
