"""ADO's online fit: a power law through each domain's smoothed training losses, inside jit.

Source: Jiang et al. 2024, "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws", arXiv:2410.11820,
and its code, yidingjiang/ado, `src/data_selectors/ado.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.types import Scalar

DELTA = 1e-3
"""Width of the Huber loss, in log loss."""
ALPHA, LEAST_LOG_E, MOST_LOG_BETA = (1e-3, 0.8), 0.5, 6.5
"""Where the published penalties begin."""
_LOW, _HIGH = (-np.inf, LEAST_LOG_E, ALPHA[0]), (MOST_LOG_BETA, np.inf, ALPHA[1])
_LEAST, _MOST = (-100.0, -50.0, -5.0), (50.0, 50.0, 5.0)  # no law is sought beyond
_ROUGH, _ROUGH_POINTS, _FINE, _SURVIVORS = 40, 128, 200, 6
_TOGETHER = 16  # domains fitted side by side; more take turns, so that memory does not grow with their number


class Law(NamedTuple):
    """`L(n) = exp(log_e) + exp(log_beta) n^-alpha`, n in counts."""

    log_beta: Float[Array, " domains"]
    log_e: Float[Array, " domains"]
    alpha: Float[Array, " domains"]


def smoothing_rows(window: int, order: int = 3) -> Float[np.ndarray, "window window"]:
    """The Savitzky-Golay filter as a matrix: row r is the value at place r of the polynomial through a window."""
    places = np.linspace(-1.0, 1.0, window) if window > 1 else np.zeros(1)
    basis, _ = np.linalg.qr(np.vander(places, min(order, window - 1) + 1, increasing=True))
    rows: np.ndarray = basis @ basis.T
    return rows


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
    steepness: Scalar = 1.0,
) -> Float[Array, ""]:
    """The published one: `sum Huber(log L - log law) + [alpha - 0.8]_+ - min(alpha, 0.001) - min(log_e - 0.5, 0) +
    [log_beta - 6.5]_+`, the penalties times a steepness.
    """
    return _excess(law, log_n, log_loss, kept, steepness) - steepness * ALPHA[0]


def fit_laws(
    counts: Float[Array, "points domains"],
    losses: Float[Array, "points domains"],
    kept: Bool[Array, " points"],
    steepness: Scalar = 1.0,
) -> tuple[Law, Float[Array, " domains"]]:
    """The law of each domain that minimises `objective`.

    Damped Gauss-Newton on reweighted least squares from 48 starts on at most 128 of the points, of which the six best
    are carried on with all of them; the original takes 512 starts of L-BFGS to the same minimum. The penalties are
    not smoothed: a step stops at a kink, and the next leaves it only if the slope of the Huber sum is steeper than that
    of the penalty. With fewer than 1000 points it never is at `log_e = 0.5`; with more it can be, as in the original.

    Args:
        counts: n at each point, positive.
        losses: nats per token, positive.
        kept: which points count.
        steepness: of the penalties. With 1000 times the number of points the objective is mixtera's, which takes a mean
            instead of a sum, up to a factor.

    Returns:
        laws, and their objectives.
    """
    log_n = jnp.log(jnp.maximum(counts, 1e-30)).T
    log_loss = jnp.log(jnp.maximum(losses, 1e-30)).T
    steep = jnp.asarray(steepness, losses.dtype)
    found, value = jax.lax.map(
        lambda pair: _fit(pair[0], pair[1], kept, steep), (log_n, log_loss), batch_size=_TOGETHER
    )
    return Law(found[:, 0], found[:, 1], found[:, 2]), value - steep * ALPHA[0]


def _residuals(law: Array, log_n: Array, log_loss: Array, kept: Array) -> Float[Array, " points"]:
    return jnp.where(kept, log_loss - jnp.logaddexp(law[0] - law[2] * log_n, law[1]), 0.0)


def _excess(law: Array, log_n: Array, log_loss: Array, kept: Array, steepness: Scalar) -> Float[Array, ""]:
    """The objective without its constant, beside which single precision would not see the Huber sum."""
    size = jnp.abs(_residuals(law, log_n, log_loss, kept))
    huber = jnp.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum()
    low, high = jnp.array(_LOW, law.dtype), jnp.array(_HIGH, law.dtype)
    return huber + steepness * (jnp.maximum(law - high, 0.0) + jnp.maximum(low - law, 0.0)).sum()


def _fit(log_n: Array, log_loss: Array, kept: Array, steep: Array) -> tuple[Float[Array, " 3"], Float[Array, ""]]:
    least = jnp.where(kept, log_loss, jnp.inf).min()
    alphas = jnp.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.75], log_loss.dtype)
    # Shares of the way from the lowest irreducible loss without a penalty to the smallest one seen.
    shares = jnp.array([0.0, 0.3, 0.6, 0.8, 0.93, 0.99], log_loss.dtype)

    def start(alpha: Array, share: Array) -> Float[Array, " 3"]:
        log_e = LEAST_LOG_E + share * jnp.maximum(least - LEAST_LOG_E, 0.0)
        above = jnp.exp(log_loss) - jnp.exp(log_e)
        heights = jnp.log(jnp.maximum(above, 1e-6)) + alpha * log_n
        return jnp.stack([jnp.where(kept, heights, 0.0).sum() / jnp.maximum(kept.sum(), 1), log_e, alpha])

    starts = jax.vmap(lambda alpha: jax.vmap(lambda share: start(alpha, share))(shares))(alphas).reshape(-1, 3)
    some = _thinned(kept)
    few = kept.sum().astype(steep.dtype) / jnp.maximum(kept[some].sum(), 1)
    rough, value = jax.vmap(
        lambda guess: _descend(guess, log_n[some], log_loss[some], kept[some], steep / jnp.maximum(few, 1.0), _ROUGH)
    )(starts)
    best = jnp.argsort(jnp.where(jnp.isfinite(value), value, jnp.inf))[:_SURVIVORS]
    fine, value = jax.vmap(lambda guess: _descend(guess, log_n, log_loss, kept, steep, _FINE))(rough[best])
    winner = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))
    return fine[winner], value[winner]


def _thinned(kept: Bool[Array, " points"]) -> Int[Array, " some"]:
    """Places of all kept points, or of as many as the rough search takes, evenly spread."""
    order = jnp.argsort(~kept, stable=True)
    if len(kept) <= _ROUGH_POINTS:
        return order
    count = kept.sum()
    rank = jnp.arange(_ROUGH_POINTS)
    return order[jnp.where(count > _ROUGH_POINTS, rank * count // _ROUGH_POINTS, rank)]


def _descend(
    start: Array, log_n: Array, log_loss: Array, kept: Array, steep: Array, steps: int
) -> tuple[Float[Array, " 3"], Float[Array, ""]]:
    dtype = log_loss.dtype
    least, low, high, most = (jnp.array(edge, dtype) for edge in (_LEAST, _LOW, _HIGH, _MOST))
    tiny = jnp.finfo(dtype).tiny

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        law, value, damping = carry
        residual = _residuals(law, log_n, log_loss, kept)
        share = jax.nn.sigmoid(law[0] - law[2] * log_n - law[1])
        jacobian = jnp.stack([share, 1.0 - share, -share * log_n], axis=1) * kept[:, None]
        weight = jnp.minimum(1.0, DELTA / jnp.maximum(jnp.abs(residual), tiny))
        gram = jacobian.T @ (weight[:, None] * jacobian)
        huber = jacobian.T @ (weight * residual)
        # The slopes to the right and to the left differ at a kink; where neither goes down, the number stays.
        right = huber - steep * jnp.where(law >= high, 1.0, jnp.where(law < low, -1.0, 0.0))
        left = huber - steep * jnp.where(law > high, 1.0, jnp.where(law <= low, -1.0, 0.0))
        slope = jnp.maximum(right, 0.0) + jnp.minimum(left, 0.0)
        fixed = (slope == 0) | ((law <= least) & (slope < 0)) | ((law >= most) & (slope > 0))
        gram = jnp.where(fixed[:, None] | fixed, jnp.eye(3, dtype=dtype), gram)
        scale = jnp.diag(gram) + 1e-9 * jnp.trace(gram) + tiny
        change = jnp.linalg.solve(gram + damping * jnp.diag(scale), jnp.where(fixed, 0.0, slope))
        # A step ends at the next kink: beyond it another slope holds.
        rises = slope > 0
        above = jnp.where(rises, law >= high, law > high)
        within = jnp.where(rises, law >= low, law > low)
        bottom = jnp.where(above, high, jnp.where(within, jnp.maximum(low, least), least))
        top = jnp.where(above, most, jnp.where(within, jnp.minimum(high, most), low))
        moved = jnp.where(fixed, law, jnp.clip(law + change, bottom, top))
        new = _excess(moved, log_n, log_loss, kept, steep)
        better = new < value
        return (
            jnp.where(better, moved, law),
            jnp.where(better, new, value),
            jnp.clip(jnp.where(better, damping / 4.0, damping * 3.0), 1e-9, 1e9),
        ), None

    begin = jnp.clip(start, jnp.maximum(low, least), jnp.minimum(high, most))
    first = (begin, _excess(begin, log_n, log_loss, kept, steep), jnp.asarray(1e-3, dtype))
    (law, value, _), _ = jax.lax.scan(step, first, None, length=steps)
    return law, value
