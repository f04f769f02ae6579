"""Any law fitted to points, and to resamples of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vtune_jax.fits.laws.form import PUBLISHED_DELTA, Points
from vtune_jax.fits.laws.law import AnyFit, Law, Optimum
from vtune_jax.fits.points import on_device, resampled
from vtune_jax.fits.solver import Width, checked_width, solve, solve_from


def fit_law(
    law: Law[AnyFit],
    columns: Sequence[np.ndarray],
    losses: np.ndarray,
    *,
    delta: Width = PUBLISHED_DELTA,
    repeats: bool = False,
    dtype: str = "float64",
) -> AnyFit:
    """The law's robust fit for every domain, in one program and in float64 whatever JAX's global setting.

    Args:
        law: to be fitted.
        columns: in the law's order, each [points] or [points, domains].
        losses: [points, domains], nats per token; NaN leaves a point out.
        delta: Huber width on log residuals.
        repeats: repeated rows count as often as they occur, instead of once.
        dtype: of the arithmetic, "float64" or "float32".

    Raises:
        ValueError: shapes that do not agree, values that are not positive, fewer points than parameters, or a delta
            that is not positive.
    """
    width = checked_width(delta)
    coordinates = law.coordinates(law.checked(columns, losses, repeats=repeats), dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        solution = solve(law.form, on_device(coordinates.points), jnp.asarray(width, dtype))
    return law.to_fit(Optimum.of(solution, len(coordinates.units[0])), coordinates.units)


def fit_resamples(
    law: Law[AnyFit],
    columns: Sequence[np.ndarray],
    losses: np.ndarray,
    indices: Int[np.ndarray, "replicates points"],
    *,
    delta: float = PUBLISHED_DELTA,
    dtype: str = "float64",
) -> AnyFit:
    """Case resampling of one domain: the fit of each replicate, begun at the fit of all points.

    Args:
        law: to be fitted.
        columns: in the law's order, each [points].
        losses: [points].
        indices: which points each replicate drew.
        delta: Huber width on log residuals.
        dtype: of the arithmetic.
    """
    measured = law.checked(columns, np.asarray(losses, np.float64)[:, None], repeats=True)
    coordinates = law.coordinates(measured, dtype=dtype)
    rows = np.argsort(measured.order[:, 0])
    one_lane = Points(*(column[..., :1] for column in coordinates.points))
    replicates = resampled(one_lane, rows[np.asarray(indices)], dtype)
    lanes = replicates.weight.shape[1]
    with jax.enable_x64(dtype == "float64"):
        whole = solve(law.form, on_device(coordinates.points), jnp.asarray(delta, dtype))
        start = jnp.repeat(whole.parameters[:, :1], lanes, axis=1)
        solution = solve_from(law.form, on_device(replicates), jnp.full(lanes, delta, dtype), start)
    units = tuple(np.repeat(unit, len(indices)) for unit in coordinates.units)
    return law.to_fit(Optimum.of(solution, len(indices)), units)
