"""The words of the project as types: weights, evidence, targets, methods and the mixture's state.

Everything here is a NamedTuple of arrays (a pytree), so that it can live in a train state, under `jit`, `vmap` and
`scan`, and in a checkpoint. `domains` (k) is the number of domains; their order is fixed by the caller, once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

AnyArray = Array | np.ndarray
"""On a device, or fetched from it."""

Weights = Float[Array, " domains"]
"""Shares of training tokens, on the simplex."""


class LossSums(NamedTuple):
    """Summed loss and the tokens behind it, per domain; dividing is left to the end, so parts add up exactly."""

    nats: Float[AnyArray, " domains"]  # summed loss
    tokens: Int[AnyArray, " domains"]  # predicted tokens in that sum; 0 = no evidence on this domain

    def __add__(self, other: "LossSums") -> "LossSums":  # type: ignore[override]
        """Pools two disjoint sets of tokens."""
        return jax.tree.map(lambda a, b: a + b, self, other)


class Observation(NamedTuple):
    """What the trainer has measured when a rule is called."""

    heldout: LossSums  # of the model now, on each domain's held-out rows
    train: LossSums  # of the training batches since the last observation
    trained_tokens: Float[Array, " domains"]  # training tokens read so far
    step: Int[Array, ""]  # optimiser steps done


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
    constants: PyTree = ()  # per method, for instance a skill graph


Scalar = float | Float[Array, ""]
"""A hyper-parameter: a Python number, or traced when it is mapped over."""

UpdateRule = Callable[[Weights, LossHistory, Targets], Weights]
"""`(weights, loss_history, targets) -> new_weights`: pure, jittable, vmappable, traced once per shape."""


class Method(NamedTuple):
    """A way of choosing weights, as a record of pure functions (compare `optax.GradientTransformation`)."""

    init: Callable[[Targets], LossHistory]
    observe: Callable[[LossHistory, Observation], LossHistory]
    update: UpdateRule
    needs: frozenset[str]  # what the trainer must supply: "heldout", "train", "targets"


class Cursor(NamedTuple):
    """How far each domain's endless stream of rows has been read.

    Epoch and row are kept apart, so that neither overflows 32 bits for any corpus of fewer than 2**31 rows a domain.
    """

    epoch: UInt32[AnyArray, " domains"]  # whole epochs behind us
    row: UInt32[AnyArray, " domains"]  # rows taken from the current epoch, < rows in the domain


class MixtureState(NamedTuple):
    """All that moves with the mixture; lives in the train state and in its checkpoint."""

    weights: Weights
    quota: UInt32[Array, " domains"]  # the same weights in fixed point, summing to 2**24 exactly: what the plan reads
    cursor: Cursor
    train: LossSums  # training-batch evidence since the last update
    history: LossHistory
    targets: Targets
