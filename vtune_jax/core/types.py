"""The words of the project as types: weights, evidence, targets, methods and the mixture's state.

Everything here is a NamedTuple of arrays (a pytree), so that it can live in a train state, under `jit`, `vmap` and
`scan`, and in a checkpoint. `domains` (k) is the number of domains; their order is fixed by the caller, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree, UInt32

AnyArray = Array | np.ndarray
"""On a device, or fetched from it."""

Weights = Float[Array, " domains"]
"""Shares of training tokens, on the simplex."""


class LossSums(NamedTuple):
    """Summed loss and the tokens behind it, per domain; dividing is left to the end, so parts add up exactly."""

    nats: Float[AnyArray, " domains"]  # summed loss
    tokens: Int[AnyArray, " domains"]  # predicted tokens in that sum; 0 = no evidence on this domain
    squares: Float[AnyArray, " domains"] | None = None  # summed squares of the tokens' losses, for sampling errors

    def __add__(self, other: "LossSums") -> "LossSums":  # type: ignore[override]
        """Pools two disjoint sets of tokens."""
        pooled: LossSums = jax.tree.map(lambda a, b: a + b, self, other)
        return pooled


class ExcessSums(NamedTuple):
    """How far the model's loss lies above a reference model's on the same training tokens, token by token."""

    clipped: Float[AnyArray, " domains"]  # summed [loss - reference]_+
    raw: Float[AnyArray, " domains"]  # summed loss - reference
    positive: Int[AnyArray, " domains"]  # tokens with a loss above the reference's
    tokens: Int[AnyArray, " domains"]  # all tokens in these sums


class Alignment(NamedTuple):
    """How the gradients of the domains' mean losses lie to each other."""

    inner: Float[AnyArray, "domains others"]  # <training gradient of the row's domain, target gradient of the column's>
    norm: Float[AnyArray, " domains"]  # Euclidean, of the training gradients; 0 for a domain without one
    target_norm: Float[AnyArray, " others"]
    learning_rate: Float[Array, ""]


class Observation(NamedTuple):
    """What the trainer has measured when a rule is called."""

    heldout: LossSums  # of the model now, on each domain's held-out rows
    train: LossSums  # of the training batches since the last observation
    trained_tokens: Float[Array, " domains"]  # training tokens read so far
    step: Int[Array, ""]  # optimiser steps done
    available: Bool[Array, " domains"] | None = None  # False: read as often as allowed; its weight goes to the others
    weights: Weights | None = None  # the mixture that the training batches were drawn from
    evidence: dict[str, Any] | None = None  # what few methods need beside, by kind, see `evidence`


def evidence(observation: Observation, kind: str, what: str) -> Any:
    """Evidence of a kind: "excess", `ExcessSums` of the training batches since the last observation, or "alignment".

    Args:
        observation: of now.
        kind: its name.
        what: it is, for the message.

    Raises:
        ValueError: the observation does not hold it.
    """
    if observation.evidence is None or kind not in observation.evidence:
        raise ValueError(f'observation.evidence must hold "{kind}", {what}.')
    return observation.evidence[kind]


class LossHistory(NamedTuple):
    """A ring buffer of observations; the newest row is `(entries - 1) % window`."""

    nats: Float[Array, "window domains"]  # summed loss behind each entry
    tokens: Int[Array, "window domains"]  # tokens in that sum; 0 = domain not seen
    trained_tokens: Float[Array, "window domains"]  # training tokens read so far, per domain
    step: Int[Array, " window"]  # optimiser steps done
    entries: Int[Array, ""]  # rows ever written
    memory: PyTree = ()  # for the few methods that carry more than losses


class Targets(NamedTuple):
    """The constants of a run that a rule may use. Losses in nats per token."""

    initial: Float[Array, " domains"]  # the base model's held-out loss
    target: Float[Array, " domains"]  # predicted held-out loss after the full token budget
    target_error: Float[Array, " domains"]  # its standard error
    prior: Float[Array, " domains"]  # reference weights
    constants: PyTree = ()  # what else a method needs: a dictionary by name, see `constant`


def constant(targets: Targets, name: str, what: str) -> Array:
    """An entry of `targets.constants`: "sizes" and "budget" in tokens, "graph" [domains, domains].

    Args:
        targets: of the run.
        name: of the constant.
        what: what the constant is, for the message.

    Raises:
        ValueError: the run does not hold it.
    """
    if not (isinstance(targets.constants, dict) and name in targets.constants):
        raise ValueError(f'targets.constants must hold "{name}", {what}.')
    return jnp.asarray(targets.constants[name], targets.prior.dtype)


Scalar = float | Float[Array, ""]
"""A hyper-parameter: a Python number, or traced when it is mapped over."""

Seed = int | np.integer | UInt32[AnyArray, ""]
"""Of a plan: a number in [0, 2**32), or a traced one when it is mapped over."""

UpdateRule = Callable[[Weights, LossHistory, Targets], Weights]
"""`(weights, loss_history, targets) -> new_weights`: pure, jittable, vmappable, traced once per shape."""


class Method(NamedTuple):
    """A way of choosing weights, as a record of pure functions (compare `optax.GradientTransformation`)."""

    init: Callable[[Targets], LossHistory]
    observe: Callable[[LossHistory, Observation], LossHistory]
    update: UpdateRule
    needs: frozenset[str]  # what must be supplied, see `vtune_jax.core.needs.NEEDS`


class Cursor(NamedTuple):
    """Where the data stand: how far each domain's endless stream of rows has been read, and a hash of what was read.

    Epoch and row are kept apart, so that neither overflows 32 bits for any corpus of fewer than 2**31 rows a domain.
    """

    epoch: UInt32[AnyArray, "*steps domains"]  # whole epochs behind us
    row: UInt32[AnyArray, "*steps domains"]  # rows taken from the current epoch, < rows in the domain
    credit: Int32[AnyArray, "*steps domains"]  # rows owed, times 2**24, by deficit allocation; else zero
    order: UInt32[AnyArray, "*steps 2"]  # rolling hash of every (place, domain, row) of every batch so far


class TokenCount(NamedTuple):
    """Whole numbers past 2**32 without 64-bit arithmetic: `high * 2**32 + low`."""

    high: UInt32[AnyArray, " domains"]
    low: UInt32[AnyArray, " domains"]

    def plus(self, tokens: Int[AnyArray, " domains"]) -> "TokenCount":
        """Adds counts below 2**31."""
        low = self.low + tokens.astype(np.uint32)
        return TokenCount(high=self.high + (low < self.low).astype(np.uint32), low=low)

    def as_float(self) -> Float[Array, " domains"]:
        """In float32, for a method's arithmetic."""
        return jnp.asarray(self.high, jnp.float32) * 2.0**32 + jnp.asarray(self.low, jnp.float32)

    def exact(self) -> np.ndarray:
        """On the host, int64."""
        return (np.asarray(self.high, np.int64) << 32) + np.asarray(self.low, np.int64)


class MixtureState(NamedTuple):
    """All that moves with the mixture; lives in the train state and in its checkpoint."""

    weights: Weights
    quota: UInt32[Array, " domains"]  # weights in force, in fixed point with sum 2**24 exactly: what the plan reads
    pending: UInt32[Array, " domains"]  # those of the newest update, in force `lag` steps after it
    cursor: Cursor
    heldout: LossSums  # at the last update, as measured
    train: LossSums  # training-batch evidence since the last update
    trained: TokenCount  # training tokens up to the last update
    history: LossHistory
    targets: Targets
    evidence: dict[str, PyTree]  # by kind, what has been gathered for the next observation
