"""Two ways of feeding the same train step: from the host through grain, or from accelerator memory inside a scan.

Both realise the same plan, so they train on identical batches.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from vtune_jax.data.device_engine import TokenTable, build_table, gather
from vtune_jax.data.ending import End, why_ended
from vtune_jax.data.grain_engine import MixtureIterator
from vtune_jax.data.plan import PlanSpec, available, plan_steps, steps_left
from vtune_jax.data.reader import Workers
from vtune_jax.data.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.train.batch import Batch
from vtune_jax.train.state import RunConstants, TrainState
from vtune_jax.train.step import StepMetrics, TrainStep

MetricRows = list[dict[str, np.ndarray]]
CompiledStep = Callable[..., tuple[TrainState, StepMetrics]]
"""`(state, batch, constants) -> (state, metrics)`, the state's memory reused."""
Scan = Callable[..., tuple[TrainState, StepMetrics]]
"""`(state, table, constants, *, steps) -> (state, stacked metrics)`."""


class Engine(Protocol):
    """Advances a train state by several steps that do not cross a weight update, nor weights' coming into force."""

    ended: End | None
    """Why the last `advance` made fewer steps than asked: a limit of the data ends the run here."""
    failure: UserError | None
    """Why it made fewer steps: tokens that cannot be read. The state is sound."""

    def place(self, state: TrainState) -> TrainState:
        """The state on the devices."""
        ...

    def start(self, state: TrainState) -> TrainState:
        """Takes the data position from the state, and places it."""
        ...

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, MetricRows]:
        """Runs `steps` optimiser steps, or fewer; returns one row of metrics for each that was made."""
        ...

    def close(self) -> None:
        """Lets workers go."""
        ...


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
            shard=(jax.process_index(), jax.process_count()),
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


class DeviceEngine:
    """All tokens lie in accelerator memory and batches are gathered inside one `lax.scan` over the steps."""

    def __init__(self, run: Scan, spec: PlanSpec, stores: Sequence[RowStore], constants: RunConstants) -> None:
        """Copies the tokens to the device.

        Args:
            run: see `compile_scan`.
            spec: of the global batch.
            stores: the rows of each domain.
            constants: of the run.
        """
        self._run, self._spec = run, spec
        self._stores = stores
        self.ended: End | None = None
        self.failure: UserError | None = None
        self._constants = replicate(constants, None)
        self._table = build_table(stores)

    def place(self, state: TrainState) -> TrainState:
        """See `Engine`."""
        return replicate(state, None)

    def start(self, state: TrainState) -> TrainState:
        """See `Engine`."""
        return replicate(state, None)

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, MetricRows]:
        """See `Engine`. Each new number of steps compiles once more."""
        self.ended = None
        if self._spec.limited:
            mixture = jax.device_get(state.mixture)
            made = steps_left(self._spec, int(state.step), steps, mixture.quota, mixture.cursor)
            if not made:
                self.ended = why_ended(self._spec, mixture.quota, mixture.cursor, self._stores)
                return state, []
            steps = made
        state, stacked = self._run(state, self._table, self._constants, steps=steps)
        columns = jax.device_get(stacked)
        return state, [{name: column[index] for name, column in columns.items()} for index in range(steps)]

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


def compile_step(train_step: TrainStep) -> CompiledStep:
    """The jitted form for `HostEngine`: the old state's memory is reused for the new one."""
    return jax.jit(train_step, donate_argnums=0)


def data_mesh(batch: int) -> Mesh | None:
    """All devices in a row, for data parallelism; None where there is one.

    Raises:
        ValueError: the batch does not divide by the number of devices.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    if batch % len(devices):
        raise ValueError(f"batch must be a multiple of the {len(devices)} devices, got {batch}.")
    return Mesh(np.array(devices), ("data",))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same values on every device of the mesh, or on the one device.

    Placed explicitly even there: a jitted step compiles once for fresh arrays and once more for those that have been
    placed, by a checkpoint or by itself.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def on_all_hosts(leaf: Any) -> Array:
        # Each process has the value and gives it to its own devices; nothing is sent.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(on_all_hosts, tree)
