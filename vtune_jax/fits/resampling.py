"""Targets by case resampling, for any law: intervals are percentiles over the fits of resampled points.

Where the points cannot determine the law, the replicates agree on whatever the search began with. The interval is then
unbounded, whatever they say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from vtune_jax.errors import UserError
from vtune_jax.fits.bootstrap import draw_cases
from vtune_jax.fits.fitting import fit_law, fit_resamples
from vtune_jax.fits.laws.law import Band, Budget, Diagnosis, Estimator, Law, Question
from vtune_jax.fits.residuals import ResidualNumbers, residual_judgements, residual_numbers, weak_drop
from vtune_jax.fits.solver import Status
from vtune_jax.fits.verdicts import FAR_DECADES, TRUSTED, WIDEST_SHARE, Judgement, Judgements, Verdict, number


class ResampledEstimate(NamedTuple):
    """Fitted laws and predictions, per domain; losses in nats per token. An `Estimate`."""

    law: Law[Any]
    fit: Any  # the law's own typed fit
    replicates: tuple[Any, ...]  # fits of the resampled points of each domain
    determined: tuple[bool, ...]  # whether the points can determine the law's parameters
    counts: tuple[Diagnosis, ...]  # points, different values of each column, and what the residuals say
    budget: Budget | None
    level: float  # of the intervals
    target: Float[np.ndarray, " domains"]
    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]
    last_seen: Float[np.ndarray, " domains"]  # of the points nearest to the budget, see `estimate_by_resampling`
    judgements: Judgements

    @property
    def standard_error(self) -> Float[np.ndarray, " domains"]:
        """Half the interval over the normal quantile of its level."""
        return np.asarray((self.upper - self.lower) / (2 * float(ndtri((1 + self.level) / 2))))

    @property
    def verdicts(self) -> tuple[tuple[Verdict, ...], ...]:
        """Per domain, worst first."""
        return tuple(tuple(judgement.verdict for judgement in domain) for domain in self.judgements)

    @property
    def advices(self) -> tuple[tuple[str, ...], ...]:
        """One sentence for each verdict; empty where trustworthy."""
        return tuple(tuple(judgement.advice for judgement in domain) for domain in self.judgements)

    @property
    def band(self) -> Band | None:
        """None: points of several columns lie on no curve."""
        return None

    def predict(self, budget: Budget) -> Float[np.ndarray, " domains"]:
        """The fitted law's loss at another budget."""
        return self.law.predict(self.fit, *budget)

    def pooled(self, usable: np.ndarray) -> Float[np.ndarray, " domains"]:
        """Refuses, because there are no curves."""
        raise UserError(
            f"the law {self.law.name} has no curves that domains could pool",
            'set targets.when_unusable = "last_seen" or "given", or give losses of one size, without params',
        )

    def diagnosis(self, domain: int) -> Diagnosis:
        """Numbers of points, of different values in each column, and of the residuals."""
        return {**self.counts[domain], "sigma": float(self.fit.sigma[domain])}

    def parameter_interval(self, domain: int, name: str) -> tuple[float, float]:
        """Percentiles of a shown parameter over the replicates."""
        return interval(getattr(self.replicates[domain], name), self.level, determined=self.determined[domain])

    def parameter_error(self, domain: int, name: str) -> float | None:
        """Standard deviation of a shown parameter over the replicates."""
        return float(getattr(self.replicates[domain], name).std(ddof=1)) if self.determined[domain] else None


def by_resampling(*, least_values: int = 3) -> Estimator:
    """The estimator for laws of any form.

    Args:
        least_values: different values of every column without which the law is under-determined; two values do not
            determine a power law with a floor.
    """

    def estimate(
        law: Law[Any], columns: Sequence[np.ndarray], losses: np.ndarray, question: Question
    ) -> ResampledEstimate:
        return estimate_by_resampling(law, columns, losses, question, least_values=least_values)

    return Estimator(estimate, frozenset({"replicates"}))


def estimate_by_resampling(
    law: Law[Any], columns: Sequence[np.ndarray], losses: np.ndarray, question: Question, *, least_values: int
) -> ResampledEstimate:
    """Fits every domain's law and predicts its loss at the budget.

    `last_seen` is measured where all columns but the last are nearest to the budget, at the largest value of the last.

    Args:
        law: of any form.
        columns: in the law's order, [points] or [points, domains].
        losses: [points, domains]; NaN leaves a point out.
        question: with the budget, if there is one.
        least_values: see `by_resampling`.

    Raises:
        ValueError: as `fit_law`, a level outside (0, 1), fewer than two replicates, or a budget that is not positive
            and finite.
    """
    level, budget = question.level, question.budget
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    if question.replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {question.replicates}.")
    for column, value in zip(law.columns, budget or (), strict=bool(budget)):
        if not (np.isfinite(value) and (value > 0 or (column.linear and value == 0))):
            raise ValueError(f"target_{column.name} must be positive and finite, got {value}.")
    losses = np.asarray(losses, np.float64)
    columns = [_like(column, losses) for column in columns]
    domains = losses.shape[1]
    fit = fit_law(law, columns, losses, delta=question.delta, repeats=True)
    unknown = np.full(domains, np.nan)
    target = unknown if budget is None else law.predict(fit, *budget)
    initial, current = (
        unknown if values is None else np.asarray(values)
        for values in (question.initial_losses, question.current_losses)
    )
    predicted = law.predict(fit, *columns)
    replicates, determined, counts, bounds, last_seen, judgements = [], [], [], [], [], []
    for domain in range(domains):
        present = ~np.isnan(losses[:, domain])
        points = _Points(tuple(column[present, domain] for column in columns), losses[present, domain])
        cases = draw_cases(len(points.losses), question.replicates, seed=question.seed, different=law.size)
        replicates.append(fit_resamples(law, points.columns, points.losses, cases, delta=float(fit.delta[domain])))
        numbers = _residual_numbers(law, points, predicted[present, domain], float(fit.sigma[domain]))
        counts.append(_counts(law, points, numbers))
        notes = _undetermined(law, points, least_values)
        determined.append(not notes)
        if not notes and (weak := weak_drop(numbers)):
            notes.append(weak)
        if budget is None:
            bounds.append((np.nan, np.nan))
            last_seen.append(np.nan)
        else:
            low, high = interval(law.predict(replicates[-1], *budget), level, determined=determined[-1])
            bounds.append((max(min(low, target[domain]), 0.0), max(high, target[domain])))
            last_seen.append(_nearest(points, budget))
            gaps = initial[domain] - target[domain], current[domain] - target[domain]
            notes = _about_target(law, points, budget, target[domain], bounds[-1], gaps, question.min_gap, notes)
        if fit.status[domain] != Status.CONVERGED:
            ended = "the search ended before the gradient test held; the parameters are the best found"
            notes.append(Judgement(Verdict.NOT_CONVERGED, ended))
        notes += residual_judgements(numbers, law.column_names)
        judgements.append(tuple(notes) or TRUSTED)
    lower, upper = np.array(bounds).T
    return ResampledEstimate(
        law=law,
        fit=fit,
        replicates=tuple(replicates),
        determined=tuple(determined),
        counts=tuple(counts),
        budget=budget,
        level=level,
        target=target,
        lower=lower,
        upper=upper,
        last_seen=np.array(last_seen),
        judgements=tuple(judgements),
    )


def interval(drawn: np.ndarray, level: float, *, determined: bool) -> tuple[float, float]:
    """Percentiles of a quantity over the replicates; unbounded where the points cannot determine the law."""
    if not determined:
        return -np.inf, np.inf
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


class _Points(NamedTuple):
    """The points of one domain."""

    columns: tuple[Float[np.ndarray, " points"], ...]
    losses: Float[np.ndarray, " points"]


def _like(column: np.ndarray, losses: np.ndarray) -> np.ndarray:
    column = np.asarray(column, np.float64)
    return np.broadcast_to(column[:, None] if column.ndim == 1 else column, losses.shape)


def _residual_numbers(law: Law[Any], points: _Points, predicted: np.ndarray, sigma: float) -> ResidualNumbers:
    residuals = np.log(points.losses) - np.log(predicted)
    return residual_numbers(points.columns, points.losses, residuals, unknowns=law.size, sigma=sigma)


def _counts(law: Law[Any], points: _Points, numbers: ResidualNumbers) -> Diagnosis:
    values = {
        f"{column.noun.replace(' ', '_')}s": len(np.unique(values))
        for column, values in zip(law.columns, points.columns, strict=True)
    }
    spread = numbers.replicate_spread
    return {
        "points": numbers.points,
        **values,
        "drop_sigmas": numbers.drop,
        "largest_residual": numbers.largest,
        "outlier_share": numbers.outliers / numbers.points,
        "outlier_chance": numbers.chance,
        "replicate_spread": spread if np.isfinite(spread) else None,
    }


def _undetermined(law: Law[Any], points: _Points, least_values: int) -> list[Judgement]:
    """Why the points cannot determine the law's parameters; empty where they can."""
    different = len(np.unique(np.stack(points.columns, axis=1), axis=0))
    if different <= law.size:
        why = (
            f"{different} different points for {number(law.size)} unknowns leave nothing to tell the error by; measure "
            "more"
        )
        return [Judgement(Verdict.UNDER_DETERMINED, why)]
    for column, values in zip(law.columns, points.columns, strict=True):
        count = len(np.unique(values))
        if count < least_values:
            instead = ", or choose a law without it" if len(law.columns) > 1 else ""
            why = (
                f"{count} {column.noun}{'s' * (count > 1)} cannot tell how the loss changes with {column.noun}; "
                f"measure at least {least_values}{instead}"
            )
            return [Judgement(Verdict.UNDER_DETERMINED, why)]
    return []


def _about_target(
    law: Law[Any],
    points: _Points,
    budget: Budget,
    target: float,
    bounds: tuple[float, float],
    gaps: tuple[float, float],
    min_gap: float,
    notes: list[Judgement],
) -> list[Judgement]:
    """The notes of a domain and those of its target, worst first; gaps are from the initial and the current loss."""
    below_initial, below_current = gaps
    worst: list[Judgement] = []
    if below_initial < min_gap:
        why = f"its target {target:.3f} is not {min_gap:g} nats below the initial loss {target + below_initial:.3f}"
        worst.append(Judgement(Verdict.NOT_BELOW_INITIAL, why))
    if below_current <= 0:
        why = f"its target {target:.3f} is not below the current loss {target + below_current:.3f}"
        worst.append(Judgement(Verdict.NOT_BELOW_CURRENT, why))
    notes = worst + notes
    # Where the initial loss is unknown, the highest measured loss stands for it.
    way = points.losses.max() - target if np.isnan(below_initial) else below_initial
    share = (bounds[1] - bounds[0]) / 2 / max(way, min_gap)
    if share > WIDEST_SHARE:
        wide = f"half the interval is {share:.0%} of the way from the initial loss to the target"
        advice = f"{wide if np.isfinite(share) else 'its interval is unbounded'}; add points"
        notes.append(Judgement(Verdict.TOO_WIDE, advice))
    for column, values, wanted in zip(law.columns, points.columns, budget, strict=True):
        ahead = 0.0 if column.linear else float(np.log10(wanted / values.max()))
        if ahead > FAR_DECADES:
            why = f"the target lies {ahead:.1f} decades of {column.axis} beyond the points; add larger ones"
            notes.append(Judgement(Verdict.TOO_FAR, why))
    return notes


def _nearest(points: _Points, budget: Budget) -> float:
    """The mean loss at the largest value of the last column, where the other columns are nearest to the budget."""
    near = np.ones(len(points.losses), bool)
    for values, wanted in zip(points.columns[:-1], budget[:-1], strict=True):
        distance = np.abs(np.log(np.where(values > 0, values, 1.0) / (wanted or 1.0)))
        near &= np.isclose(distance, distance[near].min())
    last = points.columns[-1]
    return float(points.losses[near & (last == last[near].max())].mean())
