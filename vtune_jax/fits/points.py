"""Measured losses as the solver wants them: checked, sorted, and padded to few shapes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vtune_jax.fits.laws.law import Points
from vtune_jax.fits.solver import chunk_of


class Measured(NamedTuple):
    """Checked measurements in float64, sorted by tokens, each [points, domains]."""

    tokens: Float[np.ndarray, "points domains"]
    losses: Float[np.ndarray, "points domains"]  # NaN where there is no point
    others: tuple[np.ndarray, ...]
    order: Int[np.ndarray, "points domains"]  # the given place of each point; repeated rows are in none

    @property
    def seen(self) -> Bool[np.ndarray, "points domains"]:
        """Where there is a point."""
        return ~np.isnan(self.losses)

    @property
    def places(self) -> Int[np.ndarray, " domains"]:
        """Points that differ in more than their loss: several runs of equal length are one place of a curve."""
        found = []
        for domain, seen in enumerate(self.seen.T):
            at = np.stack([column[seen, domain] for column in (self.tokens, *self.others)], axis=1)
            found.append(len(np.unique(at, axis=0)))
        return np.array(found)


def checked_points(
    tokens: np.ndarray, losses: np.ndarray, *, least: int = 3, repeats: bool = False, **others: np.ndarray
) -> Measured:
    """Measurements that a law can be fitted to.

    Sorted, so that the order in which they are given cannot change a rounding. Rows of a domain that agree in every
    number are one measurement that was written down twice, and count once.

    Args:
        tokens: positive; [points] or [points, domains].
        losses: positive, NaN where there is no point; [points, domains].
        least: points that every domain must have.
        repeats: repeated rows count as often as they are given.
        others: positive, as tokens; an `annealed_area` may be 0.

    Raises:
        ValueError: shapes that do not agree, values that are not positive and finite, or too few points.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise ValueError(f"losses must be [points, domains], got shape {losses.shape}.")
    given = {"tokens": tokens, **others}
    for name, values in given.items():
        values = np.asarray(values, np.float64)
        if values.ndim == 1:
            values = np.repeat(values[:, None], losses.shape[1], axis=1)
        if values.shape != losses.shape:
            raise ValueError(f"{name} must have the losses' shape {losses.shape}, got {values.shape}.")
        sound = np.isfinite(values) & ((values > 0) | ((name == "annealed_area") & (values == 0)))
        if not sound.all():
            raise ValueError(f"{name} must be positive and finite, got {values[~sound][0]}.")
        given[name] = values
    seen = ~np.isnan(losses)
    if not (np.isfinite(losses[seen]) & (losses[seen] > 0)).all():
        raise ValueError(f"losses must be positive and finite, got {losses[seen].min()}.")
    fewest = int(seen.sum(axis=0).min()) if losses.size else 0
    if fewest < least:
        raise ValueError(f"losses must have at least {least} points in every domain, got {fewest}.")
    order = np.lexsort((losses, *reversed(given.values())), axis=0)
    tokens, *rest, losses = (np.take_along_axis(x, order, axis=0) for x in (*given.values(), losses))
    if not repeats:
        losses = _once(losses, tokens, *rest)
        # What is left stands together, so that neither a rounding nor a shape tells of what was left out.
        kept = np.argsort(np.isnan(losses), axis=0, kind="stable")[: (~np.isnan(losses)).sum(axis=0).max()]
        tokens, *rest, losses, order = (np.take_along_axis(x, kept, axis=0) for x in (tokens, *rest, losses, order))
        fewest = int((~np.isnan(losses)).sum(axis=0).min())
        if fewest < least:
            raise ValueError(f"losses must have at least {least} different points in every domain, got {fewest}.")
    return Measured(tokens, losses, tuple(rest), order)


def _once(losses: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    """Sorted losses, NaN where a row repeats the one before it."""
    again = np.zeros(losses.shape, bool)
    again[1:] = np.all([column[1:] == column[:-1] for column in (losses, *inputs)], axis=0)
    return np.where(again, np.nan, losses)


def make_points(inputs: list[np.ndarray], losses: np.ndarray, *, dtype: str = "float64") -> Points:
    """Points of every domain, padded in both directions so that few shapes are compiled.

    Points of weight zero count for nothing; the lanes beyond the domains repeat the first.

    Args:
        inputs: in the law's coordinates, each [points, domains].
        losses: [points, domains]; NaN leaves a point out.
        dtype: "float64" or "float32".
    """
    seen = ~np.isnan(losses)
    columns: list[Any] = [
        np.where(seen, column, 0.0) for column in (*inputs, np.log(np.where(seen, losses, 1.0)), seen)
    ]
    columns = [padded(column, dtype) for column in columns]
    inputs_first: Any = np.stack(columns[:-2])
    return Points(inputs_first, columns[-2], columns[-1])


def padded(column: np.ndarray, dtype: str) -> np.ndarray:
    """[points, lanes] in the next sizes that the solver is compiled for."""
    points = size_for(column.shape[0])
    column = np.pad(np.asarray(column, dtype), ((0, points - column.shape[0]), (0, 0)))
    return padded_lanes(column, points)


def size_for(points: int) -> int:
    """The next of 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 and so on: four sizes per octave."""
    grain = max(2, 1 << max((points - 1).bit_length() - 3, 0))
    return max(8, -(-points // grain) * grain)


def padded_lanes(column: np.ndarray, points: int) -> np.ndarray:
    """The same with the first lane repeated up to a power of two, or to whole chunks."""
    lanes, chunk = column.shape[-1], chunk_of(points)
    wanted = max(8, 1 << (lanes - 1).bit_length())
    if wanted > chunk:
        wanted = -(-lanes // chunk) * chunk
    return np.concatenate([column, np.repeat(column[..., :1], wanted - lanes, axis=-1)], axis=-1)


def on_device(points: Points) -> Points:
    """As JAX arrays of their own precision; for use where 64 bits are enabled."""
    return Points(*(jnp.asarray(column) for column in points))


def resampled(points: Points, indices: np.ndarray, dtype: str = "float64") -> tuple[Points, int]:
    """Replicates of one lane's points: they share inputs and losses and differ in how often each point counts.

    Args:
        points: of one lane; [points, 1] and the like.
        indices: which of the points each replicate drew, [replicates, draws].

    Returns:
        points with one lane per replicate, padded, and the number of replicates.
    """
    count = points.weight.shape[0]
    weights = np.zeros((len(indices), count), dtype)
    np.add.at(weights, (np.arange(len(indices))[:, None], indices), 1.0)
    weight: Any = padded_lanes(weights.T, count)
    return points._replace(weight=weight), len(indices)


def centred(values: Float[np.ndarray, "points domains"], losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms minus their mean over each domain's points, and the mean."""
    seen = ~np.isnan(losses)
    logs = np.log(values)
    middle = np.where(seen, logs, 0.0).sum(axis=0) / seen.sum(axis=0)
    return logs - middle, middle
