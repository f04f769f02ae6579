"""What a mixture is given from outside, as what it works with: stores, weights, a cursor, a saved state."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vtune_jax.core.checks import SUM_SLACK, as_numbers, assert_whole, given
from vtune_jax.core.simplex import QUOTA_ONE, to_quota
from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.spec import MOST_STEPS, PlanSpec, start_cursor
from vtune_jax.data.tokens.rows import RowStore, as_stores

State = dict[str, Any]
"""Plain numbers and lists, as JSON has them."""

Shares = Sequence[float] | np.ndarray
"""Weights: floats with sum 1, or fixed point (uint32, sum 2**24)."""


def stores_of(spec: Any, stores: Any) -> tuple[RowStore, ...]:
    """The stores of a spec.

    Raises:
        ValueError: stores of other lengths or blocks than the spec's.
        TypeError: what is no spec, what are no stores.
    """
    if not isinstance(spec, PlanSpec):
        raise TypeError(f"spec must be a PlanSpec, got {given(spec)}; from_stores makes one.")
    found = as_stores(stores)
    if tuple(map(len, found)) != spec.rows:
        raise ValueError(f"stores must have {spec.rows} rows as in the spec, got {tuple(map(len, found))}.")
    if (blocks := tuple(store.block for store in found)) != spec.block_by_domain:
        raise ValueError(f"stores must have blocks of {spec.blocks or 1} rows as in the spec, got {blocks}.")
    return found


def as_quota(weights: Any, domains: int) -> np.ndarray:
    """Weights in fixed point, uint32, from float shares or from fixed point.

    Args:
        weights: what was given.
        domains: how many there are.

    Raises:
        ValueError: another shape, floats that are no shares, whole numbers that do not sum to 2^24.
        TypeError: what are no numbers.
    """
    shares = as_numbers("weights", weights)
    array = np.asarray(weights)
    if array.dtype.kind in "iu":
        # Compared before they are cut to 32 bits.
        if array.shape != (domains,) or (array < 0).any() or array.sum(dtype=np.uint64) != QUOTA_ONE:
            raise ValueError(f"quota must be {domains} numbers with sum {QUOTA_ONE}, got {given(array.tolist())}.")
        return array.astype(np.uint32)
    if shares.shape != (domains,) or not ((shares >= 0).all() and abs(shares.sum() - 1) <= SUM_SLACK):
        raise ValueError(f"weights must be {domains} shares with sum 1, got {given(shares.tolist())}.")
    return np.asarray(_rounded(shares.astype(np.float32)))


def as_cursor(cursor: Any, spec: PlanSpec) -> Cursor:
    """A cursor as numpy arrays of their own.

    Raises:
        ValueError: one of other domains, or numbers that its integers do not hold.
        TypeError: what is no cursor.
    """
    if not isinstance(cursor, Cursor):
        raise TypeError(f"cursor must be a Cursor, such as start_cursor gives it, got {given(cursor)}.")
    columns = {}
    for name, like in start_cursor(len(spec.rows))._asdict().items():
        column, limits = as_numbers(f"cursor.{name}", getattr(cursor, name)), np.iinfo(like.dtype)
        sound = column.shape == like.shape and ((column >= limits.min) & (column <= limits.max)).all()
        if not sound or (column != np.floor(column)).any():
            raise ValueError(
                f"cursor.{name} must hold {like.size} whole numbers in [{limits.min}, {limits.max}], "
                f"got {given(column.tolist())}."
            )
        columns[name] = column.astype(like.dtype)
    return Cursor(**columns)


def assert_within_epoch(cursor: Cursor, spec: PlanSpec) -> None:
    """Refuses a cursor past the end of a domain.

    Raises:
        ValueError: naming the rows.
    """
    if (cursor.row >= np.array(spec.rows, np.uint32)).any():
        raise ValueError(f"cursor.row must lie below {list(spec.rows)}, got {given(cursor.row.tolist())}.")


def assert_state(state: Any, like: State) -> None:
    """Refuses what is no state of a mixture; of which mixture is another question.

    Args:
        state: what was given.
        like: a state.

    Raises:
        ValueError: parts are missing, or numbers out of their range.
        TypeError: it is no dictionary, or holds no numbers.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dictionary as `get_state` gives it, got {given(state)}.")
    if missing := [name for name in like if name not in state]:
        raise ValueError(f"state must be as `get_state` gives it, got one without {', '.join(missing)}.")
    if not isinstance(state["made_of"], Mapping):
        raise TypeError(f"state['made_of'] must be a dictionary, got {given(state['made_of'])}.")
    for name in ("step", "version", "next_version"):
        assert_whole(0, MOST_STEPS, **{name: state[name]})
    if state["version"] > state["next_version"]:
        raise ValueError(f"version must not be above next_version = {state['next_version']}, got {state['version']}.")


def changes(was: Mapping[str, Any], now: State) -> list[str]:
    """What differs between the data of a state and the present ones, one phrase per difference."""
    names = sorted({*was, *now}, key=[*now, *was].index)
    return [f"{name} was {was.get(name)}, is {now.get(name)}" for name in names if was.get(name) != now.get(name)]


_rounded = jax.jit(to_quota)
