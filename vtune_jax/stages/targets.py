"""Target losses: what each domain would reach at the full budget, predicted from proxies or from a table of losses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from vtune_jax.core.types import Targets
from vtune_jax.errors import UserError
from vtune_jax.fits.annealing import Areas, areas, decay_for
from vtune_jax.fits.bootstrap import draw_cases
from vtune_jax.fits.chinchilla import bootstrap_chinchilla, fit_chinchilla
from vtune_jax.fits.chinchilla import predict as predict_chinchilla
from vtune_jax.fits.curves import Target
from vtune_jax.fits.policy import apply_policy
from vtune_jax.fits.table import Curves, read_curves
from vtune_jax.fits.targets import TargetEstimate, estimate_targets, finite
from vtune_jax.stages.cache import write_json
from vtune_jax.stages.proxies import Measurement, design, joined, measure_round, share_read
from vtune_jax.train.evaluate import mean_loss
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import make_targets

if TYPE_CHECKING:
    from vtune_jax.config import ExperimentConfig
    from vtune_jax.stages.pipeline import Pipeline


_REPLICATES = 1000


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
        facts |= _from_table(pipeline, Path(options.table), initial, budget)
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
        fewest, least = (~np.isnan(table.losses)).sum(axis=0), 5 if "params" in table.others else 3
        if fewest.min() < least:
            raise UserError(
                f"{config.targets.table} has {fewest.min()} points of domain '{names[int(fewest.argmin())]}'",
                f"give at least {least}",
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
        **_settled(pipeline, estimate, target, initial),
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
    rates = jax.vmap(lambda step: optimizer.learning_rate(step, jnp.int32(steps)))(jnp.arange(steps))
    return areas(np.asarray(rates, np.float64) / optimizer.peak_learning_rate, decay=decay)


def _from_table(pipeline: Pipeline, path: Path, initial: np.ndarray, budget: int) -> dict[str, Any]:
    """From losses measured elsewhere: `tokens, loss, domain`, and `params` if model sizes differ."""
    config = pipeline.config
    table = read_curves(path, names=pipeline.prepared.names, optional=("params", "run"))
    if "params" in table.others:
        return _from_sizes(pipeline, table, initial, budget)
    runs = table.others.get("run")
    estimate = estimate_targets(table.tokens, table.losses, budget, runs=runs, **_common(config, initial))
    settled = _settled(pipeline, estimate, Target(float(budget)), initial)
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
    size = config.model.parameters(pipeline.prepared.vocab_size)
    low, high = (1 - config.targets.level) / 2, (1 + config.targets.level) / 2
    fit = fit_chinchilla(table.others["params"], table.tokens, table.losses, delta="auto")
    target = predict_chinchilla(fit, size, budget)
    spread = []
    for place in range(len(table.names)):
        seen = ~np.isnan(table.losses[:, place])
        sizes, tokens, losses = (x[seen, place] for x in (table.others["params"], table.tokens, table.losses))
        drawn = draw_cases(len(losses), _REPLICATES, seed=config.seed, different=5)
        replicates = bootstrap_chinchilla(sizes, tokens, losses, drawn, delta=float(fit.delta[place]))
        spread.append(np.quantile(predict_chinchilla(replicates, size, budget), (low, high)))
    lower, upper = np.array(spread).T
    lower, upper = np.minimum(lower, target), np.maximum(upper, target)
    fails = ~(target < initial - config.targets.min_gap)
    if fails.any():
        raise UserError(
            f"the law over model sizes puts the targets of {[table.names[i] for i in np.flatnonzero(fails)]} at "
            f"{target[fails].round(3).tolist()}, not below the initial losses {initial[fails].round(3).tolist()}",
            "measure more, or give targets.losses",
        )
    names = ("E", "log_A", "alpha", "log_B", "beta")
    return {
        **own_targets(tuple(target.tolist())),
        "lower": lower.tolist(),
        "upper": upper.tolist(),
        "standard_error": ((upper - lower) / (2 * float(ndtri(high)))).tolist(),
        "verdict": ["from model sizes"] * len(target),
        "law": {name: finite(getattr(fit, name)) for name in names},
        "notes": list(table.notes),
    }


def _common(config: ExperimentConfig, initial: np.ndarray) -> dict[str, Any]:
    options = config.targets
    return {
        "initial_losses": initial,
        "level": options.level,
        "min_gap": options.min_gap,
        "share_beta": options.share_beta,
        "model_error_per_decade": options.model_error_per_decade,
    }


def _settled(pipeline: Pipeline, estimate: TargetEstimate, target: Target, initial: np.ndarray) -> dict[str, Any]:
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
    return {**estimate.as_json(), "target": losses.tolist(), "predicted": estimate.target.tolist(), "notes": notes}


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
