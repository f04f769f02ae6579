"""The optimiser and its learning-rate schedule, with the run's length as a traced value."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


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
        for field in ("warmup_fraction", "final_fraction", "beta1", "beta2"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} must lie in [0, 1], got {getattr(self, field)}")

    def build(self) -> optax.GradientTransformation:
        """Gradient to descent direction; the step multiplies it by the learning rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.scale_by_adam(b1=self.beta1, b2=self.beta2),
            optax.add_decayed_weights(self.weight_decay, mask=_matrices),
            optax.scale(-1.0),
        )

    def learning_rate(self, step: Int[Array, ""], horizon: Int[Array, ""]) -> Float[Array, ""]:
        """The rate of the step with this index.

        Both are traced, so that runs of different length, each annealed over its own, share one compiled program.

        Args:
            step: 0 for the first step.
            horizon: optimiser steps of the whole run.
        """
        done = (step + 1).astype(jnp.float32)
        total = horizon.astype(jnp.float32)
        warmup = jnp.maximum(jnp.round(self.warmup_fraction * total), 1.0)
        decayed = jnp.clip((done - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
        cosine = self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * decayed))
        return self.peak_learning_rate * jnp.minimum(done / warmup, cosine)


def descend(
    optimizer: OptimizerConfig,
    transform: optax.GradientTransformation,
    gradient: PyTree,
    params: PyTree,
    memory: optax.OptState,
    step: Int[Array, ""],
    horizon: Int[Array, ""],
) -> tuple[PyTree, optax.OptState, Float[Array, ""]]:
    """One optimiser step: parameters, the optimiser's memory, and the learning rate used.

    Args:
        optimizer: its schedule.
        transform: what `optimizer.build()` gave.
        gradient: of the loss.
        params: before the step.
        memory: of the transform.
        step: index of this step.
        horizon: optimiser steps of the whole run.
    """
    rate = optimizer.learning_rate(step, horizon)
    direction, memory = transform.update(gradient, memory, params)
    return optax.apply_updates(params, optax.tree.scale(rate, direction)), memory, rate


def _matrices(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
