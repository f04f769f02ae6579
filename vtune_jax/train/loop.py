"""The training loop: restore, advance, tell, save. The one place that resumes a run, whatever its engine advances."""

import dataclasses
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.core.checks import MOST, assert_within
from vtune_jax.errors import UserError
from vtune_jax.machine import hosts
from vtune_jax.machine.mesh import replicate, template
from vtune_jax.train.checkpoint import Checkpoints, Facts
from vtune_jax.train.engine import Engine, S
from vtune_jax.train.listeners import Listener
from vtune_jax.train.state import TrainState


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step}; the state is saved")
        self.step = step
        self.signal_number = signal_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How often a run is recorded and saved."""

    log_every: int = settings.bookkeeping(10)  # steps between looks at the metrics; each step has its row all the same
    checkpoint_every: int = settings.bookkeeping(50)  # steps
    keep_checkpoints: int = settings.bookkeeping(2)  # newest kept

    def __post_init__(self) -> None:
        for field in ("log_every", "checkpoint_every", "keep_checkpoints"):
            assert_within(1, MOST, **{field: getattr(self, field)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run on disk and in numbers; `train` carries it out."""

    folder: Path
    steps: int
    facts: Facts  # what the data and the model are made of; a checkpoint of something else is refused
    loop: LoopConfig
    allow_data_change: bool = False  # goes on from a checkpoint of other data instead of refusing it

    @property
    def may_differ(self) -> frozenset[str]:
        """Facts that need not agree with a checkpoint's."""
        return frozenset({"data"} if self.allow_data_change else ())


def train(run: Run, engine: Engine[S], begin: Callable[[], S], *, listeners: Sequence[Listener] = ()) -> S:
    """Advances a state to the end of the run, from the run's newest checkpoint if it has one.

    Args:
        run: folder, length and what it is made of.
        engine: makes the steps.
        begin: makes the state before the first step. It is called only where there is no checkpoint; the shapes of
            what it makes are the template for restoring.
        listeners: told what happens, in this order.

    Returns:
        The final state, which is also the newest checkpoint.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
        UserError: the loss is not finite, tokens cannot be read, or no domain with weight has any left; the newest
            checkpoint is the last good state.
    """

    def warn(message: str) -> None:
        for listener in listeners:
            listener.warned(message)

    checkpoints = Checkpoints(run.folder / "checkpoints", keep=run.loop.keep_checkpoints, warn=warn)
    try:
        shapes = template(jax.eval_shape(begin), engine.mesh)
        restored = checkpoints.restore(shapes, run.facts, may_differ=run.may_differ, discard=True)
        if restored is None:
            step, saved = 0, -1
            state: S = replicate(begin(), engine.mesh)
        else:
            step, saved, state = restored.step, restored.step, restored.state
            if restored.changed:
                warn(_other_data(step, restored.changed))
                state = replicate(engine.adapt(state), engine.mesh)
            # What was read back is the loop's alone: the engine uses its memory again.
            del restored
        engine.start(state, step)
        for listener in listeners:
            listener.started(step)
        with stop_signals() as signals:
            while step < run.steps:
                until = min(run.steps, engine.next_stop(step), *_looks(step, run.loop))
                advanced = engine.advance(state, until - step)
                state, stop = advanced.state, advanced.stop
                if advanced.fault:
                    raise UserError(
                        f"{advanced.fault.what}; the last good checkpoint is kept in {run.folder / 'checkpoints'}",
                        advanced.fault.remedy,
                    )
                step += len(advanced.rows)
                for listener in listeners:
                    if advanced.rows:
                        listener.stepped(advanced.rows)
                    if advanced.updates:
                        listener.updated(advanced.updates)
                due = signals or stop or step % run.loop.checkpoint_every == 0 or step == run.steps
                if due and step != saved:
                    checkpoints.save(step, state, run.facts)
                    saved = step
                    for listener in listeners:
                        listener.saved(step)
                if isinstance(stop, UserError):
                    checkpoints.wait()
                    raise stop
                if stop and not stop.intended:
                    checkpoints.wait()
                    raise UserError(
                        f"step {step + 1} of {run.steps} has no batch: {stop.reason}; the state is saved",
                        "train fewer steps, raise max_epochs, let a domain repeat, or give the method a floor",
                    )
                if stop:
                    warn(f"the run ends after {step:,} of {run.steps:,} steps: {stop.reason}")
                    break
                if signals:
                    # After the last step too: whoever asked for a stop does not want the next stage to begin.
                    checkpoints.wait()
                    raise Interrupted(step, signals[0])
        for listener in listeners:
            listener.finished(step)
        return state
    finally:
        engine.close()
        checkpoints.close()


def final_params(
    run: Run, engine: Engine[TrainState], begin: Callable[[], TrainState], *, listeners: Sequence[Listener] = ()
) -> PyTree:
    """The parameters at the end of a run, which a later stage needs: of a finished run as they lie in its folder.

    They are kept in `params/`, and the checkpoints of the finished run are then removed: a finished run takes the room
    of its parameters alone, and neither this function nor the loop keeps anything else of its state in memory.

    Args:
        run: see `train`.
        engine: see `train`.
        begin: see `train`.
        listeners: see `train`.

    Raises:
        Interrupted: see `train`.
        UserError: see `train`.
    """
    folder, found = run.folder / "params", None

    def warn(message: str) -> None:
        for listener in listeners:
            listener.warned(message)

    if folder.exists():
        kept = Checkpoints(folder, warn=warn)
        shapes = template(jax.eval_shape(begin).params, engine.mesh)
        found = kept.restore(shapes, run.facts, may_differ=run.may_differ, discard=True)
        kept.close()
    if found is not None:
        if found.changed:
            warn(_other_data(found.step, found.changed))
        for listener in listeners:
            listener.started(found.step)
            listener.finished(found.step)
        return found.state
    state = train(run, engine, begin, listeners=listeners)
    kept = Checkpoints(folder, keep=1)
    kept.save(int(state.step), state.params, run.facts)
    kept.close()
    if hosts.leads():
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return state.params


def _looks(step: int, loop: LoopConfig) -> Iterator[int]:
    """The next steps after which metrics are looked at and the state is saved."""
    return (step - step % period + period for period in (loop.log_every, loop.checkpoint_every))


def _other_data(step: int, changed: str) -> str:
    return f"goes on from step {step:,} on other data: {changed}"


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; outside the main thread it changes nothing."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
