"""The train step: the mathematics of one optimiser step and, at interval boundaries, of one weight update.

Pure functions, no clocks, files or logging. Both data engines call the same `train_step`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt32

from vtune_jax.core.losses import domain_sums, token_nats
from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import Cursor, LossSums, Method, MixtureState, Observation
from vtune_jax.models import Model
from vtune_jax.train.evaluate import Evaluate
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import RunConstants, TrainState, no_losses

Batch = dict[str, Array]
"""`tokens` [rows, sequence + 1] and `domain` [rows]."""
StepMetrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch, RunConstants], tuple[TrainState, StepMetrics]]


def make_train_step(
    model: Model, optimizer: OptimizerConfig, method: Method, evaluate: Evaluate, *, interval: int
) -> TrainStep:
    """One optimiser step, and a weight update when `interval` steps have passed.

    The update happens after the optimiser step, in a `lax.cond`: the method sees the held-out losses of the new
    parameters, and the very next batch is drawn with the new weights (lag 0).

    Args:
        model: gives the logits.
        optimizer: its transformation and schedule.
        method: the rule and how it observes.
        evaluate: held-out losses, called in place at a boundary.
        interval: optimiser steps between weight updates.

    Returns:
        `train_step(state, batch, constants) -> (state, metrics)`, to be jitted with its first argument donated.
        Metrics are `loss`, `gradient_norm`, `learning_rate`, and the training sums per domain since the last update.

    Raises:
        ValueError: interval below 1.
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}.")
    transform = optimizer.build()

    def train_step(state: TrainState, batch: Batch, constants: RunConstants) -> tuple[TrainState, StepMetrics]:
        domains = state.mixture.weights.shape[0]
        (loss, sums), gradient = jax.value_and_grad(_batch_loss, argnums=1, has_aux=True)(
            model, state.params, batch, domains
        )
        rate = optimizer.learning_rate(state.step, constants.horizon)
        direction, optimizer_state = transform.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(rate, direction))

        counts = jnp.zeros(domains, jnp.uint32).at[batch["domain"]].add(1)
        mixture = state.mixture._replace(
            cursor=advance(state.mixture.cursor, counts, constants.rows),
            train=state.mixture.train + sums,
        )
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate,
            "train_nats": mixture.train.nats,
            "train_tokens": mixture.train.tokens,
        }
        step = state.step + 1
        row_tokens = batch["tokens"].shape[1] - 1
        mixture = jax.lax.cond(
            step % interval == 0,
            lambda held: update_mixture(method, evaluate, held, params, step, constants, row_tokens),
            lambda held: held,
            mixture,
        )
        return TrainState(step=step, params=params, optimizer=optimizer_state, mixture=mixture), metrics

    return train_step


def update_mixture(
    method: Method,
    evaluate: Evaluate,
    mixture: MixtureState,
    params: PyTree,
    step: Int[Array, ""],
    constants: RunConstants,
    row_tokens: int,
) -> MixtureState:
    """Observe, let the rule choose new weights, round them once for the plan."""
    observation = Observation(
        heldout=evaluate(params, constants.heldout),
        train=mixture.train,
        trained_tokens=tokens_read(mixture.cursor, constants.rows, row_tokens),
        step=step,
    )
    history = method.observe(mixture.history, observation)
    weights = method.update(mixture.weights, history, mixture.targets)
    return mixture._replace(
        weights=weights,
        quota=to_quota(weights),
        train=no_losses(weights.shape[0]),
        history=history,
    )


def advance(cursor: Cursor, counts: UInt32[Array, " domains"], rows: UInt32[Array, " domains"]) -> Cursor:
    """Moves each domain's cursor on by the rows taken, over as many epochs as that needs."""
    position = cursor.row + counts
    return Cursor(epoch=cursor.epoch + position // rows, row=position % rows)


def tokens_read(cursor: Cursor, rows: UInt32[Array, " domains"], row_tokens: int) -> Float[Array, " domains"]:
    """Training tokens read per domain; float32, since counts pass 2**32 (the cursor itself stays exact)."""
    epoch, row, length = (count.astype(jnp.float32) for count in (cursor.epoch, cursor.row, rows))
    return jnp.asarray((epoch * length + row) * row_tokens)


def _batch_loss(model: Model, params: PyTree, batch: Batch, domains: int) -> tuple[Float[Array, ""], LossSums]:
    tokens = jnp.asarray(batch["tokens"], jnp.int32)
    nats = token_nats(model.logits(params, tokens[:, :-1]), tokens[:, 1:])
    sums = domain_sums(nats, jnp.ones(nats.shape, bool), batch["domain"], domains)
    return nats.mean(), sums
