"""The train step: the mathematics of one optimiser step and, at interval boundaries, of one weight update.

Pure functions, no clocks, files or logging. Both data engines call the same `train_step`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.losses import domain_sums, excess_sums
from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import Alignment, ExcessSums, LossSums, Method, MixtureState, Observation
from vtune_jax.models import Model
from vtune_jax.rules.table import NEEDS
from vtune_jax.train.batch import Batch, batch_nats
from vtune_jax.train.evaluate import Evaluate
from vtune_jax.train.gradients import align, batch_gradients, heldout_gradients, latest
from vtune_jax.train.optimizer import OptimizerConfig, descend
from vtune_jax.train.state import RunConstants, TrainState, no_losses

StepMetrics = dict[str, Array]
ActsOn = Literal["sampling", "loss"]
TrainStep = Callable[[TrainState, Batch, RunConstants], tuple[TrainState, StepMetrics]]
Align = Callable[[MixtureState, PyTree, Int[Array, ""], Batch, RunConstants], tuple[MixtureState, Alignment | None]]


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
        reference = batch_nats(model, constants.reference, batch)[0] if refers else None
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


def update_mixture(
    method: Method,
    evaluate: Evaluate,
    mixture: MixtureState,
    params: PyTree,
    step: Int[Array, ""],
    constants: RunConstants,
    available: Bool[Array, " domains"],
    *,
    alignment: Alignment | None = None,
    drawn_by: Float[Array, " domains"] | None = None,
) -> MixtureState:
    """Observe, let the rule choose new weights, round them once for the plan.

    `drawn_by` is what batches are drawn by if not by the weights. The weight of a domain that has been read as often as
    allowed goes to the others in proportion; the rule is told by the observation and by the weights that it is given
    next.
    """
    trained = mixture.trained.plus(mixture.train.tokens)
    observation = Observation(
        heldout=evaluate(params, constants.heldout),
        train=mixture.train,
        trained_tokens=trained.as_float(),
        step=step,
        available=available,
        weights=mixture.weights if drawn_by is None else drawn_by,
        excess=mixture.excess,
        alignment=alignment,
    )
    history = method.observe(mixture.history, observation)
    weights = among(method.update(mixture.weights, history, mixture.targets), available)
    return mixture._replace(
        weights=weights,
        pending=to_quota(weights if drawn_by is None else among(drawn_by, available)),
        heldout=jax.tree.map(lambda new, old: new.astype(old.dtype), observation.heldout, mixture.heldout),
        train=no_losses(weights.shape[0]),
        excess=jax.tree.map(jnp.zeros_like, mixture.excess),
        trained=trained,
        history=history,
    )


def among(weights: Float[Array, " domains"], available: Bool[Array, " domains"]) -> Float[Array, " domains"]:
    """The weights of the available domains, scaled up to one; as they are if none of these has weight."""
    kept = jnp.where(available, weights, 0.0)
    # Untouched where nothing is missing: dividing by a sum of nearly one would change last bits.
    changed = ~available.all() & (kept.sum() > 0)
    return jnp.where(changed, kept / jnp.maximum(kept.sum(), jnp.finfo(kept.dtype).tiny), weights)


def make_align(model: Model, optimizer: OptimizerConfig, method: Method) -> Align:
    """The function that finds how gradients lie to each other, and keeps them, if the method needs that."""
    needs = method.needs

    def find(
        held: MixtureState, params: PyTree, step: Int[Array, ""], batch: Batch, constants: RunConstants
    ) -> tuple[MixtureState, Alignment | None]:
        if not needs & {"alignment", "heldout_alignment"}:
            return held, None
        train, present = batch_gradients(model, params, batch, held.weights.shape[0])
        if "last_gradients" in needs:
            train = latest(held.gradients, train, present)
            held = held._replace(gradients=train)
        towards = heldout_gradients(model, params, constants.heldout) if "heldout_alignment" in needs else train
        return held, align(train, towards, optimizer.learning_rate(step, constants.horizon))

    return find


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
    nats, counted = batch_nats(model, params, batch)
    domain = batch["domain"]
    excess = None if reference is None else excess_sums(nats, reference, counted, domain, domains)
    weight = counted.astype(nats.dtype) if importance is None else counted * importance[domain][:, None]
    loss = jnp.where(counted, nats * weight, 0.0).sum() / weight.sum()
    return loss, _Evidence(domain_sums(nats, counted, domain, domains), excess)
