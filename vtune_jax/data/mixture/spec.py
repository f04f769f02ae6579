"""What a plan of batches depends on beside weights and cursor; everything in this room builds on it."""

import dataclasses
import enum
from typing import Any, Literal, get_args

import numpy as np

from vtune_jax.core.checks import MOST, assert_types, assert_whole
from vtune_jax.core.types import Cursor

PLANNER_VERSION = 1
"""Raised when the same arguments would give other rows; a run begun under another version cannot be resumed."""

MAX_ROWS = MOST
"""Rows of one domain: sums of two of them fit into 32 bits."""

MOST_STEPS = 2**32 - 1
"""Steps are counted in 32 bits without a sign."""

MAX_BATCH = 2**19 - 1
"""Rows of one step: a batch times a weight of 24 bits is computed in two parts, which must each fit into 32 bits."""

MAX_BLOCK = 2**19
"""Rows of one block: `order.shuffle` counts the bits of a block's length up to this."""

Allocation = Literal["systematic", "multinomial", "deficit"]
"""How the rows of a batch are divided among the domains, see `allocation`."""


class Purpose(enum.IntEnum):
    """What a key of the plan decides. The numbers enter the hash: another number would give other rows."""

    OFFSET = 1  # the one offset of a step's systematic allocation
    PLACE = 2  # the order of the places in a batch
    ROWS = 3  # the order of a domain's rows in an epoch
    DRAW = 4  # the domain of each place under multinomial allocation
    SHARED = 5  # the offset by which the rows that exhausted domains leave are shared out
    BLOCKS = 6  # the order of a domain's blocks in an epoch
    WITHIN = 7  # the order of the rows within a block
    TIE = 8  # which of the domains that are owed the same goes first under deficit allocation


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """What the plan of a run depends on beside weights and cursor."""

    rows: tuple[int, ...]  # in one epoch of each domain
    batch: int  # rows per step over all hosts
    seed: int  # in [0, 2**32); functions that take `seed=` use that one instead
    allocation: Allocation = "systematic"
    blocks: tuple[int, ...] = ()  # rows that are stored and read together, per domain; empty: 1
    limits: tuple[int | None, ...] = ()  # most rows ever read, per domain; None, or empty: no limit
    stop: tuple[bool, ...] = ()  # True: the domain ends the run at its limit; False, or empty: others take its share

    def __post_init__(self) -> None:
        assert_types(self)
        if not self.rows:
            raise ValueError("rows must name at least one domain, got none.")
        if not all(1 <= count <= MAX_ROWS for count in self.rows):
            raise ValueError(f"rows must lie in [1, {MAX_ROWS}], got {list(self.rows)}.")
        if not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch must lie in [1, {MAX_BATCH}], got {self.batch}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {self.seed}.")
        if self.allocation not in get_args(Allocation):
            raise ValueError(f"allocation must be systematic, multinomial or deficit, got '{self.allocation}'.")
        for field in ("blocks", "limits", "stop"):
            values = getattr(self, field)
            if values and len(values) != len(self.rows):
                raise ValueError(f"{field} must have one entry per domain ({len(self.rows)}), got {len(values)}.")
        if not all(1 <= block <= MAX_BLOCK for block in self.blocks):
            raise ValueError(f"blocks must lie in [1, {MAX_BLOCK}], got {list(self.blocks)}.")
        for rows, limit in zip(self.rows, self.limit_by_domain, strict=True):
            if limit is not None and not 0 <= limit <= MAX_ROWS * rows:
                raise ValueError(f"limits must lie in [0, {MAX_ROWS} epochs], got {list(self.limits)}.")

    @property
    def limited(self) -> bool:
        """Whether any domain has a limit."""
        return any(limit is not None for limit in self.limits)

    @property
    def limit_by_domain(self) -> tuple[int | None, ...]:
        """`limits` with one entry per domain even where it is empty."""
        return self.limits or (None,) * len(self.rows)

    @property
    def stop_by_domain(self) -> tuple[bool, ...]:
        """`stop` with one entry per domain even where it is empty."""
        return self.stop or (False,) * len(self.rows)

    @property
    def block_by_domain(self) -> tuple[int, ...]:
        """`blocks` with one entry per domain even where it is empty."""
        return self.blocks or (1,) * len(self.rows)


def fingerprint(spec: PlanSpec) -> dict[str, Any]:
    """What must agree for a run to be resumed on the same data."""
    named = {
        name: [_plain(entry) for entry in value] if isinstance(value, tuple) else _plain(value)
        for name, value in vars(spec).items()
    }
    return {**named, "planner": PLANNER_VERSION}


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's, which JSON has."""
    return value.item() if isinstance(value, np.generic) else value


def start_cursor(domains: int) -> Cursor:
    """Nothing has been read.

    Raises:
        ValueError: fewer than one domain.
        TypeError: no whole number.
    """
    assert_whole(1, domains=domains)
    epoch, row = (np.zeros(domains, np.uint32) for _ in range(2))
    return Cursor(epoch=epoch, row=row, credit=np.zeros(domains, np.int32), order=np.zeros(2, np.uint32))
