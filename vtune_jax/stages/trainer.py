"""What pre-training, proxies and arms share: from token files and a recipe to a trained state on disk."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.core.numbers import structure_of
from vtune_jax.core.types import LossSums, Targets
from vtune_jax.data.mixture.config import DataConfig
from vtune_jax.data.mixture.spec import Allocation, PlanSpec, fingerprint
from vtune_jax.data.tokens.rows import Rows
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.errors import UserError
from vtune_jax.machine.mesh import data_mesh, template
from vtune_jax.machine.progress import Tick
from vtune_jax.models import Model, ModelConfig, build
from vtune_jax.rules.config import MethodConfig
from vtune_jax.train.checkpoint import Checkpoints, Facts, canonical
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.device_engine import CompiledSegment, DeviceEngine, compile_segment
from vtune_jax.train.engine import Engine
from vtune_jax.train.heldout import make_evaluate
from vtune_jax.train.host_engine import HostEngine, compile_step
from vtune_jax.train.listeners import MetricsFiles, Shown
from vtune_jax.train.loop import LoopConfig, Run, final_params
from vtune_jax.train.numbers import run_numbers
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import TrainState, start
from vtune_jax.train.step import ActsOn, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all training runs of an experiment have in common: part of the inputs of every stage that trains."""

    model: ModelConfig
    vocabulary: int  # token ids
    tokenizer: str  # hash of its file
    data: DataConfig
    interval: int  # optimiser steps between weight updates
    lag: int = 0  # steps until new weights come into force
    allocation: Allocation = "systematic"
    loop: LoopConfig = LoopConfig()

    @property
    def facts(self) -> Facts:
        """Of the model and its tokenizer, that a checkpoint must agree with."""
        return {"model": settings.digest(self.model), "tokenizer": self.tokenizer}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One run under a recipe: what `Trainer.train` carries out."""

    method: MethodConfig
    acts_on: ActsOn = "sampling"
    optimizer: OptimizerConfig
    steps: int
    seed: int


class Programs:
    """A model and the compiled programs around it; as numbers are traced, each serves all methods of a structure."""

    def __init__(self, model: Model, rows_at_once: int, mesh: Mesh | None) -> None:
        """Nothing is compiled yet.

        Args:
            model: whose losses are computed.
            rows_at_once: most rows whose logits are in memory together during an evaluation.
            mesh: devices over which batches and held-out rows are split; None for one device.
        """
        self.model, self.mesh = model, mesh
        self._evaluate = make_evaluate(model, rows_at_once, mesh)
        self.evaluate = jax.jit(self._evaluate)
        self._steps: dict[Any, TrainStep] = {}
        self._segments: dict[Any, CompiledSegment] = {}

    def step(self, run: "TrainingRun") -> TrainStep:
        """The compiled step of a method for the host engine, made once for each structure."""
        key = (structure_of(run.method), run.acts_on)
        if key not in self._steps:
            self._steps[key] = compile_step(self._train_step(run))
        return self._steps[key]

    def segment(self, run: "TrainingRun", spec: PlanSpec, sequence: int) -> CompiledSegment:
        """The compiled segment of a method for the device engine, made once for each structure and plan."""
        spec = dataclasses.replace(spec, seed=0)
        key = (structure_of(run.method), run.acts_on, spec, sequence)
        if key not in self._segments:
            self._segments[key] = compile_segment(self._train_step(run), spec, sequence)
        return self._segments[key]

    def _train_step(self, run: "TrainingRun") -> TrainStep:
        return make_train_step(self.model, run.method, self._evaluate, acts_on=run.acts_on)


@functools.lru_cache(maxsize=8)
def programs_of(model: ModelConfig, vocabulary: int, rows_at_once: int, mesh: Mesh | None) -> Programs:
    """The programs of a model, shared by all sessions of a process; those used longest ago are let go."""
    return Programs(build(model, vocabulary), rows_at_once, mesh)


class Trainer:
    """Carries out the runs of a recipe."""

    def __init__(self, recipe: Recipe, *, warn: Callable[[str], None] = lambda message: None) -> None:
        """Nothing is compiled yet.

        Args:
            recipe: of the runs.
            warn: told of damaged checkpoints and of what else the user should know.
        """
        self.recipe, data = recipe, recipe.data
        self._warn = warn
        self.mesh = None if data.engine == "device" else data_mesh(data.batch)
        self._programs = programs_of(recipe.model, recipe.vocabulary, data.evaluate_rows_at_once, self.mesh)

    @property
    def model(self) -> Model:
        """Of the recipe."""
        return self._programs.model

    def heldout_sums(self, params: PyTree, heldout: Rows) -> LossSums:
        """Held-out loss of a model on rows [domains, rows, ...]."""
        sums: LossSums = jax.device_get(self._programs.evaluate(params, heldout))
        return sums

    def train(
        self,
        run: TrainingRun,
        folder: Path,
        streams: Streams,
        params: PyTree,
        targets: Targets,
        *,
        tick: Tick,
        reference: PyTree = None,
        allow_data_change: bool = False,
    ) -> PyTree:
        """The parameters at the end of one run, resumed if it was begun.

        Args:
            run: what is trained.
            folder: for checkpoints, metrics and final parameters.
            streams: rows to read.
            params: to begin with.
            targets: of the run.
            tick: told of progress.
            reference: parameters of the reference model, if the method needs one.
            allow_data_change: takes over a checkpoint of other data.
        """
        recipe, data = self.recipe, self.recipe.data
        spec = self.plan_spec(streams, run.seed)
        heldout = {name: jnp.asarray(rows) for name, rows in streams.heldout.items()}
        numbers = run_numbers(
            steps=run.steps,
            interval=recipe.interval,
            lag=recipe.lag,
            optimizer=run.optimizer,
            method=run.method,
            seed=run.seed,
        )
        constants = RunConstants(heldout=heldout, numbers=numbers, reference=reference)
        engine: Engine[TrainState]
        if data.engine == "device":
            program = self._programs.segment(run, spec, data.sequence)
            engine = DeviceEngine(program, spec, streams.stores, constants)
        else:
            engine = HostEngine(
                self._programs.step(run),
                spec,
                streams.stores,
                constants,
                mesh=self.mesh,
                workers=data.workers,
                worker_kind=data.worker_kind,
            )
        on_disk = Run(
            folder=folder,
            steps=run.steps,
            facts=canonical({"data": fingerprint(spec), "steps": run.steps, **recipe.facts}),
            allow_data_change=allow_data_change,
            loop=recipe.loop,
        )
        # A state that was taken over may come from other intervals.
        metrics = MetricsFiles(folder, None if allow_data_change else recipe.interval)
        begin = partial(start, params, run.method, targets)
        return final_params(on_disk, engine, begin, listeners=[metrics, Shown(tick, self._warn)])

    def plan_spec(self, streams: Streams, seed: int) -> PlanSpec:
        """The plan of a run on these streams."""
        rows = tuple(map(int, streams.rows))
        blocks = tuple(store.block for store in streams.stores)
        return PlanSpec(
            rows=rows,
            batch=self.recipe.data.batch,
            seed=seed,
            # The base model reads one domain: nothing to allocate, so that it does not depend on how.
            allocation=self.recipe.allocation if len(rows) > 1 else "systematic",
            blocks=blocks if max(blocks) > 1 else (),
            limits=streams.limits,
            stop=streams.stop,
        )

    def load_params(self, folder: Path) -> PyTree:
        """The parameters that a finished run left in its folder.

        Raises:
            UserError: they are missing or damaged.
        """
        checkpoints = Checkpoints(folder / "params")
        found = checkpoints.restore(template(self.model.template(), self.mesh), {})
        checkpoints.close()
        if found is None:
            raise UserError(f"the finished stage {folder} has no usable parameters", "delete that folder and run again")
        return found.state
