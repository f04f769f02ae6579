"""The training loop: advance, record, save. All effects of a run are here."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from vtune_jax.core.types import LossSums
from vtune_jax.data.mixture.on_host import adapted
from vtune_jax.errors import UserError
from vtune_jax.machine import hosts
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.train.checkpoint import Checkpoints, Facts
from vtune_jax.train.engine import Engine, MetricRows
from vtune_jax.train.heldout import mean_loss
from vtune_jax.train.state import TrainState

Tick = Callable[[int, dict[str, Any]], None]
"""Told after each chunk: steps just done, and `loss`, `weights`, `tokens`."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step}; the state is saved")
        self.step = step
        self.signal_number = signal_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often a run is recorded and saved."""

    log_every: int = 10  # steps between looks at the metrics; each step has its row all the same
    checkpoint_every: int = 50  # steps
    keep_checkpoints: int = 2  # newest kept

    def __post_init__(self) -> None:
        for field in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run on disk and in numbers; `train` carries it out."""

    folder: Path
    steps: int
    interval: int  # optimiser steps between weight updates
    batch_tokens: int
    rows: np.ndarray  # training rows per domain and epoch
    facts: Facts  # what the data and the model are made of; a checkpoint of something else is refused
    loop: LoopConfig
    lag: int = 0  # steps until new weights come into force
    allow_data_change: bool = False  # goes on from a checkpoint of other data instead of refusing it


def train(
    run: Run,
    engine: Engine,
    state: TrainState,
    *,
    tick: Tick = lambda steps, fields: None,
    warn: Callable[[str], None] = lambda message: None,
) -> TrainState:
    """Trains to the end of the run, from its newest checkpoint if it has one.

    Metrics of each step go to `steps.jsonl`, of each weight update to `updates.jsonl`; both are cut back to the
    checkpoint on resuming, so that an interrupted run leaves the same files as an unbroken one.

    Args:
        run: folder, length and what it is made of.
        engine: feeds the train step.
        state: the state before the first step; also the template for restoring.
        tick: told of progress.
        warn: told of damaged checkpoints.

    Returns:
        The final state, which is also the newest checkpoint.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
        UserError: the loss is not finite, tokens cannot be read, or no domain with weight has any left; the newest
            checkpoint is the last good state.
    """
    # All processes compute the same metrics; the first writes them.
    folder = run.folder if hosts.leads() else None
    steps_file, updates_file = (JsonLines(folder and folder / name) for name in ("steps.jsonl", "updates.jsonl"))
    checkpoints = Checkpoints(run.folder / "checkpoints", keep=run.loop.keep_checkpoints, warn=warn)
    try:
        may_differ = frozenset({"data"} if run.allow_data_change else ())
        state = engine.place(state)
        restored = checkpoints.restore(state, run.facts, may_differ=may_differ)
        step, saved = 0, -1
        if restored:
            step, state, changed = restored
            saved = step
            if changed:
                warn(f"goes on from step {step:,} on other data: {changed}")
                cursor = jax.device_get(state.mixture.cursor)
                state = state._replace(mixture=state.mixture._replace(cursor=adapted(run.rows, cursor)))
        for file in (steps_file, updates_file):
            file.cut(step)
        state = engine.start(state)
        tick(step, {})
        with stop_signals() as asked:
            while step < run.steps:
                until = next_stop(step, run)
                state, rows = engine.advance(state, until - step)
                short = len(rows) < until - step
                until = step + len(rows)
                if rows:
                    check_finite(step, rows, run.folder)
                    steps_file.append(step_rows(step, rows, run.batch_tokens))
                    if until % run.interval == 0:
                        check_weights(until, state, run.folder)
                        updates_file.append([update_row(until, state, rows[-1], run)])
                    ticked = {"loss": float(rows[-1]["loss"]), "tokens": until * run.batch_tokens}
                    tick(until - step, {**ticked, "weights": np.asarray(state.mixture.weights)})
                step = until
                due = asked or short or step % run.loop.checkpoint_every == 0 or step == run.steps
                if due and step != saved:
                    checkpoints.save(step, state, run.facts)
                    saved = step
                if short and _is_over(engine, step, run, checkpoints, warn):
                    break
                if asked and step < run.steps:
                    checkpoints.wait()
                    raise Interrupted(step, asked[0])
        return state
    finally:
        engine.close()
        checkpoints.close()


def _is_over(engine: Engine, step: int, run: Run, checkpoints: Checkpoints, warn: Callable[[str], None]) -> bool:
    """Whether the data end the run here; raises where that is a fault."""
    if engine.failure is not None:
        checkpoints.wait()
        raise engine.failure
    if engine.ended is None:
        return False
    if not engine.ended.intended:
        checkpoints.wait()
        raise UserError(
            f"step {step + 1} of {run.steps} has no batch: {engine.ended.reason}; the state is saved",
            "train fewer steps, raise max_epochs, let a domain repeat, or give the method a floor",
        )
    warn(f"the run ends after {step:,} of {run.steps:,} steps: {engine.ended.reason}")
    return True


def next_stop(step: int, run: Run) -> int:
    """The next step at which the loop has something to do."""
    every = (run.interval, run.loop.log_every, run.loop.checkpoint_every)
    # Where weights come into force later than they are made, that is a boundary too.
    in_force = step + run.interval - (step - run.lag) % run.interval
    return min([run.steps, in_force, *(step - step % period + period for period in every)])


def check_finite(step: int, rows: MetricRows, folder: Path) -> None:
    """Refuses to go on from a loss or gradient that is not a number."""
    for offset, row in enumerate(rows):
        if not (np.isfinite(row["loss"]) and np.isfinite(row["gradient_norm"])):
            raise UserError(
                f"the loss is {row['loss']:.4g} with gradient norm {row['gradient_norm']:.4g} at step "
                f"{step + offset + 1}; the last good checkpoint is kept in {folder / 'checkpoints'}",
                "lower peak_learning_rate or clip_norm, or lengthen warmup_fraction",
            )


def check_weights(step: int, state: TrainState, folder: Path) -> None:
    """Refuses weights that are not on the simplex, which a quota would hide: no sum of NaN fails."""
    weights = np.asarray(state.mixture.weights, np.float64)
    if not ((weights >= 0).all() and abs(weights.sum() - 1) < 1e-3):
        raise UserError(
            f"the method's weights after step {step} are {weights.tolist()}, not shares of one; the last good "
            f"checkpoint is kept in {folder / 'checkpoints'}",
            "mend the method's update so that it returns non-negative, finite weights with sum 1",
        )


def step_rows(step: int, rows: MetricRows, batch_tokens: int) -> list[dict[str, Any]]:
    """One record for each step; `step` counts steps done."""
    names = ("loss", "learning_rate", "gradient_norm")
    return [
        {"step": done, "tokens": done * batch_tokens, **{name: float(row[name]) for name in names}}
        for done, row in enumerate(rows, start=step + 1)
    ]


def update_row(step: int, state: TrainState, metrics: dict[str, np.ndarray], run: Run) -> dict[str, Any]:
    """What an update saw and decided, and what has been read so far."""
    mixture = jax.device_get(state.mixture)
    train = LossSums(metrics["train_nats"], metrics["train_tokens"])
    cursor = mixture.cursor
    return {
        "step": step,
        "tokens": step * run.batch_tokens,
        "weights": mixture.weights,
        "heldout_loss": mean_loss(mixture.heldout),
        "train_loss": mean_loss(train),
        "tokens_read": mixture.trained.exact(),
        "epochs": cursor.epoch + cursor.row / run.rows,
        "order": "".join(f"{word:08x}" for word in cursor.order.tolist()),
    }


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; outside the main thread it changes nothing."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
