"""One arm: continual pre-training under its method, after what the method needs first."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.core.types import Targets
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.machine.files import TEMPORARY, read_json, write_json
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.rules.config import MethodConfig
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase
from vtune_jax.stages.store import KEY, Finished
from vtune_jax.stages.trainer import TrainingRun
from vtune_jax.train.step import ActsOn

START, STEPS, UPDATES = "start.json", "steps.jsonl", "updates.jsonl"
STATES = ("checkpoints", "params")
"""Where a run's state lies while it trains, and what is left of it at its end."""


@dataclasses.dataclass(frozen=True)
class Moving:
    """A method that is ready to train: with its mixture, its constants and what else it needs."""

    method: MethodConfig  # that moves the weights; static where the mixture is constant
    acts_on: ActsOn
    mixture: tuple[float, ...]  # the weights it starts from, which are also its prior
    supplies: dict[str, Finished]  # by the name of the need; the stages behind targets and constants
    reference: Finished | None  # whose parameters are the reference model's, of methods that need one
    targets: Targets = dataclasses.field(metadata={"bookkeeping": True})  # made of the stages above and of the steps
    facts: dict[str, Any] = dataclasses.field(metadata={"bookkeeping": True})  # about the mixture, for the results


@dataclasses.dataclass(frozen=True)
class ArmInputs:
    """What an arm depends on."""

    start: FromBase
    steps: int
    moving: Moving
    limits: tuple[int | None, ...]  # most rows ever read, per domain
    stop: tuple[bool, ...]  # which domains end the run at their limit
    label: str = dataclasses.field(metadata={"bookkeeping": True})
    names: tuple[str, ...] = dataclasses.field(metadata={"bookkeeping": True})  # of the domains
    streams: Streams = dataclasses.field(metadata={"bookkeeping": True})  # of the corpus, within the limits
    takes_over: Finished | None = None  # the stage whose state, of other data, it goes on from


@dataclasses.dataclass(frozen=True)
class TrainedArm:
    """An arm that has been trained."""

    stage: Finished

    @property
    def start(self) -> dict[str, Any]:
        """The mixture that it began with, as `mixture`, and what is known of it."""
        return dict(read_json(self.stage.folder / START))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """One record for each optimiser step, see `train.loop.step_rows`."""
        return list(JsonLines(self.stage.folder / STEPS).rows())

    @property
    def updates(self) -> list[dict[str, Any]]:
        """One record for each weight update, see `train.loop.update_row`."""
        return list(JsonLines(self.stage.folder / UPDATES).rows())


def train_arm(
    session: Session, start: FromBase, moving: Moving, streams: Streams, label: str, names: tuple[str, ...]
) -> TrainedArm:
    """The arm of this label, trained for `train.steps` steps."""
    role, name = f"arm {label}", f"arm-{moving.method.name}"
    inputs = ArmInputs(start, session.config.train.steps, moving, streams.limits, streams.stop, label, names, streams)
    if session.allow_data_change:
        inputs = dataclasses.replace(inputs, takes_over=_other_data(session, role, name, inputs))
    purpose = f"{inputs.steps:,} steps, {moving.method.name}"
    return TrainedArm(session.stage(role, name, inputs, _train, purpose=purpose))


def carry_out(
    inputs: FromBase,
    moving: Moving,
    streams: Streams,
    steps: int,
    folder: Path,
    tools: Tools,
    *,
    title: str,
    names: tuple[str, ...],
    allow_data_change: bool = False,
) -> None:
    """Trains from the base model under a method that is ready."""
    run = TrainingRun(
        method=moving.method, acts_on=moving.acts_on, optimizer=inputs.optimizer, steps=steps, seed=inputs.seed
    )
    trainer = tools.trainer(inputs.recipe)
    reference = None if moving.reference is None else trainer.load_params(moving.reference.folder)
    with tools.progress.bar(title, steps, names=names) as tick:
        trainer.train(
            run,
            folder,
            streams,
            inputs.base.params(),
            moving.targets,
            tick=tick,
            reference=reference,
            allow_data_change=allow_data_change,
        )


def mean_weights(folder: Path) -> tuple[np.ndarray, int]:
    """The mean of the weights after each update of a run, without those it started from, and their number."""
    weights = np.array([row["weights"] for row in JsonLines(folder / UPDATES).rows()])
    return weights.mean(axis=0), len(weights)


def _train(inputs: ArmInputs, folder: Path, tools: Tools) -> None:
    if inputs.takes_over and not any((folder / name).exists() for name in STATES):
        other = inputs.takes_over.folder
        # States come last and at once: where one lies, everything has been taken over.
        for name in (STEPS, UPDATES):
            if (other / name).exists():
                shutil.copyfile(other / name, folder / name)
        for name in STATES:
            if (other / name).exists():
                half = folder / f"{name}{TEMPORARY}"
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(other / name, half)
                half.rename(folder / name)
    moving = inputs.moving
    write_json(folder / START, {**moving.facts, "mixture": list(moving.mixture)})
    carry_out(
        inputs.start,
        moving,
        inputs.streams,
        inputs.steps,
        folder,
        tools,
        title=inputs.label,
        names=inputs.names,
        allow_data_change=inputs.takes_over is not None,
    )


def _other_data(session: Session, role: str, name: str, inputs: ArmInputs) -> Finished | None:
    """The newest stage of the same arm on other data: in this run's other configurations, or in this one before."""
    found = []
    for folder in session.run_folder.earlier(role):
        key = folder / KEY
        if not key.exists():
            continue
        if (taken := _taken(session, key, name, inputs)) is not None:
            return taken
        if folder != session.store.folder(name, inputs).resolve():
            states = [folder / state for state in STATES if (folder / state).exists()]
            found += [(state.stat().st_mtime_ns, folder) for state in states]
    return _stage_at(max(found)[1]) if found else None


def _taken(session: Session, key: Path, name: str, inputs: ArmInputs) -> Finished | None:
    """What this very arm took over when it began: asked again, it goes on from there."""
    digest = read_json(key).get("takes_over")
    if not isinstance(digest, str):
        return None
    stages = [folder for folder in session.store.root.glob(f"*-{digest}")] or [session.store.root / f"{name}-{digest}"]
    taken = _stage_at(stages[0])
    again = session.store.folder(name, dataclasses.replace(inputs, takes_over=taken))
    return taken if again.resolve() == key.parent.resolve() else None


def _stage_at(folder: Path) -> Finished:
    return Finished(folder, folder.name.rpartition("-")[2])
