"""The train step: the mathematics of one optimiser step and, at interval boundaries, of one weight update.

Pure functions, no clocks, files or logging. Both data engines call the same `train_step`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from vtune_jax.core.losses import domain_sums, excess_sums
from vtune_jax.core.needs import NEEDS
from vtune_jax.core.types import ExcessSums, LossSums, Method, MixtureState
from vtune_jax.models import Batch, Model
from vtune_jax.train.alignment import make_align
from vtune_jax.train.heldout import Evaluate
from vtune_jax.train.optimizer import OptimizerConfig, descend
from vtune_jax.train.state import RunConstants, TrainState
from vtune_jax.train.update import update_mixture

StepMetrics = dict[str, Array]
ActsOn = Literal["sampling", "loss"]
TrainStep = Callable[[TrainState, Batch, RunConstants], tuple[TrainState, StepMetrics]]


def make_train_step(
    model: Model,
    optimizer: OptimizerConfig,
    method: Method,
    evaluate: Evaluate,
    *,
    interval: int,
    lag: int = 0,
    acts_on: ActsOn = "sampling",
) -> TrainStep:
    """One optimiser step, and a weight update when `interval` steps have passed.

    The update happens after the optimiser step, in a `lax.cond`: the method sees the held-out losses of the new
    parameters, and the batch `lag` steps later, the very next one by default, is drawn with the new weights.

    Args:
        model: gives the logits.
        optimizer: its transformation and schedule.
        method: the rule and how it observes.
        evaluate: held-out losses, called in place at a boundary.
        interval: optimiser steps between weight updates.
        lag: steps after an update at which its weights come into force, in [0, interval).
        acts_on: what weights do. "sampling": the batches are drawn by them. "loss": batches are drawn by the prior, and
            a token of domain i counts `w_i / prior_i` in the batch's mean loss, as in Group DRO and DoReMi's proxy.

    Returns:
        `train_step(state, batch, constants) -> (state, metrics)`, to be jitted with its first argument donated.
        Metrics are `loss`, `gradient_norm`, `learning_rate`, and the training sums per domain since the last update.

    Raises:
        ValueError: interval below 1, a lag outside [0, interval), or a method that needs what nobody supplies.
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}.")
    if not 0 <= lag < interval:
        raise ValueError(f"lag must lie in [0, interval = {interval}), got {lag}.")
    if unknown := method.needs - set(NEEDS):
        raise ValueError(f"the method needs {sorted(unknown)}, but what can be supplied is {sorted(NEEDS)}.")
    transform = optimizer.build()
    refers = "reference" in method.needs
    find_alignment = make_align(model, optimizer, method)

    def train_step(state: TrainState, batch: Batch, constants: RunConstants) -> tuple[TrainState, StepMetrics]:
        held = state.mixture
        reference = model.losses(constants.reference, batch)[0] if refers else None
        importance = held.weights / held.targets.prior if acts_on == "loss" else None
        (_, evidence), gradient = jax.value_and_grad(_batch_loss, argnums=1, has_aux=True)(
            model, state.params, batch, held.weights.shape[0], reference, importance
        )
        sums, loss = evidence.train, evidence.train.nats.sum() / evidence.train.tokens.sum()
        params, optimizer_state, rate = descend(
            optimizer, transform, gradient, state.params, state.optimizer, state.step, constants.horizon
        )

        mixture = held._replace(
            cursor=jax.tree.map(jnp.asarray, batch["cursor"]),
            train=held.train + sums,
            excess=jax.tree.map(jnp.add, held.excess, evidence.excess),
        )
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate,
            "train_nats": mixture.train.nats,
            "train_tokens": mixture.train.tokens,
        }
        step = state.step + 1

        def update(held: MixtureState) -> MixtureState:
            held, alignment = find_alignment(held, params, step, batch, constants)
            fixed = held.targets.prior if acts_on == "loss" else None
            return update_mixture(
                method, evaluate, held, params, step, constants, batch["available"], alignment=alignment, drawn_by=fixed
            )

        mixture = jax.lax.cond(step % interval == 0, update, lambda held: held, mixture)
        in_force = (step >= lag) & ((step - lag) % interval == 0)
        mixture = mixture._replace(quota=jnp.where(in_force, mixture.pending, mixture.quota))
        return TrainState(step=step, params=params, optimizer=optimizer_state, mixture=mixture), metrics

    return train_step


class _Evidence(NamedTuple):
    train: LossSums
    excess: ExcessSums | None


def _batch_loss(
    model: Model,
    params: PyTree,
    batch: Batch,
    domains: int,
    reference: Float[Array, "rows tokens"] | None,
    importance: Float[Array, " domains"] | None,
) -> tuple[Float[Array, ""], _Evidence]:
    """Mean loss per token, each weighted by the importance of its domain if given, and the sums per domain."""
    nats, counted = model.losses(params, batch)
    domain = batch["domain"]
    excess = None if reference is None else excess_sums(nats, reference, counted, domain, domains)
    weight = counted.astype(nats.dtype) if importance is None else counted * importance[domain][:, None]
    loss = jnp.where(counted, nats * weight, 0.0).sum() / weight.sum()
    return loss, _Evidence(domain_sums(nats, counted, domain, domains), excess)
