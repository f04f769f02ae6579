"""Target losses: what each domain would reach at the full budget, predicted from proxies or from a table of losses."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.fits.config import TargetsConfig
from vtune_jax.fits.csv_table import Curves, read_curves
from vtune_jax.fits.estimate import TargetEstimate, estimate_targets, finite
from vtune_jax.fits.fitted import Target
from vtune_jax.fits.laws.annealing import Areas, areas, decay_for
from vtune_jax.fits.points import checked_points
from vtune_jax.fits.policy import apply_policy
from vtune_jax.fits.sizes import SizeEstimate, SizeTarget, estimate_over_sizes
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.heldout_losses import HeldoutLosses
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase
from vtune_jax.stages.store import Finished
from vtune_jax.stages.target_proxies import (
    Measurement,
    RealRun,
    design,
    joined,
    measure_round,
    real_run,
    share_read,
)
from vtune_jax.train.optimizer import OptimizerConfig, learning_rate

FILE = "targets.json"


@dataclasses.dataclass(frozen=True)
class TargetInputs:
    """What target losses depend on."""

    start: FromBase
    initial: HeldoutLosses
    options: TargetsConfig
    real: RealRun
    table: str  # hash of `options.table`, "" without one
    names: tuple[str, ...]
    parameters: int  # of the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetLosses:
    """Predicted losses at the end of the real run, nats per token, and where they come from."""

    stage: Finished
    facts: dict[str, Any]

    @classmethod
    def load(cls, stage: Finished) -> "TargetLosses":
        """Reads what the stage has left."""
        return cls(stage=stage, facts=read_json(stage.folder / FILE))

    @property
    def target(self) -> np.ndarray:
        """One per domain, float64; NaN where there is none."""
        return self._column("target")

    @property
    def standard_error(self) -> np.ndarray:
        """One per domain; NaN where the target is no fit's."""
        return self._column("standard_error")

    def _column(self, name: str) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in self.facts[name]], np.float64)


def target_losses(session: Session, corpus: Corpus, start: FromBase, initial: HeldoutLosses) -> TargetLosses:
    """Predicts targets: from the config's own losses, from its table, or else from proxies.

    Raises:
        UserError: as `assert_possible`.
    """
    config = session.config
    assert_possible(config, corpus.names)
    table = config.targets.table
    inputs = TargetInputs(
        start=start,
        initial=initial,
        options=config.targets,
        real=real_run(config),
        table=session.store.hashed(Path(table)) if table else "",
        names=corpus.names,
        parameters=config.model.parameters(corpus.prepared.vocab_size),
    )
    return TargetLosses.load(session.stage("targets", "targets", inputs, _predict, purpose="proxy runs, fit"))


def _predict(inputs: TargetInputs, folder: Path, tools: Tools) -> None:
    options, initial = inputs.options, inputs.initial.domains
    facts = {"initial": initial.tolist(), "target_tokens": inputs.real.tokens, "level": options.level}
    if options.losses:
        facts |= own_targets(options.losses)
    elif options.table:
        try:
            facts |= _from_table(inputs, Path(options.table))
        except ValueError as error:
            raise UserError(f"{options.table}: {str(error).rstrip('.')}", "mend the table") from error
    else:
        facts |= _from_proxies(inputs, folder, tools)
    for note in facts["notes"]:
        tools.progress.note(note)
    write_json(folder / FILE, facts)


def assert_possible(config: ExperimentConfig, names: tuple[str, ...]) -> None:
    """Refuses a budget that allows no proxies, and a table that cannot be read or fitted.

    Raises:
        UserError: as `design` and `read_curves`.
    """
    if not (config.targets.losses or config.targets.table):
        design(config.targets, real_run(config))
    elif config.targets.table:
        table = read_curves(Path(config.targets.table), names=names, optional=("params",))
        sizes = "params" in table.others
        for place, name in enumerate(names):
            alone = slice(place, place + 1)
            inputs: dict[str, Any] = {column: values[:, alone] for column, values in table.others.items()}
            try:
                checked_points(table.tokens[:, alone], table.losses[:, alone], least=5 if sizes else 3, **inputs)
            except ValueError as error:
                reason = str(error).replace("every domain", f"domain '{name}'").rstrip(".")
                raise UserError(f"{config.targets.table}: {reason}", "measure more") from error
        if sizes and (config.targets.share_beta or config.targets.when_unusable == "pooled"):
            raise UserError(
                f"{config.targets.table} has a column params: its law over model sizes has no curves to share or pool",
                'leave out targets.share_beta and targets.when_unusable = "pooled", or the column',
            )


def _from_proxies(inputs: TargetInputs, folder: Path, tools: Tools) -> dict[str, Any]:
    start, options, real = inputs.start, inputs.options, inputs.real
    rounds = design(options, real)
    longest = max(run.steps for plan in rounds for run in plan.runs)
    rows = np.array([len(store) for store in start.streams.stores])
    read = share_read(real, rows, np.array(start.prior), longest)
    parts: list[Measurement] = []
    spent = 0.0
    for index, plan in enumerate(rounds):
        parts.append(measure_round(start, options, folder, tools, index, plan))
        spent += plan.cost_steps
        measured = joined(parts)
        estimate, target = fitted(options, real, measured, inputs.initial.domains)
        widest = float(np.nanmax(estimate.diagnostics.half_width_share))
        if widest <= options.half_width:
            break
    share = spent / real.steps
    tools.progress.note(
        f"proxies cost {spent:,.0f} optimiser steps with their evaluations, {share:.1%} of the real run; they read "
        f"{read.min():.0%} to {read.max():.0%} of a domain's rows; "
        f"the widest target is uncertain by {widest:.0%} of its gap"
    )
    tokens = measured.steps * real.data.batch_tokens
    trained = sum(run.steps for plan in rounds[: len(parts)] for run in plan.runs) * real.data.batch_tokens
    points = {"tokens": tokens.tolist(), "loss": measured.losses.tolist(), "run": measured.run.tolist()}
    return {
        **_settled(inputs, estimate, estimate.as_json(), target),
        "curve": _along_the_real_run(options, real, estimate),
        "points": points,
        "proxy_tokens": trained,
        "proxy_cost": share,
        "subsample": read.tolist(),
    }


def fitted(
    options: TargetsConfig, real: RealRun, measured: Measurement, initial: np.ndarray
) -> tuple[TargetEstimate, Target]:
    """The estimate under the design's law, and where it was read off."""
    optimizer, steps = real.optimizer, real.steps
    common = _common(options, initial)
    if options.proxies == "several":
        target = Target(float(real.tokens))
        tokens = measured.steps * float(real.data.batch_tokens)
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


def _along_the_real_run(options: TargetsConfig, real: RealRun, estimate: TargetEstimate) -> dict[str, Any]:
    """What the law's optimum expects after some steps of the real run, under its own schedule."""
    steps, batch = real.steps, real.data.batch_tokens
    at = np.unique(np.round(np.geomspace(max(1, steps // 40), steps, 40)).astype(int))
    if estimate.curves.annealed:
        of = schedule_areas(real.optimizer, steps, options.decay or decay_for(steps))
        places = [Target(of.forward[step - 1], of.annealed[step - 1]) for step in at]
    else:
        places = [Target(float(step * batch)) for step in at]
    return {"tokens": (at * batch).tolist(), "loss": [estimate.curves.predict(place).tolist() for place in places]}


def schedule_areas(optimizer: OptimizerConfig, steps: int, decay: float) -> Areas:
    """S1 and S2 after each step of a run of this length, in multiples of the peak learning rate."""
    rates = jax.vmap(lambda step: learning_rate(optimizer.numbers(), step, jnp.int32(steps)))(jnp.arange(steps))
    return areas(np.asarray(rates, np.float64) / optimizer.peak_learning_rate, decay=decay)


def _from_table(inputs: TargetInputs, path: Path) -> dict[str, Any]:
    """From losses measured elsewhere: `tokens, loss, domain`, and `params` if model sizes differ."""
    options, budget, initial = inputs.options, inputs.real.tokens, inputs.initial.domains
    table = read_curves(path, names=inputs.names, optional=("params",))
    if "params" in table.others:
        return _from_sizes(inputs, table)
    estimate = estimate_targets(table.tokens, table.losses, budget, runs=table.runs, **_common(options, initial))
    settled = _settled(inputs, estimate, estimate.as_json(), Target(float(budget)))
    # One column per domain of its own: a report shows the points that all domains have.
    shared = bool((table.tokens == table.tokens[:, :1]).all())
    points = {"tokens": table.tokens[:, 0].tolist(), "loss": table.losses.tolist()} if shared else {}
    return {
        **settled,
        "curve": _along_the_real_run(options, inputs.real, estimate),
        "notes": [*table.notes, *settled["notes"]],
        "points": points or {"tokens": [], "loss": []},
        "proxy_tokens": 0,
    }


def _from_sizes(inputs: TargetInputs, table: Curves) -> dict[str, Any]:
    """The law over model sizes, read off at this experiment's model; intervals by case resampling."""
    options = inputs.options
    estimate = estimate_over_sizes(
        table.others["params"],
        table.tokens,
        table.losses,
        SizeTarget(float(inputs.parameters), float(inputs.real.tokens)),
        initial_losses=inputs.initial.domains,
        level=options.level,
        delta="auto",
        seed=inputs.start.seed,
        min_gap=options.min_gap,
    )
    z = float(ndtri((1 + options.level) / 2))
    facts = {
        **own_targets(tuple(estimate.target.tolist())),
        "lower": finite(estimate.lower),
        "upper": finite(estimate.upper),
        "standard_error": finite((estimate.upper - estimate.lower) / (2 * z)),
        "level": options.level,
        "verdict": [str(said[0]) for said in estimate.verdicts],
        "advice": [said[0] for said in estimate.advices],
        "law": {name: finite(getattr(estimate.fit, name)) for name in ("E", "log_A", "alpha", "log_B", "beta")},
    }
    settled = _settled(inputs, estimate, facts, None)
    return {**settled, "notes": [*table.notes, *settled["notes"]]}


def _common(options: TargetsConfig, initial: np.ndarray) -> dict[str, Any]:
    return {
        "initial_losses": initial,
        "level": options.level,
        "min_gap": options.min_gap,
        "share_beta": options.share_beta,
        "model_error_per_decade": options.model_error_per_decade,
    }


def _settled(
    inputs: TargetInputs,
    estimate: TargetEstimate | SizeEstimate,
    facts: dict[str, Any],
    target: Target | None,
) -> dict[str, Any]:
    """The facts with the targets that the config's policy settles on; those that are no fit's have no interval."""
    options = inputs.options
    losses, notes = apply_policy(
        estimate,
        target,
        inputs.initial.domains,
        policy=options.when_unusable,
        names=inputs.names,
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
