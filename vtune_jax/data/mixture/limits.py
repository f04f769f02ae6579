"""Why a mixture ends: which domains' limits leave a step without enough rows."""

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
    intended: bool  # True: a domain that is set to stop the run did; False: no domain with weight has rows left


def why_ended(spec: PlanSpec, quota: np.ndarray, cursor: Cursor, stores: Sequence[RowStore]) -> End:
    """Which domains' limits leave the next step without enough rows, by the names of the stores."""
    left = rows_left(np, spec, Cursor(*(np.asarray(column) for column in cursor))).tolist()
    names = [store.name for store in stores]
    low = [rows < spec.batch for rows in left]
    ending = [name for name, stop, is_low in zip(names, spec.stop_by_domain, low, strict=True) if stop and is_low]
    if ending:
        return End(f"{_quoted(ending)} has been read as often as allowed and is set to stop the run", True)
    used = [name for name, is_low, share in zip(names, low, quota, strict=True) if share and is_low]
    idle = [name for name, rows, share in zip(names, left, quota, strict=True) if not share and rows]
    rest = f", and {_quoted(idle)} has weight zero" if idle else ", and no other domain is left"
    return End(f"{_quoted(used)} cannot fill another batch within the limits{rest}", False)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
