"""What can be wrong with a fitted curve and its target, each with its number, a verdict and what to do about it."""

import enum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr

from vtune_jax.fits.fitted import FittedCurves, host_psi
from vtune_jax.fits.head import Trimmed
from vtune_jax.fits.laws.power_law import Face
from vtune_jax.fits.solver import Status

FAR_DECADES, WEAK_DROP_SIGMAS, WIDEST_SHARE = 1.0, 3.0, 0.25
SHORT_RANGE_DECADES = {3: 0.7, 4: 0.5}
WORST_CONDITION = {3: 1e4, 4: 1e5}
"""By the law's parameters. Under LRA a proxy that is looked at from an eighth of its length on spans 0.7 decades of S1
and has under 2e4; from a quarter on, 0.4 and over 5e4 (`test_the_annealing_law_predicts_another_schedule`)."""
OUTLIER_SIGMAS, OUTLIER_CHANCE = 3.5, 0.01  # counted; of a farthest residual among normal ones, worth a verdict
FEW_POINTS = 3  # and fewer beyond the law's parameters


NUMBERS = {3: "three", 4: "four", 5: "five"}


class Verdict(enum.StrEnum):
    """What is to be thought of a domain's target; a domain may have several, worst first."""

    RISING = "rising loss"
    NOT_BELOW_INITIAL = "target not below initial"
    NOT_BELOW_CURRENT = "target not below current"
    WARM_UP_HEAD = "warm-up head"
    UNDER_DETERMINED = "under-determined"
    TOO_WIDE = "too wide for a velocity"
    TOO_FAR = "extrapolates too far"
    BACKWARDS = "extrapolates backwards"
    CURVATURE = "curvature unresolved"
    NOT_CONVERGED = "not converged"
    OUTLIERS = "outliers"
    AUTOCORRELATED = "autocorrelated"
    FEW_POINTS = "few points"
    TRUSTWORTHY = "trustworthy"


UNUSABLE = frozenset({Verdict.RISING, Verdict.NOT_BELOW_INITIAL, Verdict.NOT_BELOW_CURRENT, Verdict.WARM_UP_HEAD})
"""Verdicts under which a target must not enter a velocity."""
DOUBTFUL = frozenset({Verdict.UNDER_DETERMINED, Verdict.TOO_WIDE, Verdict.TOO_FAR})
"""Those under which a cautious user would not let it either."""
OF_TARGET = frozenset(
    {Verdict.NOT_BELOW_INITIAL, Verdict.NOT_BELOW_CURRENT, Verdict.TOO_WIDE, Verdict.TOO_FAR, Verdict.BACKWARDS}
)
"""Those that say nothing where no target is asked for, as the numbers `NUMBERS_OF_TARGET` do."""
NUMBERS_OF_TARGET = ("extrapolation_decades", "gap", "gap_to_current", "half_width_share")


class Diagnostics(NamedTuple):
    """One number per domain for each thing that can be wrong; NaN where it cannot be told."""

    points: Int[np.ndarray, " domains"]  # fitted
    places: Int[np.ndarray, " domains"]  # of them that differ in more than their loss
    law_parameters: int  # of the law, for all domains
    head_points: Int[np.ndarray, " domains"]  # left out as a warm-up head
    range_decades: Float[np.ndarray, " domains"]  # of tokens (S1 under LRA) between the first and the last point
    extrapolation_decades: Float[np.ndarray, " domains"]  # from the last point to the target; negative: backwards
    drop_sigmas: Float[np.ndarray, " domains"]  # fitted fall of the log loss over the points, over sigma
    face: Int[np.ndarray, " domains"]  # see `Face`
    condition: Float[np.ndarray, " domains"]  # of G'G, G the slopes of the log model
    sigma: Float[np.ndarray, " domains"]  # robust spread of the log residuals
    largest_residual: Float[np.ndarray, " domains"]  # in the deviations of `residual_sizes`
    outlier_share: Float[np.ndarray, " domains"]  # of points beyond 3.5 of them
    outlier_chance: Float[np.ndarray, " domains"]  # that normal residuals of so few points hold one as large
    status: Int[np.ndarray, " domains"]  # of the fit, see `solver.Status`
    autocorrelation: Float[np.ndarray, " domains"]  # of neighbouring residuals
    effective_points: Float[np.ndarray, " domains"]  # independent points that these are worth
    gap: Float[np.ndarray, " domains"]  # initial loss minus target, nats
    gap_to_current: Float[np.ndarray, " domains"]
    half_width_share: Float[np.ndarray, " domains"]  # of the interval, over the gap or the highest loss measured

    def as_json(self, domain: int) -> dict[str, Any]:
        """The numbers of one domain; what cannot be told is null."""
        return {
            name: (str(Face(value).name.lower()) if name == "face" else _plain(value))
            for name, value in (
                (name, getattr(self, name)[domain]) for name in self._fields if name != "law_parameters"
            )
        }


def _plain(value: Any) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if np.isfinite(value) else None


def condition_number(curves: FittedCurves) -> Float[np.ndarray, " domains"]:
    """Of G'G at the optimum, G the slopes of the log model by (c, s, b) and, with annealing, k.

    One decade of tokens gives about 2e3, half a decade 4e4. In (E, B, beta) the number would say nothing.
    """
    c, s, b, k = curves.parameters
    domains, places = len(c), slice(0, len(curves.residuals))
    t, *q = curves.points.inputs[:, places, :domains]
    shape, decayed = host_psi(t, b), np.exp(-b * t)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_b = np.where(np.abs(b * t) < 1e-4, t**2 * (-0.5 + b * t / 3), (t * decayed - shape) / b)
    inner = np.maximum(1 - s * shape - (k * q[0] if q else 0.0), 1e-12)
    slopes = [np.ones_like(shape), -shape / inner, -s * of_b / inner, *(-x / inner for x in q)]
    jacobian = np.stack(slopes, axis=-1) * curves.seen[..., None]
    gram = np.einsum("pdi,pdj->dij", jacobian, jacobian)
    values = np.linalg.eigvalsh(gram)
    return values[:, -1] / np.maximum(values[:, 0], 1e-300)


def autocorrelation(
    curves: FittedCurves, runs: np.ndarray | None = None
) -> tuple[Float[np.ndarray, " domains"], Int[np.ndarray, " domains"]]:
    """Lag-1 correlation of the residuals along each run, NaN with fewer than five, and how many it is a mean of.

    Args:
        curves: sorted by tokens.
        runs: which run each point comes from, [points, domains] in the curves' order; None: all from one, unless
            several have the same number of tokens: one run passes there once, so that these stand together as their
            sum over the root of their number, whose variance is that of one. Points of different runs are no
            neighbours.
    """
    found, counts = [], []
    for domain in range(curves.residuals.shape[1]):
        seen = curves.seen[:, domain]
        residual, tokens = curves.residuals[seen, domain], curves.measured.tokens[seen, domain]
        label = np.zeros(len(residual), int) if runs is None else np.unique(runs[seen, domain], return_inverse=True)[1]
        place, index, size = np.unique(
            np.stack([label, tokens], axis=1), axis=0, return_inverse=True, return_counts=True
        )
        residual = np.bincount(index.ravel(), weights=residual) / np.sqrt(size)
        same = np.diff(place[:, 0]) == 0
        pairs = residual[:-1][same], residual[1:][same]
        variance = (residual**2).mean() if len(residual) else 0.0
        exact = variance < 1e-20
        enough = len(residual) >= 5 and len(pairs[0]) >= 4
        found.append(np.nan if exact or not enough else (pairs[0] * pairs[1]).mean() / variance)
        counts.append(len(residual))
    return np.array(found), np.array(counts)


def residual_sizes(curves: FittedCurves) -> Float[np.ndarray, "points domains"]:
    """Residuals over their robust deviation, in which the smallest ones do not count.

    A robust fit goes nearly through as many points as the law has parameters, so that with few points the median of all
    residuals says little of their spread: 1.4826 medians of the others.
    """
    sizes = np.abs(curves.residuals)
    for domain, seen in enumerate(curves.seen.T):
        others = np.sort(sizes[seen, domain])[curves.law_parameters :]
        scale = 1.4826 * np.median(others) if len(others) else np.inf
        # Residuals of nothing but rounding are no outliers.
        sizes[:, domain] /= max(scale, 1e-9)
    return sizes


def outlier_chance(
    largest: Float[np.ndarray, " domains"], points: Int[np.ndarray, " domains"], law_parameters: int
) -> Float[np.ndarray, " domains"]:
    """That the farthest of so many normal residuals is as far: by Student's t, a median being worth half its points."""
    freedom = np.maximum((points - law_parameters) / 2, 0.5)
    return np.minimum(2 * points * stdtr(freedom, -largest), 1.0)


def drop_sigmas(curves: FittedCurves) -> Float[np.ndarray, " domains"]:
    """How far the fitted log loss falls from the first to the last point, in standard deviations of a point."""
    domains = len(curves.middle)
    model = (curves.points.log_loss[: len(curves.residuals), :domains] - curves.residuals) * curves.seen
    high = np.where(curves.seen, model, -np.inf).max(axis=0)
    low = np.where(curves.seen, model, np.inf).min(axis=0)
    return (high - low) / np.maximum(curves.fit.sigma, 1e-12)


def judge(
    of: Diagnostics, domain: int, *, trimmed: Trimmed, target: float, initial: float, current: float, min_gap: float
) -> list[tuple[Verdict, str]]:
    """Every verdict that applies to a domain, worst first, each with its number and what to do."""
    face, points, places, unknowns = (
        Face(of.face[domain]),
        int(of.points[domain]),
        int(of.places[domain]),
        of.law_parameters,
    )
    counted = f"{points} points" if places == points else f"{points} points at {places} places"
    ahead, span = of.extrapolation_decades[domain], of.range_decades[domain]
    gap, share = of.gap[domain], of.half_width_share[domain]
    said: list[tuple[Verdict, str]] = []

    def note(applies: bool | np.bool_, verdict: Verdict, why: str) -> None:
        if applies:
            said.append((verdict, why))

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
        of.gap_to_current[domain] <= 0,
        Verdict.NOT_BELOW_CURRENT,
        f"its target {target:.3f} is not below the current loss {current:.3f}: it has arrived already",
    )
    note(
        trimmed.refused[domain],
        Verdict.WARM_UP_HEAD,
        f"its first points do not obey the law of the rest and leaving out {trimmed.dropped[domain]} did not end that; "
        "give points from after the warm-up",
    )
    note(
        places <= unknowns or (face != Face.FLAT and of.drop_sigmas[domain] < WEAK_DROP_SIGMAS),
        Verdict.UNDER_DETERMINED,
        f"{counted} for {NUMBERS[unknowns]} unknowns leave nothing to tell the law's error by; measure more"
        if places <= unknowns
        else f"its loss falls by only {of.drop_sigmas[domain]:.1f} standard deviations of a point; measure over more "
        "tokens, or on more held-out text",
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
        f"points reach {-ahead:.2f} decades beyond the target, which is then no prediction",
    )
    note(
        places > unknowns
        and face != Face.FLAT
        and (of.condition[domain] > WORST_CONDITION[unknowns] or span < SHORT_RANGE_DECADES[unknowns]),
        Verdict.CURVATURE,
        f"the points span {span:.2f} decades, condition number {of.condition[domain]:.1g}: how the fall slows down "
        "cannot be told; add shorter and longer proxies",
    )
    note(
        of.status[domain] != Status.CONVERGED,
        Verdict.NOT_CONVERGED,
        "the search for its law ended before the gradient test held; the law's parameters are the best found",
    )
    note(
        of.outlier_chance[domain] < OUTLIER_CHANCE,
        Verdict.OUTLIERS,
        f"{of.outlier_share[domain]:.0%} of the points lie beyond {OUTLIER_SIGMAS} standard deviations, the farthest "
        f"{of.largest_residual[domain]:.0f}; look at them",
    )
    note(
        of.autocorrelation[domain] > 1 / np.sqrt(places),
        Verdict.AUTOCORRELATED,
        f"neighbouring residuals correlate by {of.autocorrelation[domain]:.2f}: {points} points are worth "
        f"{of.effective_points[domain]:.1f}, and the interval may still be too narrow",
    )
    note(
        unknowns < places < unknowns + FEW_POINTS,
        Verdict.FEW_POINTS,
        f"{counted} for {NUMBERS[unknowns]} unknowns; the interval says how much that matters",
    )
    return said or [(Verdict.TRUSTWORTHY, "")]


UNITS_ADVICE = "give all tokens as plain counts"


def unit_warnings(tokens: np.ndarray, log_b: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """Signs that token counts are not counts of tokens.

    B is the reducible loss at a single token. A model that has seen one token cannot be within a nat of its best, so
    that a B below 10 together with counts below a million means thousands, millions or billions; and no set of proxies
    leaps over four decades between two neighbouring points.

    Args:
        tokens: [points, domains], NaN where there is no point.
        log_b: of each domain's fit.
        names: of the domains.
    """
    said = []
    for domain, name in enumerate(names):
        column = np.sort(tokens[~np.isnan(tokens[:, domain]), domain])
        leap = column[1:] / column[:-1]
        if len(leap) and leap.max() >= 1e4:
            place = int(leap.argmax())
            said.append(
                f"{name}: tokens leap from {column[place]:g} to {column[place + 1]:g}, as if units were mixed; "
                f"{UNITS_ADVICE}"
            )
        elif len(column) and column[-1] < 1e6 and np.isfinite(log_b[domain]) and log_b[domain] < np.log(10):
            said.append(
                f"{name}: B = {np.exp(log_b[domain]):.3g} nats is implausible for tokens up to {column[-1]:g}, as if "
                f"they were counted in millions or billions; {UNITS_ADVICE}"
            )
    return said
