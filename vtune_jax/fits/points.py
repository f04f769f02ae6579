"""Measured losses as the solver wants them: checked, sorted, and padded to few shapes."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.solver import chunk_of


class Measured(NamedTuple):
    """Checked measurements in float64, sorted by their columns, each [points, domains]."""

    columns: tuple[np.ndarray, ...]  # what each point says beside its loss, in the law's order
    losses: Float[np.ndarray, "points domains"]  # NaN where there is no point
    order: Int[np.ndarray, "points domains"]  # row of the caller's table that each point comes from

    @property
    def present(self) -> Bool[np.ndarray, "points domains"]:
        """Where there is a point."""
        return np.asarray(~np.isnan(self.losses))

    @property
    def places(self) -> Int[np.ndarray, " domains"]:
        """Number of points that differ in more than their loss: several runs of equal length count as one."""
        counts = []
        for domain, present in enumerate(self.present.T):
            rows = np.stack([column[present, domain] for column in self.columns], axis=1)
            counts.append(len(np.unique(rows, axis=0)))
        return np.array(counts)


def checked_points(
    columns: Mapping[str, np.ndarray],
    losses: np.ndarray,
    *,
    least: int = 3,
    repeats: bool = False,
    zero_allowed: Collection[str] = (),
) -> Measured:
    """Measurements that a law can be fitted to.

    They are sorted, so that the order of the caller's rows cannot change a rounding. Rows of a domain that agree in
    every number are taken for one measurement written down twice, and count once.

    Args:
        columns: by name, positive; [points] or [points, domains]; the first one is sorted by first.
        losses: positive, NaN where there is no point; [points, domains].
        least: points that every domain must have.
        repeats: repeated rows count as often as they occur.
        zero_allowed: names of columns that may be 0.

    Raises:
        ValueError: shapes that do not agree, values that are not positive and finite, or too few points.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise ValueError(f"losses must be [points, domains], got shape {losses.shape}.")
    inputs = []
    for name, column in columns.items():
        values = np.asarray(column, np.float64)
        if values.ndim == 1:
            values = np.repeat(values[:, None], losses.shape[1], axis=1)
        if values.shape != losses.shape:
            raise ValueError(f"{name} must have the losses' shape {losses.shape}, got {values.shape}.")
        sound = np.isfinite(values) & ((values > 0) | ((name in zero_allowed) & (values == 0)))
        if not sound.all():
            raise ValueError(f"{name} must be positive and finite, got {values[~sound][0]}.")
        inputs.append(values)
    present = ~np.isnan(losses)
    if not (np.isfinite(losses[present]) & (losses[present] > 0)).all():
        raise ValueError(f"losses must be positive and finite, got {losses[present].min()}.")
    fewest = int(present.sum(axis=0).min()) if losses.size else 0
    if fewest < least:
        raise ValueError(f"losses must have at least {least} points in every domain, got {fewest}.")
    order = np.lexsort((losses, *reversed(inputs)), axis=0)
    *inputs, losses = (np.take_along_axis(x, order, axis=0) for x in (*inputs, losses))
    if not repeats:
        losses = _without_repeats(losses, inputs)
        # The remaining points move together, so that neither rounding nor shape depends on repeated or missing rows.
        kept = np.argsort(np.isnan(losses), axis=0, kind="stable")[: (~np.isnan(losses)).sum(axis=0).max()]
        *inputs, losses, order = (np.take_along_axis(x, kept, axis=0) for x in (*inputs, losses, order))
        fewest = int((~np.isnan(losses)).sum(axis=0).min())
        if fewest < least:
            raise ValueError(f"losses must have at least {least} different points in every domain, got {fewest}.")
    return Measured(tuple(inputs), losses, order)


def best_of_place(
    columns: Sequence[np.ndarray], losses: Float[np.ndarray, "points domains"]
) -> Float[np.ndarray, "points domains"]:
    """The least loss of each place, for tables that hold a sweep, of learning rates say; NaN in all other rows.

    A place is what the columns say together: tokens, or model size and tokens. Of equal losses the first row stays.
    Where runs differ by their seeds alone, keep them all: the least of several is too low by about their noise.

    Args:
        columns: what each point says beside its loss, each [points] or [points, domains].
        losses: nats per token, NaN where there is no point.

    Example:
        >>> losses = best_of_place([np.array([1e6, 1e6, 2e6])], np.array([[3.2], [3.1], [2.9]]))
        >>> losses.ravel().tolist()
        [nan, 3.1, 2.9]
    """
    losses = np.array(losses, np.float64)
    for domain, ours in enumerate(losses.T):
        rows = np.flatnonzero(~np.isnan(ours))
        of_domain = [column if column.ndim == 1 else column[:, domain] for column in map(np.asarray, columns)]
        at = np.stack([column[rows] for column in of_domain])
        _, place = np.unique(at, axis=1, return_inverse=True)
        order = np.lexsort((rows, ours[rows], place.ravel()))
        again = np.diff(place.ravel()[order], prepend=-1) == 0
        losses[rows[order[again]], domain] = np.nan
    return losses


def _without_repeats(losses: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """Sorted losses, NaN where a row repeats its predecessor."""
    again = np.zeros(losses.shape, bool)
    again[1:] = np.all([column[1:] == column[:-1] for column in (losses, *columns)], axis=0)
    return np.where(again, np.nan, losses)


def make_points(inputs: list[np.ndarray], losses: np.ndarray, *, dtype: str = "float64") -> Points:
    """Points of every domain, padded in both directions so that few shapes are compiled.

    Padded points have weight zero and count for nothing; padded lanes repeat the first domain.

    Args:
        inputs: in the law's coordinates, each [points, domains].
        losses: [points, domains]; NaN leaves a point out.
        dtype: "float64" or "float32".
    """
    present = ~np.isnan(losses)
    logs = np.log(np.where(present, losses, 1.0))
    rows, log_loss, weight = (
        [padded(np.where(present, column, 0.0), dtype) for column in columns] for columns in (inputs, [logs], [present])
    )
    return Points(np.stack(rows), log_loss[0], weight[0])  # type: ignore[arg-type]  # on the host until `on_device`


def padded(column: np.ndarray, dtype: str) -> np.ndarray:
    """[points, lanes], padded to the next sizes that the solver is compiled for."""
    points = size_for(column.shape[0])
    column = np.pad(np.asarray(column, dtype), ((0, points - column.shape[0]), (0, 0)))
    return padded_lanes(column, points)


def size_for(points: int) -> int:
    """The next of 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 and so on: four sizes per octave."""
    grain = max(2, 1 << max((points - 1).bit_length() - 3, 0))
    return max(8, -(-points // grain) * grain)


def padded_lanes(column: np.ndarray, points: int) -> np.ndarray:
    """The column with its first lane repeated, up to a power of two of at least 8 lanes, or to whole chunks."""
    lanes, chunk = column.shape[-1], chunk_of(points)
    wanted = max(8, 1 << (lanes - 1).bit_length())
    if wanted > chunk:
        wanted = -(-lanes // chunk) * chunk
    return np.concatenate([column, np.repeat(column[..., :1], wanted - lanes, axis=-1)], axis=-1)


def on_device(points: Points) -> Points:
    """As JAX arrays of the columns' own precision; call it where 64 bits are enabled."""
    return Points(*(jnp.asarray(column) for column in points))


def resampled(points: Points, indices: np.ndarray, dtype: str = "float64") -> Points:
    """Replicates of one lane's points: they share inputs and losses and differ in how often each point counts.

    Args:
        points: of one lane; [points, 1] and the like.
        indices: which of the points each replicate drew, [replicates, draws].
        dtype: of the weights.

    Returns:
        points with one lane per replicate, padded.
    """
    count = points.weight.shape[0]
    weights = np.zeros((len(indices), count), dtype)
    np.add.at(weights, (np.arange(len(indices))[:, None], indices), 1.0)
    return points._replace(weight=padded_lanes(weights.T, count))  # type: ignore[arg-type]


def centred(values: Float[np.ndarray, "points domains"], losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms minus their mean over each domain's points, and the mean."""
    present = ~np.isnan(losses)
    logs = np.log(values)
    middle = np.where(present, logs, 0.0).sum(axis=0) / present.sum(axis=0)
    return logs - middle, middle
