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

from vtune_jax.fits.fitting import fit_law, fit_resamples
from vtune_jax.fits.laws.curve import BETA_BOUNDS
from vtune_jax.fits.laws.form import PUBLISHED_DELTA, Form, Piece, Points, best_of, nonnegative_least_squares, objective
from vtune_jax.fits.laws.law import Column, Law, Optimum
from vtune_jax.fits.resampling import by_resampling
from vtune_jax.fits.solver import Width

_GRID = 14
_ABSENT = -30.0
"""Logarithm that stands for a term of zero: beside a loss of order one it is below float64's rounding."""


def log_model(parameters: Float[Array, "5 lanes"], inputs: Float[Array, "2 points #lanes"]) -> Float[Array, "..."]:
    """`log(exp(a - alpha n) + exp(b - beta d) + exp(e))`, n and d centred logarithms of N and D."""
    a, b, e, alpha, beta = parameters
    n, d = inputs
    # Within the bounds no term overflows and exp(e) keeps the sum above zero, so logaddexp, at twice the cost, is not
    # needed.
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
    """Starts at the best three pairs of exponents on a grid; for fixed exponents the law is linear."""
    exponents = jnp.geomspace(0.03, 2.0, _GRID, dtype=points.log_loss.dtype)
    pairs = jnp.array(list(product(range(_GRID), repeat=2)))
    n, d = points.inputs
    loss = jnp.exp(points.log_loss)

    def start_at(pair: Array) -> tuple[Array, Array]:
        alpha, beta = exponents[pair[0]], exponents[pair[1]]
        terms = jnp.stack([jnp.exp(-alpha * n), jnp.exp(-beta * d), jnp.ones_like(n)])
        heights = nonnegative_least_squares(terms, loss, points.weight / loss**2)
        logs = jnp.maximum(jnp.log(jnp.maximum(heights, jnp.finfo(heights.dtype).tiny)), _ABSENT)
        start = jnp.stack([*logs, jnp.broadcast_to(alpha, logs[0].shape), jnp.broadcast_to(beta, logs[0].shape)])
        return start, objective(points, log_model(start, points.inputs), delta)

    starts, values = jax.lax.map(start_at, pairs)
    return best_of(starts, values, 3)


def _into_bounds(parameters: Float[Array, "5 lanes"]) -> Float[Array, "5 lanes"]:
    return jnp.concatenate([jnp.clip(parameters[:3], _ABSENT, 20.0), jnp.clip(parameters[3:], *BETA_BOUNDS)])


FORM = Form(
    5,
    (
        Piece(
            "interior",
            starts=_on_grid,
            log_model=log_model,
            into_bounds=_into_bounds,
            embed=lambda parameters: parameters,
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

    @property
    def A(self) -> Float[np.ndarray, " fits"]:
        """Factor of the term in N."""
        return np.asarray(np.exp(self.log_A))

    @property
    def B(self) -> Float[np.ndarray, " fits"]:
        """Factor of the term in D."""
        return np.asarray(np.exp(self.log_B))


def to_fit(optimum: Optimum, units: tuple[np.ndarray, ...]) -> ChinchillaFit:
    """From centred logarithms to (E, log A, log B, alpha, beta)."""
    middle_n, middle_d = units
    a, b, e, alpha, beta = optimum.parameters
    absent = _ABSENT + 1e-6
    return ChinchillaFit(
        E=np.where(e > absent, np.exp(e), 0.0),
        log_A=np.where(a > absent, a + alpha * middle_n, -np.inf),
        log_B=np.where(b > absent, b + beta * middle_d, -np.inf),
        alpha=alpha,
        beta=beta,
        objective=optimum.objective,
        sigma=optimum.sigma,
        delta=optimum.delta,
        status=optimum.status,
    )


def predict(
    fit: ChinchillaFit,
    params: int | float | Float[np.ndarray, "*points domains"],
    tokens: int | float | Float[np.ndarray, "*points domains"],
) -> Float[np.ndarray, "*points fits"]:
    """`E + exp(log_A - alpha log N) + exp(log_B - beta log D)`."""
    of_size, of_tokens = fit.log_A - fit.alpha * np.log(params), fit.log_B - fit.beta * np.log(tokens)
    return np.asarray(fit.E + np.exp(of_size) + np.exp(of_tokens))


LAW = Law(
    name="LND",
    formula="L(N, D) = E + A / N^alpha + B / D^beta",
    columns=(Column("params", "model size", "model size"), Column("tokens", "token count", "tokens")),
    form=FORM,
    parameters=("E", "log_A", "alpha", "log_B", "beta"),
    shown=("E", "A", "B", "alpha", "beta"),
    to_fit=to_fit,
    predict=predict,
    estimator=by_resampling(least_values=3),
)


def fit_chinchilla(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    *,
    delta: Width = PUBLISHED_DELTA,
    dtype: str = "float64",
) -> ChinchillaFit:
    """The law's robust fit; repeated rows count as often as they occur.

    Args:
        params: N > 0, [points] or [points, domains].
        tokens: D > 0, as params.
        losses: [points, domains], nats per token; NaN leaves a point out.
        delta: Huber width on log residuals.
        dtype: of the arithmetic.

    Raises:
        ValueError: as `fit_loss_curves`, or fewer than five points.
    """
    return fit_law(LAW, (params, tokens), losses, delta=delta, repeats=True, dtype=dtype)


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
        delta: Huber width on log residuals.
        dtype: of the arithmetic.
    """
    return fit_resamples(LAW, (params, tokens), losses, indices, delta=delta, dtype=dtype)
