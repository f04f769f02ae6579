"""The train step: the mathematics of one optimiser step and, at interval boundaries, of one weight update.

Pure functions, no clocks, files or logging. Both data engines call the same `train_step`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.losses import domain_sums
from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import LossSums, Method, MixtureState, Observation
from vtune_jax.models import Model
from vtune_jax.train.batch import Batch, batch_nats
from vtune_jax.train.evaluate import Evaluate
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import RunConstants, TrainState, no_losses

StepMetrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch, RunConstants], tuple[TrainState, StepMetrics]]


def make_train_step(
    model: Model, optimizer: OptimizerConfig, method: Method, evaluate: Evaluate, *, interval: int, lag: int = 0
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

    Returns:
        `train_step(state, batch, constants) -> (state, metrics)`, to be jitted with its first argument donated.
        Metrics are `loss`, `gradient_norm`, `learning_rate`, and the training sums per domain since the last update.

    Raises:
        ValueError: interval below 1, or a lag outside [0, interval).
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}.")
    if not 0 <= lag < interval:
        raise ValueError(f"lag must lie in [0, interval = {interval}), got {lag}.")
    transform = optimizer.build()

    def train_step(state: TrainState, batch: Batch, constants: RunConstants) -> tuple[TrainState, StepMetrics]:
        domains = state.mixture.weights.shape[0]
        (loss, sums), gradient = jax.value_and_grad(_batch_loss, argnums=1, has_aux=True)(
            model, state.params, batch, domains
        )
        rate = optimizer.learning_rate(state.step, constants.horizon)
        direction, optimizer_state = transform.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(rate, direction))

        mixture = state.mixture._replace(
            cursor=jax.tree.map(jnp.asarray, batch["cursor"]), train=state.mixture.train + sums
        )
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate,
            "train_nats": mixture.train.nats,
            "train_tokens": mixture.train.tokens,
        }
        step = state.step + 1
        mixture = jax.lax.cond(
            step % interval == 0,
            lambda held: update_mixture(method, evaluate, held, params, step, constants, batch["available"]),
            lambda held: held,
            mixture,
        )
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
) -> MixtureState:
    """Observe, let the rule choose new weights, round them once for the plan.

    The weight of a domain that has been read as often as allowed goes to the others in proportion; the rule is told by
    the observation and by the weights that it is given next.
    """
    trained = mixture.trained.plus(mixture.train.tokens)
    observation = Observation(
        heldout=evaluate(params, constants.heldout),
        train=mixture.train,
        trained_tokens=trained.as_float(),
        step=step,
        available=available,
        weights=mixture.weights,
    )
    history = method.observe(mixture.history, observation)
    weights = among(method.update(mixture.weights, history, mixture.targets), available)
    return mixture._replace(
        weights=weights,
        pending=to_quota(weights),
        train=no_losses(weights.shape[0]),
        trained=trained,
        history=history,
    )


def among(weights: Float[Array, " domains"], available: Bool[Array, " domains"]) -> Float[Array, " domains"]:
    """The weights of the available domains, scaled up to one; as they are if none of these has weight."""
    kept = jnp.where(available, weights, 0.0)
    # Untouched where nothing is missing: dividing by a sum of nearly one would change last bits.
    changed = ~available.all() & (kept.sum() > 0)
    return jnp.where(changed, kept / jnp.maximum(kept.sum(), jnp.finfo(kept.dtype).tiny), weights)


def _batch_loss(model: Model, params: PyTree, batch: Batch, domains: int) -> tuple[Float[Array, ""], LossSums]:
    nats, counted = batch_nats(model, params, batch)
    sums = domain_sums(nats, counted, batch["domain"], domains)
    return jnp.where(counted, nats, 0.0).sum() / counted.sum(), sums
