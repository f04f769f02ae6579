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

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import newest, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm


class Tasks(NamedTuple):
    """What GRAPE carries; a task is to become good at one domain's held-out text."""

    weights: Float[Array, " domains"]  # z: of the tasks, on the simplex
    loss: Float[Array, " domains"]  # at the previous evaluation, nats per token
    known: Bool[Array, " domains"]  # whether there was one
    score: Float[Array, " domains"]  # of the domains


def grape(*, step_scale: Scalar = 20.0, task_step: Scalar = 20.0, smoothing: Scalar = 0.0) -> Method:
    """Two exponentiated steps at each update.

    - tasks: `z' = softmax(log z - b r)`, with the rate of improvement `r_n = (l_n before - l_n now) / l_n before`
    - domains: `w' = (1 - c) softmax(log w + a s) + c / k`, with `s_i = lr <g_i, sum_n z'_n h_n / l_n> / mean ||g||`

    g_i are gradients of training batches, h_n those of held-out losses; dividing by `l_n` makes the sum the gradient of
    the relative improvement.

    Args:
        step_scale: a >= 0.
        task_step: b >= 0.
        smoothing: c in [0, 1].

    Returns:
        A method that needs held-out losses and the alignment of training with held-out gradients.

    Raises:
        ValueError: a hyper-parameter out of its range, or, when called, an observation without alignment.
    """
    assert_within(step_scale=step_scale, task_step=task_step)
    assert_within(0.0, 1.0, smoothing=smoothing)
    begin, remember = remembering("heldout")

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        even, zeros = jnp.full(domains, 1.0 / domains, dtype), jnp.zeros(domains, dtype)
        return begin(targets)._replace(memory=Tasks(even, zeros, jnp.zeros(domains, bool), zeros))

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        found = observation.alignment
        if found is None:
            raise ValueError("observation.alignment must hold inner products of the domains' gradients, got None.")
        history = remember(history, observation)
        held: Tasks = history.memory
        loss, seen = newest(history)
        seen = seen & (loss > 0)
        safe = jnp.where(held.known, held.loss, 1.0)
        rate = jnp.where(seen & held.known, (held.loss - loss) / safe, 0.0)
        tasks = exponentiated_gradient(held.weights, -rate, seen & held.known, step_size=task_step)
        share = jnp.where(seen, tasks / jnp.where(seen, loss, 1.0), 0.0)
        helps = found.learning_rate * (found.inner @ share) / (found.norm.mean() + 1e-6)
        return history._replace(
            memory=Tasks(
                tasks,
                jnp.where(seen, loss, held.loss).astype(held.loss.dtype),
                held.known | seen,
                jnp.where(seen.any(), helps, jnp.nan).astype(held.score.dtype),
            )
        )

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        score = history.memory.score
        seen = jnp.isfinite(score)
        new = exponentiated_gradient(weights, score, seen, step_size=step_scale, smoothing=smoothing)
        return jnp.where(seen.any(), new, weights)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "heldout_alignment"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grape(Arm):
    """The GRAPE-style rule's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["grape"] = "grape"
    step_scale: float = 20.0  # of the domains' step
    task_step: float = 20.0  # of the tasks' step
    smoothing: float = 0.0  # c, the uniform share of each update

    def method(self) -> Method:
        """See `Arm`."""
        return grape(step_scale=self.step_scale, task_step=self.task_step, smoothing=self.smoothing)
