"""Target losses with intervals and verdicts: whether each prediction may be used."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from vtune_jax.fits import posterior
from vtune_jax.fits.bootstrap import bootstrap_predictions
from vtune_jax.fits.diagnostics import (
    OUTLIER_SIGMAS,
    Diagnostics,
    Verdict,
    autocorrelation,
    condition_number,
    drop_sigmas,
    judge,
    outlier_chance,
    residual_sizes,
)
from vtune_jax.fits.fitted import FittedCurves, Target, fit_curves
from vtune_jax.fits.head import Trimmed, trim_heads
from vtune_jax.fits.laws.annealing import ALPHA_PRIOR, AnnealingFit
from vtune_jax.fits.laws.law import Points
from vtune_jax.fits.laws.power_law import PowerLawFit, Width
from vtune_jax.fits.points import checked_points, on_device
from vtune_jax.fits.pooling import BETA_PRIOR, shared_prior

Method = Literal["posterior", "bootstrap"]
MODEL_ERROR_PER_DECADE = 0.02
"""Error of the law itself, in log loss per decade extrapolated: empirical, from public training curves."""
BAND = 24
"""Places between the points and the target where `TargetEstimate.band` is evaluated."""


class Band(NamedTuple):
    """The prediction all along, for a picture."""

    tokens: Float[np.ndarray, " places"]
    middle: Float[np.ndarray, "places domains"]
    lower: Float[np.ndarray, "places domains"]
    upper: Float[np.ndarray, "places domains"]


class TargetEstimate(NamedTuple):
    """Predicted losses at the budget, per domain, nats per token."""

    target: Float[np.ndarray, " domains"]  # posterior median
    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]
    standard_error: Float[np.ndarray, " domains"]
    level: float  # of the interval
    curves: FittedCurves  # what was fitted, heads left out
    last_seen: Float[np.ndarray, " domains"]  # the loss at the most tokens, a mean where there are several
    beta_prior: tuple[float, float]  # that was used: median, deviation of the logarithm
    diagnostics: Diagnostics
    verdicts: tuple[tuple[Verdict, ...], ...]  # per domain, worst first
    advices: tuple[tuple[str, ...], ...]  # one sentence for each verdict; empty where trustworthy
    band: Band | None = None

    @property
    def fit(self) -> PowerLawFit | AnnealingFit:
        """The laws' optimum."""
        return self.curves.fit

    @property
    def verdict(self) -> tuple[Verdict, ...]:
        """The worst of each domain."""
        return tuple(said[0] for said in self.verdicts)

    @property
    def advice(self) -> tuple[str, ...]:
        """Of the worst."""
        return tuple(said[0] for said in self.advices)

    def as_json(self) -> dict[str, Any]:
        """For `targets.json`; an infinite bound becomes null."""
        names = ("E", "log_A", "alpha", "C") if self.curves.annealed else ("E", "log_B", "beta")
        domains = range(len(self.target))
        return {
            **{name: finite(getattr(self, name)) for name in ("target", "lower", "upper", "standard_error")},
            "level": self.level,
            "verdict": [str(verdict) for verdict in self.verdict],
            "advice": list(self.advice),
            "verdicts": [
                [{"verdict": str(verdict), "advice": advice} for verdict, advice in zip(*both, strict=True)]
                for both in zip(self.verdicts, self.advices, strict=True)
            ],
            "diagnostics": [self.diagnostics.as_json(domain) for domain in domains],
            "law": {name: finite(getattr(self.fit, name)) for name in names},
            "beta_prior": list(self.beta_prior),
        }


def estimate_targets(
    tokens: np.ndarray,
    losses: np.ndarray,
    target_tokens: int | float,
    *,
    initial_losses: np.ndarray | None = None,
    current_losses: np.ndarray | None = None,
    annealed: np.ndarray | None = None,
    target_annealed: float = 0.0,
    runs: np.ndarray | None = None,
    level: float = 0.9,
    method: Method = "posterior",
    delta: Width = "auto",
    drop_head: int | Literal["auto"] = "auto",
    beta_prior: tuple[float, float] | None = None,
    share_beta: bool = False,
    model_error_per_decade: float = MODEL_ERROR_PER_DECADE,
    min_gap: float = 1e-2,
    replicates: int = 1000,
    seed: int = 0,
    band: bool = False,
) -> TargetEstimate:
    """Predicts each domain's loss at the budget from its losses at fewer tokens.

    The law is `L(D) = E + B / D^beta` or, where annealed areas are given, `L = E + A / S1^alpha - C S2` (`annealing`).
    For the first one, points must come from runs annealed as the real one will be: a run still at a high learning rate
    says little of what an annealed run of as many tokens reaches.

    Args:
        tokens: training tokens behind each point, [points] or [points, domains]; all domains' tokens or the domain's
            own give the same prediction as long as the mixture was constant. With annealed areas: S1.
        losses: [points, domains], nats per token; NaN leaves a point out.
        target_tokens: the budget, or S1 at its end.
        initial_losses: [domains], of the base model; None: unknown.
        current_losses: [domains], of the model as it is; None: unknown.
        annealed: S2 at each point, as tokens.
        target_annealed: S2 at the end of the budget.
        runs: which run each point comes from, as tokens; None: all from one, in which neighbouring residuals may
            correlate.
        level: of the interval.
        method: "posterior", whose median is the target; or "bootstrap", percentiles over case resamples with the
            optimum as target, for comparison with published work.
        delta: Huber width of the fit, whose weights also downweight outliers in the posterior.
        drop_head: points left out at the beginning of every curve; "auto": warm-up heads, where they are found.
        beta_prior: median and log standard deviation of the exponent; None: `BETA_PRIOR` or `ALPHA_PRIOR`.
        share_beta: takes the prior from all domains together instead, see `shared_prior`.
        model_error_per_decade: of the law, in log loss per decade extrapolated; added in quadrature.
        min_gap: nats that a usable target must lie below the initial loss.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        band: evaluates the prediction between the points and the target too.

    Returns:
        targets, intervals, diagnostics and verdicts. With three points (four with annealing) the interval is infinite.

    Raises:
        ValueError: as `fit_loss_curves`, a level outside (0, 1), or a target that is not positive.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    if not (np.isfinite(target_tokens) and target_tokens > 0):
        raise ValueError(f"target_tokens must be positive and finite, got {target_tokens}.")
    losses = np.asarray(losses, np.float64)
    others: dict[str, Any] = {} if annealed is None else {"annealed_area": annealed}
    measured = checked_points(tokens, losses, least=3 + len(others), **others)
    trimmed = trim_heads(measured, drop_head)
    curves = fit_curves(trimmed.measured, delta)
    unknown = np.full(losses.shape[1], np.nan)
    initial, current = (
        unknown if given is None else np.asarray(given, np.float64) for given in (initial_losses, current_losses)
    )
    target = Target(float(target_tokens), float(target_annealed))
    ahead, span = _decades(curves, target)
    rho, apart = autocorrelation(curves, _sorted_runs(runs, losses.shape, measured.order))
    points = effective_points(curves, rho, apart)
    prior = beta_prior or (BETA_PRIOR if annealed is None else ALPHA_PRIOR)
    if share_beta:
        prior = shared_prior(points, len(ahead), prior)
    places = [target, *(_band_places(curves, target) if band else [])]
    levels = ((1 - level) / 2, 0.5, (1 + level) / 2)
    if method == "bootstrap":
        drawn = np.stack([np.log(bootstrap_predictions(curves, at, replicates=replicates, seed=seed)) for at in places])
        logs = np.stack([np.quantile(drawn, share, axis=1) for share in levels])
        # As published: the optimum, not the replicates' median.
        logs[1] = np.log([curves.predict(at) for at in places])
        logs[0], logs[2] = np.minimum(logs[0], logs[1]), np.maximum(logs[2], logs[1])
    else:
        logs = _posterior_quantiles(curves, points, places, prior, levels)
    z = float(ndtri(levels[2]))
    count = curves.seen.sum(axis=0)
    beyond = np.stack([_decades(curves, at)[0] for at in places])
    model_error = z * model_error_per_decade * np.maximum(beyond, 0.0)
    # As many points as unknowns: nothing is left to say how wrong they are.
    distinct = curves.measured.places
    exact = (count <= curves.law_parameters) | (distinct < curves.law_parameters)
    below, above = (np.where(exact, np.inf, np.hypot(width, model_error)) for width in np.diff(logs, axis=0))
    values, lower, upper = np.exp(logs[1]), np.exp(logs[1] - below), np.exp(logs[1] + above)
    half = 0.5 * (upper[0] - lower[0])
    gap = initial - values[0]
    # Where the initial loss is unknown, the highest one measured stands for it.
    fallen = np.nanmax(curves.measured.losses, axis=0) - values[0]
    sizes = residual_sizes(curves)
    diagnostics = Diagnostics(
        points=count,
        places=distinct,
        law_parameters=curves.law_parameters,
        head_points=trimmed.dropped,
        range_decades=span,
        extrapolation_decades=ahead,
        drop_sigmas=drop_sigmas(curves),
        face=curves.face,
        condition=condition_number(curves),
        sigma=curves.fit.sigma,
        largest_residual=sizes.max(axis=0),
        outlier_share=(sizes > OUTLIER_SIGMAS).sum(axis=0) / count,
        outlier_chance=outlier_chance(sizes.max(axis=0), count, curves.law_parameters),
        status=curves.fit.status,
        autocorrelation=rho,
        effective_points=count * independent_share(rho, apart),
        gap=gap,
        gap_to_current=current - values[0],
        half_width_share=half / np.maximum(np.where(np.isnan(gap), fallen, gap), min_gap),
    )
    said = _judged(diagnostics, trimmed, values[0], initial, current, min_gap)
    return TargetEstimate(
        target=values[0],
        lower=lower[0],
        upper=upper[0],
        standard_error=half / z,
        level=level,
        curves=curves,
        last_seen=_last_seen(curves),
        beta_prior=prior,
        diagnostics=diagnostics,
        verdicts=tuple(tuple(verdict for verdict, _ in of) for of in said),
        advices=tuple(tuple(advice for _, advice in of) for of in said),
        band=Band(np.array([at.tokens for at in places[1:]]), values[1:], lower[1:], upper[1:]) if band else None,
    )


def effective_points(curves: FittedCurves, rho: Float[np.ndarray, " domains"], apart: np.ndarray) -> Points:
    """Points weighted by how many independent ones each is worth: Huber weights, less what autocorrelation takes.

    Args:
        curves: fitted.
        rho: lag-1 correlation of the residuals.
        apart: how many residuals that is a mean of.
    """
    domains, places = len(rho), slice(0, len(curves.residuals))
    # A width far below the residuals, as published ones often are, would say that no point counts.
    width = np.maximum(curves.fit.delta, 1.345 * curves.fit.sigma)
    robust = np.minimum(1.0, width / np.maximum(np.abs(curves.residuals), 1e-300))
    weight = curves.points.weight.copy()
    weight[places, :domains] *= robust * independent_share(rho, apart)
    weight[:, domains:] = weight[:, :1]
    return curves.points._replace(weight=weight)


def independent_share(rho: Float[np.ndarray, " domains"], count: np.ndarray) -> Float[np.ndarray, " domains"]:
    """`(1 - r) / (1 + r)`, r the noise's lag-1 correlation, where that of the residuals exceeds `0.5 / sqrt(points)`.

    What a fit of three parameters leaves over correlates less than the noise did: on planted curves of 20 and 40 points
    by `(2.7 + 8 r) / points`, so that uncorrelated noise comes out negative. Hence `r = (n rho + 2.7) / (n - 8)`, and a
    threshold that one white curve in seven exceeds; `2 / sqrt(points)` would miss half of those with r = 0.7. At least
    three points are always left.
    """
    known = np.nan_to_num(rho)
    noise = np.clip((count * known + 2.7) / np.maximum(count - 8, count / 2), 0.0, 0.95)
    share = np.maximum((1 - noise) / (1 + noise), np.minimum(3 / count, 1.0))
    return np.where(known > 0.5 / np.sqrt(count), share, 1.0)


def _posterior_quantiles(
    curves: FittedCurves, points: Points, places: list[Target], prior: tuple[float, float], levels: tuple[float, ...]
) -> Float[np.ndarray, "levels places domains"]:
    lanes, domains = points.weight.shape[1], len(curves.middle)
    with jax.enable_x64(True):
        of_lanes = np.repeat(np.array(prior)[:, None], lanes, axis=1)
        found = posterior.quantiles(on_device(points), curves.budgets(places), jnp.asarray(of_lanes), levels)
        return np.asarray(found)[..., :domains]


def _judged(
    diagnostics: Diagnostics,
    trimmed: Trimmed,
    target: np.ndarray,
    initial: np.ndarray,
    current: np.ndarray,
    min_gap: float,
) -> list[list[tuple[Verdict, str]]]:
    return [
        judge(
            diagnostics,
            domain,
            trimmed=trimmed,
            target=float(target[domain]),
            initial=float(initial[domain]),
            current=float(current[domain]),
            min_gap=min_gap,
        )
        for domain in range(len(target))
    ]


def _decades(curves: FittedCurves, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """From the last point to the target, and from the first point to the last."""
    logs = np.where(curves.seen, np.log10(curves.measured.tokens), np.nan)
    last = np.nanmax(logs, axis=0)
    return np.log10(target.tokens) - last, last - np.nanmin(logs, axis=0)


def _band_places(curves: FittedCurves, target: Target) -> list[Target]:
    """From the first point on; annealing is spread in proportion, which is only right at the target itself."""
    first = curves.measured.tokens[curves.seen].min()
    last = max(target.tokens, curves.measured.tokens[curves.seen].max())
    return [Target(float(at), target.annealed * float(at) / last) for at in np.geomspace(first, last, BAND)]


def _last_seen(curves: FittedCurves) -> np.ndarray:
    tokens = np.where(curves.seen, curves.measured.tokens, 0.0)
    return np.nanmean(np.where(tokens == tokens.max(axis=0), curves.measured.losses, np.nan), axis=0)


def _sorted_runs(runs: np.ndarray | None, shape: tuple[int, ...], order: np.ndarray) -> np.ndarray | None:
    if runs is None:
        return None
    runs = np.asarray(runs)
    return np.take_along_axis(np.broadcast_to(runs[:, None] if runs.ndim == 1 else runs, shape), order, axis=0)


def finite(values: np.ndarray) -> list[float | None]:
    """As JSON has it."""
    return [float(value) if np.isfinite(value) else None for value in values]
