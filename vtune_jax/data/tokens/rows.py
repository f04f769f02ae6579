"""A domain's rows: fixed-length windows over its tokens, read one by one or in blocks.

A store of rows gives named arrays: `tokens` [rows, length + 1], of which all but the last are inputs and all but the
first are labels. A packed store (`tokens.packing`) gives `inputs`, `labels`, `segments` and `positions` instead.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from vtune_jax.core.checks import MOST, assert_whole, assert_within, given
from vtune_jax.data.tokens.array_record import TokenSource
from vtune_jax.data.tokens.mapped import MappedTokens, windows
from vtune_jax.errors import UserError

_QUICK_S = 2e-3  # seconds; a block that loads faster is not read ahead

Rows = dict[str, np.ndarray]
"""Named arrays with one leading axis of rows."""


@runtime_checkable
class RowStore(Protocol):
    """What the mixture reads a domain's rows from. `read` may be called from several threads."""

    name: str
    length: int  # predicted tokens per row, at most
    block: int  # neighbouring rows that are best read together; 1: rows in any order cost the same

    def __len__(self) -> int:
        """Rows."""
        ...

    def read(self, rows: np.ndarray) -> Rows:
        """The given rows, an array of whole numbers.

        Raises:
            IndexError: a row that does not exist.
            TypeError: what is no array of whole numbers in one axis.
            UserError: the tokens are lost or damaged.
        """
        ...

    def first(self, share: float) -> Self:
        """A store of the first `share` of the rows, in [0, 1] and at least one row."""
        ...


class TokenRows:
    """Row r of a domain is `tokens[r L : r L + L + 1]`: L predicted tokens, and the token before them.

    Neighbouring rows share one token, so that every token but the first is predicted exactly once an epoch.
    """

    block = 1

    def __init__(
        self, tokens: np.ndarray | MappedTokens, length: int, *, name: str = "domain", limit: int | None = None
    ) -> None:
        """Looks at an array or memory map of tokens; copies nothing.

        Args:
            tokens: 1-D, documents one after another.
            length: predicted tokens per row, L.
            name: of the domain, for messages.
            limit: most rows used, from the first on; None: all.

        Raises:
            UserError: the domain is shorter than one row.
            ValueError: tokens of another shape or dtype, a length or limit below 1.
            TypeError: what are no tokens, no whole numbers.
        """
        assert_tokens(tokens)
        self.source = tokens
        self.length, self.name = length, name
        self._rows = _count(len(tokens), length, name, limit)

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, 1-D."""
        return self.source.array if isinstance(self.source, MappedTokens) else self.source

    def __len__(self) -> int:
        return self._rows

    def first(self, share: float) -> Self:
        """See `RowStore`."""
        assert_within(0.0, 1.0, share=share)
        return type(self)(self.source, self.length, name=self.name, limit=max(1, round(share * len(self))))

    def read(self, rows: np.ndarray) -> Rows:
        """See `RowStore`; `tokens` [rows, length + 1] in the tokens' dtype."""
        assert_rows(self, rows)
        start, width = rows.astype(np.int64) * self.length, self.length + 1
        if isinstance(self.source, MappedTokens):
            return {"tokens": self.source.windows(start, width)}
        return {"tokens": windows(self.source, start, width)}


class BlockRows:
    """The rows of `TokenRows`, read in blocks of neighbours, for records and slow storage.

    The plan shuffles the blocks and the rows within each, so that a block is read once and all its rows are used before
    the next block is needed. The order of a domain's blocks does not depend on weights, so the blocks that `expect`
    reads ahead are needed whatever the weights become. Every host reads whole blocks, so N hosts read each block N
    times.
    """

    def __init__(
        self, source: TokenSource, length: int, *, block: int, keep: int = 3, limit: int | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            source: of the tokens.
            length: predicted tokens per row.
            block: rows per block.
            keep: most blocks kept in memory.
            limit: most rows used, from the first on; None: all.

        Raises:
            UserError: the domain is shorter than one row.
            ValueError: a length, block, limit or number of blocks below 1.
            TypeError: what is no source of tokens, no whole number.
        """
        if isinstance(source, type) or not all(hasattr(source, part) for part in ("name", "dtype", "slice", "__len__")):
            raise TypeError(f"source must be MappedTokens, RecordTokens or another source, got {given(source)}.")
        assert_whole(1, MOST, block=block, keep=keep)
        self.source, self.length, self.name, self.block, self._keep = source, length, source.name, block, keep
        self._rows = _count(len(source), length, source.name, limit)
        self._blocks: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._load_seconds = _QUICK_S  # of the newest load

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_blocks", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _blocks=OrderedDict(), _lock=threading.Lock())

    def __len__(self) -> int:
        return self._rows

    def first(self, share: float) -> Self:
        """See `RowStore`."""
        assert_within(0.0, 1.0, share=share)
        limit = max(1, round(share * len(self)))
        return type(self)(self.source, self.length, block=self.block, keep=self._keep, limit=limit)

    def read(self, rows: np.ndarray) -> Rows:
        """See `RowStore`; `tokens` [rows, length + 1] in the tokens' dtype."""
        assert_rows(self, rows)
        block_of_row = rows // np.uint32(self.block)
        first = int(block_of_row[0]) if len(rows) else 0
        if (block_of_row == first).all():
            # The usual case: a domain is within one block.
            return {"tokens": self._within(first, rows)}
        tokens = np.empty((len(rows), self.length + 1), self.source.dtype)
        for block in np.unique(block_of_row).tolist():
            mine = block_of_row == block
            tokens[mine] = self._within(block, rows[mine])
        return {"tokens": tokens}

    def _within(self, block: int, rows: np.ndarray) -> np.ndarray:
        start = (rows.astype(np.int64) - block * self.block) * self.length
        return windows(self._block(block), start, self.length + 1)

    def expect(self, blocks: Sequence[int], pool: Executor) -> None:
        """Starts reading the blocks that the stream comes to next, unless the newest one was read in under 2 ms.

        If blocks come from the system's cache, threads that compete with the training loop for Python's lock cost more
        time than they hide: they halved the speed when it was measured.
        """
        if self._load_seconds < _QUICK_S:
            return
        for block in blocks[: self._keep - 1]:
            with self._lock:
                if block not in self._blocks:
                    self._blocks[block] = pool.submit(self._load, block)

    def _block(self, block: int) -> np.ndarray:
        with self._lock:
            found = self._blocks.get(block)
            mine = found is None
            if found is None:
                found = self._blocks[block] = Future()
            self._blocks.move_to_end(block)
            while len(self._blocks) > self._keep:
                self._blocks.popitem(last=False)
        if mine:
            try:
                found.set_result(self._load(block))
            except BaseException as error:
                found.set_exception(error)
        try:
            return found.result()
        except BaseException:
            # The next call reads the block again: the storage may have come back.
            with self._lock:
                self._blocks.pop(block, None)
            raise

    def _load(self, block: int) -> np.ndarray:
        first = block * self.block
        last, began = min(first + self.block, len(self)), time.monotonic()
        tokens = self.source.slice(first * self.length, last * self.length + 1)
        self._load_seconds = time.monotonic() - began
        return tokens


def _count(tokens: int, length: int, name: str, limit: int | None) -> int:
    assert_whole(1, MOST, length=length)
    if limit is not None:
        assert_whole(1, limit=limit)
    if tokens <= length:
        raise UserError(
            f"sequence length {length} is longer than domain '{name}' ({tokens:,} tokens)",
            "set data.sequence lower or give the domain more text",
        )
    whole = (tokens - 1) // length
    return whole if limit is None else min(limit, whole)


def assert_rows(store: RowStore, rows: np.ndarray) -> None:
    """Refuses rows that a store does not have.

    Raises:
        IndexError: naming row and domain.
        TypeError: what is no array of whole numbers in one axis.
    """
    if not (isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind in "iu"):
        raise TypeError(f"rows must be a numpy array of whole numbers, 1-D, got {given(rows)}.")
    # The plan's numbers have no sign: one look is enough for them.
    if rows.size and (int(rows.max()) >= len(store) or (rows.dtype.kind == "i" and int(rows.min()) < 0)):
        row = int(rows.max()) if int(rows.max()) >= len(store) else int(rows.min())
        raise IndexError(f"row {row} of domain '{store.name}' asked for; it has {len(store)}.")


def assert_tokens(tokens: Any) -> None:
    """Refuses what are not the tokens of a domain in memory or mapped: whole numbers, 1-D, one after another.

    Raises:
        ValueError: another shape, dtype or layout.
        TypeError: neither an array nor `MappedTokens`.
    """
    if isinstance(tokens, MappedTokens):
        return
    if isinstance(tokens, type) or not (
        hasattr(tokens, "ndim") and isinstance(getattr(tokens, "dtype", None), np.dtype)
    ):
        raise TypeError(f"tokens must be a numpy array or MappedTokens, got {given(tokens)}; BlockRows reads records.")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens must be whole numbers in one axis, got {given(tokens)}.")
    if isinstance(tokens, np.ndarray) and not tokens.flags.c_contiguous:
        raise ValueError("tokens must lie one after another in memory, got a strided array; copy it.")


def as_stores(stores: Any) -> tuple[RowStore, ...]:
    """The stores of a mixture, whose rows must have one length.

    Raises:
        ValueError: none, or rows of different lengths.
        TypeError: what are no stores.
    """
    if isinstance(stores, str | bytes | dict) or not isinstance(stores, Iterable):
        raise TypeError(f"stores must be a sequence of row stores, one per domain, got {given(stores)}.")
    found = tuple(stores)
    if not found:
        raise ValueError("stores must hold at least one row store, got none.")
    for index, store in enumerate(found):
        if isinstance(store, type) or not isinstance(store, RowStore):
            raise TypeError(f"stores[{index}] must be a row store such as TokenRows, got {given(store)}.")
    if len(lengths := {store.length for store in found}) > 1:
        raise ValueError(f"stores must have rows of one length, got {sorted(lengths)}.")
    return found
