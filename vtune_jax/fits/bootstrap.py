"""Case resampling, for comparison with published work: replicates draw their points with replacement and are fitted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vtune_jax.fits.fitted import FittedCurves, Target, host_psi
from vtune_jax.fits.laws.annealing import LRA
from vtune_jax.fits.laws.law import Points
from vtune_jax.fits.laws.power_law import LD
from vtune_jax.fits.points import on_device, padded_lanes
from vtune_jax.fits.solver import solve_from


def draw_cases(points: int, replicates: int, *, seed: int, different: int = 3) -> Int[np.ndarray, "replicates points"]:
    """Indices of the points that each replicate draws.

    Args:
        points: how many there are.
        replicates: how many are wanted.
        seed: of the draws.
        different: points that a replicate must hold at least, as no law can be fitted to fewer; drawn again until so.

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
    curves: FittedCurves, target: Target, *, replicates: int, seed: int = 0
) -> Float[np.ndarray, "replicates domains"]:
    """The loss at a target that each replicate's fit predicts, begun at the fit of all points.

    Args:
        curves: fitted, of at least three points each.
        target: where to read the law off.
        replicates: per domain.
        seed: of the draws; domains with as many points draw alike.
    """
    domains = len(curves.middle)
    times = {int(n): _times_drawn(int(n), replicates, seed) for n in np.unique(curves.seen.sum(axis=0))}
    weight = np.zeros((curves.points.weight.shape[0], domains, replicates))
    for domain in range(domains):
        places = np.flatnonzero(curves.seen[:, domain])
        weight[places, domain] = times[len(places)]
    lanes = domains * replicates
    repeated = [
        np.repeat(column[..., :domains], replicates, axis=-1)
        for column in (curves.points.inputs, curves.points.log_loss)
    ]
    law = LRA if curves.annealed else LD
    begin = np.repeat(curves.parameters[: law.size], replicates, axis=-1)
    delta = np.repeat(curves.fit.delta, replicates)
    count = weight.shape[0]
    columns: list[Any] = [
        padded_lanes(column, count) for column in (*repeated, weight.reshape(count, lanes), begin, delta)
    ]
    inputs, log_loss, weights, begin, delta = columns
    with jax.enable_x64(True):
        found = solve_from(law, on_device(Points(inputs, log_loss, weights)), jnp.asarray(delta), jnp.asarray(begin))
        parameters = np.asarray(found.parameters)[:, :lanes].reshape(law.size, domains, replicates)
    c, s, b, *rest = parameters
    k = rest[0] if rest else 0.0
    t = (np.log(target.tokens) - curves.middle)[:, None]
    inner = 1 - s * host_psi(t, b) - k * (target.annealed / curves.scale)[:, None]
    return (np.exp(c) * np.maximum(inner, 1e-12)).T


def _times_drawn(points: int, replicates: int, seed: int) -> Int[np.ndarray, "points replicates"]:
    """How often each replicate draws each point."""
    drawn = draw_cases(points, replicates, seed=seed) + points * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=points * replicates).reshape(replicates, points).T
