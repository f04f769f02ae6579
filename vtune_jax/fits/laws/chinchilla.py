"""The law `L(N, D) = E + A / N**alpha + B / D**beta` over model sizes and token counts.

Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", arXiv:2203.15556; the fit is that of
Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt", arXiv:2404.10102. Their published A, B, alpha and
beta come from a likelihood whose free scale collapses: the limit of a vanishing Huber width. Their E is that of another
optimum, the one at width 1e-3 (A 477.8, B 2143).
"""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.fits.laws.law import PUBLISHED_DELTA, Law, Piece, Points, best_of, nonnegative_least_squares, objective
from vtune_jax.fits.laws.power_law import BETA_BOUNDS, Width, checked_width
from vtune_jax.fits.points import Measured, centred, checked_points, make_points, on_device, resampled
from vtune_jax.fits.solver import Solution, solve, solve_from

_GRID = 14
_ABSENT = -30.0
"""Logarithm that stands for a term of zero: no float64 loss sees it."""


def log_model(parameters: Float[Array, "5 lanes"], inputs: Float[Array, "2 points #lanes"]) -> Float[Array, "..."]:
    """`log(exp(a - alpha n) + exp(b - beta d) + exp(e))`, n and d centred logarithms of N and D."""
    a, b, e, alpha, beta = parameters
    n, d = inputs
    # Within the bounds no term overflows, and exp(e) keeps the sum from zero: no need of logaddexp, at twice the cost.
    return jnp.log(jnp.exp(a - alpha * n) + jnp.exp(b - beta * d) + jnp.exp(e))


def _derivatives(
    parameters: Float[Array, "5 lanes"], inputs: Float[Array, "2 points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    """With p the terms' shares of the loss and u their gradients: `g = sum p u`, `H = sum p u u' - g g'`."""
    a, b, e, alpha, beta = parameters
    n, d = inputs
    terms = jnp.exp(a - alpha * n), jnp.exp(b - beta * d), jnp.exp(e)
    whole = terms[0] + terms[1] + terms[2]
    model = jnp.log(whole)
    of_n, of_d, of_e = (term / whole for term in terms)
    first = [of_n, of_d, of_e, -of_n * n, -of_d * d]
    moments = {(0, 0): of_n, (1, 1): of_d, (2, 2): of_e}
    moments |= {(3, 0): first[3], (3, 3): -first[3] * n, (4, 1): first[4], (4, 4): -first[4] * d}
    second = [[moments.get((i, j), 0.0) - first[i] * first[j] for j in range(i + 1)] for i in range(5)]
    return model, first, second


def _on_grid(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "3 5 lanes"]:
    """For each pair of exponents the law is linear; the best three pairs."""
    values = jnp.geomspace(0.03, 2.0, _GRID, dtype=points.log_loss.dtype)
    pairs = jnp.array(list(product(range(_GRID), repeat=2)))
    n, d = points.inputs
    loss = jnp.exp(points.log_loss)

    def one(pair: Array) -> tuple[Array, Array]:
        alpha, beta = values[pair[0]], values[pair[1]]
        terms = jnp.stack([jnp.exp(-alpha * n), jnp.exp(-beta * d), jnp.ones_like(n)])
        heights = nonnegative_least_squares(terms, loss, points.weight / loss**2)
        logs = jnp.maximum(jnp.log(jnp.maximum(heights, jnp.finfo(heights.dtype).tiny)), _ABSENT)
        start = jnp.stack([*logs, jnp.broadcast_to(alpha, logs[0].shape), jnp.broadcast_to(beta, logs[0].shape)])
        return start, objective(points, log_model(start, points.inputs), delta)

    starts, at = jax.lax.map(one, pairs)
    return best_of(starts, at, 3)


def _into_bounds(parameters: Float[Array, "5 lanes"]) -> Float[Array, "5 lanes"]:
    return jnp.concatenate([jnp.clip(parameters[:3], _ABSENT, 20.0), jnp.clip(parameters[3:], *BETA_BOUNDS)])


LND = Law(
    "LND",
    "L(N, D) = E + A / N^alpha + B / D^beta",
    ("params", "tokens"),
    5,
    (
        Piece(
            "interior",
            starts=_on_grid,
            log_model=log_model,
            into_bounds=_into_bounds,
            embed=lambda found: found,
            derivatives=_derivatives,
        ),
    ),
)


class ChinchillaFit(NamedTuple):
    """Fitted laws, in float64; one entry per fit or replicate."""

    E: Float[np.ndarray, " fits"]
    log_A: Float[np.ndarray, " fits"]
    log_B: Float[np.ndarray, " fits"]
    alpha: Float[np.ndarray, " fits"]
    beta: Float[np.ndarray, " fits"]
    objective: Float[np.ndarray, " fits"]  # sum of Huber losses of the log residuals
    sigma: Float[np.ndarray, " fits"]
    delta: Float[np.ndarray, " fits"]
    status: Int[np.ndarray, " fits"]


def fit_chinchilla(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    *,
    delta: Width = PUBLISHED_DELTA,
    dtype: str = "float64",
) -> ChinchillaFit:
    """The law's robust fit.

    Args:
        params: N > 0, [points] or [points, domains].
        tokens: D > 0, as params.
        losses: [points, domains], nats per token; NaN leaves a point out.
        delta: see `power_law.Width`.
        dtype: of the arithmetic.

    Raises:
        ValueError: as `fit_loss_curves`, or fewer than five points.
    """
    width = checked_width(delta)
    points, middles = _points(_measured(params, tokens, losses), dtype)
    with jax.enable_x64(dtype == "float64"):
        solution = solve(LND, on_device(points), jnp.asarray(width, dtype))
        return _to_fit(jax.tree.map(np.asarray, solution), *middles)


def bootstrap_chinchilla(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    indices: Int[np.ndarray, "replicates points"],
    *,
    delta: float = PUBLISHED_DELTA,
    dtype: str = "float64",
) -> ChinchillaFit:
    """Case resampling: the fit of each replicate, begun at the fit of all points.

    Args:
        params: N > 0, [points].
        tokens: D > 0, [points].
        losses: [points].
        indices: which points each replicate drew.
        delta: Huber width.
        dtype: of the arithmetic.
    """
    measured = _measured(params, tokens, np.asarray(losses, np.float64)[:, None])
    points, middles = _points(measured, dtype)
    with jax.enable_x64(dtype == "float64"):
        whole = solve(LND, on_device(points), jnp.asarray(delta, dtype))
        one = Points(*(column[..., :1] for column in points))
        places = np.argsort(measured.order[:, 0])
        replicates, count = resampled(one, places[np.asarray(indices)], dtype)
        lanes = replicates.weight.shape[1]
        start = jnp.repeat(whole.parameters[:, :1], lanes, axis=1)
        solution = solve_from(LND, on_device(replicates), jnp.full(lanes, delta, dtype), start)
        middles = [np.repeat(middle, count) for middle in middles]
        return _to_fit(jax.tree.map(np.asarray, solution), *middles)


def predict(fit: ChinchillaFit, params: int | float, tokens: int | float) -> Float[np.ndarray, " fits"]:
    """`E + exp(log_A - alpha log N) + exp(log_B - beta log D)`."""
    return fit.E + np.exp(fit.log_A - fit.alpha * np.log(params)) + np.exp(fit.log_B - fit.beta * np.log(tokens))


def _measured(params: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Measured:
    return checked_points(tokens, losses, least=5, repeats=True, params=params)


def _points(measured: Measured, dtype: str) -> tuple[Points, list[np.ndarray]]:
    n, middle_n = centred(measured.others[0], measured.losses)
    d, middle_d = centred(measured.tokens, measured.losses)
    return make_points([n, d], measured.losses, dtype=dtype), [middle_n, middle_d]


def _to_fit(solution: Solution, middle_n: np.ndarray, middle_d: np.ndarray) -> ChinchillaFit:
    solution = jax.tree.map(lambda column: np.asarray(column)[..., : len(middle_n)], solution)
    a, b, e, alpha, beta = np.asarray(solution.parameters, np.float64)
    absent = _ABSENT + 1e-6
    return ChinchillaFit(
        E=np.where(e > absent, np.exp(e), 0.0),
        log_A=np.where(a > absent, a + alpha * middle_n, -np.inf),
        log_B=np.where(b > absent, b + beta * middle_d, -np.inf),
        alpha=alpha,
        beta=beta,
        objective=np.asarray(solution.objective, np.float64),
        sigma=np.asarray(solution.sigma, np.float64),
        delta=np.asarray(solution.delta, np.float64),
        status=np.asarray(solution.status),
    )
