"""Warm-up heads: points at the beginning of a curve that do not obey the law of the rest, found and left out.

They must go before anything is fitted. A robust loss does not help, because early points have leverage: beta bends to
fit them.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import fdtrc

from vtune_jax.fits.laws.law import DropHead, Law
from vtune_jax.fits.points import Measured, on_device
from vtune_jax.fits.posterior import least_squares

_LONGEST = 3  # points left out at once, before the rest of the curve is tested again
SIGNIFICANCE, LEAST_GAIN = 1e-3, 0.5
_ROUNDING = 1e-5  # log residuals below it count as exact


class Trimmed(NamedTuple):
    """Curves without their heads."""

    measured: Measured
    dropped: Int[np.ndarray, " domains"]  # points left out
    refused: Bool[np.ndarray, " domains"]  # a head remains, because too few points would be left without it
    gain: Float[np.ndarray, " domains"]  # root-mean-square residual without the head, over that with it


def trim_heads(law: Law[Any], measured: Measured, drop: DropHead = "auto") -> Trimmed:
    """Leaves out the first points of every domain that has a head.

    The first one, two or three points are a head if without them the root-mean-square residual of least squares, per
    degree of freedom, falls to half or less, and an F test gives this a chance below one in a thousand. Then the rest
    is tested again, until half of the points are left out.

    Args:
        law: of the family in `laws.curve`.
        measured: points of that law.
        drop: "auto", or the number of points to leave out in every domain.

    Raises:
        ValueError: drop is neither "auto" nor a number that leaves three points.
    """
    count = measured.present.sum(axis=0)
    zero = np.zeros(measured.losses.shape[1], int)
    if drop != "auto":
        if not (isinstance(drop, int) and 0 <= drop <= count.min() - 3):
            raise ValueError(
                f'drop_head must be "auto" or leave three points of the {count.min()} that the shortest curve has, '
                f"got {drop!r}."
            )
        dropped = zero + drop
        return Trimmed(without_first(measured, dropped), dropped, zero > 0, zero + 1.0)
    most = np.maximum(np.minimum(count // 2, count - law.size - 1), 0)
    dropped, gain, refused = zero, zero + 1.0, zero > 0
    while True:
        length, factor = _heads(law, without_first(measured, dropped))
        length = np.where(refused, 0, length)
        refused = refused | (dropped + length > most)
        length = np.where(refused, 0, length)
        if not length.any():
            return Trimmed(without_first(measured, dropped), dropped, refused, gain)
        dropped, gain = dropped + length, np.where(length > 0, gain * factor, gain)


def without_first(measured: Measured, dropped: Int[np.ndarray, " domains"]) -> Measured:
    """The same curves without their first points."""
    # Rows without a point may lie anywhere among the sorted ones, so a point's rank counts points only.
    rank = np.cumsum(measured.present, axis=0)
    return measured._replace(losses=np.where(measured.present & (rank > dropped), measured.losses, np.nan))


def _heads(law: Law[Any], measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Per domain the most significant head's length, 0 for none, and the factor by which residuals fall without it."""
    count, parameters = measured.present.sum(axis=0), law.size
    domains = len(count)
    lengths = np.arange(_LONGEST + 1)
    # A curve stays whole in lanes where too few of its points would be left.
    usable = count[None] - lengths[:, None] >= parameters + 1
    variants = [without_first(measured, np.where(usable[length], length, 0)) for length in lengths]
    stacked = measured._replace(
        columns=tuple(np.tile(column, _LONGEST + 1) for column in measured.columns),
        losses=np.concatenate([variant.losses for variant in variants], axis=1),
    )
    points = law.coordinates(stacked).points
    with jax.enable_x64(True):
        squares = np.asarray(least_squares(on_device(points)))[: stacked.losses.shape[1]].reshape(-1, domains)
    squares = squares + _ROUNDING**2 * (count[None] - lengths[:, None])
    freedom = count[None] - lengths[:, None] - parameters
    rms = np.sqrt(squares / np.maximum(freedom, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (squares[:1] - squares[1:]) / lengths[1:, None] / (squares[1:] / np.maximum(freedom[1:], 1))
    chance = fdtrc(lengths[1:, None], np.maximum(freedom[1:], 1), np.maximum(ratio, 0.0))
    chance = np.where(usable[1:], chance, 1.0)
    # Among equal chances argmin takes the shortest head.
    best = chance.argmin(axis=0)
    domain = np.arange(domains)
    factor = rms[best + 1, domain] / rms[0]
    significant = (chance[best, domain] < SIGNIFICANCE) & (factor <= LEAST_GAIN)
    return np.where(significant, best + 1, 0), np.where(significant, factor, 1.0)
