"""Cells of a grid side by side: runs that differ in numbers only, as one mapped program on the device."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vtune_jax.core.types import Method, Targets
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.device_engine import CompiledSegment, segment
from vtune_jax.train.numbers import MethodLike, Numbers
from vtune_jax.train.state import TrainState, start
from vtune_jax.train.step import TrainStep

_SHARED = RunConstants(heldout=None, numbers=0, reference=None)  # type: ignore[arg-type]
"""Which axis of each constant counts cells: only the numbers have one."""


def stack(numbers: Sequence[Numbers]) -> Numbers:
    """The numbers of several cells, cells in front. Their methods must have one structure."""
    stacked: Numbers = jax.tree.map(lambda *cells: jnp.stack(cells), *numbers)
    return stacked


def start_cells(params: PyTree, method: MethodLike | Method, targets: Targets, numbers: Numbers) -> TrainState:
    """The states of all cells before the first step, cells in front; all begin from the same parameters."""
    begin = jax.vmap(partial(start, params, method, targets), axis_size=len(numbers.seed))
    states: TrainState = begin(numbers.method)
    return states


def compile_cells(train_step: TrainStep, spec: PlanSpec, row_length: int) -> CompiledSegment:
    """`segment` mapped over cells: states and `constants.numbers` have cells in front, all else is shared.

    An update is computed once for each interval of the segment, whether it is due in a cell or not.
    """

    def program(
        states: TrainState, table: PyTree, constants: RunConstants, *, steps: int, intervals: int = 1
    ) -> PyTree:
        one = partial(segment, train_step, spec, row_length, steps=steps, intervals=intervals)
        return jax.vmap(one, in_axes=(0, None, _SHARED))(states, table, constants)

    return jax.jit(program, static_argnames=("steps", "intervals"), donate_argnums=0)
