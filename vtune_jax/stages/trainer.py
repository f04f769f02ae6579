"""What pre-training, proxies and arms share: from token files and a config to a trained state on disk."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vtune_jax.core.numbers import structure_of
from vtune_jax.core.types import LossSums, Targets
from vtune_jax.data.mixture.spec import PlanSpec, fingerprint
from vtune_jax.data.tokens.rows import Rows
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig, MethodConfig
from vtune_jax.machine.mesh import data_mesh, template
from vtune_jax.machine.progress import Tick
from vtune_jax.models import Model, build
from vtune_jax.train.checkpoint import Checkpoints, Facts, canonical
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.device_engine import CompiledSegment, DeviceEngine, compile_segment
from vtune_jax.train.engine import Engine
from vtune_jax.train.heldout import make_evaluate
from vtune_jax.train.host_engine import CompiledStep, HostEngine, compile_step
from vtune_jax.train.listeners import MetricsFiles, Shown
from vtune_jax.train.loop import Run, final_params
from vtune_jax.train.numbers import run_numbers
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import TrainState, start
from vtune_jax.train.step import TrainStep, make_train_step


class Lab:
    """Compiled pieces that several runs of one process share.

    Proxies and static arms differ only in what `RunConstants` holds, so they use one compiled step.
    """

    def __init__(
        self, config: ExperimentConfig, vocabulary: int, facts: Facts | None = None, *, allow_data_change: bool = False
    ) -> None:
        """Builds the model; nothing is compiled yet.

        Args:
            config: of the experiment.
            vocabulary: number of token ids.
            facts: of the model and its tokenizer, that a checkpoint must agree with.
            allow_data_change: takes over a checkpoint of other data.
        """
        self.config = config
        self.facts, self._allow_data_change = facts or {}, allow_data_change
        self.model: Model = build(config.model, vocabulary)
        self.mesh = None if config.data.engine == "device" else data_mesh(config.data.batch)
        self.evaluate = make_evaluate(self.model, config.data.evaluate_rows_at_once, self.mesh)
        self._jitted_evaluate = jax.jit(self.evaluate)
        self._steps: dict[Any, CompiledStep] = {}
        self._segments: dict[Any, CompiledSegment] = {}

    def heldout_sums(self, params: PyTree, heldout: Rows) -> LossSums:
        """Held-out loss of a model on rows [domains, rows, ...]."""
        return jax.device_get(self._jitted_evaluate(params, heldout))

    def jitted(self, method_config: MethodConfig) -> CompiledStep:
        """The compiled step of a method for the host engine, made once for each structure."""
        key = structure_of(dataclasses.replace(method_config, label=""))
        if key not in self._steps:
            self._steps[key] = compile_step(self._step(method_config))
        return self._steps[key]

    def segment(self, method_config: MethodConfig, spec: PlanSpec) -> CompiledSegment:
        """The compiled segment of a method for the device engine, made once for each structure and plan."""
        spec = dataclasses.replace(spec, seed=0)
        key = (structure_of(dataclasses.replace(method_config, label="")), spec)
        if key not in self._segments:
            self._segments[key] = compile_segment(self._step(method_config), spec, self.config.data.sequence)
        return self._segments[key]

    def _step(self, method_config: MethodConfig) -> TrainStep:
        return make_train_step(self.model, method_config, self.evaluate, acts_on=method_config.acts_on)

    def train(
        self,
        folder: Path,
        streams: Streams,
        params: PyTree,
        targets: Targets,
        *,
        method_config: MethodConfig,
        optimizer: OptimizerConfig,
        steps: int,
        seed: int,
        tick: Tick,
        warn: Callable[[str], None],
        reference: PyTree = None,
    ) -> PyTree:
        """The parameters at the end of one run, resumed if it was begun."""
        data, mixture = self.config.data, self.config.mixture
        spec = self.plan_spec(streams, seed)
        heldout = {name: jnp.asarray(rows) for name, rows in streams.heldout.items()}
        numbers = run_numbers(
            steps=steps,
            interval=mixture.interval,
            lag=mixture.lag,
            optimizer=optimizer,
            method=method_config,
            seed=seed,
        )
        constants = RunConstants(heldout=heldout, numbers=numbers, reference=reference)
        engine: Engine[TrainState]
        if data.engine == "device":
            engine = DeviceEngine(self.segment(method_config, spec), spec, streams.stores, constants)
        else:
            engine = HostEngine(
                self.jitted(method_config),
                spec,
                streams.stores,
                constants,
                mesh=self.mesh,
                workers=data.workers,
                worker_kind=data.worker_kind,
            )
        run = Run(
            folder=folder,
            steps=steps,
            facts=canonical({"data": fingerprint(spec), "steps": steps, **self.facts}),
            allow_data_change=self._allow_data_change,
            loop=self.config.loop,
        )
        begin = partial(start, params, method_config, targets)
        return final_params(run, engine, begin, listeners=[MetricsFiles(folder), Shown(tick, warn)])

    def plan_spec(self, streams: Streams, seed: int) -> PlanSpec:
        """The plan of a run on these streams."""
        rows = tuple(map(int, streams.rows))
        blocks = tuple(store.block for store in streams.stores)
        return PlanSpec(
            rows=rows,
            batch=self.config.data.batch,
            seed=seed,
            # The base model reads one domain: nothing to allocate, so that it does not depend on how.
            allocation=self.config.mixture.allocation if len(rows) > 1 else "systematic",
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
