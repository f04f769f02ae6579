"""Batches read by the host through grain: for corpora of any size and any number of processes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vtune_jax.data.mixture.gather import Workers
from vtune_jax.data.mixture.limits import End
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.plan import available
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.machine import hosts
from vtune_jax.machine.mesh import place_rows
from vtune_jax.models import Batch
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.mixture_engine import Made, MixtureEngine
from vtune_jax.train.state import TrainState
from vtune_jax.train.step import StepMetrics, TrainStep


class HostEngine(MixtureEngine):
    """Rows are read by the host, batch by batch; for corpora of any size and any number of processes."""

    def __init__(
        self,
        train_step: TrainStep,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        constants: RunConstants,
        *,
        mesh: Mesh | None = None,
        workers: int = 0,
        worker_kind: Workers = "threads",
    ) -> None:
        """Prepares the iterator; `start` gives it its position.

        Args:
            train_step: of compiled parts, see `compile_step`.
            spec: of the global batch.
            stores: the rows of each domain.
            constants: of the run; the seed among its numbers takes the place of the spec's.
            mesh: devices over which the batch is split, of all processes; None for one device.
            workers: that read ahead, see `MixtureIterator`.
            worker_kind: threads or processes.

        Raises:
            ValueError: a phase other than 0, by which the iterator's versions of weights cannot begin.
        """
        super().__init__(spec, stores, constants, mesh=mesh)
        if self._phase:
            raise ValueError(f"phase must be 0 for the host engine, got {self._phase}.")
        self._train_step = train_step
        self._workers: dict[str, Any] = {"workers": workers, "worker_kind": worker_kind}
        self._iterator: MixtureIterator

    def start(self, state: TrainState, step: int) -> None:
        """See `Engine`."""
        super().start(state, step)
        mixture: Any = jax.device_get(state.mixture)
        self._iterator = MixtureIterator(
            self._spec,
            self._stores,
            quota=mixture.quota,
            interval=self._interval,
            lag=self._lag,
            shard=hosts.shard(),
            **self._workers,
        )
        self._iterator.seek(step, mixture.cursor, mixture.quota, pending=mixture.pending)

    def _learn(self, state: TrainState, steps: int) -> Made:
        if self._step % self._interval == 0:
            self._iterator.post(self._step // self._interval, np.asarray(state.mixture.pending))
        pending: list[StepMetrics] = []
        stop: End | UserError | None = None
        placed: Batch = {}
        while len(pending) < steps:
            try:
                batch = next(self._iterator)
            except StopIteration:
                stop = self._iterator.ended()
                break
            except UserError as failure:
                stop = failure
                break
            placed = self._place(batch)
            state, metrics = self._train_step.learn(state, placed, self._constants)
            pending.append(metrics)
        if pending and self._step + len(pending) == self.next_stop(self._step):
            state = self._train_step.update(state, placed, self._constants)
        return state, jax.device_get(pending), stop

    def close(self) -> None:
        """See `Engine`."""
        if hasattr(self, "_iterator"):
            self._iterator.close()

    def _place(self, batch: dict[str, Any]) -> Batch:
        cursor = self._iterator.cursor
        arrays = {name: array for name, array in batch.items() if name != "step"}
        return {**place_rows(arrays, self.mesh), "cursor": cursor, "available": available(np, self._spec, cursor)}


def compile_step(train_step: TrainStep) -> TrainStep:
    """The same of two jitted parts, each of which reuses the memory of the state it is given.

    The host knows when an update is due. A program that asked the state would make an accelerator's host wait for the
    answer at every step.
    """
    return TrainStep(*(jax.jit(part, donate_argnums=0) for part in (train_step.learn, train_step.update)))
