"""Why a mixture ends: which limits leave a step without its rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.allocation import rows_left
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore


class End(NamedTuple):
    """Why a mixture ends."""

    reason: str
    intended: bool  # a domain that is set to stop the run did; else nothing with weight is left to read


def why_ended(spec: PlanSpec, quota: np.ndarray, cursor: Cursor, stores: Sequence[RowStore]) -> End:
    """Which limits leave the next step without its rows."""
    left = rows_left(np, spec, Cursor(*(np.asarray(column) for column in cursor))).tolist()
    names = [store.name for store in stores]
    low = [rows < spec.batch for rows in left]
    ending = [name for name, stop, near in zip(names, spec.stops, low, strict=True) if stop and near]
    if ending:
        return End(f"{_quoted(ending)} has been read as often as allowed and is set to stop the run", True)
    used = [name for name, near, share in zip(names, low, quota, strict=True) if share and near]
    idle = [name for name, rows, share in zip(names, left, quota, strict=True) if not share and rows]
    rest = f", and {_quoted(idle)} has weight zero" if idle else ", and no other domain is left"
    return End(f"{_quoted(used)} cannot fill another batch within the limits{rest}", False)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
