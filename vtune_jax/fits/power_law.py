"""The law `L(D) = E + B / D**beta` in coordinates that fit well, and its robust fit.

With `t = log D - mean(log D)`, `psi(t; b) = (1 - exp(-b t)) / b` and beta = b,

    log L(t) = c + log(1 - s psi(t; b)),    0 <= s <= b

c is the log loss at the geometric-mean D and s minus the log-log slope there. All three are of order one, nearly
uncorrelated and independent of the unit of D; `E >= 0` and `B >= 0` are exactly `0 <= s <= b`, with `s = b` the pure
power law and `s = 0` the flat curve, whereas (log E, log B, beta) sends both faces to infinity.

The fit minimises the Huber loss of the log residuals: variable projection on a grid of b (for fixed b the law is linear
in two coefficients), damped Newton from the two best local minima of the grid, and from each face. No random starts.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PUBLISHED_DELTA = 1e-3
"""Huber width on log residuals in the published Chinchilla fits."""

BETA_BOUNDS = (1e-3, 3.0)
_GRID = 48
_PROJECTION_ROUNDS = 5
_NEWTON_STEPS = 60


class Face(enum.IntEnum):
    """Where the optimum lies."""

    INTERIOR = 0
    PURE_POWER_LAW = 1  # E = 0
    FLAT = 2  # B = 0
    BETA_BOUND = 3


class PowerLawFit(NamedTuple):
    """Fitted laws; every field has one entry per domain, float64."""

    E: Float[np.ndarray, " domains"]  # irreducible loss, nats per token
    log_B: Float[np.ndarray, " domains"]  # B itself overflows for large beta
    beta: Float[np.ndarray, " domains"]
    objective: Float[np.ndarray, " domains"]  # mean Huber loss of the log residuals, at the width used
    sigma: Float[np.ndarray, " domains"]  # robust spread of the log residuals
    face: Int[np.ndarray, " domains"]  # see `Face`


class Curve(NamedTuple):
    """One domain's points in the fit's coordinates."""

    t: Float[Array, " points"]  # log D - mean(log D); 0 where the weight is 0
    log_loss: Float[Array, " points"]
    weight: Float[Array, " points"]  # 0 leaves a point out


class Solution(NamedTuple):
    """A fit in the coordinates (c, s, b)."""

    c: Float[Array, ""]
    s: Float[Array, ""]
    b: Float[Array, ""]
    objective: Float[Array, ""]
    sigma: Float[Array, ""]
    face: Int[Array, ""]


def fit_loss_curves(
    tokens: np.ndarray,
    losses: np.ndarray,
    *,
    delta: float | None = None,
) -> PowerLawFit:
    """Fits every domain's curve in one vmapped program, in float64 whatever the global setting.

    Args:
        tokens: D > 0, [points] shared by the domains or [points, domains].
        losses: [points, domains], nats per token, > 0; NaN leaves a point out. At least three points per domain.
        delta: Huber width on log residuals; None fits at the published 1e-3, then again at 1.345 times the residuals'
            robust spread.

    Raises:
        ValueError: shapes that do not agree, values that are not positive, or fewer than three points.
    """
    tokens, losses = checked_points(tokens, losses)
    curves, middle = curves_of(tokens, losses)
    with jax.enable_x64(True):
        solutions = _solve_all(jax.tree.map(jnp.asarray, curves), jnp.float64(0.0 if delta is None else delta))
        solutions = jax.tree.map(lambda column: np.asarray(column)[: losses.shape[1]], solutions)
    return to_fit(solutions, middle)


def predict(fit: PowerLawFit, tokens: float | Float[np.ndarray, " domains"]) -> Float[np.ndarray, " domains"]:
    """`E + exp(log_B - beta log D)` for each domain."""
    return fit.E + np.exp(fit.log_B - fit.beta * np.log(tokens))


def checked_points(tokens: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points as two float64 arrays [points, domains].

    Raises:
        ValueError: see `fit_loss_curves`.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2:
        raise ValueError(f"losses must be [points, domains], got shape {losses.shape}.")
    tokens = np.asarray(tokens, np.float64)
    if tokens.ndim == 1:
        tokens = np.repeat(tokens[:, None], losses.shape[1], axis=1)
    if tokens.shape != losses.shape:
        raise ValueError(f"tokens must have the losses' shape {losses.shape}, got {tokens.shape}.")
    if not (np.isfinite(tokens) & (tokens > 0)).all():
        raise ValueError(f"tokens must be positive and finite, got {tokens.min()}.")
    seen = ~np.isnan(losses)
    if not (np.isfinite(losses[seen]) & (losses[seen] > 0)).all():
        raise ValueError(f"losses must be positive and finite, got {losses[seen].min()}.")
    fewest = int(seen.sum(axis=0).min())
    if fewest < 3:
        raise ValueError(f"losses must have at least 3 points in every domain, got {fewest}.")
    return tokens, losses


def curves_of(tokens: np.ndarray, losses: np.ndarray) -> tuple[Curve, np.ndarray]:
    """Points in the fit's coordinates, domains first, and each domain's mean log tokens.

    Padded to a power of two in both directions, at least 8, so that few shapes are ever compiled: points of weight zero
    count for nothing, and the lanes beyond the domains repeat the first.
    """
    seen = ~np.isnan(losses)
    # Sorted, so that the order of the points cannot change a rounding.
    order = np.lexsort((losses, tokens), axis=0)
    tokens, losses, seen = (np.take_along_axis(array, order, axis=0) for array in (tokens, losses, seen))
    logs = np.log(tokens)
    middle = np.where(seen, logs, 0.0).sum(axis=0) / seen.sum(axis=0)
    columns = {
        "t": np.where(seen, logs - middle, 0.0).T,
        "log_loss": np.where(seen, np.log(np.where(seen, losses, 1.0)), 0.0).T,
        "weight": seen.astype(np.float64).T,
    }
    padded: dict[str, Any] = {name: _padded(column) for name, column in columns.items()}
    return Curve(**padded), middle


def _padded(column: np.ndarray) -> np.ndarray:
    lanes, points = (max(8, 1 << (size - 1).bit_length()) for size in column.shape)
    column = np.pad(column, ((0, 0), (0, points - column.shape[1])))
    return np.concatenate([column, np.repeat(column[:1], lanes - len(column), axis=0)])


def to_fit(solution: Solution, middle: np.ndarray) -> PowerLawFit:
    """From (c, s, b) to (E, log B, beta)."""
    share = np.where(solution.b > 0, solution.s / np.where(solution.b > 0, solution.b, 1.0), 0.0)
    with np.errstate(divide="ignore"):
        log_b = solution.c + np.log(share) + solution.b * middle
    return PowerLawFit(
        E=np.exp(solution.c) * (1 - share),
        log_B=np.asarray(log_b),
        beta=np.asarray(solution.b),
        objective=np.asarray(solution.objective),
        sigma=np.asarray(solution.sigma),
        face=np.asarray(solution.face),
    )


def psi(t: Float[Array, "*points"], b: Float[Array, ""]) -> Float[Array, "*points"]:
    """`(1 - exp(-b t)) / b`."""
    return -jnp.expm1(-b * t) / b


def log_model(parameters: Float[Array, " 3"], t: Float[Array, " points"]) -> Float[Array, " points"]:
    """`c + log(1 - s psi(t; b))`."""
    c, s, b = parameters
    # A trial step may leave the domain of the logarithm; the floor makes it merely bad, so that it is refused.
    return c + jnp.log(jnp.maximum(1 - s * psi(t, b), 1e-12))


def huber(residual: Float[Array, " points"], delta: Float[Array, ""]) -> Float[Array, " points"]:
    """`r**2 / 2` within delta, linear beyond."""
    size = jnp.abs(residual)
    return jnp.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


@jax.jit
def _solve_all(curves: Curve, delta: Float[Array, ""]) -> Solution:
    return jax.vmap(solve, in_axes=(0, None))(curves, delta)


def solve(curve: Curve, delta: Float[Array, ""]) -> Solution:
    """The global optimum for one curve; delta 0 stands for the data-driven width."""
    first = _solve_at(curve, jnp.where(delta > 0, delta, PUBLISHED_DELTA))
    adaptive = jnp.maximum(1.345 * first.sigma, 1e-6)
    return jax.lax.cond(delta > 0, lambda: first, lambda: _solve_at(curve, adaptive))


def _solve_at(curve: Curve, delta: Float[Array, ""]) -> Solution:
    grid = jnp.geomspace(*BETA_BOUNDS, _GRID)
    starts = jax.vmap(partial(project, curve, delta=delta))(grid)
    objectives = jax.vmap(lambda start: objective(curve, log_model(start, curve.t), delta))(starts)
    padded = jnp.pad(objectives, 1, constant_values=jnp.inf)
    is_minimum = (objectives <= padded[:-2]) & (objectives <= padded[2:])
    best = jnp.argsort(jnp.where(is_minimum, objectives, jnp.inf))[:2]

    interior = jax.vmap(partial(_newton, log_model, _into_interior, curve, delta))(starts[best])
    level = weighted_mean(curve.log_loss, curve.weight)
    slope = jnp.maximum(-weighted_mean(curve.log_loss * curve.t, curve.weight), 0.0)
    slope = slope / jnp.maximum(weighted_mean(curve.t**2, curve.weight), 1e-12)
    power = _newton(_log_power, _into_power, curve, delta, jnp.array([level, slope]))
    flat = _newton(_log_flat, lambda parameters: parameters, curve, delta, jnp.array([level]))

    candidates = jnp.stack(
        [*interior, jnp.array([power[0], power[1], power[1]]), jnp.array([flat[0], 0.0, grid[_GRID // 2]])]
    )
    values = jnp.stack(
        [
            *(objective(curve, log_model(candidate, curve.t), delta) for candidate in interior),
            objective(curve, _log_power(power, curve.t), delta),
            objective(curve, _log_flat(flat, curve.t), delta),
        ]
    )
    # Ties go to the simpler curve: flat before power law before interior.
    order = jnp.array([3, 2, 0, 1])
    winner = order[jnp.argmin(values[order])]
    c, s, b = candidates[winner]
    at_bound = (b <= BETA_BOUNDS[0] * 1.001) | (b >= BETA_BOUNDS[1] * 0.999)
    face = jnp.select(
        [winner == 3, winner == 2, s <= 0, s >= b, at_bound],
        [Face.FLAT, Face.PURE_POWER_LAW, Face.FLAT, Face.PURE_POWER_LAW, Face.BETA_BOUND],
        Face.INTERIOR,
    )
    fitted = jnp.where(winner == 2, _log_power(power, curve.t), log_model(candidates[winner], curve.t))
    return Solution(c, s, b, values[winner], spread(curve, curve.log_loss - fitted), face)


def project(curve: Curve, b: Float[Array, ""], *, delta: Float[Array, ""]) -> Float[Array, " 3"]:
    """The best (c, s) for a given b, by reweighted least squares within `0 <= s <= b`."""
    loss, shape = jnp.exp(curve.log_loss), psi(curve.t, b)
    pure = 1 - b * shape

    def fit(weight: Float[Array, " points"]) -> Float[Array, " 3"]:
        mean_shape, mean_loss = weighted_mean(shape, weight), weighted_mean(loss, weight)
        variance = weighted_mean((shape - mean_shape) ** 2, weight)
        covariance = weighted_mean((shape - mean_shape) * (loss - mean_loss), weight)
        k = -covariance / jnp.maximum(variance, 1e-300)
        m = mean_loss + k * mean_shape
        flat, power = mean_loss, weighted_mean(loss * pure, weight) / weighted_mean(pure**2, weight)
        m = jnp.where(k < 0, flat, jnp.where(k > b * m, power, m))
        s = jnp.where(k < 0, 0.0, jnp.where(k > b * m, b, k / m))
        return jnp.stack([jnp.log(m), jnp.clip(s, 0.0, b), b])

    def reweighted(_: Any, parameters: Float[Array, " 3"]) -> Float[Array, " 3"]:
        model = log_model(parameters, curve.t)
        size = jnp.abs(curve.log_loss - model)
        return fit(curve.weight * jnp.minimum(1.0, delta / jnp.maximum(size, 1e-300)) * jnp.exp(-2 * model))

    return jax.lax.fori_loop(0, _PROJECTION_ROUNDS, reweighted, fit(curve.weight / loss**2))


def objective(curve: Curve, model: Float[Array, " points"], delta: Float[Array, ""]) -> Float[Array, ""]:
    """Mean Huber loss of the log residuals."""
    return weighted_mean(huber(curve.log_loss - model, delta), curve.weight)


def spread(curve: Curve, residual: Float[Array, " points"]) -> Float[Array, ""]:
    """`1.4826 median |r| sqrt(n / (n - 3))`, a robust standard deviation; with three points or fewer, as if four."""
    count = curve.weight.sum()
    size = jnp.sort(jnp.where(curve.weight > 0, jnp.abs(residual), jnp.inf))
    last = count.astype(int) - 1
    median = 0.5 * (size[last // 2] + size[(last + 1) // 2])
    return 1.4826 * median * jnp.sqrt(count / jnp.maximum(count - 3, 1.0))


def weighted_mean(values: Float[Array, " points"], weight: Float[Array, " points"]) -> Float[Array, ""]:
    """Over the points whose weight is not zero."""
    return (weight * values).sum() / weight.sum()


def _log_power(parameters: Float[Array, " 2"], t: Float[Array, " points"]) -> Float[Array, " points"]:
    return parameters[0] - parameters[1] * t


def _log_flat(parameters: Float[Array, " 1"], t: Float[Array, " points"]) -> Float[Array, " points"]:
    return jnp.full(t.shape, parameters[0])


def _into_interior(parameters: Float[Array, " 3"]) -> Float[Array, " 3"]:
    c, s, b = parameters
    b = jnp.clip(b, *BETA_BOUNDS)
    return jnp.stack([c, jnp.clip(s, 0.0, b), b])


def _into_power(parameters: Float[Array, " 2"]) -> Float[Array, " 2"]:
    return jnp.stack([parameters[0], jnp.clip(parameters[1], BETA_BOUNDS[0], BETA_BOUNDS[1])])


def _newton(
    model: Callable[[Array, Array], Array],
    into_bounds: Callable[[Array], Array],
    curve: Curve,
    delta: Float[Array, ""],
    start: Float[Array, " parameters"],
) -> Float[Array, " parameters"]:
    """Damped Newton on the Huber objective.

    `(H + lambda M) step = -gradient`, with H the Hessian and M that of the reweighted least-squares problem: lambda 1
    nearly always descends, lambda towards 0 is Newton. Only a decrease is accepted.
    """

    def body(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, value, damping = carry
        residual = curve.log_loss - model(at, curve.t)
        jacobian = jax.jacfwd(model)(at, curve.t)
        curvature = jax.jacfwd(jax.jacfwd(model))(at, curve.t)
        pull = curve.weight * jnp.clip(residual, -delta, delta)
        inside = curve.weight * (jnp.abs(residual) <= delta)
        majorant = curve.weight * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(residual), 1e-300))
        gradient = -(pull @ jacobian)
        hessian = jnp.einsum("p,pi,pj->ij", inside, jacobian, jacobian) - jnp.einsum("p,pij->ij", pull, curvature)
        metric = jnp.einsum("p,pi,pj->ij", majorant, jacobian, jacobian)
        # A parameter that its bound holds against the descent direction stays where it is.
        nudged = into_bounds(at - 1e-9 * gradient / jnp.maximum(jnp.abs(gradient).max(), 1e-300))
        free = (jnp.abs(nudged - at) > 0) | (jnp.abs(gradient) == 0)
        system = jnp.where(free[:, None] & free[None, :], hessian + damping * metric, 0.0)
        system = system + jnp.diag(jnp.where(free, 1e-14, 1.0))
        step = jnp.linalg.solve(system, -jnp.where(free, gradient, 0.0))
        trial = into_bounds(at + jnp.where(jnp.isfinite(step), step, 0.0))
        trial_value = objective(curve, model(trial, curve.t), delta)
        better = trial_value < value
        return (
            jnp.where(better, trial, at),
            jnp.where(better, trial_value, value),
            jnp.where(better, damping * 0.15, jnp.minimum(damping * 5.0, 1e8)),
        )

    start = into_bounds(start)
    first = (start, objective(curve, model(start, curve.t), delta), jnp.ones((), start.dtype))
    return jax.lax.fori_loop(0, _NEWTON_STEPS, body, first)[0]
