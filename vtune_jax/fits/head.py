"""Warm-up heads: points at the beginning of a curve that do not obey the law of the rest, found and left out.

They must go before anything is fitted. A robust loss does not help: early points have leverage, and beta absorbs them.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import fdtrc

from vtune_jax.fits.laws.annealing import annealed_curves_of
from vtune_jax.fits.laws.power_law import curves_of
from vtune_jax.fits.points import Measured, on_device
from vtune_jax.fits.posterior import least_squares

_LONGEST = 3  # points left out together before the curve is looked at again
SIGNIFICANCE, LEAST_GAIN = 1e-3, 0.5
_ROUNDING = 1e-5  # log residuals below which a curve counts as exact


class Trimmed(NamedTuple):
    """Curves without their heads."""

    measured: Measured
    dropped: Int[np.ndarray, " domains"]  # points left out
    refused: Bool[np.ndarray, " domains"]  # a head remains that cannot be left out: too few points would be left
    gain: Float[np.ndarray, " domains"]  # root-mean-square residual after over before leaving out, 1 where none was


def trim_heads(measured: Measured, drop: int | str = "auto") -> Trimmed:
    """Leaves out the first points of every domain that has a head.

    The first one, two or three points are a head if without them the root-mean-square residual of least squares, per
    degree of freedom, falls to half or less, and an F test says that this is no accident at one in a thousand. After
    that the rest is looked at again, down to half of the points.

    Args:
        measured: sorted by tokens.
        drop: "auto", or the number of points to leave out in every domain.

    Raises:
        ValueError: drop is neither "auto" nor a number that leaves three points.
    """
    seen = measured.seen
    count = seen.sum(axis=0)
    none = np.zeros(seen.shape[1], int)
    if drop != "auto":
        if not (isinstance(drop, int) and 0 <= drop <= count.min() - 3):
            raise ValueError(
                f'drop_head must be "auto" or leave three points of the {count.min()} that the shortest curve has, '
                f"got {drop!r}."
            )
        dropped = none + drop
        return Trimmed(without_first(measured, dropped), dropped, none > 0, none + 1.0)
    parameters = 4 if measured.others else 3
    most = np.maximum(np.minimum(count // 2, count - parameters - 1), 0)
    dropped, gain, refused = none, none + 1.0, none > 0
    while True:
        length, factor = _heads(without_first(measured, dropped), parameters)
        length = np.where(refused, 0, length)
        refused = refused | (dropped + length > most)
        length = np.where(refused, 0, length)
        if not length.any():
            return Trimmed(without_first(measured, dropped), dropped, refused, gain)
        dropped, gain = dropped + length, np.where(length > 0, gain * factor, gain)


def without_first(measured: Measured, dropped: Int[np.ndarray, " domains"]) -> Measured:
    """The same curves without their first points."""
    seen = measured.seen
    # Missing points may lie anywhere among the sorted ones: what counts is the rank among those seen.
    rank = np.cumsum(seen, axis=0)
    return measured._replace(losses=np.where(seen & (rank > dropped), measured.losses, np.nan))


def _heads(measured: Measured, parameters: int) -> tuple[np.ndarray, np.ndarray]:
    """Per domain the length of the head that is surest, 0 for none, and by what its loss improves the residuals."""
    count = measured.seen.sum(axis=0)
    domains = len(count)
    lengths = np.arange(_LONGEST + 1)
    # Shorter curves are left whole in the lanes that would leave too little of them.
    usable = count[None] - lengths[:, None] >= parameters + 1
    variants = [without_first(measured, np.where(usable[length], length, 0)) for length in lengths]
    stacked = measured._replace(
        tokens=np.tile(measured.tokens, _LONGEST + 1),
        losses=np.concatenate([variant.losses for variant in variants], axis=1),
        others=tuple(np.tile(other, _LONGEST + 1) for other in measured.others),
    )
    points = (annealed_curves_of if measured.others else curves_of)(stacked)[0]
    with jax.enable_x64(True):
        squares = np.asarray(least_squares(on_device(points)))[: stacked.losses.shape[1]].reshape(-1, domains)
    squares = squares + _ROUNDING**2 * (count[None] - lengths[:, None])
    freedom = count[None] - lengths[:, None] - parameters
    rms = np.sqrt(squares / np.maximum(freedom, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (squares[:1] - squares[1:]) / lengths[1:, None] / (squares[1:] / np.maximum(freedom[1:], 1))
    chance = fdtrc(lengths[1:, None], np.maximum(freedom[1:], 1), np.maximum(ratio, 0.0))
    chance = np.where(usable[1:], chance, 1.0)
    # The shortest of those that are equally sure.
    best = chance.argmin(axis=0)
    place = np.arange(domains)
    factor = rms[best + 1, place] / rms[0]
    found = (chance[best, place] < SIGNIFICANCE) & (factor <= LEAST_GAIN)
    return np.where(found, best + 1, 0), np.where(found, factor, 1.0)
