"""Target losses: what each domain would reach at the full budget, predicted from proxies or from a table of losses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.core.targets import make_targets
from vtune_jax.core.types import Targets
from vtune_jax.errors import UserError
from vtune_jax.fits.csv_table import LossTable, read_table
from vtune_jax.fits.curves import TargetEstimate
from vtune_jax.fits.estimate import SizeTarget, estimate_over_sizes, estimate_targets
from vtune_jax.fits.laws.annealing import Areas, areas, decay_for
from vtune_jax.fits.laws.law import Budget, Estimate
from vtune_jax.fits.laws.registry import law_named
from vtune_jax.fits.predicted import LossCurve, MeasuredPoints, PredictedTargets
from vtune_jax.machine.files import write_json
from vtune_jax.stages.target_proxies import Measurement, design, joined, measure_round, share_read
from vtune_jax.train.heldout import mean_loss
from vtune_jax.train.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from vtune_jax.experiment.config import ExperimentConfig
    from vtune_jax.stages.pipeline import Pipeline


def predict_targets(pipeline: Pipeline, folder: Path) -> None:
    """Measures initial losses, trains the proxies, fits and writes `targets.json`."""
    config = pipeline.config
    options = config.targets
    initial = mean_loss(pipeline.lab.heldout_sums(pipeline.base_params, pipeline.streams.heldout))
    budget = config.train.steps * config.data.batch_tokens
    facts = {"initial": initial.tolist(), "target_tokens": budget, "level": options.level}
    if options.losses:
        facts |= PredictedTargets.given(options.losses).as_json() | {"proxy_tokens": 0}
    elif options.table:
        try:
            facts |= _from_table(pipeline, Path(options.table), initial, budget)
        except ValueError as error:
            raise UserError(f"{options.table}: {str(error).rstrip('.')}", "mend the table") from error
    else:
        facts |= _from_proxies(pipeline, folder, initial, budget)
    for note in facts["notes"]:
        pipeline.progress.note(note)
    write_json(folder / "targets.json", facts)


def assert_possible(config: ExperimentConfig, names: tuple[str, ...]) -> None:
    """Refuses a budget that allows no proxies, and a table that cannot be read or fitted.

    Raises:
        UserError: as `design` and `read_table`.
    """
    if config.trains_proxies:
        design(config)
    elif config.targets.table:
        table = read_table(Path(config.targets.table), names=names, optional=("params",))
        sizes = "params" in table.columns
        try:
            table.assert_fittable(law_named("LND" if sizes else "LD"))
        except ValueError as error:
            raise UserError(f"{config.targets.table}: {str(error).rstrip('.')}", "measure more") from error
        if sizes and (config.targets.share_beta or config.targets.when_unusable == "pooled"):
            raise UserError(
                f"{config.targets.table} has a column params: its law over model sizes has no curves to share or pool",
                'leave out targets.share_beta and targets.when_unusable = "pooled", or the column',
            )


def _from_proxies(pipeline: Pipeline, folder: Path, initial: np.ndarray, budget: int) -> dict[str, Any]:
    config = pipeline.config
    rounds = design(config)
    longest = max(run.steps for plan in rounds for run in plan.runs)
    rows = np.array([len(store) for store in pipeline.streams.stores])
    read = share_read(config, rows, pipeline.prior, longest)
    parts: list[Measurement] = []
    spent = 0.0
    for index, plan in enumerate(rounds):
        parts.append(measure_round(pipeline, folder, index, plan))
        spent += plan.cost_steps
        measured = joined(parts)
        estimate = fitted(config, measured, initial)
        widest = float(np.nanmax(estimate.diagnostics.half_width_share))
        if widest <= config.targets.half_width:
            break
    share = spent / config.train.steps
    pipeline.progress.note(
        f"proxies cost {spent:,.0f} optimiser steps with their evaluations, {share:.1%} of the real run; they read "
        f"{read.min():.0%} to {read.max():.0%} of a domain's rows; "
        f"the widest target is uncertain by {widest:.0%} of its gap"
    )
    tokens = measured.steps * config.data.batch_tokens
    trained = sum(run.steps for plan in rounds[: len(parts)] for run in plan.runs) * config.data.batch_tokens
    predicted = _settled(
        pipeline,
        estimate,
        initial,
        curve=_along_the_real_run(config, estimate),
        points=MeasuredPoints.of(tokens, measured.losses, measured.run),
    )
    return predicted.as_json() | {"proxy_tokens": trained, "proxy_cost": share, "subsample": read.tolist()}


def fitted(config: ExperimentConfig, measured: Measurement, initial: np.ndarray) -> TargetEstimate:
    """The estimate under the design's law, read off at the end of the real run."""
    options, optimizer, steps = config.targets, config.train.optimizer, config.train.steps
    common = _common(config, initial)
    if options.proxies == "several":
        batch = float(config.data.batch_tokens)
        return estimate_targets(measured.steps * batch, measured.losses, steps * batch, runs=measured.run, **common)
    decay = options.decay or decay_for(steps)
    of_length = {length: schedule_areas(optimizer, length, decay) for length in {steps, *measured.run_steps.tolist()}}
    points = [
        (of_length[length].forward[step - 1], of_length[length].annealed[step - 1])
        for length, step in zip(measured.run_steps.tolist(), measured.steps.tolist(), strict=True)
    ]
    forward, annealed = np.array(points).T
    return estimate_targets(
        forward,
        measured.losses,
        of_length[steps].forward[-1],
        annealed=annealed,
        target_annealed=of_length[steps].annealed[-1],
        runs=measured.run,
        **common,
    )


def _along_the_real_run(config: ExperimentConfig, estimate: TargetEstimate) -> LossCurve:
    """What the law's optimum expects after some steps of the real run, under its own schedule."""
    steps, batch = config.train.steps, config.data.batch_tokens
    after = np.unique(np.round(np.geomspace(max(1, steps // 40), steps, 40)).astype(int))
    budgets: list[Budget]
    if estimate.law.column_names == ("tokens",):
        budgets = [(float(step * batch),) for step in after]
    else:
        real = schedule_areas(config.train.optimizer, steps, config.targets.decay or decay_for(steps))
        budgets = [(real.forward[step - 1], real.annealed[step - 1]) for step in after]
    return LossCurve.of(estimate, (after * batch).tolist(), budgets)


def schedule_areas(optimizer: OptimizerConfig, steps: int, decay: float) -> Areas:
    """S1 and S2 after each step of a run of this length, in multiples of the peak learning rate."""
    rates = jax.vmap(lambda step: optimizer.learning_rate(step, jnp.int32(steps)))(jnp.arange(steps))
    return areas(np.asarray(rates, np.float64) / optimizer.peak_learning_rate, decay=decay)


def _from_table(pipeline: Pipeline, path: Path, initial: np.ndarray, budget: int) -> dict[str, Any]:
    """From losses measured elsewhere: `tokens, loss, domain`, and `params` if model sizes differ."""
    config = pipeline.config
    table = read_table(path, names=pipeline.prepared.names, optional=("params",))
    if "params" in table.columns:
        return _from_sizes(pipeline, table, initial, budget)
    tokens = table.columns["tokens"]
    estimate = estimate_targets(tokens, table.losses, budget, runs=table.runs, **_common(config, initial))
    # One column per domain of its own: a report shows the points that all domains have.
    shared = bool((tokens == tokens[:, :1]).all())
    predicted = _settled(
        pipeline,
        estimate,
        initial,
        notes=table.notes,
        curve=_along_the_real_run(config, estimate),
        points=MeasuredPoints.of(tokens[:, 0], table.losses) if shared else None,
    )
    return predicted.as_json() | {"proxy_tokens": 0}


def _from_sizes(pipeline: Pipeline, table: LossTable, initial: np.ndarray, budget: int) -> dict[str, Any]:
    """The law over model sizes, read off at this experiment's model; intervals by case resampling."""
    config = pipeline.config
    estimate = estimate_over_sizes(
        table.columns["params"],
        table.columns["tokens"],
        table.losses,
        SizeTarget(float(config.model.parameters(pipeline.prepared.vocab_size)), float(budget)),
        initial_losses=initial,
        level=config.targets.level,
        delta="auto",
        seed=config.seed,
        min_gap=config.targets.min_gap,
    )
    return _settled(pipeline, estimate, initial, notes=table.notes).as_json() | {"proxy_tokens": 0}


def _common(config: ExperimentConfig, initial: np.ndarray) -> dict[str, Any]:
    options = config.targets
    return {
        "initial_losses": initial,
        "level": options.level,
        "min_gap": options.min_gap,
        "share_beta": options.share_beta,
        "model_error_per_decade": options.model_error_per_decade,
    }


def _settled(
    pipeline: Pipeline,
    estimate: Estimate,
    initial: np.ndarray,
    *,
    notes: tuple[str, ...] = (),
    curve: LossCurve | None = None,
    points: MeasuredPoints | None = None,
) -> PredictedTargets:
    """The targets that the config's policy settles on."""
    options = pipeline.config.targets
    return PredictedTargets.from_estimate(
        estimate,
        initial,
        policy=options.when_unusable,
        names=pipeline.prepared.names,
        fallback=options.fallback,
        strict=options.strict,
        notes=notes,
        curve=curve,
        points=points,
    )


def targets_from(facts: dict[str, Any], prior: np.ndarray, constants: dict[str, np.ndarray] | None = None) -> Targets:
    """The run's constants from `targets.json`, and those that a method needs beside."""
    initial, target, error = (
        np.array([np.nan if value is None else value for value in facts[name]])
        for name in ("initial", "target", "standard_error")
    )
    return make_targets(initial, target, error, prior, constants)
