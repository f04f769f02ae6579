"""Batches gathered from accelerator memory inside one `lax.scan` over the steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vtune_jax.data.mixture.limits import why_ended
from vtune_jax.data.mixture.on_device import TokenTable, build_table, gather
from vtune_jax.data.mixture.plan import available, plan_steps, steps_left
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.machine.mesh import replicate
from vtune_jax.train.mixture_engine import Made, MixtureEngine
from vtune_jax.train.state import RunConstants, TrainState
from vtune_jax.train.step import StepMetrics, TrainStep

Scan = Callable[..., tuple[TrainState, StepMetrics]]
"""`(state, table, constants, *, steps) -> (state, stacked metrics)`."""


class DeviceEngine(MixtureEngine):
    """All tokens lie in accelerator memory and batches are gathered inside one `lax.scan` over the steps."""

    def __init__(
        self,
        run: Scan,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        constants: RunConstants,
        *,
        interval: int,
        lag: int = 0,
    ) -> None:
        """Copies the tokens to the device.

        Args:
            run: see `compile_scan`.
            spec: of the global batch.
            stores: the rows of each domain.
            constants: of the run.
            interval: optimiser steps between weight updates.
            lag: steps until new weights come into force.
        """
        super().__init__(spec, stores, interval=interval, lag=lag, mesh=None)
        self._run = run
        self._constants = replicate(constants, None)
        self._table = build_table(stores)

    def _learn(self, state: TrainState, steps: int) -> Made:
        """Each new number of steps compiles once more."""
        if self._spec.limited:
            mixture: Any = jax.device_get(state.mixture)
            made = steps_left(self._spec, self._step, steps, mixture.quota, mixture.cursor)
            if not made:
                return state, [], why_ended(self._spec, mixture.quota, mixture.cursor, self._stores)
            steps = made
        state, stacked = self._run(state, self._table, self._constants, steps=steps)
        columns = jax.device_get(stacked)
        return state, [{name: column[index] for name, column in columns.items()} for index in range(steps)], None

    def close(self) -> None:
        """See `Engine`."""


def scan_steps(
    train_step: TrainStep,
    spec: PlanSpec,
    row_length: int,
    state: TrainState,
    table: TokenTable,
    constants: RunConstants,
    *,
    steps: int,
) -> tuple[TrainState, StepMetrics]:
    """Plans, gathers and learns `steps` times in one program; metrics come back stacked.

    All steps are under the same weights, so they are planned at once: fewer and larger operations than step by step.
    """
    mixture = state.mixture
    first = state.step.astype(jnp.uint32)
    plan, _ = plan_steps(jnp, spec, first, steps, mixture.quota, mixture.cursor)
    open_domains = available(jnp, spec, plan.after)

    def one(state: TrainState, planned: Any) -> tuple[TrainState, StepMetrics]:
        domain, row, cursor, left = planned
        batch = {**gather(table, row_length, domain, row), "cursor": cursor, "available": left}
        return train_step(state, batch, constants)

    return jax.lax.scan(one, state, (plan.domain, plan.row, plan.after, open_domains))


def compile_scan(train_step: TrainStep, spec: PlanSpec, row_length: int) -> Scan:
    """The jitted form for `DeviceEngine`; `steps` is static."""
    return jax.jit(partial(scan_steps, train_step, spec, row_length), static_argnames="steps", donate_argnums=0)
