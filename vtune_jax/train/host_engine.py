"""Batches read by the host through grain: for corpora of any size and any number of processes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vtune_jax.data.mixture.gather import Workers
from vtune_jax.data.mixture.limits import End
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.plan import available
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.machine import hosts
from vtune_jax.machine.mesh import replicate
from vtune_jax.models import Batch
from vtune_jax.train.engine import MetricRows
from vtune_jax.train.state import RunConstants, TrainState
from vtune_jax.train.step import StepMetrics, TrainStep

CompiledStep = Callable[..., tuple[TrainState, StepMetrics]]
"""`(state, batch, constants) -> (state, metrics)`, the state's memory reused."""


class HostEngine:
    """Rows are read by the host, batch by batch; for corpora of any size and any number of processes."""

    def __init__(
        self,
        train_step: CompiledStep,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        constants: RunConstants,
        *,
        interval: int,
        lag: int = 0,
        mesh: Mesh | None = None,
        workers: int = 0,
        worker_kind: Workers = "threads",
    ) -> None:
        """Prepares the iterator; `start` gives it its position.

        Args:
            train_step: jitted, first argument donated; see `compile_step`.
            spec: of the global batch.
            stores: the rows of each domain.
            constants: of the run.
            interval: optimiser steps between weight updates.
            lag: steps until new weights come into force.
            mesh: devices over which the batch is split, of all processes; None for one device.
            workers: that read ahead, see `MixtureIterator`.
            worker_kind: threads or processes.
        """
        self._train_step = train_step
        self._spec, self._stores = spec, stores
        self._constants = replicate(constants, mesh)
        self._interval, self._lag = interval, lag
        self._mesh = mesh
        self._workers: dict[str, Any] = {"workers": workers, "worker_kind": worker_kind}
        self._step = 0
        self._iterator: MixtureIterator
        self.ended: End | None = None
        self.failure: UserError | None = None

    def place(self, state: TrainState) -> TrainState:
        """See `Engine`."""
        return replicate(state, self._mesh)

    def start(self, state: TrainState) -> TrainState:
        """See `Engine`."""
        self._step = int(state.step)
        mixture = jax.device_get(state.mixture)
        self._iterator = MixtureIterator(
            self._spec,
            self._stores,
            quota=mixture.quota,
            interval=self._interval,
            lag=self._lag,
            shard=hosts.shard(),
            **self._workers,
        )
        self._iterator.seek(self._step, mixture.cursor, mixture.quota, pending=mixture.pending)
        return replicate(state, self._mesh)

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, MetricRows]:
        """See `Engine`."""
        self.ended, self.failure = None, None
        if self._step % self._interval == 0:
            self._iterator.post(self._step // self._interval, np.asarray(state.mixture.pending))
        pending: list[StepMetrics] = []
        while len(pending) < steps:
            try:
                batch = next(self._iterator)
            except StopIteration:
                self.ended = self._iterator.ended()
                break
            except UserError as failure:
                self.failure = failure
                break
            state, metrics = self._train_step(state, self._place(batch), self._constants)
            pending.append(metrics)
        self._step += len(pending)
        return state, jax.device_get(pending)

    def close(self) -> None:
        """See `Engine`."""
        if hasattr(self, "_iterator"):
            self._iterator.close()

    def _place(self, batch: dict[str, Any]) -> Batch:
        cursor = self._iterator.cursor
        arrays = {name: array for name, array in batch.items() if name != "step"}
        if self._mesh is not None:
            rows = NamedSharding(self._mesh, PartitionSpec("data"))
            arrays = {name: jax.make_array_from_process_local_data(rows, array) for name, array in arrays.items()}
        return {**arrays, "cursor": cursor, "available": available(np, self._spec, cursor)}


def compile_step(train_step: TrainStep) -> CompiledStep:
    """The jitted form for `HostEngine`: the old state's memory is reused for the new one."""
    return jax.jit(train_step, donate_argnums=0)
