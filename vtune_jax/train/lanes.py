"""Short static runs side by side in one vmapped program: lanes that train one run after the other from the base model.

On an accelerator a small model leaves most of the machine idle; lanes fill it. Lengths that halve fill two lanes
without a gap: the longest in one, all the others in the other.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.on_host import MixtureIterator, adapted
from vtune_jax.data.mixture.spec import PlanSpec, start_cursor
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.machine import hosts
from vtune_jax.machine.mesh import place_rows, replicate
from vtune_jax.models import Batch, Model
from vtune_jax.train.engine import Advanced, Fault, Row, not_finite
from vtune_jax.train.learn import LearnState, learn
from vtune_jax.train.optimizer import OptimizerConfig, OptimizerNumbers, fresh_memory


class ShortRun(NamedTuple):
    """A static run, annealed over its own length."""

    steps: int
    evaluate_after: tuple[int, ...]  # steps done; ascending, the last is usually `steps`


class Lanes(NamedTuple):
    """Which runs each lane trains, one after the other."""

    runs: tuple[ShortRun, ...]
    of_lane: tuple[tuple[int, ...], ...]  # indices into `runs`

    @property
    def steps(self) -> int:
        """Optimiser steps until the last lane is done."""
        return max(sum(self.runs[run].steps for run in lane) for lane in self.of_lane)

    def schedule(self) -> tuple[Int[np.ndarray, "steps lanes"], Int[np.ndarray, "steps lanes"]]:
        """For each step the run that a lane is at, -1 once it is done, and the step within that run."""
        run = np.full((self.steps, len(self.of_lane)), -1)
        within = np.zeros_like(run)
        for lane, indices in enumerate(self.of_lane):
            first = 0
            for index in indices:
                steps = self.runs[index].steps
                run[first : first + steps, lane] = index
                within[first : first + steps, lane] = np.arange(steps)
                first += steps
        return run, within


class LaneState(NamedTuple):
    """What changes from step to step. Leading axis of all but the losses: lanes."""

    learner: LearnState
    cursor: Cursor  # of each lane's stream
    losses: Float[Array, "runs evaluations domains"]  # nats per token; NaN where not measured yet


def packed(runs: Sequence[ShortRun]) -> Lanes:
    """Two lanes, the longest run in one and all others in the other, or one lane if they would leave it half empty."""
    order = sorted(range(len(runs)), key=lambda index: -runs[index].steps)
    others = sum(runs[index].steps for index in order[1:])
    if 2 * others < runs[order[0]].steps:
        return Lanes(tuple(runs), (tuple(order),))
    return Lanes(tuple(runs), (tuple(order[:1]), tuple(order[1:])))


class LaneEngine:
    """Trains all runs of the lanes and evaluates each where it is due; the loop records, saves and resumes it."""

    def __init__(
        self,
        lanes: Lanes,
        model: Model,
        optimizer: OptimizerConfig,
        params: PyTree,
        *,
        spec: PlanSpec,
        stores: Sequence[RowStore],
        quota: np.ndarray,
        heldout_loss: Callable[[PyTree], np.ndarray],
        mesh: Mesh | None = None,
    ) -> None:
        """Places the base model; `start` opens the streams.

        Args:
            lanes: the runs.
            model: whose loss is descended.
            optimizer: its schedule spans each run.
            params: of the base model, which every run starts from.
            spec: of the batches; every run reads the same stream from its beginning.
            stores: rows of each domain.
            quota: weights in fixed point.
            heldout_loss: parameters to held-out losses per domain.
            mesh: devices over which each lane's batch is split; None for one device.
        """
        self.mesh = mesh
        self._lanes, self._spec, self._stores, self._quota = lanes, spec, tuple(stores), quota
        self._heldout_loss = heldout_loss
        self._base = replicate(params, mesh)
        self._run_at, self._within = lanes.schedule()
        self._horizons = np.array([run.steps for run in lanes.runs], np.int32)
        self._learn, self._numbers = _compiled(model, len(stores)), optimizer.numbers()
        self._step = 0
        self._streams: list[MixtureIterator] = []
        self._batches: list[dict[str, np.ndarray]] = [{}] * len(lanes.of_lane)

    def begin(self) -> LaneState:
        """The state before the first step; shapes matter, as each run begins from the base model."""
        width, lanes, domains = len(self._lanes.of_lane), self._lanes, len(self._stores)
        most = max(len(run.evaluate_after) for run in lanes.runs)
        params, cursor = (
            jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], width, axis=0), tree)
            for tree in (self._base, start_cursor(domains))
        )
        losses = jnp.full((len(lanes.runs), most, domains), jnp.nan)
        return LaneState(LearnState(params, jax.vmap(fresh_memory)(params)), cursor, losses)

    def next_stop(self, step: int) -> int:
        """See `Engine`: runs begin and are evaluated within `advance`."""
        return self._lanes.steps

    def adapt(self, state: LaneState) -> LaneState:
        """See `Engine`."""
        return state._replace(cursor=adapted(self._spec.rows, jax.device_get(state.cursor)))

    def start(self, state: LaneState, step: int) -> None:
        """See `Engine`."""
        self._step = step
        cursors: Any = jax.device_get(state.cursor)
        for lane in range(len(self._lanes.of_lane)):
            # The shares never change: one version of weights.
            stream = MixtureIterator(
                self._spec,
                self._stores,
                quota=self._quota,
                interval=self._lanes.steps + 1,
                shard=hosts.shard(),
            )
            within = int(self._within[step, lane]) if step < self._lanes.steps else 0
            stream.seek(within, jax.tree.map(lambda column, lane=lane: column[lane], cursors), self._quota)
            self._streams.append(stream)

    def advance(self, state: LaneState, steps: int) -> Advanced[LaneState]:
        """See `Engine`."""
        learner, losses = state.learner, np.array(state.losses)
        measured: list[tuple[Array, Array]] = []
        updates: list[Row] = []
        fault: Fault | None = None
        first = self._step
        while self._step < first + steps and fault is None:
            active, within = self._run_at[self._step] >= 0, self._within[self._step]
            begins = active & (within == 0)
            if begins.any():
                learner = _restart(learner, self._base, jnp.asarray(begins))
            horizons = self._horizons[np.maximum(self._run_at[self._step], 0)]
            batch = self._next_batch(active, begins)
            learner, found = self._learn(
                learner, batch, self._numbers, jnp.asarray(within), horizons, jnp.asarray(active)
            )
            measured.append(found)
            for lane in np.flatnonzero(active).tolist():
                fault = fault or self._evaluate(learner.params, lane, losses, updates)
            self._step += 1
        cursors = [stream.cursor for stream in self._streams]
        cursor = Cursor(*(np.stack(columns) for columns in zip(*cursors, strict=True)))
        rows = [self._row(first + place, *row) for place, row in enumerate(jax.device_get(measured))]
        state = LaneState(learner, *replicate((cursor, losses), self.mesh))
        return Advanced(state, rows, updates, fault=fault or not_finite(rows))

    def losses(self, state: LaneState) -> list[Float[np.ndarray, "evaluations domains"]]:
        """Held-out losses of each run at its evaluations, nats per token, of a state at the end."""
        losses = np.asarray(state.losses, np.float64)
        return [losses[index, : len(run.evaluate_after)] for index, run in enumerate(self._lanes.runs)]

    def close(self) -> None:
        """See `Engine`."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def _next_batch(self, active: np.ndarray, begins: np.ndarray) -> Batch:
        """A batch for each lane; a lane that is done goes through the motions on its last one."""
        for lane in np.flatnonzero(active).tolist():
            if begins[lane]:
                self._streams[lane].seek(0, start_cursor(len(self._stores)), self._quota)
            try:
                batch = next(self._streams[lane])
            except StopIteration:
                raise UserError("the proxies' sub-sample has no rows left", "raise targets.subsample") from None
            self._batches[lane] = {name: array for name, array in batch.items() if name != "step"}
        some = self._batches[int(active.argmax())]
        stacked = {name: np.stack([(batch or some)[name] for batch in self._batches]) for name in some}
        return place_rows(stacked, self.mesh, axis=1)

    def _evaluate(self, params: PyTree, lane: int, losses: np.ndarray, updates: list[Row]) -> Fault | None:
        """Measures a lane's run if that is due after this step."""
        index, done = self._run_at[self._step, lane], int(self._within[self._step, lane]) + 1
        run = self._lanes.runs[index]
        if done not in run.evaluate_after:
            return None
        found = self._heldout_loss(jax.tree.map(lambda leaf: leaf[lane], params))
        losses[index, run.evaluate_after.index(done)] = found
        updates.append({"step": self._step + 1, "run": int(index), "run_step": done, "heldout_loss": found})
        if np.isfinite(found).all():
            return None
        return Fault(
            f"a proxy of {run.steps} steps has a held-out loss of {found} after {done}",
            "lower peak_learning_rate or clip_norm, or lengthen warmup_fraction",
        )

    def _row(self, step: int, loss: np.ndarray, norm: np.ndarray) -> Row:
        """The mean over the lanes at work, which is not finite where any of theirs is not."""
        active = self._run_at[step] >= 0
        return {"step": step + 1, "loss": float(loss[active].mean()), "gradient_norm": float(norm[active].mean())}


@functools.lru_cache(maxsize=8)
def _compiled(model: Model, domains: int) -> Callable[..., Any]:
    """The step of all lanes: rounds of proxies share it."""

    def step(
        learner: LearnState,
        batch: Batch,
        numbers: OptimizerNumbers,
        done: Array,
        horizon: Array,
        active: Bool[Array, ""],
    ) -> tuple[LearnState, tuple[Array, Array]]:
        new, learned = learn(model, learner, batch, numbers, done, horizon, domains=domains)
        new = jax.tree.map(lambda after, before: jnp.where(active, after, before), new, learner)
        return new, (learned.loss, learned.gradient_norm)

    return jax.jit(jax.vmap(step, in_axes=(0, 0, None, 0, 0, 0)), donate_argnums=0)


@functools.partial(jax.jit, donate_argnums=0)
def _restart(learner: LearnState, base: PyTree, begins: Bool[Array, " lanes"]) -> LearnState:
    def chosen(fresh: Array, old: Array) -> Array:
        return jnp.where(begins.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

    restarted: LearnState = jax.tree.map(chosen, LearnState(base, fresh_memory(base)), learner)
    return restarted
