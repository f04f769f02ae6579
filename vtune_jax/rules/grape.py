"""GRAPE-style: tasks that improve least count most, and domains whose gradient helps these tasks get more.

Source: Fan, Ios Glarou and Jaggi 2025, "GRAPE: Optimize Data Mixture for Group Robust Multi-target Adaptive
Pretraining", arXiv:2505.20380: the idea (group DRO over tasks on their relative rate of improvement, mirror descent on
both kinds of weights) from its abstract and public summaries. Constants, clipping, intervals and the exact estimate of
the gradients could not be checked, and there are no recorded numbers; this is a rule in its style, not its code.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.history import newest, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights, evidence
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number


class Tasks(NamedTuple):
    """What GRAPE carries; a task is to become good at one domain's held-out text."""

    weights: Float[Array, " domains"]  # z: of the tasks, on the simplex
    loss: Float[Array, " domains"]  # at the previous evaluation, nats per token
    known: Bool[Array, " domains"]  # whether there was a previous evaluation
    score: Float[Array, " domains"]  # of the domains


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grape(MethodConfig):
    """Two exponentiated steps at each update.

    - tasks: `z' = softmax(log z - b r)`, with the rate of improvement `r_n = (l_n before - l_n now) / l_n before`
    - domains: `w' = (1 - c) softmax(log w + a s) + c / k`, with `s_i = lr <g_i, sum_n z'_n h_n / l_n> / mean ||g||`

    g_i are gradients of training batches, h_n those of held-out losses; dividing by `l_n` makes the sum the gradient of
    the relative improvement. The method needs held-out losses and the alignment of training with held-out gradients.
    """

    name: Literal["grape"] = "grape"
    step_scale: float = number(20.0)  # a, of the domains' step
    task_step: float = number(20.0)  # b, of the tasks' step
    smoothing: float = number(0.0, high=1.0)  # c, the uniform share of the new weights

    def method(self) -> Method:
        """See `MethodConfig`."""
        begin, remember = remembering("heldout")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            even, zeros = jnp.full(domains, 1.0 / domains, dtype), jnp.zeros(domains, dtype)
            return begin(targets)._replace(memory=Tasks(even, zeros, jnp.zeros(domains, bool), zeros))

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            alignment = evidence(observation, "alignment", "inner products of the domains' gradients")
            history = remember(history, observation)
            old: Tasks = history.memory
            loss, seen = newest(history)
            seen = seen & (loss > 0)
            safe = jnp.where(old.known, old.loss, 1.0)
            rate = jnp.where(seen & old.known, (old.loss - loss) / safe, 0.0)
            tasks = exponentiated_gradient(old.weights, -rate, seen & old.known, step_size=self.task_step)
            share = jnp.where(seen, tasks / jnp.where(seen, loss, 1.0), 0.0)
            helps = alignment.learning_rate * (alignment.inner @ share) / (alignment.norm.mean() + 1e-6)
            return history._replace(
                memory=Tasks(
                    tasks,
                    jnp.where(seen, loss, old.loss).astype(old.loss.dtype),
                    old.known | seen,
                    jnp.where(seen.any(), helps, jnp.nan).astype(old.score.dtype),
                )
            )

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            score = history.memory.score
            seen = jnp.isfinite(score)
            new = exponentiated_gradient(weights, score, seen, step_size=self.step_scale, smoothing=self.smoothing)
            return jnp.where(seen.any(), new, weights)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "heldout_alignment"}))


grape = factory_of(Grape)

PUBLISHED = Published(
    config=Grape,
    source="in the style of Fan et al. 2025, arXiv:2505.20380",
    place=100,
    departures=(
        "from the abstract and public summaries; its constants, clipping and intervals could not be checked",
        "the tasks are the domains' held-out texts",
    ),
)
