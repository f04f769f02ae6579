"""One learning step as a pure function: forward, backward and descent, over sums with counts.

Runs with moving weights, static runs and reference models go through it in `step`, proxies in `lanes`. The loss of a
token is the model's own; this module holds the one mean over tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.losses import domain_sums
from vtune_jax.core.types import LossSums
from vtune_jax.models import Batch, Model
from vtune_jax.train.optimizer import OptimizerNumbers, descend


class LearnState(NamedTuple):
    """What a learning step changes."""

    params: PyTree
    optimizer: optax.OptState


class Learned(NamedTuple):
    """What a learning step has measured, at the parameters before it."""

    loss: Float[Array, ""]  # nats per token of the batch, every token alike
    gradient_norm: Float[Array, ""]  # of the loss that was descended, before clipping
    learning_rate: Float[Array, ""]
    sums: LossSums  # per domain
    nats: Float[Array, "rows places"]
    counted: Bool[Array, "rows places"]


def learn(
    model: Model,
    learner: LearnState,
    batch: Batch,
    numbers: OptimizerNumbers,
    step: Int[Array, ""],
    horizon: Int[Array, ""],
    *,
    domains: int,
    importance: Float[Array, " domains"] | None = None,
) -> tuple[LearnState, Learned]:
    """One optimiser step on a batch's mean loss.

    Args:
        model: whose loss is descended.
        learner: parameters and the optimiser's memory.
        batch: with `domain`.
        numbers: of the optimiser.
        step: 0 for the first.
        horizon: optimiser steps of the whole run.
        domains: their number.
        importance: how much a token of each domain counts in the mean; None counts all alike.
    """
    weight = None if importance is None else importance[batch["domain"]][:, None]

    def batch_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        nats, counted = model.losses(params, batch)
        return mean_nats(nats, counted, weight), (nats, counted)

    (_, (nats, counted)), gradient = jax.value_and_grad(batch_loss, has_aux=True)(learner.params)
    params, memory, rate = descend(
        numbers, gradient, learner.params, learner.optimizer, step, horizon, decayed=model.decayed
    )
    sums = domain_sums(nats, counted, batch["domain"], domains)
    loss = sums.nats.sum() / sums.tokens.sum()
    return LearnState(params, memory), Learned(loss, optax.tree.norm(gradient), rate, sums, nats, counted)


def mean_nats(
    nats: Float[Array, "rows places"],
    counted: Bool[Array, "rows places"],
    weight: Float[Array, "rows #places"] | None = None,
) -> Float[Array, ""]:
    """Nats per counted token, each weighted if weights are given; 0 where nothing counts, and so is its gradient."""
    share = counted.astype(nats.dtype) if weight is None else counted * weight
    total = share.sum()
    return jnp.where(counted, nats * share, 0.0).sum() / jnp.where(total > 0, total, 1.0)
