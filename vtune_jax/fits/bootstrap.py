"""Case resampling of curves, for comparison with published work: replicates draw points with replacement."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vtune_jax.fits.fitted import FittedCurves, losses_at
from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.laws.law import Budget
from vtune_jax.fits.points import on_device, padded_lanes
from vtune_jax.fits.solver import solve_from


def draw_cases(points: int, replicates: int, *, seed: int, different: int = 3) -> Int[np.ndarray, "replicates points"]:
    """Indices of the points that each replicate draws.

    Args:
        points: number of points to draw from, and of points drawn.
        replicates: number of replicates.
        seed: of the draws.
        different: least number of different points in a replicate; a replicate with fewer is drawn again.

    Raises:
        ValueError: there are fewer points than must differ.
    """
    if points < different:
        raise ValueError(f"points must be at least {different}, got {points}.")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, points, (replicates, points))
    while (few := (np.diff(np.sort(drawn, axis=1), axis=1) > 0).sum(axis=1) + 1 < different).any():
        drawn[few] = rng.integers(0, points, (few.sum(), points))
    return drawn


def bootstrap_predictions(
    curves: FittedCurves, budget: Budget, *, replicates: int, seed: int = 0
) -> Float[np.ndarray, "replicates domains"]:
    """The loss at a budget that each replicate's fit predicts, begun at the fit of all points.

    Args:
        curves: fitted, of at least three points each.
        budget: where to read the law off.
        replicates: per domain.
        seed: of the draws, which are the same for all domains with equally many points.
    """
    domains, law = curves.domains, curves.law
    times = {int(n): _times_drawn(int(n), replicates, seed) for n in np.unique(curves.present.sum(axis=0))}
    weight = np.zeros((curves.points.weight.shape[0], domains, replicates))
    for domain in range(domains):
        places = np.flatnonzero(curves.present[:, domain])
        weight[places, domain] = times[len(places)]
    lanes, count = domains * replicates, weight.shape[0]

    def repeated(column: np.ndarray) -> np.ndarray:
        return padded_lanes(np.repeat(column[..., :domains], replicates, axis=-1), count)

    inputs, log_loss, begin, delta = (
        repeated(np.asarray(column))
        for column in (curves.points.inputs, curves.points.log_loss, curves.parameters[: law.size], curves.fit.delta)
    )
    weights = padded_lanes(weight.reshape(count, lanes), count)
    with jax.enable_x64(True):
        points = on_device(Points(inputs, log_loss, weights))  # type: ignore[arg-type]  # numpy until then
        solution = solve_from(law.form, points, jnp.asarray(delta), jnp.asarray(begin))
        parameters = np.asarray(solution.parameters)[:, :lanes].reshape(law.size, domains, replicates)
    at_budget = [column.reshape(domains, 1) for column in law.inputs_at([budget], curves.units)]
    return losses_at(at_budget, parameters).T


def _times_drawn(points: int, replicates: int, seed: int) -> Int[np.ndarray, "points replicates"]:
    """How often each replicate draws each point."""
    drawn = draw_cases(points, replicates, seed=seed) + points * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=points * replicates).reshape(replicates, points).T
