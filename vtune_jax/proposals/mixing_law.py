"""Data mixing laws: the loss on each task as an exponential function of the mixture.

`L(r) = C + exp(t . r)`, one law per task. Weights sum to one, so that the factor K of `C + K exp(t . r)` is a shift of
all of t and is not kept apart; olmix's log-linear law is the same one.

Sources: Ye et al. 2024, "Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance",
arXiv:2403.16952, and its code, yegcjs/mixinglaws; allenai/olmix, `olmix/fit/utils.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_FLOORS = (0.02, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.995)
"""Starting values of C as shares of the smallest loss; the rest of each start follows by linear regression."""
_STEPS = 300


class MixingLaws(NamedTuple):
    """One law per task."""

    log_c: Float[np.ndarray, " tasks"]
    t: Float[np.ndarray, "tasks domains"]  # with log K in it
    objective: Float[np.ndarray, " tasks"]  # mean Huber loss of the residuals

    def predict(self, mixtures: Float[np.ndarray, "runs domains"]) -> Float[np.ndarray, "runs tasks"]:
        """Losses in nats per token."""
        return np.exp(self.log_c) + np.exp(np.asarray(mixtures) @ self.t.T)


def fit_mixing_laws(mixtures: np.ndarray, losses: np.ndarray, *, delta: float = 0.05) -> MixingLaws:
    """Fits every task's law in float64 by damped Gauss-Newton from ten starts, all tasks and starts in one program.

    A start fixes C; `log(L - C) = t . r` is then linear. The original draws thousands of random starts for L-BFGS.

    Args:
        mixtures: on the simplex; [runs, domains].
        losses: nats per token, positive; [runs, tasks].
        delta: residuals beyond it count linearly.

    Raises:
        ValueError: shapes that do not fit, mixtures off the simplex, losses that are not positive and finite, or fewer
            runs than the law has parameters.
    """
    mixtures, losses = np.asarray(mixtures, np.float64), np.asarray(losses, np.float64)
    _assert_runs(mixtures, losses)
    if len(mixtures) < mixtures.shape[1] + 1:
        raise ValueError(
            f"mixtures must hold at least {mixtures.shape[1] + 1} runs, one per parameter, got {len(mixtures)}."
        )
    with jax.enable_x64(True):
        found = _fit_all(jnp.asarray(mixtures), jnp.asarray(losses.T), jnp.asarray(delta))
        c, t, objective = (np.asarray(part) for part in found)
    return MixingLaws(c, t, objective)


def _assert_runs(mixtures: np.ndarray, losses: np.ndarray) -> None:
    if mixtures.ndim != 2 or losses.ndim != 2 or len(mixtures) != len(losses):
        raise ValueError(
            f"losses must be [runs, tasks] for as many runs as mixtures, got {losses.shape} and {mixtures.shape}."
        )
    if not (np.isfinite(mixtures).all() and (mixtures >= 0).all() and np.allclose(mixtures.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("mixtures must lie on the simplex, row by row.")
    if not (np.isfinite(losses).all() and (losses > 0).all()):
        raise ValueError("losses must be positive and finite.")


@jax.jit
def _fit_all(
    mixtures: Float[Array, "runs domains"], losses: Float[Array, "tasks runs"], delta: Float[Array, ""]
) -> tuple[Array, Array, Array]:
    def one_task(loss: Float[Array, " runs"]) -> tuple[Array, Array, Array]:
        parameters, values = jax.vmap(lambda floor: _descend(_start(mixtures, loss, floor), mixtures, loss, delta))(
            jnp.array(_FLOORS)
        )
        best = jnp.nanargmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        return parameters[best, 0], parameters[best, 1:], values[best]

    return jax.vmap(one_task)(losses)


def _start(mixtures: Array, loss: Array, floor: Array) -> Float[Array, " parameters"]:
    c = floor * loss.min()
    # A little ridge: mixtures of zero weight on a domain say nothing about its t.
    gram = mixtures.T @ mixtures + 1e-9 * jnp.eye(mixtures.shape[1])
    t = jnp.linalg.solve(gram, mixtures.T @ jnp.log(loss - c))
    return jnp.concatenate([jnp.log(c)[None], t])


def _residuals(parameters: Array, mixtures: Array, loss: Array) -> Float[Array, " runs"]:
    return jnp.exp(parameters[0]) + jnp.exp(mixtures @ parameters[1:]) - loss


def _objective(parameters: Array, mixtures: Array, loss: Array, delta: Array) -> Float[Array, ""]:
    size = jnp.abs(_residuals(parameters, mixtures, loss))
    return jnp.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).mean()


def _descend(start: Array, mixtures: Array, loss: Array, delta: Array) -> tuple[Array, Array]:
    """Levenberg's damping on reweighted least squares: a step is taken only where the objective falls."""

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        parameters, value, damping = carry
        residual = _residuals(parameters, mixtures, loss)
        rise = jnp.exp(mixtures @ parameters[1:])
        jacobian = jnp.concatenate([jnp.full((len(loss), 1), jnp.exp(parameters[0])), rise[:, None] * mixtures], axis=1)
        weight = jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(residual), 1e-300))
        gram = jacobian.T @ (weight[:, None] * jacobian)
        slope = jacobian.T @ (weight * residual)
        scale = jnp.diag(gram) + 1e-12 * jnp.trace(gram) + 1e-300
        moved = parameters - jnp.linalg.solve(gram + damping * jnp.diag(scale), slope)
        new = _objective(moved, mixtures, loss, delta)
        better = new < value
        return (
            jnp.where(better, moved, parameters),
            jnp.where(better, new, value),
            jnp.clip(jnp.where(better, damping / 5.0, damping * 4.0), 1e-12, 1e12),
        ), None

    begin = (start, _objective(start, mixtures, loss, delta), jnp.asarray(1e-3))
    (parameters, value, _), _ = jax.lax.scan(step, begin, None, length=_STEPS)
    return parameters, value
