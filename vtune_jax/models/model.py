"""What a model is to everybody else: a record of pure functions of plain parameters, and the batch they read."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from vtune_jax.core.losses import token_nats

Batch = dict[str, Array]
"""Rows of tokens as named arrays, all with the rows in front.

- plain rows: `tokens` [rows, places + 1]; a place predicts the token after it
- packed rows: `inputs`, `labels`, `segments` (the document's number in its row, 0 for padding) and `positions` (in the
  document), each [rows, places]
- a training batch also has `domain` [rows], `cursor` (where the data stand after it) and `available` [domains]
"""

Logits = Callable[..., Float[Array, "rows places vocab"]]
"""`(params, tokens, segments=None, positions=None)`; tokens, segments and positions are [rows, places]."""

Losses = Callable[[PyTree, Batch], tuple[Float[Array, "rows places"], Bool[Array, "rows places"]]]
"""`(params, batch) -> (nats, counted)`: each place's loss in float32, and which places count; padding does not."""


class ModelConfig(Protocol):
    """What every family's config answers."""

    @property
    def name(self) -> str:
        """Of the family, in a config file."""
        ...

    def __hash__(self) -> int:
        """Configs are frozen."""
        ...

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters, embedding included."""
        ...

    def flops_per_token(self, vocabulary: int, sequence: int) -> int:
        """Floating-point operations of one training step, forward and backward, per token."""
        ...


@dataclasses.dataclass(frozen=True)
class Axes:
    """The logical axes of one parameter, a leaf of a tree like the parameters'; None is an axis never to be split."""

    names: tuple[str | None, ...]


def unsplit(params: PyTree) -> PyTree:
    """Axes of parameters that every device holds whole."""
    return jax.tree.map(lambda leaf: Axes((None,) * leaf.ndim), params)


def matrices(params: PyTree) -> PyTree:
    """True for parameters of two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


class Model(NamedTuple):
    """A model as pure functions of plain parameters. Every loss in training and evaluation is its `losses`."""

    config: Any  # its family's dataclass
    vocabulary: int  # number of token ids
    init: Callable[[int], PyTree]  # seed -> params, nested dicts and lists of arrays
    logits: Logits
    losses: Losses
    axes: Callable[[PyTree], PyTree] = unsplit  # params or their shapes -> `Axes` of each
    decayed: Callable[[PyTree], PyTree] = matrices  # params -> which of them weight decay shrinks

    def template(self) -> PyTree:
        """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`; nothing is computed."""
        return jax.eval_shape(self.init, 0)


class Family(NamedTuple):
    """Models of one kind: the constant `FAMILY` of a module in this package, found by `models.registry`."""

    config: type[Any]  # frozen dataclass: `name: Literal[...]` first, `parameters` and `flops_per_token` as methods
    build: Callable[[Any, int], Model]  # (config, vocabulary) -> model


def losses_from_logits(logits: Logits) -> Losses:
    """The cross entropy of every place's next token under the model's logits, in float32."""

    def nats(params: PyTree, labels: Array, *inputs: Array) -> Array:
        return token_nats(logits(params, *inputs), labels)

    return losses_from_nats(nats)


def losses_from_nats(nats: Callable[..., Float[Array, "rows places"]]) -> Losses:
    """The loss of a batch, packed or not, by a function `(params, labels, tokens, segments=None, positions=None)`."""

    def losses(params: PyTree, batch: Batch) -> tuple[Float[Array, "rows places"], Bool[Array, "rows places"]]:
        if "labels" not in batch:
            tokens = jnp.asarray(batch["tokens"], jnp.int32)
            found = nats(params, tokens[:, 1:], tokens[:, :-1])
            return found, jnp.ones(found.shape, bool)
        inputs, labels = (jnp.asarray(batch[name], jnp.int32) for name in ("inputs", "labels"))
        return nats(params, labels, inputs, batch["segments"], batch["positions"]), batch["segments"] > 0

    return losses
