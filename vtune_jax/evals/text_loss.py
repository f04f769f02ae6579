"""The loss of a model on one text, in units that teams compare: nats per token, bits per byte, perplexity."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vtune_jax.models import Model


class TextLoss(NamedTuple):
    """Of a text whose every token but the first is predicted."""

    nats: float  # of all of it
    tokens: int  # predicted
    bytes: int  # of the text that these tokens say, in UTF-8

    @property
    def nats_per_token(self) -> float:
        """Depends on the tokenizer."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """`nats / ln 2 / bytes`: comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """`exp(nats / tokens)`."""
        return math.exp(self.nats_per_token)


def text_loss(
    model: Model, params: PyTree, ids: Sequence[int], *, bytes_said: int, sequence: int = 1024, rows_at_once: int = 4
) -> TextLoss:
    """Measures a text in rows of `sequence` tokens that do not see each other.

    Args:
        model: whose loss is measured.
        params: of it.
        ids: the text's tokens, two at least; the first is not predicted.
        bytes_said: bytes of the text that the others say.
        sequence: most tokens that a prediction sees; each row's first sees one.
        rows_at_once: whose logits are in memory together.

    Raises:
        ValueError: fewer than two tokens.
    """
    predicted = len(ids) - 1
    if predicted < 1:
        raise ValueError(f"ids must hold two tokens at least, got {len(ids)}")
    sequence = min(sequence, predicted)
    rows = -(-predicted // sequence)
    padded = np.zeros(rows * sequence + 1, np.int32)
    padded[: len(ids)] = ids
    tokens = np.lib.stride_tricks.sliding_window_view(padded, sequence + 1)[::sequence]
    losses = jax.jit(lambda params, tokens: model.losses(params, {"tokens": tokens})[0])
    nats = 0.0
    for first in range(0, rows, rows_at_once):
        # The last rows are read with zeros behind them, so that one program serves all.
        part = np.zeros((min(rows_at_once, rows), sequence + 1), np.int32)
        here = tokens[first : first + rows_at_once]
        part[: len(here)] = here
        measured = np.asarray(losses(params, jnp.asarray(part)), np.float64)[: len(here)]
        nats += float(measured.ravel()[: predicted - first * sequence].sum())
    return TextLoss(nats, predicted, bytes_said)
