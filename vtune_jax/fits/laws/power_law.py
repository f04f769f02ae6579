"""The law `L(D) = E + B / D**beta` in coordinates that fit well.

With `t = log D - mean(log D)`, `psi(t; b) = (1 - exp(-b t)) / b` and beta = b,

    log L(t) = c + log(1 - s psi(t; b)),    0 <= s <= b

c is the log loss at the geometric-mean D and s minus the log-log slope there. All three are of order one, nearly
uncorrelated and independent of the unit of D; `E >= 0` and `B >= 0` are exactly `0 <= s <= b`, with `s = b` the pure
power law and `s = 0` the flat curve, whereas (log E, log B, beta) sends both faces to infinity.
"""

import enum
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.fits.laws.law import PUBLISHED_DELTA, Law, Piece, Points, best_of, objective, weighted_mean
from vtune_jax.fits.points import Measured, centred, checked_points, make_points, on_device
from vtune_jax.fits.solver import Solution, solve

BETA_BOUNDS = (1e-3, 3.0)
_GRID, _FINE, _BASINS = 48, 16, 2
_ELEMENTS = 16_384
Width = float | Literal["auto"]
"""Of the Huber loss, on log residuals; "auto": 1.345 times the residuals' spread in a fit at the published width."""
_PROJECTION_ROUNDS = 5
FLAT_EXPONENT = 0.5
"""Stands for the exponent of a flat curve, which has none."""


def psi(t: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`(1 - exp(-b t)) / b`."""
    return -jnp.expm1(-b * t) / b


def psi_and_slopes(t: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    """`psi` with its first and second derivative by b, these by their series where they cancel."""
    x = b * t
    small = jnp.abs(x) < (0.1 if x.dtype == jnp.float32 else 0.01)
    inner = jnp.where(small, x, 0.0)
    fallen = jnp.expm1(-x)
    value, decayed = -fallen / b, 1 + fallen
    first = jnp.where(small, t**2 * (-1 / 2 + inner / 3 - inner**2 / 8 + inner**3 / 30), (t * decayed - value) / b)
    second = jnp.where(
        small, t**3 * (1 / 3 - inner / 4 + inner**2 / 10 - inner**3 / 36), (-(t**2) * decayed - 2 * first) / b
    )
    return value, first, second


def derivatives_of_log(
    c: Float[Array, " lanes"], inner: Array, first: list[Array], second: dict[tuple[int, int], Array]
) -> tuple[Array, list[Array], list[list[Array]]]:
    """Of `c + log(inner)`: with g_i = inner_i / inner the second ones are `inner_ij / inner - g_i g_j`.

    Args:
        c: the first parameter.
        inner: function of the others.
        first: its slopes.
        second: its second derivatives that are not zero, by (i, j <= i).
    """
    inner = jnp.maximum(inner, 1e-12)
    slopes = [slope / inner for slope in first]
    zero = jnp.zeros_like(inner)
    of_pair = [
        [zero] + [second.get((i, j), zero) / inner - slopes[i] * slopes[j] for j in range(i + 1)]
        for i in range(len(slopes))
    ]
    return c + jnp.log(inner), [zero + 1.0, *slopes], [[zero], *of_pair]


def _derivatives(
    parameters: Float[Array, "3 lanes"], inputs: Float[Array, "1 points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    c, s, b = parameters
    shape, of_b, of_bb = psi_and_slopes(inputs[0], b)
    return derivatives_of_log(c, 1 - s * shape, [-shape, -s * of_b], {(1, 0): -of_b, (1, 1): -s * of_bb})


def of_line(
    parameters: Float[Array, "p lanes"], inputs: Float[Array, "inputs points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    """Of `c - b t`, or of c alone."""
    zero = 0.0 * (inputs[0] + parameters[0])
    slopes = [zero + 1.0, zero - inputs[0]][: len(parameters)]
    model = parameters[0] + zero - (parameters[1] * inputs[0] if len(parameters) > 1 else 0.0)
    return model, slopes, [[zero] * (i + 1) for i in range(len(parameters))]


def log_model(parameters: Float[Array, "3 ..."], inputs: Float[Array, "1 points ..."]) -> Float[Array, "points ..."]:
    """`c + log(1 - s psi(t; b))`."""
    c, s, b = parameters
    # A trial step may leave the domain of the logarithm; the floor makes it merely bad, so that it is refused.
    return c + jnp.log(jnp.maximum(1 - s * psi(inputs[0], b), 1e-12))


def project(points: Points, b: Float[Array, "..."], delta: Float[Array, "..."]) -> Float[Array, "3 ..."]:
    """The best (c, s) for a given b, by reweighted least squares within `0 <= s <= b`."""
    loss, shape = jnp.exp(points.log_loss), psi(points.inputs[0], b)
    pure = 1 - b * shape
    tiny = jnp.finfo(loss.dtype).tiny

    def fit(weight: Float[Array, "..."]) -> Float[Array, "..."]:
        mean_shape, mean_loss = weighted_mean(shape, weight), weighted_mean(loss, weight)
        variance = weighted_mean((shape - mean_shape) ** 2, weight)
        covariance = weighted_mean((shape - mean_shape) * (loss - mean_loss), weight)
        k = -covariance / jnp.maximum(variance, tiny)
        m = mean_loss + k * mean_shape
        flat, power = mean_loss, weighted_mean(loss * pure, weight) / weighted_mean(pure**2, weight)
        m = jnp.where(k < 0, flat, jnp.where(k > b * m, power, m))
        s = jnp.where(k < 0, 0.0, jnp.where(k > b * m, b, k / m))
        return jnp.stack([jnp.log(m), jnp.clip(s, 0.0, b), jnp.broadcast_to(b, m.shape)])

    def reweighted(_: Any, parameters: Float[Array, "..."]) -> Float[Array, "..."]:
        # `log_model` written out: psi, most of its cost, is the same in every round.
        level, s, _ = parameters
        inner = jnp.maximum(1 - s * shape, 1e-12)
        size = jnp.abs(points.log_loss - level - jnp.log(inner))
        model = jnp.exp(level) * inner
        return fit(points.weight * jnp.minimum(1.0, delta / jnp.maximum(size, tiny)) / model**2)

    return jax.lax.fori_loop(0, _PROJECTION_ROUNDS, reweighted, fit(points.weight / loss**2))


def along_beta(
    project: Callable[[Points, Array, Array], Array], log_model: Callable[[Array, Array], Array]
) -> Callable[[Points, Array], Float[Array, "starts parameters lanes"]]:
    """Starts for a law that is linear once b, its third parameter, is fixed.

    The best local minima along a grid of b, and the best of a fine grid about each: at a narrow width every few points
    make a minimum of their own, some closer together than the nodes of one grid.

    Args:
        project: (points, b, delta) -> the best parameters for a given b.
        log_model: of these parameters.
    """

    def starts(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "starts parameters lanes"]:
        grid = jnp.geomspace(*BETA_BOUNDS, _GRID, dtype=points.log_loss.dtype)

        # Few lanes are cheap next to the overhead of a turn: then several values of b take it together.
        together = max(1, _ELEMENTS // points.weight.size)

        def along(b: Array) -> tuple[Array, Array]:
            def one(b: Array) -> tuple[Array, Array]:
                start = project(points, b, delta)
                return start, objective(points, log_model(start, points.inputs), delta)

            return jax.lax.map(one, b, batch_size=together)

        starts, values = along(grid)
        padded = jnp.pad(values, ((1, 1), (0, 0)), constant_values=jnp.inf)
        coarse = best_of(starts, values, _BASINS, among=(values <= padded[:-2]) & (values <= padded[2:]))
        near = jnp.linspace(-1.0, 1.0, _FINE, dtype=grid.dtype)[:, None, None] * jnp.log(grid[1] / grid[0])
        fine, values = along(jnp.clip(coarse[None, :, 2] * jnp.exp(near), *BETA_BOUNDS).reshape(-1, *coarse.shape[2:]))
        return jnp.concatenate([coarse, best_of(fine, values, _BASINS)])

    return starts


def _level(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "1 1 lanes"]:
    return weighted_mean(points.log_loss, points.weight)[None, None]


def _line(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "1 2 lanes"]:
    t, level = points.inputs[0], weighted_mean(points.log_loss, points.weight)
    centred = t - weighted_mean(t, points.weight)
    variance = jnp.maximum(weighted_mean(centred**2, points.weight), 1e-12)
    slope = jnp.maximum(-weighted_mean(centred * points.log_loss, points.weight) / variance, 0.0)
    return jnp.stack([level + slope * weighted_mean(t, points.weight), slope])[None]


def _into_interior(parameters: Float[Array, "3 lanes"]) -> Float[Array, "3 lanes"]:
    c, s, b = parameters
    b = jnp.clip(b, *BETA_BOUNDS)
    return jnp.stack([c, jnp.clip(s, 0.0, b), b])


def _flat_curve(level: Float[Array, "1 lanes"]) -> Float[Array, "3 lanes"]:
    return jnp.stack([level[0], jnp.zeros_like(level[0]), jnp.full_like(level[0], FLAT_EXPONENT)])


FLAT = Piece(
    "flat",
    starts=_level,
    log_model=lambda parameters, inputs: parameters[0] + 0.0 * inputs[0],
    into_bounds=lambda parameters: parameters,
    embed=_flat_curve,
    derivatives=of_line,
)
PURE_POWER_LAW = Piece(
    "pure power law",
    starts=_line,
    log_model=lambda parameters, inputs: parameters[0] - parameters[1] * inputs[0],
    into_bounds=lambda parameters: jnp.stack([parameters[0], jnp.clip(parameters[1], *BETA_BOUNDS)]),
    embed=lambda parameters: jnp.stack([parameters[0], parameters[1], parameters[1]]),
    derivatives=of_line,
)
INTERIOR = Piece(
    "interior",
    starts=along_beta(project, log_model),
    log_model=log_model,
    into_bounds=_into_interior,
    embed=lambda parameters: parameters,
    derivatives=_derivatives,
)

LD = Law("LD", "L(D) = E + B / D^beta", ("tokens",), 3, (FLAT, PURE_POWER_LAW, INTERIOR))


class Face(enum.IntEnum):
    """Where the optimum lies."""

    INTERIOR = 0
    PURE_POWER_LAW = 1  # E = 0
    FLAT = 2  # B = 0
    BETA_BOUND = 3


class PowerLawFit(NamedTuple):
    """Fitted laws, in float64; every field has one entry per domain."""

    E: Float[np.ndarray, " domains"]  # irreducible loss, nats per token
    log_B: Float[np.ndarray, " domains"]  # B itself overflows for large beta
    beta: Float[np.ndarray, " domains"]
    objective: Float[np.ndarray, " domains"]  # sum of the Huber losses of the log residuals, at the width used
    sigma: Float[np.ndarray, " domains"]  # robust spread of the log residuals
    delta: Float[np.ndarray, " domains"]  # Huber width used
    face: Int[np.ndarray, " domains"]  # see `Face`
    status: Int[np.ndarray, " domains"]  # see `solver.Status`


class Curves(NamedTuple):
    """Points of every domain in the law's coordinates, padded, and what leads back from them."""

    points: Points
    middle: Float[np.ndarray, " domains"]  # mean log tokens


def fit_loss_curves(
    tokens: np.ndarray, losses: np.ndarray, *, delta: Width = PUBLISHED_DELTA, dtype: str = "float64"
) -> PowerLawFit:
    """Fits every domain's curve in one program, in float64 whatever the global setting.

    Args:
        tokens: D > 0, [points] shared by the domains or [points, domains].
        losses: [points, domains], nats per token, > 0; NaN leaves a point out. At least three points per domain.
        delta: see `Width`.
        dtype: of the arithmetic; "float32" finds the objective within a thousandth.

    Raises:
        ValueError: shapes that do not agree, values that are not positive, fewer than three points, or a delta that is
            not positive.
    """
    width = checked_width(delta)
    curves = curves_of(checked_points(tokens, losses), dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        solution = solve(LD, on_device(curves.points), jnp.asarray(width, dtype))
        return to_fit(jax.tree.map(np.asarray, solution), curves.middle)


def checked_width(delta: Width) -> float:
    """The width as the solver wants it: 0 for "auto".

    Raises:
        ValueError: it is neither "auto" nor positive.
    """
    if delta == "auto":
        return 0.0
    if not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise ValueError(f'delta must be positive or "auto", got {delta!r}.')
    return float(delta)


def predict(fit: PowerLawFit, tokens: float | Float[np.ndarray, " domains"]) -> Float[np.ndarray, " domains"]:
    """`E + exp(log_B - beta log D)` for each domain."""
    return fit.E + np.exp(fit.log_B - fit.beta * np.log(tokens))


def curves_of(measured: Measured, *, dtype: str = "float64") -> Curves:
    """Measurements in the law's coordinates."""
    t, middle = centred(measured.tokens, measured.losses)
    return Curves(make_points([t], measured.losses, dtype=dtype), middle)


def to_fit(solution: Solution, middle: np.ndarray) -> PowerLawFit:
    """From (c, s, b) to (E, log B, beta), for as many lanes as there are domains or replicates.

    Args:
        solution: on the host, lanes padded.
        middle: mean log tokens, per lane that is wanted.
    """
    solution = jax.tree.map(lambda column: np.asarray(column)[..., : len(middle)], solution)
    c, s, b = np.asarray(solution.parameters, np.float64)
    b = np.where(s > 0, b, FLAT_EXPONENT)
    share = s / b
    with np.errstate(divide="ignore"):
        log_b = c + np.log(share) + b * middle
    return PowerLawFit(
        E=np.exp(c) * (1 - share),
        log_B=log_b,
        beta=b,
        objective=np.asarray(solution.objective, np.float64),
        sigma=np.asarray(solution.sigma, np.float64),
        delta=np.asarray(solution.delta, np.float64),
        face=face_of(LD, np.asarray(solution.piece), s, b),
        status=np.asarray(solution.status),
    )


def face_of(law: Law, piece: np.ndarray, s: np.ndarray, b: np.ndarray) -> Int[np.ndarray, " domains"]:
    """Where optima lie, from the pieces that they were found on and from (s, b)."""
    names = np.array([law.pieces[index].name for index in piece])
    at_bound = (b <= BETA_BOUNDS[0] * 1.001) | (b >= BETA_BOUNDS[1] * 0.999)
    return np.select(
        [(names == "flat") | (s <= 0), (names == "pure power law") | (s >= b), at_bound],
        [Face.FLAT, Face.PURE_POWER_LAW, Face.BETA_BOUND],
        Face.INTERIOR,
    )
