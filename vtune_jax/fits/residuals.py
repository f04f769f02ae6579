"""What the residuals of a domain's points say, under any law: outliers, a fall lost in noise, runs that disagree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr

from vtune_jax.fits.verdicts import Judgement, Verdict

OUTLIER_SIGMAS = 3.5
"""Residuals beyond it are counted as outliers."""
OUTLIER_CHANCE = 0.01
"""A farthest residual less likely than this among normal ones earns a verdict."""
WEAK_DROP_SIGMAS = 3.0
"""A law that falls by less over its points is hardly told from a constant."""
LARGEST_REPLICATE_SPREAD = 0.01
"""Standard deviation of log losses at one place: seeds differ by less, the rates of a sweep by more."""
_ROUNDING = 1e-9
"""Log residuals below it are rounding errors, and never outliers."""


class ResidualNumbers(NamedTuple):
    """What the residuals of one domain's points amount to."""

    points: int
    largest: float  # the farthest residual, in robust standard deviations
    outliers: int  # residuals beyond `OUTLIER_SIGMAS`
    chance: float  # that as many normal residuals hold one as large as the farthest
    outlying_losses: int  # how many of the largest losses, counted from the top, are all outliers
    farthest: tuple[float, ...]  # the columns of the point with the farthest residual
    drop: float  # fitted fall of the log loss over the points, in standard deviations of a point
    replicate_spread: float  # standard deviation of the log losses of one place; NaN: no place has two points
    replicated: int  # places with two points or more


def residual_numbers(
    columns: Sequence[Float[np.ndarray, " points"]],
    losses: Float[np.ndarray, " points"],
    residuals: Float[np.ndarray, " points"],
    *,
    unknowns: int,
    sigma: float,
) -> ResidualNumbers:
    """Summarises the residuals of one domain.

    Args:
        columns: what each point says beside its loss; points that agree in all of them are of one place.
        losses: nats per token.
        residuals: log loss minus log model.
        unknowns: parameters of the law.
        sigma: standard deviation of a point, see `laws.law.Fit`.
    """
    sizes = standardised(residuals, unknowns)
    far = sizes > OUTLIER_SIGMAS
    from_above = far[np.argsort(-losses, kind="stable")]
    logs = np.log(losses)
    model = logs - residuals
    spread, replicated = replicate_spread(columns, losses)
    worst = int(sizes.argmax())
    return ResidualNumbers(
        points=len(losses),
        largest=float(sizes[worst]),
        outliers=int(far.sum()),
        chance=outlier_chance(float(sizes[worst]), len(losses), unknowns),
        outlying_losses=len(losses) if from_above.all() else int(from_above.argmin()),
        farthest=tuple(float(column[worst]) for column in columns),
        drop=float((model.max() - model.min()) / max(sigma, 1e-12)),
        replicate_spread=spread,
        replicated=replicated,
    )


def standardised(residuals: Float[np.ndarray, " points"], unknowns: int) -> Float[np.ndarray, " points"]:
    """Sizes of the residuals over their robust deviation: 1.4826 times the median of all but the smallest ones.

    A robust fit goes nearly through as many points as the law has parameters. With few points these would make the
    median of all residuals too small, so as many of the smallest residuals are left out of it.
    """
    sizes = np.abs(residuals)
    others = np.sort(sizes)[unknowns:]
    scale = 1.4826 * np.median(others) if len(others) else np.inf
    return np.asarray(sizes / max(scale, _ROUNDING))


def outlier_chance(largest: float, points: int, unknowns: int) -> float:
    """Chance that the farthest of as many normal residuals is at least as far.

    By Student's t, whose degrees of freedom are half those of the points, since a median is worth half its points.
    """
    freedom = max((points - unknowns) / 2, 0.5)
    return float(min(2 * points * stdtr(freedom, -largest), 1.0))


def replicate_spread(
    columns: Sequence[Float[np.ndarray, " points"]], losses: Float[np.ndarray, " points"]
) -> tuple[float, int]:
    """Pooled standard deviation of the log losses of one place, NaN if no place has two points; and how many have.

    `sqrt(sum_p sum_i (log L_pi - mean_p)^2 / sum_p (n_p - 1))`
    """
    _, place, size = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True, return_counts=True)
    place, logs = place.ravel(), np.log(losses)
    squares = (logs - (np.bincount(place, logs) / size)[place]) ** 2
    freedom = int((size - 1).sum())
    return (float(np.sqrt(squares.sum() / freedom)) if freedom else float("nan")), int((size > 1).sum())


def weak_drop(numbers: ResidualNumbers) -> Judgement | None:
    """That the law's fall is lost in the noise of its points, or None."""
    if numbers.drop >= WEAK_DROP_SIGMAS:
        return None
    return Judgement(
        Verdict.UNDER_DETERMINED,
        f"its loss falls by only {numbers.drop:.1f} standard deviations of a point; measure over more tokens, or on "
        "more held-out text",
    )


def residual_judgements(numbers: ResidualNumbers, names: Sequence[str]) -> list[Judgement]:
    """Outliers, and runs of one place that disagree; empty where there are none.

    Args:
        numbers: of the domain.
        names: of the columns.
    """
    found = []
    if numbers.chance < OUTLIER_CHANCE:
        where = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, numbers.farthest, strict=True))
        largest = numbers.outlying_losses
        instead = f", or leave out the largest losses with --drop-worst {largest}" if largest else ""
        found.append(
            Judgement(
                Verdict.OUTLIERS,
                f"{numbers.outliers} of {numbers.points} points lie beyond {OUTLIER_SIGMAS} standard deviations, the "
                f"farthest at {numbers.largest:.0f} ({where}); look at them{instead}",
            )
        )
    if numbers.replicate_spread > LARGEST_REPLICATE_SPREAD:
        places = f"{numbers.replicated} place{'s' * (numbers.replicated > 1)}"
        found.append(
            Judgement(
                Verdict.REPLICATES,
                f"runs of equal {' and '.join(names)} differ by {numbers.replicate_spread:.1%} (standard deviation, at "
                f"{places}); if they are a sweep, take the best of each place: --best-of-place",
            )
        )
    return found
