"""Targets of curves by their posterior: predictions with intervals and verdicts, for the laws of one run."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from vtune_jax.fits import posterior
from vtune_jax.fits.bootstrap import bootstrap_predictions
from vtune_jax.fits.diagnostics import (
    NUMBERS_OF_TARGET,
    Diagnostics,
    autocorrelation,
    condition_number,
    judge,
)
from vtune_jax.fits.fitted import FittedCurves, fit_curves
from vtune_jax.fits.head import trim_heads
from vtune_jax.fits.laws.curve import Face
from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.laws.law import Band, Budget, Diagnosis, DropHead, Estimator, Law, Question
from vtune_jax.fits.points import on_device
from vtune_jax.fits.pooling import pooled_losses, shared_prior
from vtune_jax.fits.residuals import ResidualNumbers, residual_numbers
from vtune_jax.fits.solver import Width
from vtune_jax.fits.verdicts import OF_TARGET, TRUSTED, Judgements, Verdict

Method = Literal["posterior", "bootstrap"]
MODEL_ERROR_PER_DECADE = 0.02
"""Error of the law itself, in log loss per decade extrapolated: empirical, from public training curves."""
BAND = 24
"""Places between the first point and the budget at which `TargetEstimate.band` is evaluated."""


class TargetEstimate(NamedTuple):
    """Predicted losses of curves at a budget, per domain, nats per token; an `Estimate`."""

    target: Float[np.ndarray, " domains"]  # posterior median
    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]
    standard_error: Float[np.ndarray, " domains"]
    level: float  # of the interval
    budget: Budget | None
    curves: FittedCurves  # what was fitted, heads left out
    last_seen: Float[np.ndarray, " domains"]  # the loss at the most tokens, a mean where there are several
    beta_prior: tuple[float, float]  # prior used: median of the exponent, and deviation of its logarithm
    diagnostics: Diagnostics
    judgements: Judgements
    band: Band | None = None

    @property
    def law(self) -> Law[Any]:
        """The law fitted."""
        return self.curves.law

    @property
    def fit(self) -> Any:
        """The law's optimum in each domain, in the law's own typed fit."""
        return self.curves.fit

    @property
    def verdicts(self) -> tuple[tuple[Verdict, ...], ...]:
        """Per domain, worst first."""
        return tuple(tuple(judgement.verdict for judgement in domain) for domain in self.judgements)

    @property
    def advices(self) -> tuple[tuple[str, ...], ...]:
        """One sentence for each verdict; empty where trustworthy."""
        return tuple(tuple(judgement.advice for judgement in domain) for domain in self.judgements)

    @property
    def verdict(self) -> tuple[Verdict, ...]:
        """The worst of each domain."""
        return tuple(domain[0].verdict for domain in self.judgements)

    @property
    def advice(self) -> tuple[str, ...]:
        """The advice of the worst verdict."""
        return tuple(domain[0].advice for domain in self.judgements)

    def predict(self, budget: Budget) -> Float[np.ndarray, " domains"]:
        """The loss of the law's optimum at another budget."""
        return self.curves.predict(budget)

    def pooled(self, usable: np.ndarray) -> Float[np.ndarray, " domains"]:
        """The law that the usable domains have in common, at each domain's own level, see `pooled_losses`."""
        if self.budget is None:
            raise ValueError("pooled losses need a budget, got none.")
        return pooled_losses(self.curves, self.budget, usable)

    def diagnosis(self, domain: int) -> Diagnosis:
        """The numbers of one domain."""
        numbers = self.diagnostics.of_domain(domain)
        hidden = () if self.budget else NUMBERS_OF_TARGET
        return {name: value for name, value in numbers.items() if name not in hidden}

    def parameter_interval(self, domain: int, name: str) -> tuple[float, float] | None:
        """None: the posterior is that of the loss, not of the law's parameters."""
        return None

    def parameter_error(self, domain: int, name: str) -> float | None:
        """None, as `parameter_interval`."""
        return None


def by_posterior(*, exponent_prior: tuple[float, float]) -> Estimator:
    """The estimator for laws of the family in `laws.curve`.

    Args:
        exponent_prior: median of the exponent, and standard deviation of its logarithm.
    """

    def estimate(
        law: Law[Any], columns: Sequence[np.ndarray], losses: np.ndarray, question: Question
    ) -> TargetEstimate:
        return estimate_curves(
            law,
            columns,
            losses,
            question.budget,
            exponent_prior=exponent_prior,
            initial_losses=question.initial_losses,
            current_losses=question.current_losses,
            runs=question.runs,
            level=question.level,
            delta=question.delta,
            drop_head=question.drop_head,
            share_beta=question.share_beta,
            min_gap=question.min_gap,
            band=question.band,
        )

    return Estimator(estimate, frozenset({"drop_head", "share_beta"}))


def estimate_curves(
    law: Law[Any],
    columns: Sequence[np.ndarray],
    losses: np.ndarray,
    budget: Budget | None,
    *,
    exponent_prior: tuple[float, float],
    initial_losses: np.ndarray | None = None,
    current_losses: np.ndarray | None = None,
    runs: np.ndarray | None = None,
    level: float = 0.9,
    method: Method = "posterior",
    delta: Width = "auto",
    drop_head: DropHead = "auto",
    share_beta: bool = False,
    model_error_per_decade: float = MODEL_ERROR_PER_DECADE,
    min_gap: float = 1e-2,
    replicates: int = 1000,
    seed: int = 0,
    band: bool = False,
) -> TargetEstimate:
    """Predicts each domain's loss at a budget from its losses along a curve; see `estimate_targets`.

    Args:
        law: of the family in `laws.curve`.
        columns: in the law's order, [points] or [points, domains].
        losses: [points, domains]; NaN leaves a point out.
        budget: one value per column; None: only the law is wanted, targets are NaN.
        exponent_prior: median of the exponent, and standard deviation of its logarithm.
        initial_losses: of the base model, [domains]; None: unknown.
        current_losses: of the model as it is, [domains]; None: unknown.
        runs: which run each point comes from.
        level: of the interval.
        method: "posterior" or "bootstrap".
        delta: Huber width on log residuals.
        drop_head: points left out at the beginning of every curve.
        share_beta: takes the prior from all domains together.
        model_error_per_decade: of the law, in log loss.
        min_gap: nats that a usable target must lie below the initial loss.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        band: also evaluates the prediction for a picture.

    Raises:
        ValueError: as `fit_law`, a level outside (0, 1), or a budget that is not positive.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    if budget is not None and not (np.isfinite(budget[0]) and budget[0] > 0):
        raise ValueError(f"target_{law.columns[0].name} must be positive and finite, got {budget[0]}.")
    losses = np.asarray(losses, np.float64)
    measured = law.checked(columns, losses)
    # A stand-in for the budget: the picture of a law alone ends at the last point.
    place = budget or tuple(float(column[measured.present].max()) for column in measured.columns)
    trimmed = trim_heads(law, measured, drop_head)
    curves = fit_curves(law, trimmed.measured, delta)
    unknown = np.full(losses.shape[1], np.nan)
    initial, current = (
        unknown if values is None else np.asarray(values, np.float64) for values in (initial_losses, current_losses)
    )
    ahead, span = _decades(curves, place)
    rho, apart = autocorrelation(curves, _sorted_runs(runs, losses.shape, measured.order))
    points = effective_points(curves, rho, apart)
    prior = shared_prior(points, curves.domains, exponent_prior) if share_beta else exponent_prior
    places = [place, *(_band_places(curves, place) if band else [])]
    levels = ((1 - level) / 2, 0.5, (1 + level) / 2)
    if method == "bootstrap":
        drawn = np.stack([np.log(bootstrap_predictions(curves, p, replicates=replicates, seed=seed)) for p in places])
        logs = np.stack([np.quantile(drawn, share, axis=1) for share in levels])
        # As in published work the target is the optimum, not the replicates' median.
        logs[1] = np.log([curves.predict(p) for p in places])
        logs[0], logs[2] = np.minimum(logs[0], logs[1]), np.maximum(logs[2], logs[1])
    else:
        logs = _posterior_quantiles(curves, points, places, prior, levels)
    z = float(ndtri(levels[2]))
    count = curves.present.sum(axis=0)
    beyond = np.stack([_decades(curves, p)[0] for p in places])
    model_error = z * model_error_per_decade * np.maximum(beyond, 0.0)
    # With as many points as unknowns there are no residuals to tell the error by.
    distinct = curves.measured.places
    exact = (count <= law.size) | (distinct < law.size)
    below, above = (np.where(exact, np.inf, np.hypot(width, model_error)) for width in np.diff(logs, axis=0))
    values, lower, upper = np.exp(logs[1]), np.exp(logs[1] - below), np.exp(logs[1] + above)
    half = 0.5 * (upper[0] - lower[0])
    gap = initial - values[0]
    # Where the initial loss is unknown, the highest measured loss stands for it.
    fallen = np.nanmax(curves.measured.losses, axis=0) - values[0]
    numbers = [_residual_numbers(curves, domain) for domain in range(curves.domains)]
    diagnostics = Diagnostics(
        points=count,
        places=distinct,
        law_parameters=law.size,
        head_points=trimmed.dropped,
        range_decades=span,
        extrapolation_decades=ahead,
        drop_sigmas=np.array([found.drop for found in numbers]),
        face=curves.face,
        condition=condition_number(curves),
        sigma=curves.fit.sigma,
        largest_residual=np.array([found.largest for found in numbers]),
        outlier_share=np.array([found.outliers for found in numbers]) / count,
        outlier_chance=np.array([found.chance for found in numbers]),
        replicate_spread=np.array([found.replicate_spread for found in numbers]),
        status=curves.fit.status,
        autocorrelation=rho,
        effective_points=count * independent_share(rho, apart),
        gap=gap,
        gap_to_current=current - values[0],
        above_floor=values[0] - _floor(curves, place),
        half_width_share=half / np.maximum(np.where(np.isnan(gap), fallen, gap), min_gap),
    )
    judgements = tuple(
        judge(
            diagnostics,
            domain,
            numbers=numbers[domain],
            names=law.column_names,
            trimmed=trimmed,
            target=float(values[0, domain]),
            upper=float(upper[0, domain]),
            initial=float(initial[domain]),
            current=float(current[domain]),
            min_gap=min_gap,
        )
        for domain in range(curves.domains)
    )
    if budget is None:
        judgements = tuple(
            tuple(judgement for judgement in domain if judgement.verdict not in OF_TARGET) or TRUSTED
            for domain in judgements
        )
    along = np.array([p[0] for p in places[1:]])
    return TargetEstimate(
        target=values[0] if budget else unknown,
        lower=lower[0] if budget else unknown,
        upper=upper[0] if budget else unknown,
        standard_error=half / z if budget else unknown,
        level=level,
        budget=budget,
        curves=curves,
        last_seen=_last_seen(curves),
        beta_prior=prior,
        diagnostics=diagnostics,
        judgements=judgements,
        band=Band(along, values[1:], lower[1:], upper[1:]) if band else None,
    )


def _residual_numbers(curves: FittedCurves, domain: int) -> ResidualNumbers:
    present = curves.present[:, domain]
    columns = [column[present, domain] for column in curves.measured.columns]
    losses, residuals = curves.measured.losses[present, domain], curves.residuals[present, domain]
    return residual_numbers(columns, losses, residuals, unknowns=curves.law.size, sigma=float(curves.fit.sigma[domain]))


def _floor(curves: FittedCurves, place: Budget) -> Float[np.ndarray, " domains"]:
    """The loss that the fitted law tends to along its first column, NaN where it is flat: `exp(c) (1 - s/b - k q)`.

    Under LRA annealing goes below E, so the area annealed at the budget is taken off it.
    """
    c, s, b, k = curves.parameters
    _, *q = curves.law.inputs_at([place], curves.units)
    floor = np.exp(c) * (1 - s / b - (k * q[0][0] if q else 0.0))
    return np.where(curves.face == Face.FLAT, np.nan, floor)


def effective_points(curves: FittedCurves, rho: Float[np.ndarray, " domains"], apart: np.ndarray) -> Points:
    """Points whose weight is the number of independent points that each is worth.

    The weight is the Huber weight times `independent_share`.

    Args:
        curves: fitted.
        rho: lag-1 correlation of the residuals.
        apart: number of residuals that rho is a mean of.
    """
    domains, places = len(rho), slice(0, len(curves.residuals))
    # With a width far below the residuals, as published ones often are, no point would count.
    width = np.maximum(curves.fit.delta, 1.345 * curves.fit.sigma)
    robust = np.minimum(1.0, width / np.maximum(np.abs(curves.residuals), 1e-300))
    weight = curves.points.weight.copy()
    weight[places, :domains] *= robust * independent_share(rho, apart)
    weight[:, domains:] = weight[:, :1]
    return curves.points._replace(weight=weight)


def independent_share(rho: Float[np.ndarray, " domains"], count: np.ndarray) -> Float[np.ndarray, " domains"]:
    """`(1 - r) / (1 + r)`, r the noise's lag-1 correlation, where that of the residuals exceeds `0.5 / sqrt(points)`.

    The residuals of a fit of three parameters correlate less than the noise: on planted curves of 20 and 40 points by
    `(2.7 + 8 r) / points`, so that residuals of uncorrelated noise correlate negatively. Hence
    `r = (n rho + 2.7) / (n - 8)`. One curve of uncorrelated noise in seven exceeds the threshold; a threshold of
    `2 / sqrt(points)` would miss half of the curves with r = 0.7. The points never count for fewer than three.
    """
    known = np.nan_to_num(rho)
    noise = np.clip((count * known + 2.7) / np.maximum(count - 8, count / 2), 0.0, 0.95)
    share = np.maximum((1 - noise) / (1 + noise), np.minimum(3 / count, 1.0))
    return np.where(known > 0.5 / np.sqrt(count), share, 1.0)


def _posterior_quantiles(
    curves: FittedCurves, points: Points, places: list[Budget], prior: tuple[float, float], levels: tuple[float, ...]
) -> Float[np.ndarray, "levels places domains"]:
    lanes = points.weight.shape[1]
    with jax.enable_x64(True):
        priors = jnp.asarray(np.repeat(np.array(prior)[:, None], lanes, axis=1))
        logs = posterior.quantiles(on_device(points), curves.budget_inputs(places), priors, jnp.array(levels))
        return np.asarray(logs)[..., : curves.domains]


def _decades(curves: FittedCurves, place: Budget) -> tuple[np.ndarray, np.ndarray]:
    """From the last point to a place, and from the first point to the last."""
    logs = np.where(curves.present, np.log10(curves.along), np.nan)
    last = np.nanmax(logs, axis=0)
    return np.log10(place[0]) - last, last - np.nanmin(logs, axis=0)


def _band_places(curves: FittedCurves, place: Budget) -> list[Budget]:
    """From the first point on; a second column grows in proportion, which is exact at the last place alone."""
    tokens = curves.along[curves.present]
    last = max(place[0], tokens.max())
    along = np.geomspace(tokens.min(), last, BAND).tolist()
    return [(value, *(other * value / last for other in place[1:])) for value in along]


def _last_seen(curves: FittedCurves) -> np.ndarray:
    tokens = np.where(curves.present, curves.along, 0.0)
    last = np.where(tokens == tokens.max(axis=0), curves.measured.losses, np.nan)
    return np.asarray(np.nanmean(last, axis=0))


def _sorted_runs(runs: np.ndarray | None, shape: tuple[int, ...], order: np.ndarray) -> np.ndarray | None:
    if runs is None:
        return None
    runs = np.asarray(runs)
    return np.take_along_axis(np.broadcast_to(runs[:, None] if runs.ndim == 1 else runs, shape), order, axis=0)
