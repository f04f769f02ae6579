"""The optimiser and its learning-rate schedule, with the run's length as a traced value."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from vtune_jax.core.checks import assert_within
from vtune_jax.models.model import matrices


class OptimizerNumbers(NamedTuple):
    """The fields of `OptimizerConfig` as one pytree of float32, which may be traced. Cells of a grid stand in front."""

    peak_learning_rate: Float[Array, "*cells"]
    warmup_fraction: Float[Array, "*cells"]
    final_fraction: Float[Array, "*cells"]
    weight_decay: Float[Array, "*cells"]
    beta1: Float[Array, "*cells"]
    beta2: Float[Array, "*cells"]
    clip_norm: Float[Array, "*cells"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW behind a clipped gradient norm; the rate warms up (again), then decays to a fraction of its peak."""

    peak_learning_rate: float = 2e-3
    warmup_fraction: float = 0.05  # of the run's steps, linear from zero
    final_fraction: float = 0.1  # of the peak, reached at the last step by a half cosine
    weight_decay: float = 0.1  # of matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for field in ("peak_learning_rate", "clip_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        assert_within(weight_decay=self.weight_decay)
        for field in ("warmup_fraction", "final_fraction", "beta1", "beta2"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} must lie in [0, 1], got {getattr(self, field)}")

    def numbers(self) -> OptimizerNumbers:
        """What the optimiser computes with."""
        fields = OptimizerNumbers._fields
        return OptimizerNumbers(**{name: jnp.asarray(getattr(self, name), jnp.float32) for name in fields})


def descent(numbers: OptimizerNumbers, decayed: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    """Gradient to descent direction, which is to be multiplied by the learning rate.

    Built inside the step from traced numbers, which the transformations only compute with; `init` uses none of them, so
    that the memory holds moments alone. `optax.inject_hyperparams` would keep the numbers in that memory, where a
    checkpoint brought back old ones in place of the config's.

    Args:
        numbers: of the optimiser.
        decayed: parameters to which of them decay, see `Model.decayed`.
    """
    return optax.chain(
        optax.clip_by_global_norm(numbers.clip_norm),
        optax.scale_by_adam(b1=numbers.beta1, b2=numbers.beta2),
        optax.add_decayed_weights(numbers.weight_decay, mask=decayed),
        optax.scale(-1.0),
    )


def fresh_memory(params: PyTree) -> optax.OptState:
    """The optimiser's memory before the first step."""
    return descent(OptimizerConfig().numbers(), matrices).init(params)


def learning_rate(numbers: OptimizerNumbers, step: Int[Array, ""], horizon: Int[Array, ""]) -> Float[Array, ""]:
    """The rate of the step with this index.

    All are traced, so that runs of different length, each annealed over its own, share one compiled program.

    Args:
        numbers: of the optimiser.
        step: 0 for the first step.
        horizon: optimiser steps of the whole run.
    """
    done = (step + 1).astype(jnp.float32)
    total = horizon.astype(jnp.float32)
    warmup = jnp.maximum(jnp.round(numbers.warmup_fraction * total), 1.0)
    decayed = jnp.clip((done - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
    cosine = numbers.final_fraction + (1 - numbers.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * decayed))
    return numbers.peak_learning_rate * jnp.minimum(done / warmup, cosine)


def descend(
    numbers: OptimizerNumbers,
    gradient: PyTree,
    params: PyTree,
    memory: optax.OptState,
    step: Int[Array, ""],
    horizon: Int[Array, ""],
    *,
    decayed: Callable[[PyTree], PyTree] = matrices,
) -> tuple[PyTree, optax.OptState, Float[Array, ""]]:
    """One optimiser step: parameters, the optimiser's memory, and the learning rate used.

    Args:
        numbers: of the optimiser.
        gradient: of the loss.
        params: before the step.
        memory: of the optimiser.
        step: index of this step.
        horizon: optimiser steps of the whole run.
        decayed: parameters to which of them decay, see `Model.decayed`.
    """
    rate = learning_rate(numbers, step, horizon)
    direction, memory = descent(numbers, decayed).update(gradient, memory, params)
    return optax.apply_updates(params, optax.tree.scale(rate, direction)), memory, rate
