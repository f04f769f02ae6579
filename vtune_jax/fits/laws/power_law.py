"""The law `L(D) = E + B / D**beta` of one run, in the coordinates of `laws.curve` without the second column."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.fits.curves import by_posterior
from vtune_jax.fits.fitting import fit_law
from vtune_jax.fits.laws.curve import (
    BETA_BOUNDS,
    FLAT_EXPONENT,
    along_beta,
    derivatives_of_log,
    face_of,
    mean_level,
    of_line,
    psi,
    psi_and_slopes,
)
from vtune_jax.fits.laws.form import PUBLISHED_DELTA, Form, Piece, Points, weighted_mean
from vtune_jax.fits.laws.law import Column, Law, Optimum
from vtune_jax.fits.solver import Width

BETA_PRIOR = (0.5, 0.6)
"""Median of beta, and standard deviation of its logarithm."""
_PROJECTION_ROUNDS = 5
_UNITS_ADVICE = "give all tokens as plain counts"


def _derivatives(
    parameters: Float[Array, "3 lanes"], inputs: Float[Array, "1 points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    c, s, b = parameters
    shape, of_b, of_bb = psi_and_slopes(inputs[0], b)
    return derivatives_of_log(c, 1 - s * shape, [-shape, -s * of_b], {(1, 0): -of_b, (1, 1): -s * of_bb})


def log_model(parameters: Float[Array, "3 ..."], inputs: Float[Array, "1 points ..."]) -> Float[Array, "points ..."]:
    """`c + log(1 - s psi(t; b))`."""
    c, s, b = parameters
    # A trial step may make the argument negative; the floor gives it a bad value, so that the step is not taken.
    model: Array = c + jnp.log(jnp.maximum(1 - s * psi(inputs[0], b), 1e-12))
    return model


def project(points: Points, b: Float[Array, "..."], delta: Float[Array, "..."]) -> Float[Array, "3 ..."]:
    """The best (c, s) for a fixed b, by reweighted least squares within `0 <= s <= b`."""
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
        # This is `log_model`, but psi, most of its cost, is computed once for all rounds.
        level, s, _ = parameters
        inner = jnp.maximum(1 - s * shape, 1e-12)
        size = jnp.abs(points.log_loss - level - jnp.log(inner))
        model = jnp.exp(level) * inner
        return fit(points.weight * jnp.minimum(1.0, delta / jnp.maximum(size, tiny)) / model**2)

    best: Array = jax.lax.fori_loop(0, _PROJECTION_ROUNDS, reweighted, fit(points.weight / loss**2))
    return best


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
    starts=mean_level,
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

FORM = Form(3, (FLAT, PURE_POWER_LAW, INTERIOR))


class PowerLawFit(NamedTuple):
    """Fitted laws, in float64; every field has one entry per domain."""

    E: Float[np.ndarray, " domains"]  # irreducible loss, nats per token
    log_B: Float[np.ndarray, " domains"]  # B itself overflows for large beta
    beta: Float[np.ndarray, " domains"]
    objective: Float[np.ndarray, " domains"]  # sum of the Huber losses of the log residuals, at the width used
    sigma: Float[np.ndarray, " domains"]  # robust spread of the log residuals
    delta: Float[np.ndarray, " domains"]  # Huber width used
    face: Int[np.ndarray, " domains"]  # see `curve.Face`
    status: Int[np.ndarray, " domains"]  # see `solver.Status`


def to_fit(optimum: Optimum, units: tuple[np.ndarray, ...]) -> PowerLawFit:
    """From (c, s, b) to (E, log B, beta)."""
    (middle,) = units
    c, s, b = optimum.parameters
    b = np.where(s > 0, b, FLAT_EXPONENT)
    share = s / b
    with np.errstate(divide="ignore"):
        log_b = c + np.log(share) + b * middle
    return PowerLawFit(
        E=np.exp(c) * (1 - share),
        log_B=log_b,
        beta=b,
        objective=optimum.objective,
        sigma=optimum.sigma,
        delta=optimum.delta,
        face=face_of(FORM, optimum.piece, s, b),
        status=optimum.status,
    )


def predict(
    fit: PowerLawFit, tokens: int | float | Float[np.ndarray, "*points domains"]
) -> Float[np.ndarray, "*points domains"]:
    """`E + exp(log_B - beta log D)`."""
    return np.asarray(fit.E + np.exp(fit.log_B - fit.beta * np.log(tokens)))


def unit_warnings(fit: PowerLawFit, columns: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
    """Signs that token counts are not counts of tokens.

    B is the reducible loss after a single token. A model that has seen one token cannot be within ten nats of its best
    loss, so a B below 10 together with counts below a million means thousands, millions or billions. Proxies do not
    leap over four decades of tokens between two neighbouring points either.

    Args:
        fit: of each domain.
        columns: tokens alone, [points, domains], NaN where there is no point.
        names: of the domains.
    """
    warnings = []
    for domain, name in enumerate(names):
        tokens = np.sort(columns[0][~np.isnan(columns[0][:, domain]), domain])
        leap = tokens[1:] / tokens[:-1]
        log_b = fit.log_B[domain]
        if len(leap) and leap.max() >= 1e4:
            place = int(leap.argmax())
            warnings.append(
                f"{name}: tokens leap from {tokens[place]:g} to {tokens[place + 1]:g}, as if units were mixed; "
                f"{_UNITS_ADVICE}"
            )
        elif len(tokens) and tokens[-1] < 1e6 and np.isfinite(log_b) and log_b < np.log(10):
            warnings.append(
                f"{name}: B = {np.exp(log_b):.3g} nats is implausible for tokens up to {tokens[-1]:g}, as if they were "
                f"counted in millions or billions; {_UNITS_ADVICE}"
            )
    return warnings


LAW = Law(
    name="LD",
    formula="L(D) = E + B / D^beta",
    columns=(Column("tokens", "token count", "tokens"),),
    form=FORM,
    parameters=("E", "log_B", "beta"),
    to_fit=to_fit,
    predict=predict,
    estimator=by_posterior(exponent_prior=BETA_PRIOR),
    warnings=unit_warnings,
)


def fit_loss_curves(
    tokens: np.ndarray, losses: np.ndarray, *, delta: Width = PUBLISHED_DELTA, dtype: str = "float64"
) -> PowerLawFit:
    """Fits every domain's curve in one program, in float64 whatever JAX's global setting.

    Args:
        tokens: D > 0, [points] shared by the domains or [points, domains].
        losses: [points, domains], nats per token, > 0; NaN leaves a point out. At least three points per domain.
        delta: Huber width on log residuals, see `solver.Width`.
        dtype: of the arithmetic; "float32" finds the objective within a thousandth.

    Raises:
        ValueError: shapes that do not agree, values that are not positive, fewer than three points, or a delta that is
            not positive.
    """
    return fit_law(LAW, (tokens,), losses, delta=delta, dtype=dtype)
