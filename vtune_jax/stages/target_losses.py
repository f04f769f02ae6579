"""Target losses: what each domain would reach at the full budget, predicted from proxies or from a table of losses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from vtune_jax.core.targets import make_targets
from vtune_jax.core.types import Targets
from vtune_jax.errors import UserError
from vtune_jax.fits.csv_table import Curves, read_curves
from vtune_jax.fits.estimate import TargetEstimate, estimate_targets, finite
from vtune_jax.fits.fitted import Target
from vtune_jax.fits.laws.annealing import Areas, areas, decay_for
from vtune_jax.fits.points import checked_points
from vtune_jax.fits.policy import apply_policy
from vtune_jax.fits.sizes import SizeEstimate, SizeTarget, estimate_over_sizes
from vtune_jax.machine.files import write_json
from vtune_jax.stages.target_proxies import Measurement, design, joined, measure_round, share_read
from vtune_jax.train.heldout import mean_loss
from vtune_jax.train.optimizer import OptimizerConfig, learning_rate

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
        facts |= own_targets(options.losses)
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
        UserError: as `design` and `read_curves`.
    """
    if config.trains_proxies:
        design(config)
    elif config.targets.table:
        table = read_curves(Path(config.targets.table), names=names, optional=("params",))
        sizes = "params" in table.others
        for place, name in enumerate(names):
            one = slice(place, place + 1)
            inputs: dict[str, Any] = {column: values[:, one] for column, values in table.others.items()}
            try:
                checked_points(table.tokens[:, one], table.losses[:, one], least=5 if sizes else 3, **inputs)
            except ValueError as error:
                reason = str(error).replace("every domain", f"domain '{name}'").rstrip(".")
                raise UserError(f"{config.targets.table}: {reason}", "measure more") from error
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
        estimate, target = fitted(config, measured, initial)
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
    points = {"tokens": tokens.tolist(), "loss": measured.losses.tolist(), "run": measured.run.tolist()}
    return {
        **_settled(pipeline, estimate, estimate.as_json(), target, initial),
        "curve": _along_the_real_run(config, estimate),
        "points": points,
        "proxy_tokens": trained,
        "proxy_cost": share,
        "subsample": read.tolist(),
    }


def fitted(config: ExperimentConfig, measured: Measurement, initial: np.ndarray) -> tuple[TargetEstimate, Target]:
    """The estimate under the design's law, and where it was read off."""
    options, optimizer, steps = config.targets, config.train.optimizer, config.train.steps
    common = _common(config, initial)
    if options.proxies == "several":
        target = Target(float(steps * config.data.batch_tokens))
        tokens = measured.steps * float(config.data.batch_tokens)
        return estimate_targets(tokens, measured.losses, target.tokens, runs=measured.run, **common), target
    decay = options.decay or decay_for(steps)
    of_length = {length: schedule_areas(optimizer, length, decay) for length in {steps, *measured.run_steps.tolist()}}
    at = [
        (of_length[length].forward[step - 1], of_length[length].annealed[step - 1])
        for length, step in zip(measured.run_steps.tolist(), measured.steps.tolist(), strict=True)
    ]
    forward, annealed = np.array(at).T
    target = Target(of_length[steps].forward[-1], of_length[steps].annealed[-1])
    estimate = estimate_targets(
        forward,
        measured.losses,
        target.tokens,
        annealed=annealed,
        target_annealed=target.annealed,
        runs=measured.run,
        **common,
    )
    return estimate, target


def _along_the_real_run(config: ExperimentConfig, estimate: TargetEstimate) -> dict[str, Any]:
    """What the law's optimum expects after some steps of the real run, under its own schedule."""
    steps, batch = config.train.steps, config.data.batch_tokens
    at = np.unique(np.round(np.geomspace(max(1, steps // 40), steps, 40)).astype(int))
    if estimate.curves.annealed:
        of = schedule_areas(config.train.optimizer, steps, config.targets.decay or decay_for(steps))
        places = [Target(of.forward[step - 1], of.annealed[step - 1]) for step in at]
    else:
        places = [Target(float(step * batch)) for step in at]
    return {"tokens": (at * batch).tolist(), "loss": [estimate.curves.predict(place).tolist() for place in places]}


def schedule_areas(optimizer: OptimizerConfig, steps: int, decay: float) -> Areas:
    """S1 and S2 after each step of a run of this length, in multiples of the peak learning rate."""
    rates = jax.vmap(lambda step: learning_rate(optimizer.numbers(), step, jnp.int32(steps)))(jnp.arange(steps))
    return areas(np.asarray(rates, np.float64) / optimizer.peak_learning_rate, decay=decay)


def _from_table(pipeline: Pipeline, path: Path, initial: np.ndarray, budget: int) -> dict[str, Any]:
    """From losses measured elsewhere: `tokens, loss, domain`, and `params` if model sizes differ."""
    config = pipeline.config
    table = read_curves(path, names=pipeline.prepared.names, optional=("params",))
    if "params" in table.others:
        return _from_sizes(pipeline, table, initial, budget)
    estimate = estimate_targets(table.tokens, table.losses, budget, runs=table.runs, **_common(config, initial))
    settled = _settled(pipeline, estimate, estimate.as_json(), Target(float(budget)), initial)
    # One column per domain of its own: a report shows the points that all domains have.
    shared = bool((table.tokens == table.tokens[:, :1]).all())
    points = {"tokens": table.tokens[:, 0].tolist(), "loss": table.losses.tolist()} if shared else {}
    return {
        **settled,
        "curve": _along_the_real_run(config, estimate),
        "notes": [*table.notes, *settled["notes"]],
        "points": points or {"tokens": [], "loss": []},
        "proxy_tokens": 0,
    }


def _from_sizes(pipeline: Pipeline, table: Curves, initial: np.ndarray, budget: int) -> dict[str, Any]:
    """The law over model sizes, read off at this experiment's model; intervals by case resampling."""
    config = pipeline.config
    estimate = estimate_over_sizes(
        table.others["params"],
        table.tokens,
        table.losses,
        SizeTarget(float(config.model.parameters(pipeline.prepared.vocab_size)), float(budget)),
        initial_losses=initial,
        level=config.targets.level,
        delta="auto",
        seed=config.seed,
        min_gap=config.targets.min_gap,
    )
    z = float(ndtri((1 + config.targets.level) / 2))
    facts = {
        **own_targets(tuple(estimate.target.tolist())),
        "lower": finite(estimate.lower),
        "upper": finite(estimate.upper),
        "standard_error": finite((estimate.upper - estimate.lower) / (2 * z)),
        "level": config.targets.level,
        "verdict": [str(said[0]) for said in estimate.verdicts],
        "advice": [said[0] for said in estimate.advices],
        "law": {name: finite(getattr(estimate.fit, name)) for name in ("E", "log_A", "alpha", "log_B", "beta")},
    }
    settled = _settled(pipeline, estimate, facts, None, initial)
    return {**settled, "notes": [*table.notes, *settled["notes"]]}


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
    estimate: TargetEstimate | SizeEstimate,
    facts: dict[str, Any],
    target: Target | None,
    initial: np.ndarray,
) -> dict[str, Any]:
    """The facts with the targets that the config's policy settles on; those that are no fit's have no interval."""
    options = pipeline.config.targets
    losses, notes = apply_policy(
        estimate,
        target,
        initial,
        policy=options.when_unusable,
        names=pipeline.prepared.names,
        given=options.fallback,
        strict=options.strict,
    )
    kept = losses == estimate.target
    fitted = {
        name: [value if keep else None for value, keep in zip(facts[name], kept.tolist(), strict=True)]
        for name in ("lower", "upper", "standard_error")
    }
    return {**facts, **fitted, "target": losses.tolist(), "predicted": estimate.target.tolist(), "notes": notes}


def own_targets(losses: tuple[float, ...]) -> dict[str, Any]:
    """The user's own target losses, in the form of a fit's."""
    given = list(losses)
    return {
        "target": given,
        "lower": given,
        "upper": given,
        "standard_error": [0.0] * len(given),
        "verdict": ["given"] * len(given),
        "advice": [""] * len(given),
        "law": None,
        "curve": None,
        "points": {"tokens": [], "loss": []},
        "proxy_tokens": 0,
        "notes": [],
    }


def targets_from(facts: dict[str, Any], prior: np.ndarray, constants: dict[str, np.ndarray] | None = None) -> Targets:
    """The run's constants from `targets.json`, and those that a method needs beside."""
    initial, target, error = (
        np.array([np.nan if value is None else value for value in facts[name]])
        for name in ("initial", "target", "standard_error")
    )
    return make_targets(initial, target, error, prior, constants)
