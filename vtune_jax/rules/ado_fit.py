"""ADO's online fit: a power law through each domain's smoothed training losses, inside jit.

Source: Jiang et al. 2024, "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws", arXiv:2410.11820,
and its code, yidingjiang/ado, `src/data_selectors/ado.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

DELTA = 1e-3
"""Width of the Huber loss, in log loss."""
ALPHA, LEAST_LOG_E, MOST_LOG_BETA = (1e-3, 0.8), 0.5, 6.5
"""Where the published penalties begin."""
_LEAST_LOG_BETA = -100.0
_ROUGH, _FINE, _SURVIVORS = 40, 300, 6


class Law(NamedTuple):
    """`L(n) = exp(log_e) + exp(log_beta) n^-alpha`, n in counts."""

    log_beta: Float[Array, " domains"]
    log_e: Float[Array, " domains"]
    alpha: Float[Array, " domains"]


def smoothing_rows(window: int, order: int = 3) -> Float[np.ndarray, "window window"]:
    """The Savitzky-Golay filter as a matrix: row r is the value at place r of the polynomial through a window."""
    places = np.linspace(-1.0, 1.0, window) if window > 1 else np.zeros(1)
    basis, _ = np.linalg.qr(np.vander(places, min(order, window - 1) + 1, increasing=True))
    return basis @ basis.T


def smoothed(
    losses: Float[Array, "capacity domains"], length: Int[Array, ""], wanted: Int[Array, " points"], rows: np.ndarray
) -> Float[Array, "points domains"]:
    """Smoothed losses at some places of a record, the ends taken from the polynomial through the outermost window.

    Args:
        losses: the record, oldest first; rows from `length` on are ignored.
        length: at least the window.
        wanted: places.
        rows: see `smoothing_rows`.
    """
    window = len(rows)
    first = jnp.clip(wanted - window // 2, 0, jnp.maximum(length - window, 0))
    of_place = jnp.asarray(rows, losses.dtype)[jnp.clip(wanted - first, 0, window - 1)]
    return jnp.einsum("pw,pwd->pd", of_place, losses[first[:, None] + jnp.arange(window)])


def objective(
    law: Float[Array, " 3"],
    log_n: Float[Array, " points"],
    log_loss: Float[Array, " points"],
    kept: Bool[Array, " points"],
) -> Float[Array, ""]:
    """The published one: `sum Huber(log L - log law) + [alpha - 0.8]_+ - min(alpha, 0.001) - min(log_e - 0.5, 0) +
    [log_beta - 6.5]_+`.
    """
    size = jnp.abs(_residuals(law, log_n, log_loss, kept))
    huber = jnp.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum()
    log_beta, log_e, alpha = law
    penalty = jnp.maximum(alpha - ALPHA[1], 0.0) - jnp.minimum(alpha, ALPHA[0])
    return huber + penalty - jnp.minimum(log_e - LEAST_LOG_E, 0.0) + jnp.maximum(log_beta - MOST_LOG_BETA, 0.0)


def fit_laws(
    counts: Float[Array, "points domains"], losses: Float[Array, "points domains"], kept: Bool[Array, " points"]
) -> tuple[Law, Float[Array, " domains"]]:
    """The law of each domain that minimises `objective`.

    The penalties are steeper than the Huber sum can be against them, and so act as bounds: alpha in [0.001, 0.8],
    `log_e >= 0.5`, `log_beta <= 6.5`. Within these, damped Gauss-Newton on reweighted least squares from 48 starts, of
    which the six best are carried on; the original takes 512 starts of L-BFGS to the same minimum.

    Args:
        counts: n at each point, positive.
        losses: nats per token, positive.
        kept: which points count.

    Returns:
        laws, and their objectives.
    """
    log_n = jnp.log(jnp.maximum(counts, 1e-30))
    log_loss = jnp.log(jnp.maximum(losses, 1e-30))
    found, value = jax.vmap(_fit, in_axes=(1, 1, None))(log_n, log_loss, kept)
    return Law(found[:, 0], found[:, 1], found[:, 2]), value


def _residuals(law: Array, log_n: Array, log_loss: Array, kept: Array) -> Float[Array, " points"]:
    return jnp.where(kept, log_loss - jnp.logaddexp(law[0] - law[2] * log_n, law[1]), 0.0)


def _fit(log_n: Array, log_loss: Array, kept: Array) -> tuple[Float[Array, " 3"], Float[Array, ""]]:
    least = jnp.where(kept, log_loss, jnp.inf).min()
    alphas = jnp.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.75], log_loss.dtype)
    # Shares of the way from the lowest possible irreducible loss to the smallest one seen.
    shares = jnp.array([0.0, 0.3, 0.6, 0.8, 0.93, 0.99], log_loss.dtype)

    def start(alpha: Array, share: Array) -> Float[Array, " 3"]:
        log_e = LEAST_LOG_E + share * jnp.maximum(least - LEAST_LOG_E, 0.0)
        above = jnp.exp(log_loss) - jnp.exp(log_e)
        heights = jnp.log(jnp.maximum(above, 1e-6)) + alpha * log_n
        return jnp.stack([jnp.where(kept, heights, 0.0).sum() / jnp.maximum(kept.sum(), 1), log_e, alpha])

    starts = jax.vmap(lambda alpha: jax.vmap(lambda share: start(alpha, share))(shares))(alphas).reshape(-1, 3)
    rough, value = jax.vmap(lambda one: _descend(one, log_n, log_loss, kept, _ROUGH))(starts)
    best = jnp.argsort(jnp.where(jnp.isfinite(value), value, jnp.inf))[:_SURVIVORS]
    fine, value = jax.vmap(lambda one: _descend(one, log_n, log_loss, kept, _FINE))(rough[best])
    winner = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))
    return fine[winner], value[winner]


def _descend(
    start: Array, log_n: Array, log_loss: Array, kept: Array, steps: int
) -> tuple[Float[Array, " 3"], Float[Array, ""]]:
    dtype = log_loss.dtype
    low = jnp.array([_LEAST_LOG_BETA, LEAST_LOG_E, ALPHA[0]], dtype)
    high = jnp.array([MOST_LOG_BETA, 50.0, ALPHA[1]], dtype)
    tiny = jnp.finfo(dtype).tiny

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        law, value, damping = carry
        residual = _residuals(law, log_n, log_loss, kept)
        share = jax.nn.sigmoid(law[0] - law[2] * log_n - law[1])
        jacobian = jnp.stack([share, 1.0 - share, -share * log_n], axis=1) * kept[:, None]
        weight = jnp.minimum(1.0, DELTA / jnp.maximum(jnp.abs(residual), tiny))
        gram = jacobian.T @ (weight[:, None] * jacobian)
        slope = jacobian.T @ (weight * residual)
        # What stands at its bound and would leave it stays there.
        fixed = ((law <= low) & (slope < 0)) | ((law >= high) & (slope > 0))
        gram = jnp.where(fixed[:, None] | fixed, jnp.eye(3, dtype=dtype), gram)
        scale = jnp.diag(gram) + 1e-9 * jnp.trace(gram) + tiny
        change = jnp.linalg.solve(gram + damping * jnp.diag(scale), jnp.where(fixed, 0.0, slope))
        moved = jnp.clip(law + change, low, high)
        new = objective(moved, log_n, log_loss, kept)
        better = new < value
        return (
            jnp.where(better, moved, law),
            jnp.where(better, new, value),
            jnp.clip(jnp.where(better, damping / 4.0, damping * 3.0), 1e-9, 1e9),
        ), None

    begin = jnp.clip(start, low, high)
    first = (begin, objective(begin, log_n, log_loss, kept), jnp.asarray(1e-3, dtype))
    (law, value, _), _ = jax.lax.scan(step, first, None, length=steps)
    return law, value
