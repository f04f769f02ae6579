"""Best-fit packing: whole documents share a row, and the model never attends from one to another.

Every token of a document, its end included, is predicted exactly once an epoch. The input for a document's first token
is the end-of-text token. Documents longer than a row are cut into pieces of a row's length, each a segment of its own.
"""

from typing import Self

import numpy as np

from vtune_jax.core.checks import MOST, assert_whole, assert_within
from vtune_jax.core.hashing import mix
from vtune_jax.data.tokens.mapped import MappedTokens
from vtune_jax.data.tokens.rows import Rows, assert_rows, assert_tokens
from vtune_jax.errors import UserError

_SCAN = 1 << 24  # tokens searched at once for ends of documents


class PackedRows:
    """Rows of one or more documents, with segment ids (0: padding) and positions that restart with each segment."""

    block = 1

    def __init__(
        self, tokens: np.ndarray | MappedTokens, length: int, *, end: int, name: str = "domain", share: float = 1.0
    ) -> None:
        """Finds the documents and packs them; takes 18 bytes of memory per piece and none per token.

        Args:
            tokens: 1-D, each document followed by the token `end`.
            length: of a row.
            end: the end-of-text token.
            name: of the domain, for messages.
            share: part of the rows that is used, in [0, 1]; at least one row.

        Raises:
            UserError: there is nothing to pack.
            ValueError: tokens of another shape or dtype, an `end` that they cannot hold, a length below 1, a share
                outside [0, 1].
            TypeError: what are no tokens, no numbers.
        """
        assert_tokens(tokens)
        assert_whole(1, MOST, length=length)
        assert_whole(int(np.iinfo(tokens.dtype).min), int(np.iinfo(tokens.dtype).max), end=end)
        assert_within(0.0, 1.0, share=share)
        self.source = tokens
        self.length, self.end, self.name = length, end, name
        start, size = pieces(self.tokens, length, end)
        if not len(size):
            raise UserError(f"domain '{name}' has no tokens to pack", "give the domain more text")
        row, rows = best_fit(size, length)
        # Packing makes the rows of the longest pieces first. Their order is hashed, so that any share of the rows is a
        # fair sample of the documents.
        dealt = np.argsort(np.argsort(mix(np.arange(rows, dtype=np.uint32)), kind="stable"), kind="stable")
        order = np.argsort(dealt[row], kind="stable")
        self._start, self._size = start[order], size[order]
        self._first = np.concatenate([[0], np.bincount(dealt[row], minlength=rows).cumsum()])
        self._rows = max(1, round(share * rows))

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, 1-D."""
        return self.source.array if isinstance(self.source, MappedTokens) else self.source

    def __len__(self) -> int:
        return self._rows

    @property
    def predicted(self) -> int:
        """Tokens predicted in one epoch."""
        return int(self._size[: self._first[len(self)]].sum())

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token and no padding."""
        return self.predicted / (len(self) * self.length)

    def first(self, share: float) -> Self:
        """See `RowStore`."""
        return type(self)(self.source, self.length, end=self.end, name=self.name, share=share)

    def read(self, rows: np.ndarray) -> Rows:
        """`inputs`, `labels` (tokens), `segments` and `positions` (int32), each [rows, length]; see `RowStore`."""
        assert_rows(self, rows)
        rows = rows.astype(np.int64)
        pieces_in = self._first[rows + 1] - self._first[rows]
        piece = _ranges(self._first[rows], pieces_in)
        size, start = self._size[piece].astype(np.int64), self._start[piece]
        if isinstance(self.source, MappedTokens):
            first = self.source.start + np.maximum(start - 1, 0)
            self.source.file.assert_there(first)
            self.source.file.check(first, size + 1)
        within = _ranges(np.zeros(len(piece), np.int64), size)
        place = np.repeat(start, size) + within
        # A row's pieces lie one after another from its beginning.
        ends = size.cumsum()
        begin_of_row = np.repeat((ends - size)[np.repeat(pieces_in.cumsum() - pieces_in, pieces_in)], size)
        target = np.repeat(np.repeat(np.arange(len(rows)) * self.length, pieces_in), size)
        target += np.arange(len(place)) - begin_of_row
        shape = (len(rows), self.length)
        out = {name: np.full(shape, self.end, self.tokens.dtype) for name in ("inputs", "labels")}
        out |= {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
        inputs = self.tokens[np.maximum(place - 1, 0)]
        inputs[place == 0] = self.end
        out["inputs"].reshape(-1)[target] = inputs
        out["labels"].reshape(-1)[target] = self.tokens[place]
        ordinal = _ranges(np.ones(len(rows), np.int64), pieces_in)
        out["segments"].reshape(-1)[target] = np.repeat(ordinal, size)
        out["positions"].reshape(-1)[target] = within
        return out


def pieces(tokens: np.ndarray, length: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents, cut where they are longer than `length`: start (int64) and size (int32) of each piece."""
    found = [
        start + np.flatnonzero(np.asarray(tokens[start : start + _SCAN]) == end)
        for start in range(0, len(tokens), _SCAN)
    ]
    stops = np.concatenate([*found, []]).astype(np.int64) + 1
    if len(tokens) and (not len(stops) or stops[-1] < len(tokens)):
        stops = np.append(stops, len(tokens))
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
    cuts = -(-(stops - starts) // length)
    ordinal = _ranges(np.zeros(len(cuts), np.int64), cuts)
    start = np.repeat(starts, cuts) + ordinal * length
    return start, np.minimum(np.repeat(stops, cuts) - start, length).astype(np.int32)


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Best-fit decreasing: pieces from the largest on, each into the row with the least room that is still enough.

    Pieces of equal size are placed together, so the work grows with the number of different sizes, not of pieces.

    Args:
        sizes: of the pieces, in [1, capacity].
        capacity: of a row.

    Returns:
        the row of each piece, and how many rows there are.
    """
    row = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    edges = np.flatnonzero(np.diff(sizes[order], prepend=-1))
    room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    has = np.zeros(capacity + 1, bool)
    rows = 0
    for group in np.split(order, edges[1:]):
        size = int(sizes[group[0]]) if len(group) else 0
        while len(group):
            fitting = np.flatnonzero(has[size:])
            if not fitting.size:
                # No row has room: new rows take as many pieces of this size as they hold.
                each = capacity // size
                opened = -(-len(group) // each)
                row[group] = rows + np.arange(len(group)) // each
                left = np.full(opened, capacity - each * size)
                left[-1] = capacity - (len(group) - (opened - 1) * each) * size
                for amount in np.unique(left).tolist():
                    room[amount].append(rows + np.flatnonzero(left == amount))
                    has[amount] = amount > 0
                rows += opened
                break
            amount = size + int(fitting[0])
            bins = room[amount].pop()
            has[amount] = bool(room[amount])
            taken = min(len(bins), len(group))
            row[group[:taken]] = bins[:taken]
            if taken < len(bins):
                room[amount].append(bins[taken:])
                has[amount] = True
            if amount > size:
                room[amount - size].append(bins[:taken])
                has[amount - size] = True
            group = group[taken:]
    return row, rows


def _ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`count[0]` numbers from `start[0]` on, then `count[1]` numbers from `start[1]` on, and so on."""
    ends = count.cumsum()
    return np.repeat(start - (ends - count), count) + np.arange(int(ends[-1]) if len(ends) else 0)
