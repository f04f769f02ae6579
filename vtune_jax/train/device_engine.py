"""Batches gathered from accelerator memory inside one `lax.scan` over the steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vtune_jax.data.mixture.limits import why_ended
from vtune_jax.data.mixture.on_device import TokenTable, build_table, gather
from vtune_jax.data.mixture.plan import available, plan_steps, steps_left
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.models import Batch
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.mixture_engine import Boundary, Made, MixtureEngine, boundary
from vtune_jax.train.state import TrainState
from vtune_jax.train.step import StepMetrics, TrainStep


class Segment(NamedTuple):
    """What a part of a run has measured."""

    metrics: StepMetrics  # each [intervals, steps, ...]
    boundaries: Boundary  # after each interval, [intervals, ...]


CompiledSegment = Callable[..., tuple[TrainState, Segment]]
"""`(state, table, constants, *, steps, intervals=1) -> (state, segment)`, the state's memory reused."""


class DeviceEngine(MixtureEngine):
    """All tokens lie in accelerator memory and batches are gathered inside one `lax.scan` over the steps."""

    def __init__(
        self,
        run: CompiledSegment,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        constants: RunConstants,
    ) -> None:
        """Copies the tokens to the device.

        Args:
            run: see `compile_segment`.
            spec: of the global batch.
            stores: the rows of each domain.
            constants: of the run; the seed among its numbers takes the place of the spec's.
        """
        super().__init__(spec, stores, constants, mesh=None)
        self._run = run
        self._table = build_table(stores)

    def _learn(self, state: TrainState, steps: int) -> Made:
        """Each new number of steps compiles once more."""
        if self._spec.limited:
            mixture: Any = jax.device_get(state.mixture)
            made = steps_left(self._spec, self._step, steps, mixture.quota, mixture.cursor)
            if not made:
                return state, [], why_ended(self._spec, mixture.quota, mixture.cursor, self._stores)
            steps = made
        state, found = self._run(state, self._table, self._constants, steps=steps)
        columns = {name: column[0] for name, column in jax.device_get(found.metrics).items()}
        return state, [{name: column[index] for name, column in columns.items()} for index in range(steps)], None

    def close(self) -> None:
        """See `Engine`."""


def segment(
    train_step: TrainStep,
    spec: PlanSpec,
    row_length: int,
    state: TrainState,
    table: TokenTable,
    constants: RunConstants,
    *,
    steps: int,
    intervals: int = 1,
) -> tuple[TrainState, Segment]:
    """Part of a run in one program: a scan over intervals of a scan over their steps.

    It depends on shapes, the model and the method's structure only: all numbers come from `constants`, so that
    `jax.vmap` over states and numbers trains the cells of a grid side by side (see `cells`). All steps of an interval
    are under the same weights: they are planned at once, and the update stands behind them, once for each interval
    instead of in every step, where a mapped `lax.cond` would evaluate the held-out rows at each.

    Args:
        train_step: see `make_train_step`.
        spec: of the global batch; its seed does not matter.
        row_length: predicted tokens per row.
        state: before it.
        table: the tokens of all domains; cells share it.
        constants: of the run.
        steps: in each interval, static. No update, and no coming into force, may lie within these: both happen after
            steps that are multiples of this number away from the state's.
        intervals: how many, static.

    Returns:
        the state after it, and what was measured. A step for which the domains have no rows left within the spec's
        limits is not noticed here: ask `steps_left` first.
    """

    def one_interval(state: TrainState, _: None) -> tuple[TrainState, Segment]:
        mixture = state.mixture
        first, seed = state.step.astype(jnp.uint32), constants.numbers.seed
        plan, _after = plan_steps(jnp, spec, first, steps, mixture.quota, mixture.cursor, seed=seed)
        planned = (plan.domain, plan.row, plan.after, available(jnp, spec, plan.after))

        def batch_of(planned: Any) -> Batch:
            domain, row, cursor, left = planned
            return {**gather(table, row_length, domain, row), "cursor": cursor, "available": left}

        def one_step(state: TrainState, planned: Any) -> tuple[TrainState, StepMetrics]:
            return train_step.learn(state, batch_of(planned), constants)

        state, metrics = jax.lax.scan(one_step, state, planned)
        last = batch_of(jax.tree.map(lambda column: column[-1], planned))
        state = train_step.update(state, last, constants)
        return state, Segment(metrics, boundary(state))

    return jax.lax.scan(one_interval, state, length=intervals)


def compile_segment(train_step: TrainStep, spec: PlanSpec, row_length: int) -> CompiledSegment:
    """The jitted form for `DeviceEngine`; `steps` and `intervals` are static."""
    program = partial(segment, train_step, spec, row_length)
    return jax.jit(program, static_argnames=("steps", "intervals"), donate_argnums=0)
