"""How sure a prediction is: the posterior of a curve's loss at a budget, by quadrature instead of resampling.

The curve is `L = m (1 - s psi(t; b) - k q)`, see `laws.curve`. For each b on a logarithmic grid, and for each of a few
values of k where the points have annealed area, s is integrated by Gauss-Legendre nodes about its fit. Given b, s and
k, the level m has a Student t distribution in closed form, and so has the log loss at the budget. The quantiles of the
resulting mixture are found by bisection; no random numbers are drawn. The median is the point target, because with few
points it errs less than the optimum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtune_jax.fits.laws.curve import BETA_BOUNDS, psi
from vtune_jax.fits.laws.form import Points, solve_symmetric, weighted_mean
from vtune_jax.fits.solver import chunk_of, in_chunks

BETAS = 48
_NODES, _FALL_NODES, _BISECTIONS = 16, 8, 40
_ZOOMS, _ZOOM_NODES = 6, 13
_PASSES = 4  # one is enough for noisy points; near-exact points have a peak far narrower than the first grid
_REACH = 7.0  # standard deviations of s on either side of its best value
_LEAST = 1e-12
FALL_PRIOR = 0.3
"""Half-normal prior of the share of the loss that annealing takes off at the budget: its standard deviation."""


class Mixture(NamedTuple):
    """Student t components of the log loss at each budget."""

    log_weight: Float[Array, " components"]
    centre: Float[Array, "components budgets"]
    scale: Float[Array, " components"]
    freedom: Float[Array, ""]


class BudgetInputs(NamedTuple):
    """Budgets in the points' coordinates."""

    t: Float[Array, " budgets"]  # logarithm of tokens or S1, minus the points' mean
    q: Float[Array, " budgets"]  # annealed area in the points' unit; 0 without annealing


@jax.jit
def quantiles(
    points: Points, budgets: BudgetInputs, prior: Float[Array, "2 lanes"], levels: Float[Array, " levels"]
) -> Float[Array, "levels budgets lanes"]:
    """Quantiles of the log loss at the budgets.

    Args:
        points: one lane per domain; a weight is how many independent points its point is worth.
        budgets: [budgets, lanes].
        prior: median of beta and standard deviation of its logarithm, of a log-normal prior.
        levels: cumulative probabilities.
    """

    def of_lane(points: Points, budgets: BudgetInputs, prior: Float[Array, " 2"]) -> Array:
        return _quantiles(mixture(points, budgets, prior), levels)

    # The temporaries of more than eight lanes would not fit the processor's cache.
    return in_chunks(lambda part: jax.vmap(of_lane, in_axes=-1, out_axes=-1)(*part), (points, budgets, prior), 8)


@jax.jit
def least_squares(points: Points) -> Float[Array, " lanes"]:
    """The smallest weighted sum of squared log residuals, by a grid of b that narrows about the best value."""

    def of_lane(points: Points) -> Float[Array, ""]:
        def squares(log_b: Array) -> Array:
            return _best_level(points, jnp.exp(log_b))[1]

        def closer(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            middle, half, _ = carry
            grid = middle + half * jnp.linspace(-1.0, 1.0, _ZOOM_NODES)
            found = jax.vmap(squares)(grid)
            return grid[found.argmin()], half * 2 / (_ZOOM_NODES - 1), found.min()

        grid = beta_grid()
        first = jax.vmap(squares)(grid).argmin()
        start = grid[first], grid[1] - grid[0], jnp.asarray(jnp.inf, grid.dtype)
        least: Array = jax.lax.fori_loop(0, _ZOOMS, closer, start)[2]
        return least

    return in_chunks(
        lambda part: jax.vmap(of_lane, in_axes=-1)(part), points, min(chunk_of(points.weight.shape[0]), 64)
    )


@jax.jit
def evidence(points: Points) -> Float[Array, "betas lanes"]:
    """Log marginal likelihood of every value of beta on `beta_grid`, up to a constant per lane."""

    def of_lane(points: Points) -> Float[Array, " betas"]:
        none = BudgetInputs(jnp.zeros(1), jnp.zeros(1))
        return jax.vmap(lambda log_b: jax.nn.logsumexp(_components(points, none, log_b).log_weight))(beta_grid())

    return jax.vmap(of_lane, in_axes=-1, out_axes=-1)(points)


def beta_grid() -> Float[Array, " betas"]:
    """Logarithms of beta, evenly spread over its bounds."""
    return jnp.linspace(np.log(BETA_BOUNDS[0]), np.log(BETA_BOUNDS[1]), BETAS)


def mixture(points: Points, budgets: BudgetInputs, prior: Float[Array, " 2"]) -> Mixture:
    """The posterior's components; each pass narrows the grid of b to the part that carries weight."""

    def log_prior(log_b: Array) -> Array:
        return -0.5 * ((log_b - jnp.log(prior[0])) / prior[1]) ** 2

    def narrow(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        grid = jnp.linspace(ends[0], ends[1], BETAS)
        height = jax.vmap(lambda log_b: _profile(points, log_b) + log_prior(log_b))(grid)
        carries = height > height.max() - 9.0
        step = grid[1] - grid[0]
        first, last = grid[jnp.argmax(carries)] - step, grid[BETAS - 1 - jnp.argmax(carries[::-1])] + step
        return jnp.maximum(first, ends[0]), jnp.minimum(last, ends[1])

    grid = beta_grid()
    low, high = jax.lax.fori_loop(0, _PASSES, narrow, (grid[0], grid[-1]))
    grid = jnp.linspace(low, high, BETAS)
    parts = jax.vmap(lambda log_b: _components(points, budgets, log_b))(grid)
    weight = parts.log_weight + log_prior(grid)[:, None]
    return Mixture(weight.ravel(), parts.centre.reshape(weight.size, -1), parts.scale.ravel(), parts.freedom[0])


class _Fall(NamedTuple):
    """What is known of k for one b."""

    best: Float[Array, ""]
    deviation: Float[Array, ""]


def _freedom(weight: Float[Array, " points"]) -> tuple[Array, Array]:
    count = weight.sum()
    return count, jnp.maximum(count - 1.0, 1.0)


def _linear_fall(points: Points, b: Float[Array, ""]) -> _Fall:
    """k by least squares for this b, and its standard deviation: L = m - m s psi - m k q in relative residuals."""
    loss, (t, q) = jnp.exp(points.log_loss), points.inputs
    terms = [1.0 / loss, -psi(t, b) / loss, -q / loss]
    gram = [[(points.weight * left * right).sum() for right in terms] for left in terms]
    moment = [(points.weight * term).sum() for term in terms]
    # A small ridge avoids a division by zero if no point has annealed area, or all lie on one line.
    for i in range(3):
        gram[i][i] = gram[i][i] * (1 + 1e-10) + 1e-30
    level, slope, fall = solve_symmetric(gram, moment)
    zero = jnp.zeros_like(level)
    of_fall = solve_symmetric(gram, [zero, zero, zero + 1.0])[2]
    residual = 1 - sum(term * value for term, value in zip(terms, (level, slope, fall), strict=True))
    count, _ = _freedom(points.weight)
    noise = (points.weight * residual**2).sum() / jnp.maximum(count - 3.0, 1.0)
    level = jnp.where(jnp.abs(level) > _LEAST, level, 1.0)
    return _Fall(fall / level, jnp.sqrt(jnp.maximum(noise * of_fall, 1e-16)) / jnp.abs(level))


def _profile(points: Points, log_b: Float[Array, ""]) -> Float[Array, ""]:
    """The log likelihood of b at the best of the other parameters, times the width of their peak."""
    slope, squares = _best_level(points, jnp.exp(log_b))
    _, freedom = _freedom(points.weight)
    return -0.5 * freedom * jnp.log(squares) + jnp.log(jnp.maximum(slope.high - slope.low, 1e-300)) - log_b


def _best_level(points: Points, b: Float[Array, ""]) -> tuple["_Slope", Float[Array, ""]]:
    """For one b the range of s at the best k, and the squares at the best of both."""
    if len(points.inputs) == 1:
        fall = jnp.asarray(0.0)
    else:
        fall = jnp.clip(_linear_fall(points, b).best, 0.0, _most_fall(points))
    slope = _Slope.of(points, b, fall)
    return slope, _level(points, b, slope.best, fall)[1]


def _components(points: Points, budgets: BudgetInputs, log_b: Float[Array, ""]) -> Mixture:
    """For one b, all values of s and, where there is annealed area, of k."""
    b = jnp.exp(log_b)
    if len(points.inputs) == 1:
        falls, fall_weight = jnp.zeros(1), jnp.zeros(1)
    else:
        known, most = _linear_fall(points, b), _most_fall(points)
        low = jnp.clip(known.best - _REACH * known.deviation, 0.0, most)
        high = jnp.clip(known.best + _REACH * known.deviation, jnp.minimum(low + known.deviation, most), most)
        falls, fall_weight = _nodes(_FALL_NODES, low, high)
        fall_weight = fall_weight - 0.5 * (falls * budgets.q.max() / FALL_PRIOR) ** 2

    def for_fall(fall: Float[Array, ""], log_weight: Float[Array, ""]) -> Mixture:
        slope = _Slope.of(points, b, fall)
        s, node_weight = _nodes(_NODES, slope.low, slope.high)
        centre, squares = jax.vmap(lambda s: _level(points, b, s, fall))(s)
        count, freedom = _freedom(points.weight)
        inner = 1 - s[:, None] * psi(budgets.t, b) - fall * budgets.q
        return Mixture(
            # 1 / b makes the reducible share s / b uniform on [0, 1].
            log_weight=-0.5 * freedom * jnp.log(squares) + node_weight - log_b + log_weight,
            centre=centre[:, None] + jnp.log(jnp.maximum(inner, _LEAST)),
            scale=jnp.sqrt(squares / (freedom * count)),
            freedom=freedom,
        )

    parts = jax.vmap(for_fall)(falls, fall_weight)
    return Mixture(
        parts.log_weight.ravel(),
        parts.centre.reshape(parts.log_weight.size, -1),
        parts.scale.ravel(),
        parts.freedom[0],
    )


class _Slope(NamedTuple):
    """s for fixed b and k: its best value, and the interval over which it is integrated."""

    best: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]

    @classmethod
    def of(cls, points: Points, b: Float[Array, ""], fall: Float[Array, ""]) -> "_Slope":
        """`L = m (1 - k q) - m s psi` by least squares in relative residuals, within `0 <= s <= b`."""
        loss, shape = jnp.exp(points.log_loss), psi(points.inputs[0], b)
        whole = jnp.ones_like(loss) if len(points.inputs) == 1 else 1 - fall * points.inputs[1]
        weight = points.weight / loss**2
        gram = [(weight * x * y).sum() for x, y in ((whole, whole), (whole, shape), (shape, shape))]
        right = (weight * whole * loss).sum(), (weight * shape * loss).sum()
        determinant = jnp.maximum(gram[0] * gram[2] - gram[1] ** 2, 1e-300)
        level = (gram[2] * right[0] - gram[1] * right[1]) / determinant
        slope = (gram[1] * right[0] - gram[0] * right[1]) / determinant
        best = jnp.clip(slope / jnp.where(jnp.abs(level) > _LEAST, level, 1.0), 0.0, b)
        count, _ = _freedom(points.weight)
        _, squares = _level(points, b, best, fall)
        noise = jnp.sqrt(squares / jnp.maximum(count - 2.0, 1.0))
        about = (points.weight * (shape - weighted_mean(shape, points.weight)) ** 2).sum()
        deviation = noise / jnp.sqrt(jnp.maximum(about, 1e-300))
        return cls(best, jnp.maximum(best - _REACH * deviation, 0.0), jnp.minimum(best + _REACH * deviation, b))


def _level(points: Points, b: Array, s: Array, fall: Array) -> tuple[Array, Array]:
    """The best log level for fixed b, s and k, and the weighted squares about it."""
    inner = 1 - s * psi(points.inputs[0], b)
    if len(points.inputs) > 1:
        inner = inner - fall * points.inputs[1]
    residual = points.log_loss - jnp.log(jnp.maximum(inner, _LEAST))
    centre = weighted_mean(residual, points.weight)
    # A floor far below any real noise keeps the width of exact points above zero.
    return centre, jnp.maximum((points.weight * (residual - centre) ** 2).sum(), 1e-16)


def _most_fall(points: Points) -> Float[Array, ""]:
    return 0.9 / jnp.maximum(points.inputs[1].max(), 1e-6)


def _nodes(count: int, low: Float[Array, ""], high: Float[Array, ""]) -> tuple[Array, Array]:
    """Gauss-Legendre nodes on an interval, and the logarithms of their weights."""
    node, weight = (jnp.asarray(values) for values in np.polynomial.legendre.leggauss(count))
    half = 0.5 * (high - low)
    return 0.5 * (low + high) + half * node, jnp.log(jnp.maximum(half, 1e-300) * weight)


def _quantiles(posterior: Mixture, levels: Float[Array, " levels"]) -> Float[Array, "levels budgets"]:
    share = jax.nn.softmax(posterior.log_weight)
    carries = (share > 1e-12)[:, None]
    reach = 60.0 * posterior.scale[:, None]
    low = jnp.where(carries, posterior.centre - reach, jnp.inf).min(axis=0)
    high = jnp.where(carries, posterior.centre + reach, -jnp.inf).max(axis=0)

    def below(value: Float[Array, " budgets"]) -> Float[Array, " budgets"]:
        # Wallace's normal approximation of Student's t; the exact incomplete beta function is far slower.
        freedom = posterior.freedom
        t = (value - posterior.centre) / posterior.scale[:, None]
        z = (8 * freedom + 1) / (8 * freedom + 3) * jnp.sqrt(freedom * jnp.log1p(t**2 / freedom))
        return share @ jax.scipy.stats.norm.cdf(jnp.sign(t) * z)

    def bisect(level: Float[Array, ""]) -> Float[Array, " budgets"]:
        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            under = below(middle) < level
            return jnp.where(under, middle, ends[0]), jnp.where(under, ends[1], middle)

        low_end, high_end = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        middle: Array = 0.5 * (low_end + high_end)
        return middle

    return jax.vmap(bisect)(levels)
