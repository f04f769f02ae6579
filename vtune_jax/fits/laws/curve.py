"""The family of laws of one run: a power law in the first column, less a term that is linear in the second.

`L = E + A / x**beta - C q`, the second column and its term being optional. In coordinates that fit well, with
`t = log x - mean(log x)`, `psi(t; b) = (1 - exp(-b t)) / b`, beta = b and q scaled to at most 1,

    log L(t, q) = c + log(1 - s psi(t; b) - k q),    0 <= s <= b,    0 <= k

c is the log loss at the geometric mean of x with q = 0, and s minus the log-log slope there. All are of order one,
nearly uncorrelated and independent of the unit of x. `E >= 0` and `A >= 0` are exactly `0 <= s <= b`: the pure power
law is `s = b` and the flat curve `s = 0`, which in (log E, log A, beta) would both lie at infinity. The posterior, the
warm-up heads and the diagnostics of curves work on any law of this family.
"""

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.fits.laws.form import Form, Points, best_of, objective, weighted_mean

BETA_BOUNDS = (1e-3, 3.0)
_GRID, _FINE, _BASINS = 48, 16, 2
_ELEMENTS = 16_384
FLAT_EXPONENT = 0.5
"""Stands for the exponent of a flat curve, which has none."""


def psi(t: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`(1 - exp(-b t)) / b`."""
    return -jnp.expm1(-b * t) / b


def psi_and_slopes(t: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    """`psi` with its first and second derivative by b, by series where their terms would cancel."""
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
    """`c + log(inner)` with its slopes `g_i = inner_i / inner` and second derivatives `inner_ij / inner - g_i g_j`.

    Args:
        c: the first parameter.
        inner: a function of the other parameters.
        first: slopes of inner.
        second: the second derivatives of inner that are not zero, by (i, j <= i).
    """
    inner = jnp.maximum(inner, 1e-12)
    slopes = [slope / inner for slope in first]
    zero = jnp.zeros_like(inner)
    products = [
        [zero] + [second.get((i, j), zero) / inner - slopes[i] * slopes[j] for j in range(i + 1)]
        for i in range(len(slopes))
    ]
    return c + jnp.log(inner), [zero + 1.0, *slopes], [[zero], *products]


def psi_on_host(t: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`psi` in numpy; b is never below its bound, so that nothing cancels in double precision."""
    return np.asarray(-np.expm1(-b * t) / b)


def of_line(
    parameters: Float[Array, "p lanes"], inputs: Float[Array, "inputs points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    """`c - b t`, or c alone, with slopes and second derivatives."""
    zero = 0.0 * (inputs[0] + parameters[0])
    slopes = [zero + 1.0, zero - inputs[0]][: len(parameters)]
    model = parameters[0] + zero - (parameters[1] * inputs[0] if len(parameters) > 1 else 0.0)
    return model, slopes, [[zero] * (i + 1) for i in range(len(parameters))]


def along_beta(
    project: Callable[[Points, Array, Array], Array], log_model: Callable[[Array, Array], Array]
) -> Callable[[Points, Array], Float[Array, "starts parameters lanes"]]:
    """Starts for a law that is linear once b, its third parameter, is fixed.

    They are the best local minima along a grid of b, and the best nodes of a fine grid about each: at a narrow Huber
    width every few points make a minimum of their own, and minima may lie closer together than the nodes of one grid.

    Args:
        project: (points, b, delta) -> the best parameters for a fixed b.
        log_model: of these parameters.
    """

    def starts(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "starts parameters lanes"]:
        grid = jnp.geomspace(*BETA_BOUNDS, _GRID, dtype=points.log_loss.dtype)

        # With few lanes the overhead of an iteration dominates, so that it takes several values of b at once.
        together = max(1, _ELEMENTS // points.weight.size)

        def along(b: Array) -> tuple[Array, Array]:
            def start_at(b: Array) -> tuple[Array, Array]:
                start = project(points, b, delta)
                return start, objective(points, log_model(start, points.inputs), delta)

            found: tuple[Array, Array] = jax.lax.map(start_at, b, batch_size=together)
            return found

        starts, values = along(grid)
        padded = jnp.pad(values, ((1, 1), (0, 0)), constant_values=jnp.inf)
        coarse = best_of(starts, values, _BASINS, among=(values <= padded[:-2]) & (values <= padded[2:]))
        near = jnp.linspace(-1.0, 1.0, _FINE, dtype=grid.dtype)[:, None, None] * jnp.log(grid[1] / grid[0])
        fine, values = along(jnp.clip(coarse[None, :, 2] * jnp.exp(near), *BETA_BOUNDS).reshape(-1, *coarse.shape[2:]))
        return jnp.concatenate([coarse, best_of(fine, values, _BASINS)])

    return starts


def mean_level(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "1 1 lanes"]:
    """The start of the flat curve: the mean log loss."""
    return weighted_mean(points.log_loss, points.weight)[None, None]


class Face(enum.IntEnum):
    """Where an optimum lies."""

    INTERIOR = 0
    PURE_POWER_LAW = 1  # E = 0
    FLAT = 2  # B = 0
    BETA_BOUND = 3


def face_of(form: Form, piece: np.ndarray, s: np.ndarray, b: np.ndarray) -> Int[np.ndarray, " fits"]:
    """Where optima lie, from the index of the piece on which each was found, and from (s, b)."""
    names = np.array([form.pieces[index].name for index in piece])
    at_bound = (b <= BETA_BOUNDS[0] * 1.001) | (b >= BETA_BOUNDS[1] * 0.999)
    return np.select(
        [(names == "flat") | (s <= 0), (names == "pure power law") | (s >= b), at_bound],
        [Face.FLAT, Face.PURE_POWER_LAW, Face.BETA_BOUND],
        Face.INTERIOR,
    )
