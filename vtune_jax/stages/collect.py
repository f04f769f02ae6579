"""What came of it: final losses of every arm, and all results gathered for the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.core.scores import remaining_fraction
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.machine.json_values import from_json
from vtune_jax.machine.provenance import Provenance
from vtune_jax.report.results import ArmResult, Column, Final, Results, RunFacts, StepRow, TargetResult, Update, column
from vtune_jax.rules.config import MethodConfig as AnyMethod
from vtune_jax.stages.target_losses import targets_from
from vtune_jax.train.heldout import mean_loss

if TYPE_CHECKING:
    from vtune_jax.experiment.config import MethodConfig
    from vtune_jax.stages.pipeline import Pipeline


def evaluate_arms(pipeline: Pipeline, folder: Path) -> None:
    """Held-out losses of the base model and of every arm, on the domains and on the base domain (forgetting)."""

    def losses(params: PyTree) -> dict[str, Any]:
        heldout, base = (
            mean_loss(pipeline.lab.heldout_sums(params, streams.heldout))
            for streams in (pipeline.streams, pipeline.base_streams)
        )
        return {"heldout_loss": heldout.tolist(), "base_loss": float(base[0])}

    final = {label: losses(pipeline.lab.load_params(stage.folder)) for label, stage in pipeline.arms.items()}
    write_json(folder / "evaluation.json", {"initial": losses(pipeline.base_params), "arms": final})


def collect(pipeline: Pipeline) -> Results:
    """Everything the report shows, from the files of the stages."""
    targets = read_json(pipeline.targets.folder / "targets.json")
    evaluation = read_json(pipeline.evaluate.folder / "evaluation.json")
    arms = {
        label: _arm(pipeline, arm, label, targets, evaluation)
        for label, arm in zip(pipeline.config.arm_labels, pipeline.config.arms, strict=True)
    }
    return Results(
        experiment=pipeline.config.name,
        domains=pipeline.prepared.names,
        base=pipeline.prepared.base_name,
        initial_base_loss=evaluation["initial"]["base_loss"],
        arms=arms,
        targets=from_json(TargetResult, targets),
        corpus=read_json(pipeline.prepare.folder / "manifest.json"),
        run=run_facts(pipeline),
    )


def _arm(
    pipeline: Pipeline, arm: MethodConfig, label: str, targets: dict[str, Any], evaluation: dict[str, Any]
) -> ArmResult:
    folder = pipeline.arms[label].folder
    constants = targets_from(targets, pipeline.prior)
    start = read_json(folder / "start.json")
    domains = len(pipeline.prepared.names)

    def remaining(losses: Column) -> Column:
        values = np.array([np.nan if loss is None else loss for loss in losses])
        return column(np.asarray(remaining_fraction(jnp.asarray(values, jnp.float32), constants, clamp=False)))

    first = {
        "step": 0,
        "tokens": 0,
        "weights": start["mixture"],
        "heldout_loss": targets["initial"],
        "train_loss": [None] * domains,
        "tokens_read": [0] * domains,
        "epochs": [0.0] * domains,
    }
    updates = [first, *JsonLines(folder / "updates.jsonl").rows()]
    final = evaluation["arms"][label]
    left = np.array(remaining(final["heldout_loss"]), np.float64)
    return ArmResult(
        name=label,
        method=describe(arm),
        updates=[from_json(Update, {**row, "remaining": remaining(row["heldout_loss"])}) for row in updates],
        train=[from_json(StepRow, row) for row in JsonLines(folder / "steps.jsonl").rows()],
        final=Final(
            heldout_loss=final["heldout_loss"],
            base_loss=final["base_loss"],
            remaining=column(left),
            smallest_progress=column([1 - left.max()])[0],
            average_loss=float(np.mean(final["heldout_loss"])),
        ),
    )


def describe(arm: MethodConfig) -> str:
    """A method with its hyper-parameters, as one would call it."""
    shared = {field.name: field.default for field in dataclasses.fields(AnyMethod)}
    fields = {
        key: value
        for key, value in settings.as_plain(arm).items()
        if key not in ("name", "label") and not (key in shared and value == settings.as_plain(shared[key]))
    }
    return f"{arm.name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def run_facts(pipeline: Pipeline) -> RunFacts:
    """What is needed to run it again: seed, commit, versions, machine, config."""
    config, here = pipeline.config, Provenance.here()
    return RunFacts(
        seed=config.seed,
        commit=here.commit,
        config_sha256=settings.digest(config),
        command=f"vtune-jax run {pipeline.run_folder.path / 'config.toml'}",
        versions=here.versions,
        machine=here.machine,
        parameters=config.model.parameters(pipeline.prepared.vocab_size),
        token_budget=config.train.steps * config.data.batch_tokens,
        interval=config.mixture.interval,
        prior=pipeline.prior.tolist(),
    )
