"""Everything that a grid varies, as one pytree of traced values: a compiled step does not depend on any of them.

What a compiled step depends on is the model, the shapes, what weights act on and the structure of the method
(`rules.config.structure_of`).
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PyTree, UInt32

from vtune_jax.core.numbers import numbers_of, with_numbers
from vtune_jax.core.types import Method
from vtune_jax.train.optimizer import OptimizerConfig, OptimizerNumbers


class MethodLike(Protocol):
    """The config of a method, whose float fields are numbers."""

    def build(self) -> Method:
        """The method with these numbers, which may be traced."""
        ...


class Numbers(NamedTuple):
    """The numbers of a run. Cells of a grid have them stacked, cells in front."""

    seed: UInt32[Array, "*cells"]  # of the plan: which rows come when
    horizon: Int32[Array, "*cells"]  # optimiser steps of the whole run, which the learning rate is annealed over
    interval: Int32[Array, "*cells"]  # optimiser steps between weight updates
    phase: Int32[Array, "*cells"]  # steps before the first interval begins, in [0, interval)
    lag: Int32[Array, "*cells"]  # steps after an update at which its weights come into force, in [0, interval)
    optimizer: OptimizerNumbers
    method: PyTree  # as `rules.config.numbers_of` gives them; {} for a method without

    def due(self, step: Int32[Array, ""]) -> Bool[Array, ""]:
        """Whether weights are updated after so many steps."""
        return (step - self.phase) % self.interval == 0

    def in_force(self, step: Int32[Array, ""]) -> Bool[Array, ""]:
        """Whether the weights of the newest update come into force after so many steps."""
        return (step - self.phase - self.lag) % self.interval == 0


def run_numbers(
    *,
    steps: int,
    interval: int,
    optimizer: OptimizerConfig,
    method: MethodLike | Method,
    seed: int = 0,
    phase: int = 0,
    lag: int = 0,
) -> Numbers:
    """The numbers of one run, checked.

    Args:
        steps: of the whole run.
        interval: steps between weight updates.
        optimizer: its numbers.
        method: the config it is built from; a `Method` has its numbers inside, and none of them is traced.
        seed: of the plan, in [0, 2**32).
        phase: steps before the first interval begins; updates follow steps `phase + n interval`, but for step 0.
        lag: steps after an update at which its weights come into force.

    Raises:
        ValueError: interval below 1, or a phase or lag outside [0, interval).
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}.")
    for name, value in (("phase", phase), ("lag", lag)):
        if not 0 <= value < interval:
            raise ValueError(f"{name} must lie in [0, interval = {interval}), got {value}.")
    return Numbers(
        seed=jnp.asarray(seed, jnp.uint32),
        horizon=jnp.asarray(steps, jnp.int32),
        interval=jnp.asarray(interval, jnp.int32),
        phase=jnp.asarray(phase, jnp.int32),
        lag=jnp.asarray(lag, jnp.int32),
        optimizer=optimizer.numbers(),
        method=method_numbers(method),
    )


def method_numbers(method: MethodLike | Method) -> dict[str, Any]:
    """The numbers of a method's config, as traced values may replace them; none of a `Method`, which holds its own."""
    return {} if isinstance(method, Method) else numbers_of(method)


def build_method(method: MethodLike | Method, numbers: Any = None) -> Method:
    """The method with these numbers in place of its config's own; a `Method` as it is.

    Raises:
        ValueError: numbers of another structure, as of another method.
    """
    ours, theirs = _names(method_numbers(method)), _names(numbers)
    if numbers is not None and ours != theirs:
        raise ValueError(f"numbers.method must hold {ours} for this method, got {theirs}.")
    if isinstance(method, Method):
        return method
    return (method if numbers is None else with_numbers(method, numbers)).build()


def _names(numbers: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(numbers)]
