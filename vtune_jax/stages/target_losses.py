"""Target losses: what each domain would reach at the full budget, predicted from proxies or from a table of losses."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.fits.config import TargetsConfig
from vtune_jax.fits.csv_table import LossTable, read_table
from vtune_jax.fits.curves import TargetEstimate
from vtune_jax.fits.estimate import SizeTarget, estimate_over_sizes, estimate_targets
from vtune_jax.fits.laws.annealing import Areas, areas, decay_for
from vtune_jax.fits.laws.law import Budget, Estimate
from vtune_jax.fits.laws.registry import law_named
from vtune_jax.fits.predicted import LossCurve, MeasuredPoints, PredictedTargets
from vtune_jax.machine.files import read_json, user_path, write_json
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.heldout_losses import HeldoutLosses
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase
from vtune_jax.stages.store import Finished
from vtune_jax.stages.target_proxies import Measurement, RealRun, design, joined, measure_round, real_run, share_read
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
    """Predicted losses at the end of the real run, and what their prediction took."""

    predicted: PredictedTargets
    initial: tuple[float, ...]  # losses of the base model, nats per token
    target_tokens: int  # the budget that the targets are for
    level: float  # of the intervals
    proxy_tokens: int = 0  # that the proxies were trained on
    proxy_cost: float = 0.0  # compute of the proxies, evaluations included, as a share of the real run's training
    subsample: tuple[float, ...] = ()  # share of each domain's rows that the longest proxy has read
    stage: Finished | None = None  # that has left them

    @classmethod
    def load(cls, stage: Finished) -> "TargetLosses":
        """Reads what the stage has left."""
        content = read_json(stage.folder / FILE)
        return cls(
            predicted=PredictedTargets.from_json(content),
            initial=tuple(content["initial"]),
            target_tokens=content["target_tokens"],
            level=content["level"],
            proxy_tokens=content["proxy_tokens"],
            proxy_cost=content["proxy_cost"],
            subsample=tuple(content["subsample"]),
            stage=stage,
        )

    def save(self, folder: Path) -> None:
        """Writes `targets.json`."""
        own = {
            name: getattr(self, name)
            for name in ("initial", "target_tokens", "level", "proxy_tokens", "proxy_cost", "subsample")
        }
        write_json(folder / FILE, own | self.predicted.as_json())

    @property
    def target(self) -> np.ndarray:
        """One per domain, float64."""
        return np.array(self.predicted.target, np.float64)

    @property
    def standard_error(self) -> np.ndarray:
        """One per domain; NaN where the policy replaced the target."""
        return np.array([np.nan if error is None else error for error in self.predicted.standard_error], np.float64)


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
        table=session.store.hashed(user_path(table)) if table else "",
        names=corpus.names,
        parameters=config.model.parameters(corpus.prepared.vocab_size),
    )
    return TargetLosses.load(session.stage("targets", "targets", inputs, _predict, purpose="proxy runs, fit"))


def assert_possible(config: ExperimentConfig, names: tuple[str, ...]) -> None:
    """Refuses a budget that allows no proxies, and a table that cannot be read or fitted.

    Raises:
        UserError: as `design` and `read_table`.
    """
    options = config.targets
    if not (options.losses or options.table):
        design(options, real_run(config))
    elif options.table:
        table = read_table(user_path(options.table), names=names, optional=("params",))
        sizes = "params" in table.columns
        try:
            table.assert_fittable(law_named("LND" if sizes else "LD"))
        except ValueError as error:
            raise UserError(f"{options.table}: {str(error).rstrip('.')}", "measure more") from error
        if sizes and (options.share_beta or options.when_unusable == "pooled"):
            raise UserError(
                f"{options.table} has a column params: its law over model sizes has no curves to share or pool",
                'leave out targets.share_beta and targets.when_unusable = "pooled", or the column',
            )


def _predict(inputs: TargetInputs, folder: Path, tools: Tools) -> None:
    options = inputs.options
    found: dict[str, Any] = {}
    if options.losses:
        found["predicted"] = PredictedTargets.given(options.losses)
    elif options.table:
        try:
            found["predicted"] = _from_table(inputs, user_path(options.table))
        except ValueError as error:
            raise UserError(f"{options.table}: {str(error).rstrip('.')}", "mend the table") from error
    else:
        found = _from_proxies(inputs, folder, tools)
    targets = TargetLosses(
        initial=tuple(inputs.initial.domains.tolist()),
        target_tokens=inputs.real.tokens,
        level=options.level,
        **found,
    )
    for note in targets.predicted.notes:
        tools.progress.note(note)
    targets.save(folder)


def _from_proxies(inputs: TargetInputs, folder: Path, tools: Tools) -> dict[str, Any]:
    """Fields of `TargetLosses`."""
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
        estimate = fitted(options, real, measured, inputs.initial.domains)
        widest = float(np.nanmax(estimate.diagnostics.half_width_share))
        if widest <= options.half_width:
            break
    share = spent / real.steps
    tools.progress.note(
        f"proxies cost {spent:,.0f} optimiser steps with their evaluations, {share:.1%} of the real run; they read "
        f"{read.min():.0%} to {read.max():.0%} of a domain's rows; "
        f"the widest target is uncertain by {widest:.0%} of its gap"
    )
    predicted = _settled(
        inputs,
        estimate,
        curve=_along_the_real_run(options, real, estimate),
        points=MeasuredPoints.of(measured.steps * real.data.batch_tokens, measured.losses, measured.run),
    )
    trained = sum(run.steps for plan in rounds[: len(parts)] for run in plan.runs) * real.data.batch_tokens
    return {"predicted": predicted, "proxy_tokens": trained, "proxy_cost": share, "subsample": tuple(read.tolist())}


def fitted(options: TargetsConfig, real: RealRun, measured: Measurement, initial: np.ndarray) -> TargetEstimate:
    """The estimate under the design's law, read off at the end of the real run."""
    common = _common(options, initial)
    if options.proxies == "several":
        batch = float(real.data.batch_tokens)
        return estimate_targets(
            measured.steps * batch, measured.losses, real.steps * batch, runs=measured.run, **common
        )
    decay = options.decay or decay_for(real.steps)
    lengths = {real.steps, *measured.run_steps.tolist()}
    of_length = {length: schedule_areas(real.optimizer, length, decay) for length in lengths}
    points = [
        (of_length[length].forward[step - 1], of_length[length].annealed[step - 1])
        for length, step in zip(measured.run_steps.tolist(), measured.steps.tolist(), strict=True)
    ]
    forward, annealed = np.array(points).T
    return estimate_targets(
        forward,
        measured.losses,
        of_length[real.steps].forward[-1],
        annealed=annealed,
        target_annealed=of_length[real.steps].annealed[-1],
        runs=measured.run,
        **common,
    )


def _along_the_real_run(options: TargetsConfig, real: RealRun, estimate: TargetEstimate) -> LossCurve:
    """What the law's optimum expects after some steps of the real run, under its own schedule."""
    steps, batch = real.steps, real.data.batch_tokens
    after = np.unique(np.round(np.geomspace(max(1, steps // 40), steps, 40)).astype(int))
    budgets: list[Budget]
    if estimate.law.column_names == ("tokens",):
        budgets = [(float(step * batch),) for step in after]
    else:
        schedule = schedule_areas(real.optimizer, steps, options.decay or decay_for(steps))
        budgets = [(schedule.forward[step - 1], schedule.annealed[step - 1]) for step in after]
    return LossCurve.of(estimate, (after * batch).tolist(), budgets)


def schedule_areas(optimizer: OptimizerConfig, steps: int, decay: float) -> Areas:
    """S1 and S2 after each step of a run of this length, in multiples of the peak learning rate."""
    rates = jax.vmap(lambda step: learning_rate(optimizer.numbers(), step, jnp.int32(steps)))(jnp.arange(steps))
    return areas(np.asarray(rates, np.float64) / optimizer.peak_learning_rate, decay=decay)


def _from_table(inputs: TargetInputs, path: Path) -> PredictedTargets:
    """From losses measured elsewhere: `tokens, loss, domain`, and `params` if model sizes differ."""
    options, initial = inputs.options, inputs.initial.domains
    table = read_table(path, names=inputs.names, optional=("params",))
    if "params" in table.columns:
        return _from_sizes(inputs, table)
    tokens = table.columns["tokens"]
    estimate = estimate_targets(
        tokens, table.losses, float(inputs.real.tokens), runs=table.runs, **_common(options, initial)
    )
    # One column per domain of its own: a report shows the points that all domains have.
    shared = bool((tokens == tokens[:, :1]).all())
    return _settled(
        inputs,
        estimate,
        notes=table.notes,
        curve=_along_the_real_run(options, inputs.real, estimate),
        points=MeasuredPoints.of(tokens[:, 0], table.losses) if shared else None,
    )


def _from_sizes(inputs: TargetInputs, table: LossTable) -> PredictedTargets:
    """The law over model sizes, read off at this experiment's model; intervals by case resampling."""
    estimate = estimate_over_sizes(
        table.columns["params"],
        table.columns["tokens"],
        table.losses,
        SizeTarget(float(inputs.parameters), float(inputs.real.tokens)),
        initial_losses=inputs.initial.domains,
        level=inputs.options.level,
        delta="auto",
        seed=inputs.start.seed,
        min_gap=inputs.options.min_gap,
    )
    return _settled(inputs, estimate, notes=table.notes)


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
    estimate: Estimate,
    *,
    notes: tuple[str, ...] = (),
    curve: LossCurve | None = None,
    points: MeasuredPoints | None = None,
) -> PredictedTargets:
    """The targets that the config's policy settles on."""
    options = inputs.options
    return PredictedTargets.from_estimate(
        estimate,
        inputs.initial.domains,
        policy=options.when_unusable,
        names=inputs.names,
        fallback=options.fallback,
        strict=options.strict,
        notes=notes,
        curve=curve,
        points=points,
    )
