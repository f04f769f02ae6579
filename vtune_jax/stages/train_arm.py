"""One arm: continual pre-training under its method, after what the method needs first."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.core.types import Targets
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.rules.config import MethodConfig
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase
from vtune_jax.stages.store import Finished
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
    targets: Targets = dataclasses.field(metadata={"bookkeeping": True})  # made of the stages above
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
    takes_over: Path | None = dataclasses.field(default=None, metadata={"bookkeeping": True})


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
    role = f"arm {label}"
    inputs = ArmInputs(start, session.config.train.steps, moving, streams.limits, streams.stop, label, names, streams)
    if session.allow_data_change:
        inputs = dataclasses.replace(inputs, takes_over=_newest_state(session, role))
    method = moving.method.name
    return TrainedArm(session.stage(role, f"arm-{method}", inputs, _train, purpose=f"{inputs.steps:,} steps, {method}"))


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
        for name in STATES:
            if (inputs.takes_over / name).exists():
                shutil.copytree(inputs.takes_over / name, folder / name)
        for name in (STEPS, UPDATES):
            if (inputs.takes_over / name).exists():
                shutil.copyfile(inputs.takes_over / name, folder / name)
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


def _newest_state(session: Session, role: str) -> Path | None:
    """The newest state of the same arm in this run's other configurations."""
    states = [folder / name for folder in session.run_folder.earlier(role) for name in STATES]
    found = [state for state in states if state.exists()]
    return max(found, key=lambda state: state.stat().st_mtime_ns).parent if found else None
