"""Warm-up heads: points at the beginning of a curve that do not obey the law of the rest, found and left out.

They must go before anything is fitted. A robust loss does not help, because early points have leverage: beta bends to
fit them.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaln, fdtrc

from vtune_jax.fits.laws.law import DropHead, Law
from vtune_jax.fits.points import Measured, on_device
from vtune_jax.fits.posterior import least_squares

_SHORT = 3  # heads of one to three points are tried one by one
_PER_DECADE, _FEWEST = 8, 16  # ends of longer heads per decade of tokens, and over a curve, however short
_FINER = 16  # and between the best one's neighbours
_LARGEST_SHARE = 0.5  # of the points that a head may have
SIGNIFICANCE, GAIN = 1e-3, 0.5
LONG_SIGNIFICANCE, LONG_GAIN = 1e-6, 1 / 3
"""Of a head of more than three points. Many lengths are tried, and the noise of one run wanders slowly, so that half of
a curve often fits twice as well as the whole; three times as well it fits without a head in a curve of 250 at most."""
_ROUNDING = 1e-5  # log residuals below it count as exact


class Trimmed(NamedTuple):
    """Curves without their heads."""

    measured: Measured
    dropped: Int[np.ndarray, " domains"]  # points left out
    refused: Bool[np.ndarray, " domains"]  # a head remains, because too few points would be left without it
    gain: Float[np.ndarray, " domains"]  # root-mean-square residual without the head, over that with it


class _Heads(NamedTuple):
    """The most significant head of each domain."""

    length: Int[np.ndarray, " domains"]
    log_chance: Float[np.ndarray, " domains"]  # of as large a gain without a head; 0: no head can be tried
    factor: Float[np.ndarray, " domains"]  # root-mean-square residual without the head, over that with it

    @property
    def significant(self) -> Bool[np.ndarray, " domains"]:
        """Whether it is a head at all."""
        long = self.length > _SHORT
        chance, gain = np.where(long, LONG_SIGNIFICANCE, SIGNIFICANCE), np.where(long, LONG_GAIN, GAIN)
        return np.asarray((self.log_chance < np.log(chance)) & (self.factor <= gain))


def trim_heads(law: Law[Any], measured: Measured, drop: DropHead = "auto") -> Trimmed:
    """Leaves out the first points of every domain that has a head.

    One, two or three first points are a head if without them the root-mean-square residual of least squares, per degree
    of freedom, falls to half or less, and an F test gives this a chance below one in a thousand. Longer heads are tried
    at ends an eighth of a decade of tokens apart, as a curve with a point at every step has hundreds of points in its
    warm-up; without one the residual must fall to a third, with a chance below one in a million. Of all lengths the
    one with the least chance is taken. Then the rest is tested again, until half of the points are left out.

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
        rest = without_first(measured, dropped)
        found = _refined(law, rest, _heads(law, rest, _lengths(rest)))
        length = np.where(found.significant & ~refused, found.length, 0)
        refused = refused | (dropped + length > most)
        length = np.where(refused, 0, length)
        if not length.any():
            return Trimmed(rest, dropped, refused, gain)
        dropped, gain = dropped + length, np.where(length > 0, gain * found.factor, gain)


def without_first(measured: Measured, dropped: Int[np.ndarray, " domains"]) -> Measured:
    """The same curves without their first points."""
    # Rows without a point may lie anywhere among the sorted ones, so a point's rank counts points only.
    rank = np.cumsum(measured.present, axis=0)
    return measured._replace(losses=np.where(measured.present & (rank > dropped), measured.losses, np.nan))


def _lengths(measured: Measured) -> Int[np.ndarray, "lengths domains"]:
    """Lengths to be tried: none, one to three points, and all up to ends that are `_spacing` apart."""
    columns = []
    for present, along in zip(measured.present.T, measured.columns[0].T, strict=True):
        tokens = along[present]
        if not len(tokens):
            columns.append(np.arange(_SHORT + 1))
            continue
        ends = tokens[0] * 10 ** np.arange(_spacing(tokens), np.log10(tokens[-1] / tokens[0]), _spacing(tokens))
        longer = np.unique(np.searchsorted(tokens, ends, side="right"))
        longer = longer[(longer > _SHORT) & (longer <= _LARGEST_SHARE * len(tokens))]
        columns.append(np.concatenate([np.arange(_SHORT + 1), longer]))
    longest = max(len(column) for column in columns)
    return np.stack([np.pad(column, (0, longest - len(column))) for column in columns], axis=1)


def _spacing(tokens: Float[np.ndarray, " points"]) -> float:
    """Decades between the ends of heads: an eighth, or less on a curve that would have few."""
    return float(min(1 / _PER_DECADE, np.log10(tokens[-1] / tokens[0]) / _FEWEST)) or 1.0


def _refined(law: Law[Any], measured: Measured, coarse: _Heads) -> _Heads:
    """Where a long head is significant, the best of the lengths between its neighbours."""
    long = coarse.significant & (coarse.length > _SHORT)
    if not long.any():
        return coarse
    lengths = np.zeros((_FINER + 2, len(long)), int)
    for domain in np.flatnonzero(long):
        tokens = measured.columns[0][measured.present[:, domain], domain]
        end, factor = tokens[coarse.length[domain] - 1], 10 ** _spacing(tokens)
        low, high = np.searchsorted(tokens, [end / factor, end * factor])
        lengths[1:-1, domain] = np.linspace(low, min(high, _LARGEST_SHARE * len(tokens)), _FINER)
        lengths[-1, domain] = coarse.length[domain]
    fine = _heads(law, measured, lengths)
    return _Heads(*(np.where(long, new, old) for new, old in zip(fine, coarse, strict=True)))


def _heads(law: Law[Any], measured: Measured, lengths: Int[np.ndarray, "lengths domains"]) -> _Heads:
    """The most significant head of each domain among some lengths, the first of which is 0."""
    count, domain = measured.present.sum(axis=0), np.arange(lengths.shape[1])
    # A curve stays whole in lanes where too few of its points would be left.
    usable = count - lengths >= law.size + 1
    lengths = np.where(usable, lengths, 0)
    stacked = measured._replace(
        columns=tuple(np.tile(column, len(lengths)) for column in measured.columns),
        losses=np.concatenate([without_first(measured, length).losses for length in lengths], axis=1),
    )
    points = law.coordinates(stacked).points
    with jax.enable_x64(True):
        squares = np.asarray(least_squares(on_device(points)))[: stacked.losses.shape[1]].reshape(lengths.shape)
    squares = squares + _ROUNDING**2 * (count - lengths)
    freedom = np.maximum(count - lengths - law.size, 1)
    rms = np.sqrt(squares / freedom)
    log_chance = log_f_chance(np.maximum(squares[0] - squares, 0.0) / squares, lengths, freedom)
    # Among equal chances argmin takes the shortest head.
    best = log_chance.argmin(axis=0)
    return _Heads(lengths[best, domain], log_chance[best, domain], rms[best, domain] / rms[0])


def log_f_chance(
    ratio: Float[np.ndarray, "..."], extra: Int[np.ndarray, "..."], freedom: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Logarithm of an F test's chance, also where the chance itself is below what a float holds.

    With `x = 1 / (1 + ratio)`, `a = freedom / 2` and `b = extra / 2` the chance is the regularised incomplete beta
    function `I_x(a, b)`, and for small x about `x^a (1 - x)^b / (a B(a, b)) / (1 - x (a + b) / (a + 1))`.

    Args:
        ratio: the fall of the sum of squares over what is left of it.
        extra: degrees of freedom of the fall; 0 gives chance 1.
        freedom: degrees of freedom of what is left.
    """
    tried = extra > 0
    b, a, x = np.where(tried, extra, 1) / 2, freedom / 2, 1 / (1 + ratio)
    chance = fdtrc(2 * b, freedom, ratio * a / b)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = a * np.log(x) + b * np.log1p(-x) - np.log(a) - betaln(a, b) - np.log1p(-x * (a + b) / (a + 1))
        logs = np.where(chance > 1e-250, np.log(chance), tail)
    return np.where(tried, logs, 0.0)
