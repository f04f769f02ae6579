"""A domain's rows: fixed-length windows over its tokens."""

from __future__ import annotations

import numpy as np

from vtune_jax.errors import UserError


class TokenRows:
    """Row r of a domain is `tokens[r L : r L + L + 1]`: L predicted tokens, and the one before them.

    Neighbouring rows share one token, so that every token but the first is predicted exactly once an epoch.
    """

    def __init__(self, tokens: np.ndarray, length: int, *, name: str = "domain", limit: int | None = None) -> None:
        """Looks at an array or memory map of tokens; copies nothing.

        Args:
            tokens: 1-D, documents one after another.
            length: predicted tokens per row, L.
            name: of the domain, for messages.
            limit: uses the first rows only.

        Raises:
            UserError: the domain is shorter than one row.
        """
        if len(tokens) <= length:
            raise UserError(
                f"sequence length {length} is longer than domain '{name}' ({len(tokens):,} tokens)",
                "set data.sequence lower or give the domain more text",
            )
        self.tokens, self.length, self.name = tokens, length, name
        whole = (len(tokens) - 1) // length
        self._rows = whole if limit is None else min(limit, whole)

    def __len__(self) -> int:
        return self._rows

    def first(self, share: float) -> TokenRows:
        """The first `share` of the rows, at least one."""
        return TokenRows(self.tokens, self.length, name=self.name, limit=max(1, round(share * len(self))))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, [n, length + 1], in the tokens' dtype."""
        if rows.size and int(rows.max()) >= len(self):
            raise IndexError(f"row {int(rows.max())} of domain '{self.name}' asked for; it has {len(self)}.")
        window = np.lib.stride_tricks.sliding_window_view(self.tokens, self.length + 1)[:: self.length]
        return window[rows]
