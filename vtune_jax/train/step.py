"""The train step: the mathematics of one optimiser step and, at interval boundaries, of one weight update.

Pure functions, no clocks, files or logging. All data engines run the same two parts.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from vtune_jax.core.types import AnyArray, Method, MixtureState
from vtune_jax.models import Batch, Model
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.evidence.kind import Context
from vtune_jax.train.evidence.registry import needed
from vtune_jax.train.heldout import Evaluate
from vtune_jax.train.learn import LearnState, learn
from vtune_jax.train.numbers import MethodLike, build_method
from vtune_jax.train.state import TrainState
from vtune_jax.train.update import update_mixture

StepMetrics = dict[str, AnyArray]
ActsOn = Literal["sampling", "loss"]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One optimiser step in two parts, so that a program of many steps holds the second where it may be due only."""

    learn: Callable[[TrainState, Batch, RunConstants], tuple[TrainState, StepMetrics]]
    """Forward, backward, descent, and the evidence of this batch."""
    update: Callable[[TrainState, Batch, RunConstants], TrainState]
    """A weight update, if it is due after this step, and weights' coming into force; else the state as it is."""

    def __call__(self, state: TrainState, batch: Batch, constants: RunConstants) -> tuple[TrainState, StepMetrics]:
        """Both parts."""
        state, metrics = self.learn(state, batch, constants)
        return self.update(state, batch, constants), metrics


def make_train_step(
    model: Model, method: MethodLike | Method, evaluate: Evaluate, *, acts_on: ActsOn = "sampling"
) -> TrainStep:
    """One optimiser step, and a weight update where it is due.

    The update happens after the optimiser step, in a `lax.cond`: the method sees the held-out losses of the new
    parameters, and the batch `lag` steps later, the very next one by default, is drawn with the new weights.

    All numbers are read from `constants.numbers`, so that runs which differ in them share one compiled program.

    Args:
        model: gives the losses.
        method: the config of the rule and how it observes, of which only the structure matters here; or a method.
        evaluate: held-out losses, called in place at a boundary.
        acts_on: what weights do. "sampling": the batches are drawn by them. "loss": batches are drawn by the prior, and
            a token of domain i counts `w_i / prior_i` in the batch's mean loss, as in Group DRO and DoReMi's proxy.

    Returns:
        the two parts, each to be jitted with its first argument donated; called as one it runs both.
        Metrics are `loss`, `gradient_norm`, `learning_rate`, and the training sums per domain since the last update.

    Raises:
        ValueError: a method that needs what nobody supplies.
    """
    needs = build_method(method).needs
    kinds = needed(needs)

    def learn_batch(state: TrainState, batch: Batch, constants: RunConstants) -> tuple[TrainState, StepMetrics]:
        mixture, numbers = state.mixture, constants.numbers
        domains = mixture.weights.shape[0]
        learner, learned = learn(
            model,
            LearnState(state.params, state.optimizer),
            batch,
            numbers.optimizer,
            state.step,
            numbers.horizon,
            domains=domains,
            importance=mixture.weights / mixture.targets.prior if acts_on == "loss" else None,
        )
        context = Context(model, needs, domains, batch, constants)
        mixture = mixture._replace(
            cursor=jax.tree.map(jnp.asarray, batch["cursor"]),
            train=mixture.train + learned.sums,
            evidence={kind.name: kind.gather(mixture.evidence[kind.name], context, learned) for kind in kinds},
        )
        metrics = {
            "loss": learned.loss,
            "gradient_norm": learned.gradient_norm,
            "learning_rate": learned.learning_rate,
            "train_nats": mixture.train.nats,
            "train_tokens": mixture.train.tokens,
        }
        return TrainState(state.step + 1, *learner, mixture), metrics

    def update(state: TrainState, batch: Batch, constants: RunConstants) -> TrainState:
        step, params, numbers = state.step, state.params, constants.numbers

        def updated(mixture: MixtureState) -> MixtureState:
            context = Context(model, needs, mixture.weights.shape[0], batch, constants)
            observed = {kind.name: kind.observe(mixture.evidence[kind.name], context, params, step) for kind in kinds}
            return update_mixture(
                build_method(method, numbers.method),
                mixture._replace(evidence={name: gathered for name, (_, gathered) in observed.items()}),
                step,
                heldout=evaluate(params, constants.heldout),
                available=batch["available"],
                evidence={name: value for name, (value, _) in observed.items()},
                drawn_by=mixture.targets.prior if acts_on == "loss" else None,
            )

        mixture = jax.lax.cond(numbers.due(step), updated, lambda mixture: mixture, state.mixture)
        quota = jnp.where(numbers.in_force(step), mixture.pending, mixture.quota)
        return state._replace(mixture=mixture._replace(quota=quota))

    return TrainStep(learn_batch, update)
