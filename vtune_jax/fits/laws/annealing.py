"""The law with learning-rate annealing: `L = E + A / S1**alpha - C S2`, S1 the sum of learning rates, S2 annealed area.

With rates `eta_1 ... eta_s`, one per optimiser step,

    S1(s) = sum_{i <= s} eta_i
    m_i = lambda m_{i-1} + (eta_{i-1} - eta_i),    S2(s) = sum_{i <= s} m_i

Lowering the rate lowers the loss over the steps that follow; lambda < 1 lets the effect fade. The law describes every
point of a run, whatever the schedule, so that points taken at a high rate predict the loss of a run that anneals.

Source: Tissue et al. 2024, "Scaling Law with Learning Rate Annealing", arXiv:2408.11029. What could be checked: the
formula, and that all points of a curve obey one set of parameters (abstract); the recurrence of m, lambda 0.999 and the
Huber width of 1e-3 on log losses (a public reimplementation, zkshan2002/ScalingLaw). Not checked: the published
parameters, the figures, and how the paper treats warm-up; here the rate's rise counts as no annealing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.fits.curves import by_posterior
from vtune_jax.fits.fitting import fit_law
from vtune_jax.fits.laws.curve import (
    BETA_BOUNDS,
    along_beta,
    derivatives_of_log,
    mean_level,
    of_line,
    psi,
    psi_and_slopes,
)
from vtune_jax.fits.laws.form import PUBLISHED_DELTA, Form, Piece, Points, nonnegative_least_squares
from vtune_jax.fits.laws.law import Column, Law, Optimum
from vtune_jax.fits.solver import Width

DECAY = 0.999
"""lambda: share of a lowered rate's effect that is left after another step."""
SHORT_RUN_SHARE = 0.08
"""Memory 1 / (1 - lambda) of a short run, as a share of its steps; like the two constants below chosen by
`experiments.target_error.choose`."""
SHORT_RUN_MODEL_ERROR = 0.08
"""Error of the law for short proxies, in log loss per decade of S1 extrapolated; public pre-training curves: 0.02."""
ALPHA_PRIOR = (0.2, 0.6)
"""Median of alpha and standard deviation of its logarithm: over few steps losses fall almost evenly in log S1."""
_ROUNDS = 3
_LEAST_LEVEL = 1e-12


def decay_for(steps: int) -> float:
    """lambda for a real run of this many steps.

    The published 0.999 remembers a thousand steps, a few per cent of the runs it comes from. In a run shorter than
    12,500 steps the memory is 8 % of its length: with a longer one annealed area grows to the very end, and the law
    predicts losses that are too low.

    Example:
        >>> decay_for(625), decay_for(100_000)
        (0.98, 0.999)
    """
    return 1.0 - 1.0 / min(1.0 / (1.0 - DECAY), max(SHORT_RUN_SHARE * steps, 1.0))


class Areas(NamedTuple):
    """The law's two columns after each step of a schedule."""

    forward: Float[np.ndarray, " steps"]  # S1, in units of the learning rate
    annealed: Float[np.ndarray, " steps"]  # S2, in the same units


def areas(rates: np.ndarray, *, decay: float = DECAY) -> Areas:
    """S1 and S2 after each step of a schedule.

    Args:
        rates: the learning rate of each step, not negative, the first one positive. A rise, warm-up above all, counts
            as no annealing.
        decay: lambda in [0, 1].

    Raises:
        ValueError: a rate that is negative or not finite, a first one of 0, or a decay outside [0, 1].

    Example:
        >>> halved = areas(np.array([1.0, 1.0, 0.5, 0.5]), decay=1.0)
        >>> halved.forward.tolist(), halved.annealed.tolist()
        ([1.0, 2.0, 2.5, 3.0], [0.0, 0.0, 0.5, 1.0])
    """
    rates = np.asarray(rates, np.float64)
    if not (np.isfinite(rates).all() and (rates >= 0).all() and (rates[:1] > 0).all()):
        raise ValueError("rates must be finite and not negative, and the first one positive.")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}.")
    falls = np.maximum(-np.diff(rates, prepend=rates[:1]), 0.0)
    momenta = np.empty_like(rates)
    momentum = 0.0
    for step, fall in enumerate(falls):
        momentum = decay * momentum + fall
        momenta[step] = momentum
    return Areas(np.cumsum(rates), np.cumsum(momenta))


def log_model(parameters: Float[Array, "4 ..."], inputs: Float[Array, "2 points ..."]) -> Float[Array, "points ..."]:
    """`c + log(1 - s psi(t; b) - k q)`, q the annealed area over its largest."""
    c, s, b, k = parameters
    model: Array = c + jnp.log(jnp.maximum(1 - s * psi(inputs[0], b) - k * inputs[1], _LEAST_LEVEL))
    return model


def _derivatives(
    parameters: Float[Array, "4 lanes"], inputs: Float[Array, "2 points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    c, s, b, k = parameters
    t, q = inputs
    shape, of_b, of_bb = psi_and_slopes(t, b)
    inner = 1 - s * shape - k * q
    return derivatives_of_log(c, inner, [-shape, -s * of_b, -q + 0.0 * shape], {(1, 0): -of_b, (1, 1): -s * of_bb})


def _pure_derivatives(
    parameters: Float[Array, "3 lanes"], inputs: Float[Array, "2 points #lanes"]
) -> tuple[Array, list[Array], list[list[Array]]]:
    c, b, k = parameters
    t, q = inputs
    power = jnp.exp(-b * t)
    return derivatives_of_log(c, power - k * q, [-t * power, -q + 0.0 * power], {(0, 0): t**2 * power})


def _project(points: Points, b: Array, delta: Array) -> Float[Array, "4 lanes"]:
    """The best (c, s, k) for a fixed b: least squares with coefficients that are not negative, reweighted."""
    t, q = points.inputs
    loss, b = jnp.exp(points.log_loss), jnp.broadcast_to(b, points.weight.shape[1:])
    terms = jnp.stack([jnp.ones_like(t * b), jnp.exp(-b * t), -q + 0.0 * b])
    tiny = jnp.finfo(loss.dtype).tiny
    weight, parameters = points.weight / loss**2, None
    for _ in range(_ROUNDS):
        floor, height, fall = nonnegative_least_squares(terms, loss, weight)
        level = jnp.maximum(floor + height, tiny)
        parameters = jnp.stack([jnp.log(level), b * height / level, b, fall / level])
        model = log_model(parameters, points.inputs)
        size = jnp.abs(points.log_loss - model)
        weight = points.weight * jnp.minimum(1.0, delta / jnp.maximum(size, tiny)) * jnp.exp(-2 * model)
    assert parameters is not None
    return parameters


def _pure(parameters: Float[Array, "3 lanes"], inputs: Float[Array, "2 points ..."]) -> Float[Array, "points lanes"]:
    c, b, k = parameters
    model: Array = c + jnp.log(jnp.maximum(jnp.exp(-b * inputs[0]) - k * inputs[1], _LEAST_LEVEL))
    return model


def _pure_starts(points: Points, delta: Float[Array, " lanes"]) -> Float[Array, "starts 3 lanes"]:
    t, q = points.inputs
    lanes = points.weight.shape[1:]

    def start_at(b: Array) -> Array:
        terms = jnp.stack([jnp.exp(-b * t), -q]) + 0.0 * points.weight
        loss = jnp.exp(points.log_loss)
        height, fall = nonnegative_least_squares(terms, loss, points.weight / loss**2)
        height = jnp.maximum(height, jnp.finfo(height.dtype).tiny)
        return jnp.stack([jnp.log(height), jnp.broadcast_to(b, lanes), fall / height])

    starts: Array = jax.lax.map(start_at, jnp.array([0.02, 0.1, 0.3, 1.0], points.log_loss.dtype))
    return starts


def _into_interior(parameters: Float[Array, "4 lanes"]) -> Float[Array, "4 lanes"]:
    c, s, b, k = parameters
    b = jnp.clip(b, *BETA_BOUNDS)
    return jnp.stack([c, jnp.clip(s, 0.0, b), b, jnp.maximum(k, 0.0)])


def _into_pure(parameters: Float[Array, "3 lanes"]) -> Float[Array, "3 lanes"]:
    c, b, k = parameters
    return jnp.stack([c, jnp.clip(b, *BETA_BOUNDS), jnp.maximum(k, 0.0)])


FORM = Form(
    4,
    (
        Piece(
            "flat",
            starts=mean_level,
            log_model=lambda parameters, inputs: parameters[0] + 0.0 * inputs[0],
            into_bounds=lambda parameters: parameters,
            embed=lambda c: jnp.stack([c[0], 0.0 * c[0], 0.0 * c[0] + 0.5, 0.0 * c[0]]),
            derivatives=of_line,
        ),
        Piece(
            "pure power law",
            starts=_pure_starts,
            log_model=_pure,
            into_bounds=_into_pure,
            embed=lambda pure: jnp.stack([pure[0], pure[1], pure[1], pure[2]]),
            derivatives=_pure_derivatives,
        ),
        Piece(
            "interior",
            starts=along_beta(_project, log_model),
            log_model=log_model,
            into_bounds=_into_interior,
            embed=lambda parameters: parameters,
            derivatives=_derivatives,
        ),
    ),
)


class AnnealingFit(NamedTuple):
    """Fitted laws, in float64; every field has one entry per domain."""

    E: Float[np.ndarray, " domains"]  # irreducible loss, nats per token
    log_A: Float[np.ndarray, " domains"]
    alpha: Float[np.ndarray, " domains"]
    C: Float[np.ndarray, " domains"]  # nats per unit of annealed area
    objective: Float[np.ndarray, " domains"]  # sum of the Huber losses of the log residuals
    sigma: Float[np.ndarray, " domains"]
    delta: Float[np.ndarray, " domains"]
    piece: Int[np.ndarray, " domains"]  # index into `FORM.pieces`
    status: Int[np.ndarray, " domains"]


def to_fit(optimum: Optimum, units: tuple[np.ndarray, ...]) -> AnnealingFit:
    """From (c, s, b, k) to (E, log A, alpha, C)."""
    middle, scale = units
    c, s, b, k = optimum.parameters
    share = s / b
    with np.errstate(divide="ignore"):
        log_a = c + np.log(share) + b * middle
    return AnnealingFit(
        E=np.exp(c) * (1 - share),
        log_A=log_a,
        alpha=b,
        C=np.exp(c) * k / scale,
        objective=optimum.objective,
        sigma=optimum.sigma,
        delta=optimum.delta,
        piece=optimum.piece,
        status=optimum.status,
    )


def predict(
    fit: AnnealingFit,
    forward: int | float | Float[np.ndarray, "*points domains"],
    annealed: int | float | Float[np.ndarray, "*points domains"],
) -> Float[np.ndarray, "*points domains"]:
    """`E + exp(log_A - alpha log S1) - C S2`."""
    return np.asarray(fit.E + np.exp(fit.log_A - fit.alpha * np.log(forward)) - fit.C * annealed)


LAW = Law(
    name="LRA",
    formula="L = E + A / S1^alpha - C S2",
    columns=(
        Column("forward_area", "sum of learning rates", "sum of learning rates"),
        Column("annealed_area", "annealed area", "annealed area", linear=True),
    ),
    form=FORM,
    parameters=("E", "log_A", "alpha", "C"),
    to_fit=to_fit,
    predict=predict,
    estimator=by_posterior(exponent_prior=ALPHA_PRIOR),
)


def fit_annealing(
    forward: np.ndarray,
    annealed: np.ndarray,
    losses: np.ndarray,
    *,
    delta: Width = PUBLISHED_DELTA,
    dtype: str = "float64",
) -> AnnealingFit:
    """Fits every domain's law in one program.

    Args:
        forward: S1 > 0 at each point, [points] or [points, domains]; see `areas`.
        annealed: S2 >= 0, likewise. Where it is 0 throughout, C is 0 and the law is that of S1 alone.
        losses: [points, domains], nats per token; NaN leaves a point out.
        delta: Huber width on log residuals.
        dtype: of the arithmetic.

    Raises:
        ValueError: as `fit_loss_curves`, or fewer than four points.
    """
    return fit_law(LAW, (forward, annealed), losses, delta=delta, dtype=dtype)
