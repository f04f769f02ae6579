"""What an arm is given before its first step: its mixture, its method's constants, a reference model.

Each is a cached stage of its own where it takes training: a reference model, runs at random mixtures, one run per
domain for a skill graph, a proxy on which a method moves weights whose average is then kept.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import MethodConfig
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.rules import Static
from vtune_jax.rules.config import MethodConfig as AnyMethod
from vtune_jax.rules.offline import Offline
from vtune_jax.stages.mixture_runs import proposed_mixture
from vtune_jax.stages.short_runs import measured_run, short_run_key, train_statically
from vtune_jax.stages.store import Stage
from vtune_jax.stages.target_losses import targets_from
from vtune_jax.train.heldout import mean_loss

if TYPE_CHECKING:
    from vtune_jax.core.types import Targets
    from vtune_jax.stages.pipeline import Pipeline


class Given(NamedTuple):
    """What an arm is given."""

    method: MethodConfig  # that moves the weights; static where the mixture is constant
    mixture: np.ndarray  # it starts from, and its prior
    targets: Targets
    reference: Stage | None  # whose parameters are the reference model's, of methods that need one
    stages: dict[str, str]  # digests of the stages behind all this
    facts: dict[str, Any]  # about the mixture, for the results


def given(pipeline: Pipeline, arm: MethodConfig, label: str) -> Given:
    """Everything the arm needs, made by stages of its own where that takes training."""
    needs, stages, facts = arm.build().needs, {}, {}
    constants: dict[str, np.ndarray] = {}
    mixture = pipeline.prior
    reference: Stage | None = None
    method = arm
    tokens, budget = pipeline.domain_tokens, pipeline.config.train.steps * pipeline.config.data.batch_tokens
    if "sizes" in needs:
        constants |= {"sizes": tokens, "budget": np.array(budget)}
    if "graph" in needs:
        stage = skill_graph(pipeline)
        constants["graph"] = np.array(read_json(stage.folder / "graph.json"))
        stages["graph"] = stage.digest
    if "reference" in needs:
        reference = reference_model(pipeline)
        stages["reference"] = reference.digest
    if isinstance(arm, Static):
        mixture, method = arm.mixture(pipeline.prior, tokens, budget), constant_arm(arm)
    elif isinstance(arm, Offline):
        stage = proposed_mixture(pipeline, arm, label)
        facts = read_json(stage.folder / "mixture.json")
        mixture, method = np.array(facts["mixture"]), constant_arm(arm)
        stages["proposal"] = stage.digest
    if "targets" in needs:
        stages["targets"] = pipeline.targets.digest
    measured = read_json(pipeline.targets.folder / "targets.json")
    targets = targets_from(measured, mixture, constants)
    if arm.proxy_share:
        moving = Given(
            dataclasses.replace(arm, acts_on="loss", proxy_share=0.0), mixture, targets, reference, stages, facts
        )
        stage = averaged_mixture(pipeline, moving, label, arm.proxy_share)
        facts = read_json(stage.folder / "mixture.json")
        mixture, method = np.array(facts["mixture"]), constant_arm(arm)
        # The proxy's digest holds all that it was given.
        targets, reference, stages = targets_from(measured, mixture, constants), None, {"proxy": stage.digest}
    try:
        method.build().init(targets)
    except ValueError as error:
        raise UserError(f"arm '{label}': {str(error).rstrip('.')}", "change that value") from error
    return Given(method, mixture, targets, reference, stages, facts)


def constant_arm(arm: AnyMethod) -> Static:
    """An arm that stays at its mixture, within the constraints of another."""
    shared = {field.name: getattr(arm, field.name) for field in dataclasses.fields(AnyMethod)}
    return Static(**{**shared, "name": "static", "acts_on": "sampling", "proxy_share": 0.0})


def reference_model(pipeline: Pipeline) -> Stage:
    """The base model trained on at the prior, to which methods compare losses."""
    config = pipeline.config
    steps = max(1, round(config.proxies.reference_length * config.train.steps))
    pipeline.progress.stage("reference", f"a model trained at the prior for {steps} steps")

    def work(folder: Path) -> None:
        train_statically(pipeline, folder, pipeline.unlimited_streams, steps, pipeline.prior)

    return pipeline.run_folder.stage("reference", short_run_key(pipeline, "proxies.reference_length"), work)


def reference_params(pipeline: Pipeline, stage: Stage | None) -> PyTree:
    """The reference model's parameters, if there is one."""
    return None if stage is None else pipeline.lab.load_params(stage.folder)


def skill_graph(pipeline: Pipeline) -> Stage:
    """`A[i, j] = (L_j before - L_j after) / L_j before`, one short run on domain i alone: `graph.json`."""
    config = pipeline.config
    steps = max(1, round(config.proxies.length * config.train.steps))
    pipeline.progress.stage("graph", f"one run of {steps} steps on each domain alone")

    def work(folder: Path) -> None:
        before = mean_loss(pipeline.lab.heldout_sums(pipeline.base_params, pipeline.streams.heldout))
        alone = np.eye(len(before))
        after = np.stack([measured_run(pipeline, folder / f"on-{i}", steps, alone[i]) for i in range(len(alone))])
        write_json(folder / "graph.json", ((before - after) / before).tolist())

    return pipeline.run_folder.stage("graph", short_run_key(pipeline, "proxies.length"), work)


def averaged_mixture(pipeline: Pipeline, moving: Given, label: str, share: float) -> Stage:
    """The mean of the weights that a method chooses on a proxy, which it weighs the loss of: `mixture.json`.

    The mean is over the weights after each update, without those it started from.
    """
    config, method = pipeline.config, moving.method
    steps = max(config.mixture.interval, round(share * config.train.steps))
    pipeline.progress.stage("proxy", f"'{label}' moves the weights of a proxy for {steps} steps")

    def work(folder: Path) -> None:
        with pipeline.progress.bar(f"proxy of {label}", steps, names=pipeline.prepared.names) as tick:
            pipeline.lab.train(
                folder,
                pipeline.unlimited_streams,
                pipeline.base_params,
                moving.targets,
                method_config=method,
                optimizer=config.train.optimizer,
                steps=steps,
                seed=config.seed,
                tick=tick,
                warn=pipeline.progress.note,
                reference=reference_params(pipeline, moving.reference),
            )
        path = np.array([row["weights"] for row in JsonLines(folder / "updates.jsonl").rows()])
        write_json(folder / "mixture.json", {"mixture": path.mean(axis=0).tolist(), "updates": len(path)})

    key = (
        short_run_key(pipeline)
        | moving.stages
        | {"method": settings.digest(dataclasses.replace(method, label="")), "steps": steps}
    )
    return pipeline.run_folder.stage(f"proxy-{label}", key, work)
