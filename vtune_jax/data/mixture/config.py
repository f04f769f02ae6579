"""The shape of a batch, how it reaches the model, the prior, and when weights move."""

import dataclasses
from typing import Literal

import numpy as np

from vtune_jax import settings
from vtune_jax.data.mixture.gather import Workers
from vtune_jax.data.mixture.spec import Allocation
from vtune_jax.data.tokens.array_record import RecordTokens
from vtune_jax.data.tokens.mapped import MappedTokens
from vtune_jax.data.tokens.packing import PackedRows
from vtune_jax.data.tokens.rows import BlockRows, RowStore, TokenRows
from vtune_jax.errors import UserError
from vtune_jax.rules import (
    prior_weights,
    unimax_weights,
)

BLOCK_TOKENS = 1 << 19
"""Tokens read together from ArrayRecord shards: sixteen records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The shape of a batch and how it reaches the model."""

    sequence: int = 128  # predicted tokens per row
    batch: int = 16  # rows per optimiser step, over all devices
    heldout_rows: int = 32  # per domain, behind every held-out loss; evenly spread over its held-out tokens
    evaluate_rows_at_once: int = 32  # rows whose logits are in memory together during an evaluation
    engine: Literal["grain", "device"] = "grain"
    packing: Literal["concatenate", "best_fit"] = "concatenate"  # "best_fit": whole documents, attention within each
    block_rows: int = 0  # neighbouring rows read together; 0: one of files, half a million tokens of ArrayRecord shards
    workers: int = settings.bookkeeping(0)  # that read ahead of the step; 0 reads in between, enough for local files
    worker_kind: Workers = settings.bookkeeping("threads")  # or "processes"
    patience_seconds: float = settings.bookkeeping(
        30.0
    )  # to wait for token files that have vanished before the run saves and stops

    def __post_init__(self) -> None:
        for field in ("sequence", "batch", "heldout_rows", "evaluate_rows_at_once"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("block_rows", "workers", "patience_seconds"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")

    def rows_of(self, source: MappedTokens | RecordTokens, end: int) -> RowStore:
        """The rows that a run reads of one domain's tokens.

        Args:
            source: of the tokens.
            end: the end-of-text token.

        Raises:
            UserError: packing is asked for of tokens that are not in a file.
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
    """The prior, and when weights move."""

    weights: tuple[float, ...] = ()  # prior per domain, in the order of corpus.domains; empty: from token counts
    power: float = 1.0  # of the token counts: 1 natural shares, 0 uniform
    unimax_epochs: float = 0.0  # positive: the UniMax prior, uniform as far as no domain is read more often than this
    interval: int = 20  # optimiser steps between weight updates
    lag: int = 0  # steps until new weights come into force; for storage too slow to be read ahead otherwise
    allocation: Allocation = "systematic"  # of a batch's rows to domains; or "multinomial", "deficit" (BUILD.md)

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        if not 0 <= self.lag < self.interval:
            raise ValueError(f"lag must lie in [0, interval = {self.interval}), got {self.lag}")
        if self.unimax_epochs < 0:
            raise ValueError(f"unimax_epochs must not be negative, got {self.unimax_epochs}")
        if self.unimax_epochs and (self.weights or self.power != 1.0):
            raise ValueError("unimax_epochs must be 0 where weights or power are given")
        if self.power < 0:
            raise ValueError(f"power must not be negative, got {self.power}")
        if any(weight < 0 for weight in self.weights):
            raise ValueError(f"weights must not be negative, got {list(self.weights)}")
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, got {list(self.weights)} with sum {sum(self.weights):.6g}")

    def prior(self, tokens: np.ndarray, budget: float = 1.0) -> np.ndarray:
        """Reference weights of domains with these many training tokens, float64; the budget matters for UniMax only."""
        if self.unimax_epochs:
            return unimax_weights(tokens, budget, self.unimax_epochs)[0]
        return np.array(self.weights) if self.weights else prior_weights(tokens, self.power)
