"""What a training run reads: its domains' rows with their limits, and the held-out rows."""

import dataclasses

import numpy as np

from vtune_jax.data.tokens.rows import Rows, RowStore
from vtune_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Streams:
    """What a training run reads."""

    stores: tuple[RowStore, ...]  # training rows, one store per domain
    heldout: Rows  # arrays [domains, rows, ...]; the held-out losses are measured on them
    limits: tuple[int | None, ...] = ()  # most rows ever read, per domain; None, or empty: no limit
    stop: tuple[bool, ...] = ()  # True: the domain ends the run at its limit; False, or empty: others take its share

    @property
    def rows(self) -> np.ndarray:
        """Training rows per domain and epoch."""
        return np.array([len(store) for store in self.stores], np.uint32)


def heldout_rows(store: RowStore, wanted: int, domain: str) -> Rows:
    """Evenly spread held-out rows of a domain.

    Args:
        store: of the domain's held-out rows.
        wanted: how many rows.
        domain: its name, for the message.

    Raises:
        UserError: the domain has fewer rows than wanted.
    """
    have = len(store)
    if have < wanted:
        raise UserError(
            f"domain '{domain}' has {have} held-out rows of {store.length} tokens, data.heldout_rows asks for {wanted}",
            f"set data.heldout_rows to at most {have}, raise corpus.heldout_fraction, or give the domain more text",
        )
    chosen = (np.arange(wanted, dtype=np.uint64) * have // wanted).astype(np.uint32)
    return store.read(chosen)
