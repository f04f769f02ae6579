"""Short static runs side by side in one vmapped program: lanes that train one run after the other from the base model.

On an accelerator a small model leaves most of the machine idle; lanes fill it. Lengths that halve fill two lanes
without a gap: the longest in one, all the others in the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.spec import PlanSpec, start_cursor
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.machine.mesh import data_mesh, replicate
from vtune_jax.models import Batch, Model
from vtune_jax.train.checkpoint import Checkpoints, Facts
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
    """What changes from step to step; a checkpoint is this tree. Leading axis: lanes."""

    params: PyTree
    optimizer: PyTree
    cursor: PyTree  # of each lane's stream
    losses: Array  # [runs, evaluations, domains], nats per token; NaN where not measured yet


def packed(runs: Sequence[ShortRun]) -> Lanes:
    """Two lanes, the longest run in one and all others in the other, or one lane if they would leave it half empty."""
    order = sorted(range(len(runs)), key=lambda index: -runs[index].steps)
    others = sum(runs[index].steps for index in order[1:])
    if 2 * others < runs[order[0]].steps:
        return Lanes(tuple(runs), (tuple(order),))
    return Lanes(tuple(runs), (tuple(order[:1]), tuple(order[1:])))


def train_lanes(
    lanes: Lanes,
    model: Model,
    optimizer: OptimizerConfig,
    params: PyTree,
    *,
    spec: PlanSpec,
    stores: Sequence[RowStore],
    quota: np.ndarray,
    heldout_loss: Callable[[PyTree], np.ndarray],
    folder: Path,
    facts: Facts,
    checkpoint_every: int,
    tick: Callable[[int, dict[str, Any]], None],
    warn: Callable[[str], None],
) -> list[np.ndarray]:
    """Trains all runs; goes on from a checkpoint if there is one, to the same bits.

    Args:
        lanes: the runs.
        model: the decoder.
        optimizer: its schedule spans each run.
        params: of the base model, which every run starts from.
        spec: of the batches; every run reads the same stream from its beginning.
        stores: rows of each domain.
        quota: weights in fixed point.
        heldout_loss: parameters to held-out losses per domain.
        folder: for checkpoints.
        facts: what the runs are made of; a checkpoint of something else is refused.
        checkpoint_every: steps.
        tick: told of progress.
        warn: told of damaged checkpoints.

    Returns:
        for each run, losses [evaluations, domains].

    Raises:
        UserError: a loss that is not finite, or no row left for a batch.
    """
    mesh, width = data_mesh(spec.batch), len(lanes.of_lane)
    run_at, within = lanes.schedule()
    horizons = np.array([run.steps for run in lanes.runs], np.int32)
    base = replicate(params, mesh)
    step_all = jax.jit(jax.vmap(_make_step(model, optimizer.numbers(), len(stores))), donate_argnums=0)
    restart = jax.jit(_restart, donate_argnums=0)
    most = max(len(run.evaluate_after) for run in lanes.runs)
    stacked = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], width, axis=0), base)
    state = replicate(
        LaneState(
            params=stacked,
            optimizer=jax.vmap(fresh_memory)(stacked),
            cursor=jax.tree.map(
                lambda column: np.repeat(np.asarray(column)[None], width, 0), start_cursor(len(stores))
            ),
            losses=jnp.full((len(lanes.runs), most, len(stores)), jnp.nan),
        ),
        mesh,
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, warn=warn)
    shard = (jax.process_index(), jax.process_count())
    try:
        restored = checkpoints.restore(state, facts)
        first, state = (restored.step, restored.state) if restored else (0, state)
        losses = np.array(state.losses, np.float64)
        streams = [
            MixtureIterator(spec, stores, quota=quota, interval=lanes.steps + 1, shard=shard) for _ in lanes.of_lane
        ]
        for lane, stream in enumerate(streams):
            cursor = jax.tree.map(lambda column, lane=lane: np.asarray(column)[lane], state.cursor)
            stream.seek(int(within[first, lane]) if first < lanes.steps else 0, cursor, quota)
        current = LearnState(state.params, state.optimizer)
        tick(first, {})
        batches: list[Any] = [None] * width
        for step in range(first, lanes.steps):
            active = run_at[step] >= 0
            begins = active & (within[step] == 0)
            if begins.any():
                current = restart(current, base, jnp.asarray(begins))
            for lane in np.flatnonzero(active).tolist():
                if begins[lane]:
                    streams[lane].seek(0, start_cursor(len(stores)), quota)
                batches[lane] = _next(streams[lane])
            # A lane that is done goes through the motions on its last batch.
            held = [batch or batches[int(active.argmax())] for batch in batches]
            batch = {name: np.stack([part[name] for part in held]) for name in held[0]}
            current, loss = step_all(
                current,
                _placed(batch, mesh),
                jnp.asarray(within[step]),
                jnp.asarray(horizons[np.maximum(run_at[step], 0)]),
                jnp.asarray(active),
            )
            for lane in np.flatnonzero(active).tolist():
                run = lanes.runs[run_at[step, lane]]
                done = int(within[step, lane]) + 1
                if done in run.evaluate_after:
                    at = heldout_loss(jax.tree.map(lambda leaf, lane=lane: leaf[lane], current.params))
                    if not np.isfinite(at).all():
                        raise UserError(
                            f"a proxy of {run.steps} steps has a held-out loss of {at} after {done}",
                            "lower peak_learning_rate or clip_norm, or lengthen warmup_fraction",
                        )
                    losses[run_at[step, lane], run.evaluate_after.index(done)] = at
            tick(1, {"loss": float(np.asarray(loss)[int(active.argmax())])})
            if (step + 1) % checkpoint_every == 0 and step + 1 < lanes.steps:
                cursors = [stream.cursor for stream in streams]
                cursor = jax.tree.map(lambda *columns: np.stack(columns), *cursors)
                saved = LaneState(*current, cursor, jnp.asarray(losses, jnp.float32))
                checkpoints.save(step + 1, replicate(saved, mesh), facts)
    finally:
        checkpoints.close()
    # As a checkpoint holds them, so that a resumed run ends with the same numbers.
    kept = np.asarray(losses, np.float32).astype(np.float64)
    return [kept[index, : len(run.evaluate_after)] for index, run in enumerate(lanes.runs)]


def _next(stream: MixtureIterator) -> dict[str, np.ndarray]:
    try:
        batch = next(stream)
    except StopIteration:
        raise UserError("the proxies' sub-sample has no rows left", "raise targets.subsample") from None
    return {name: array for name, array in batch.items() if name != "step"}


def _placed(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    if mesh is None:
        return {name: jnp.asarray(array) for name, array in batch.items()}
    rows = NamedSharding(mesh, PartitionSpec(None, "data"))
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def _make_step(model: Model, numbers: OptimizerNumbers, domains: int) -> Callable[..., Any]:
    def step(
        learner: LearnState, batch: Batch, done: Array, horizon: Array, active: Bool[Array, ""]
    ) -> tuple[LearnState, Array]:
        new, learned = learn(model, learner, batch, numbers, done, horizon, domains=domains)
        return jax.tree.map(lambda after, before: jnp.where(active, after, before), new, learner), learned.loss

    return step


def _restart(learner: LearnState, base: PyTree, begins: Bool[Array, " lanes"]) -> LearnState:
    def chosen(fresh: Array, old: Array) -> Array:
        return jnp.where(begins.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

    return jax.tree.map(chosen, LearnState(base, fresh_memory(base)), learner)
