"""What can be wrong with a fitted curve and its target, each with its number, a verdict and what to do about it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtune_jax.fits.fitted import FittedCurves
from vtune_jax.fits.head import Trimmed
from vtune_jax.fits.laws.curve import Face, psi_on_host
from vtune_jax.fits.laws.law import Diagnosis
from vtune_jax.fits.residuals import ResidualNumbers, residual_judgements, weak_drop
from vtune_jax.fits.solver import Status
from vtune_jax.fits.verdicts import FAR_DECADES, TRUSTED, WIDEST_SHARE, Judgement, Verdict, number

SHORT_RANGE_DECADES = {3: 0.7, 4: 0.5}
WORST_CONDITION = {3: 1e4, 4: 1e5}
"""By the number of the law's parameters. Under LRA, points from the last seven eighths of a proxy span 0.7 decades of
S1 and have a condition number under 2e4; points from its last three quarters span 0.4 and have over 5e4
(`test_the_annealing_law_predicts_another_schedule`)."""
FEW_POINTS = 3
"""Fewer points than this beyond the number of parameters earn a verdict."""
NUMBERS_OF_TARGET = ("extrapolation_decades", "gap", "gap_to_current", "above_floor", "half_width_share")
"""Fields of `Diagnostics` that say nothing if no budget was asked for."""


class Diagnostics(NamedTuple):
    """One number per domain for each thing that can be wrong; NaN where it is unknown."""

    points: Int[np.ndarray, " domains"]  # fitted
    places: Int[np.ndarray, " domains"]  # points that differ in more than their loss
    law_parameters: int  # number of the law's parameters, for all domains
    head_points: Int[np.ndarray, " domains"]  # left out as a warm-up head
    range_decades: Float[np.ndarray, " domains"]  # of tokens (S1 under LRA) between the first and the last point
    extrapolation_decades: Float[np.ndarray, " domains"]  # from the last point to the budget; negative: backwards
    drop_sigmas: Float[np.ndarray, " domains"]  # fitted fall of the log loss over the points, in units of sigma
    face: Int[np.ndarray, " domains"]  # see `curve.Face`
    condition: Float[np.ndarray, " domains"]  # of G'G, G the slopes of the log model
    sigma: Float[np.ndarray, " domains"]  # robust spread of the log residuals
    largest_residual: Float[np.ndarray, " domains"]  # in robust standard deviations, see `residuals.standardised`
    outlier_share: Float[np.ndarray, " domains"]  # share of the points beyond 3.5 such deviations
    outlier_chance: Float[np.ndarray, " domains"]  # chance that as many normal residuals hold one as large
    replicate_spread: Float[np.ndarray, " domains"]  # standard deviation of log losses at one place
    status: Int[np.ndarray, " domains"]  # of the fit, see `solver.Status`
    autocorrelation: Float[np.ndarray, " domains"]  # of neighbouring residuals
    effective_points: Float[np.ndarray, " domains"]  # number of independent points that would tell as much
    gap: Float[np.ndarray, " domains"]  # initial loss minus target, nats
    gap_to_current: Float[np.ndarray, " domains"]  # current loss minus target, nats
    above_floor: Float[np.ndarray, " domains"]  # target minus the law's limit for endless tokens, nats
    half_width_share: Float[np.ndarray, " domains"]  # half the interval over the gap; see `estimate_curves`

    def of_domain(self, domain: int) -> Diagnosis:
        """The numbers of one domain; what is unknown is None."""
        values = {name: getattr(self, name)[domain] for name in self._fields if name != "law_parameters"}
        return {name: Face(value).name.lower() if name == "face" else _plain(value) for name, value in values.items()}


def _plain(value: Any) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if np.isfinite(value) else None


def condition_number(curves: FittedCurves) -> Float[np.ndarray, " domains"]:
    """Of G'G at the optimum, G the slopes of the log model by (c, s, b) and, with annealing, k.

    One decade of tokens gives about 2e3, half a decade 4e4. In (E, B, beta) it would depend on the unit of tokens.
    """
    _, s, b, k = curves.parameters
    t, *q = curves.points.inputs[:, : len(curves.residuals), : curves.domains]
    shape, decayed = psi_on_host(t, b), np.exp(-b * t)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_b = np.where(np.abs(b * t) < 1e-4, t**2 * (-0.5 + b * t / 3), (t * decayed - shape) / b)
    inner = np.maximum(1 - s * shape - (k * q[0] if q else 0.0), 1e-12)
    slopes = [np.ones_like(shape), -shape / inner, -s * of_b / inner, *(-x / inner for x in q)]
    jacobian = np.stack(slopes, axis=-1) * curves.present[..., None]
    gram = np.einsum("pdi,pdj->dij", jacobian, jacobian)
    values = np.linalg.eigvalsh(gram)
    return values[:, -1] / np.maximum(values[:, 0], 1e-300)


def autocorrelation(
    curves: FittedCurves, runs: np.ndarray | None = None
) -> tuple[Float[np.ndarray, " domains"], Int[np.ndarray, " domains"]]:
    """Lag-1 correlation of the residuals along each run, NaN with fewer than five, and the number of residuals.

    Points of different runs are no neighbours. Several points of a run at one number of tokens are replaced by the sum
    of their residuals over the root of their number, which has the variance of a single residual.

    Args:
        curves: sorted by tokens.
        runs: which run each point comes from, [points, domains] in the curves' order; None: all from one.
    """
    correlations, counts = [], []
    for domain in range(curves.domains):
        present = curves.present[:, domain]
        residual, tokens = curves.residuals[present, domain], curves.along[present, domain]
        label = (
            np.zeros(len(residual), int) if runs is None else np.unique(runs[present, domain], return_inverse=True)[1]
        )
        place, index, size = np.unique(
            np.stack([label, tokens], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        residual = np.bincount(index.ravel(), weights=residual) / np.sqrt(size)
        same = np.diff(place[:, 0]) == 0
        pairs = residual[:-1][same], residual[1:][same]
        variance = (residual**2).mean() if len(residual) else 0.0
        exact = variance < 1e-20
        enough = len(residual) >= 5 and len(pairs[0]) >= 4
        correlations.append(np.nan if exact or not enough else (pairs[0] * pairs[1]).mean() / variance)
        counts.append(len(residual))
    return np.array(correlations), np.array(counts)


def judge(
    diagnostics: Diagnostics,
    domain: int,
    *,
    numbers: ResidualNumbers,
    names: Sequence[str],
    trimmed: Trimmed,
    target: float,
    upper: float,
    initial: float,
    current: float,
    min_gap: float,
) -> tuple[Judgement, ...]:
    """Every verdict that applies to a domain, worst first, each with its number and what to do.

    Args:
        diagnostics: of all domains.
        domain: which one is judged.
        numbers: of its residuals.
        names: of the law's columns.
        trimmed: curves without their heads.
        target: its predicted loss.
        upper: of the target's interval.
        initial: loss of the base model; NaN: unknown.
        current: loss of the model as it is; NaN: unknown.
        min_gap: nats that a usable target must lie below the initial loss.
    """
    face = Face(diagnostics.face[domain])
    points, places = int(diagnostics.points[domain]), int(diagnostics.places[domain])
    unknowns = diagnostics.law_parameters
    counted = f"{points} points" if places == points else f"{points} points at {places} places"
    ahead, span = diagnostics.extrapolation_decades[domain], diagnostics.range_decades[domain]
    gap, share = diagnostics.gap[domain], diagnostics.half_width_share[domain]
    condition = diagnostics.condition[domain]
    below_floor = -diagnostics.above_floor[domain]
    judgements: list[Judgement] = []

    def note(applies: bool | np.bool_, verdict: Verdict, advice: str) -> None:
        if applies:
            judgements.append(Judgement(verdict, advice))

    note(
        face == Face.FLAT,
        Verdict.RISING,
        f"its loss does not fall over {span:.1f} decades of tokens; run longer proxies or leave the domain out",
    )
    note(
        gap < min_gap,
        Verdict.NOT_BELOW_INITIAL,
        f"its target {target:.3f} is not {min_gap:g} nats below the initial loss {initial:.3f}; there is little to "
        "learn from it at this budget",
    )
    note(
        diagnostics.gap_to_current[domain] <= 0,
        Verdict.NOT_BELOW_CURRENT,
        f"its target {target:.3f} is not below the current loss {current:.3f}: it has arrived already",
    )
    note(
        trimmed.refused[domain],
        Verdict.WARM_UP_HEAD,
        f"its first points do not obey the law of the rest, even with the first {trimmed.dropped[domain]} left out; "
        "leave them out (--drop-head n), or give points from after the warm-up",
    )
    note(
        below_floor > upper - target,
        Verdict.INTERVAL_BELOW_E,
        f"its interval ends at {upper:.3f}, below {target + below_floor:.3f}, where its fitted law levels off: the "
        "points do not obey the law; leave out the first ones (--drop-head) or those that are off",
    )
    note(
        places <= unknowns,
        Verdict.UNDER_DETERMINED,
        f"{counted} for {number(unknowns)} unknowns leave nothing to tell the law's error by; measure more",
    )
    if places > unknowns and face != Face.FLAT and (weak := weak_drop(numbers)):
        judgements.append(weak)
    note(
        0 < below_floor <= upper - target,
        Verdict.TARGET_BELOW_E,
        f"its target {target:.3f} lies below {target + below_floor:.3f}, where its fitted law levels off: the "
        "points hardly tell where the fall ends; measure over more tokens",
    )
    note(
        share > WIDEST_SHARE,
        Verdict.TOO_WIDE,
        f"half the interval is {share:.0%} of the way from the initial loss to the target; add longer proxies"
        if np.isfinite(share)
        else "its interval is unbounded; add more points",
    )
    note(
        ahead > FAR_DECADES,
        Verdict.TOO_FAR,
        f"the budget lies {ahead:.1f} decades beyond the last point; add longer proxies",
    )
    note(
        ahead < -0.01,
        Verdict.BACKWARDS,
        f"points reach {-ahead:.2f} decades beyond the budget, so that the target is no prediction",
    )
    note(
        places > unknowns
        and face != Face.FLAT
        and (condition > WORST_CONDITION[unknowns] or span < SHORT_RANGE_DECADES[unknowns]),
        Verdict.CURVATURE,
        f"the points span {span:.2f} decades, condition number {condition:.1g}: how the fall slows down cannot be "
        "told; add shorter and longer proxies",
    )
    note(
        diagnostics.status[domain] != Status.CONVERGED,
        Verdict.NOT_CONVERGED,
        "the search for its law ended before the gradient test held; the law's parameters are the best found",
    )
    judgements += residual_judgements(numbers, names)
    note(
        diagnostics.autocorrelation[domain] > 1 / np.sqrt(places),
        Verdict.AUTOCORRELATED,
        f"neighbouring residuals correlate by {diagnostics.autocorrelation[domain]:.2f}: {points} points are worth "
        f"{diagnostics.effective_points[domain]:.1f}, and the interval may still be too narrow",
    )
    note(
        unknowns < places < unknowns + FEW_POINTS,
        Verdict.FEW_POINTS,
        f"{counted} for {number(unknowns)} unknowns; the interval takes that into account",
    )
    return tuple(judgements) or TRUSTED
