"""The mixture that minimises what exponential laws predict, near the prior and within caps.

Source: allenai/olmix, `olmix/fit/utils.py` (LogLinearExactProposer), which hands the same problem to an interior-point
solver.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtune_jax.core.projection import to_box

_STEPS = 20_000


class Proposal(NamedTuple):
    """The solution, and how nearly it is optimal."""

    weights: Float[np.ndarray, " domains"]
    objective: float
    residual: float  # largest change of a weight that another proximal step of length one would make; 0 at the optimum
    steps: int


def propose_mixture(
    t: np.ndarray,
    prior: np.ndarray,
    *,
    task_weights: np.ndarray | None = None,
    divergence_penalty: float = 0.05,
    caps: np.ndarray | None = None,
    tolerance: float = 1e-11,
) -> Proposal:
    """Minimises `sum_i a_i exp(t_i . x) + lambda KL(x || prior)` over the simplex, with `x <= caps`.

    The problem is convex and its solution unique for a positive penalty; without active caps it obeys
    `x` proportional to `prior exp(-(1 / lambda) sum_i a_i exp(t_i . x) t_i)`. It is solved by proximal mirror descent,
    whose steps grow while the objective allows it. Each step is an exponentiated gradient step drawn towards the prior,
    then the projection onto the caps in relative entropy; together they minimise the linearised problem exactly.

    Args:
        t: exponents of each task's law, with log K in it; [tasks, domains].
        prior: on the simplex; a domain of weight zero keeps that weight.
        task_weights: a, positive; None: equal weights with sum one.
        divergence_penalty: lambda >= 0 in nats of loss per nat of divergence; at 0 the solution may not be unique and
            is found slowly.
        caps: largest weights, with a sum of at least one; None: no caps.
        tolerance: residual at which the search ends.

    Raises:
        ValueError: shapes that do not fit, a prior off the simplex, a negative penalty, caps that leave no mixture.
    """
    t, prior = np.asarray(t, np.float64), np.asarray(prior, np.float64)
    domains = len(prior)
    if t.ndim != 2 or t.shape[1] != domains or not np.isfinite(t).all():
        raise ValueError(f"t must be finite of shape [tasks, {domains}], got shape {t.shape}.")
    if not ((prior >= 0).all() and abs(prior.sum() - 1) < 1e-6):
        raise ValueError(f"prior must lie on the simplex, got {prior.tolist()}.")
    if divergence_penalty < 0:
        raise ValueError(f"divergence_penalty must not be negative, got {divergence_penalty}.")
    weights = np.full(len(t), 1.0 / len(t)) if task_weights is None else np.asarray(task_weights, np.float64)
    if weights.shape != (len(t),) or not (weights > 0).all():
        raise ValueError(f"task_weights must be {len(t)} positive numbers, got {weights.tolist()}.")
    high = np.ones(domains) if caps is None else np.minimum(np.asarray(caps, np.float64), 1.0)
    if high.shape != (domains,) or not (high >= 0).all():
        raise ValueError(f"caps must be {domains} numbers that are not negative, got {high.tolist()}.")
    if high[prior > 0].sum() < 1:
        raise ValueError(f"caps must leave room for a mixture, their sum is {high[prior > 0].sum():.4g}.")
    with jax.enable_x64(True):
        x, value, residual, steps = _solve(
            *map(jnp.asarray, (t, prior, weights, float(divergence_penalty), high, float(tolerance)))
        )
        return Proposal(np.asarray(x), float(value), float(residual), int(steps))


@jax.jit
def _solve(t: Array, prior: Array, a: Array, penalty: Array, caps: Array, tolerance: Array) -> tuple[Array, ...]:
    present = prior > 0
    log_prior = jnp.log(jnp.where(present, prior, 1.0))
    low = jnp.zeros_like(prior)
    high = jnp.where(present, caps, 0.0)
    capped = (caps < 1.0).any()

    def spread(x: Array, log_base: Array) -> Array:
        return jnp.where(x > 0, x * (jnp.log(jnp.where(x > 0, x, 1.0)) - log_base), 0.0).sum()

    def smooth(x: Array) -> Array:
        return (a * jnp.exp(t @ x)).sum()

    def proximal(x: Array, length: Array) -> Array:
        """Minimises slope . y + penalty KL(y || prior) + KL(y || x) / length."""
        slope = (a * jnp.exp(t @ x)) @ t
        log_x = jnp.log(jnp.maximum(x, 1e-300))
        logits = (log_x + length * (penalty * log_prior - slope)) / (1.0 + length * penalty)
        free = jax.nn.softmax(jnp.where(present, logits, -jnp.inf))
        weights: Array = jax.lax.cond(capped, lambda: to_box(free, low, high), lambda: free)
        return weights

    def body(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, length, _, steps = carry
        new = proximal(x, length)
        slope = (a * jnp.exp(t @ x)) @ t
        model = smooth(x) + slope @ (new - x) + spread(new, jnp.log(jnp.maximum(x, 1e-300))) / length
        sound = smooth(new) <= model + 1e-15 * jnp.abs(model)
        residual = jnp.where(sound, jnp.abs(new - x).max() / jnp.minimum(length, 1.0), jnp.inf)
        return jnp.where(sound, new, x), jnp.where(sound, length * 1.5, length * 0.3), residual, steps + 1

    def goes_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[2] > tolerance) & (carry[3] < _STEPS)

    start = to_box(prior, low, high), jnp.asarray(1.0), jnp.asarray(jnp.inf), jnp.asarray(0)
    x, _, _, steps = jax.lax.while_loop(goes_on, body, start)
    residual = jnp.abs(proximal(x, jnp.asarray(1.0)) - x).max()
    return x, smooth(x) + penalty * spread(x, log_prior), residual, steps
