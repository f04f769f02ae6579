"""What the user sets of the mixture: the shape of a batch, how rows are read, the prior, when weights move."""

import dataclasses
from typing import Literal

import numpy as np

from vtune_jax import settings
from vtune_jax.core.checks import MOST, assert_types, assert_whole, assert_within
from vtune_jax.data.mixture.gather import Workers
from vtune_jax.data.mixture.spec import Allocation
from vtune_jax.data.tokens.array_record import RecordTokens
from vtune_jax.data.tokens.mapped import MappedTokens
from vtune_jax.data.tokens.packing import PackedRows
from vtune_jax.data.tokens.rows import BlockRows, RowStore, TokenRows
from vtune_jax.errors import UserError
from vtune_jax.rules import prior_weights, unimax_weights

BLOCK_TOKENS = 1 << 19
"""Tokens read together from ArrayRecord shards unless `data.block_rows` says otherwise: sixteen records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The shape of a batch, and how its rows are read."""

    sequence: int = 128  # predicted tokens per row
    batch: int = 16  # rows per optimiser step, over all devices and hosts
    heldout_rows: int = 32  # rows per domain that held-out losses are measured on, spread over its held-out tokens
    evaluate_rows_at_once: int = 32  # rows per forward pass of an evaluation; fewer rows take less memory for logits
    # "grain": the host reads rows from files; "device": all tokens lie in accelerator memory, steps run in one scan.
    engine: Literal["grain", "device"] = "grain"
    # "concatenate": documents one after another, cut where a row is full, attention across them; "best_fit": whole
    # documents share a row with some padding, attention within each document only.
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    block_rows: int = 0  # neighbouring rows read together; 0: one row from files, 2**19 tokens from ArrayRecord shards
    workers: int = settings.bookkeeping(
        0
    )  # threads or processes that read batches ahead; 0: the training thread reads each batch itself
    worker_kind: Workers = settings.bookkeeping("threads")  # or "processes", for reading that holds Python's lock
    patience_seconds: float = settings.bookkeeping(
        30.0
    )  # to wait for token files that vanish; then the run saves its state and stops

    def __post_init__(self) -> None:
        assert_types(self)
        for field in ("sequence", "batch", "heldout_rows", "evaluate_rows_at_once"):
            assert_within(1, MOST, **{field: getattr(self, field)})
        assert_within(0, MOST, block_rows=self.block_rows, workers=self.workers)
        assert_within(patience_seconds=self.patience_seconds)

    def rows_of(self, source: MappedTokens | RecordTokens, end: int) -> RowStore:
        """The rows that a run reads of one domain's tokens.

        Args:
            source: the domain's tokens.
            end: the end-of-text token.

        Raises:
            UserError: best-fit packing of tokens in ArrayRecord shards.
        """
        if self.packing == "best_fit":
            if not isinstance(source, MappedTokens):
                raise UserError(
                    "best-fit packing looks at all tokens of a domain, which ArrayRecord shards cannot show",
                    'set corpus.storage = "files" or data.packing = "concatenate"',
                )
            return PackedRows(source, self.sequence, end=end, name=source.name)
        if isinstance(source, MappedTokens) and self.block_rows <= 1:
            return TokenRows(source, self.sequence, name=source.name)
        block = self.block_rows or max(1, BLOCK_TOKENS // self.sequence)
        return BlockRows(source, self.sequence, block=block)

    @property
    def batch_tokens(self) -> int:
        """Predicted tokens per optimiser step."""
        return self.batch * self.sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The prior, when weights move, and how rows follow from them."""

    weights: tuple[float, ...] = ()  # the prior, in the order of corpus.domains, with sum 1; empty: from token counts
    power: float = 1.0  # prior in proportion to (training tokens)**power: 1 gives natural shares, 0 uniform ones
    unimax_epochs: float = 0.0  # > 0: UniMax prior, uniform but no domain read more often than this; 0: off
    interval: int = 20  # optimiser steps between weight updates
    lag: int = 0  # optimiser steps by which new weights come into force later, below interval; 0: from the next step on
    # How many rows of a batch a domain of weight w gets. "systematic": the floor or ceiling of batch * w, unbiased;
    # "multinomial": each row's domain is drawn independently; "deficit": shortfalls are made up for in later steps.
    allocation: Allocation = "systematic"

    def __post_init__(self) -> None:
        assert_types(self)
        assert_whole(1, interval=self.interval)
        assert_within(unimax_epochs=self.unimax_epochs, power=self.power)
        if not all(weight >= 0 for weight in self.weights):
            raise ValueError(f"weights must not be negative, got {list(self.weights)}")
        if not 0 <= self.lag < self.interval:
            raise ValueError(f"lag must lie in [0, interval = {self.interval}), got {self.lag}")
        if self.unimax_epochs and (self.weights or self.power != 1.0):
            raise ValueError("unimax_epochs must be 0 where weights or power are given")
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, got {list(self.weights)} with sum {sum(self.weights):.6g}")

    def prior(self, tokens: np.ndarray, budget: float = 1.0) -> np.ndarray:
        """The prior, float64.

        Args:
            tokens: training tokens of each domain.
            budget: tokens of the run; only the UniMax prior depends on it.
        """
        if self.unimax_epochs:
            return unimax_weights(tokens, budget, self.unimax_epochs)[0]
        return np.array(self.weights) if self.weights else prior_weights(tokens, self.power)
