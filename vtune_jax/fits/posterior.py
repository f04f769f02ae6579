"""How sure a prediction is: the posterior of the law's value at a budget, by quadrature over (s, b).

For each b on a logarithmic grid, s is integrated by Gauss-Legendre nodes about its fit; given both, the level is a
Student t in closed form, and so is the log loss at the budget. No resampling, no random numbers; the quantiles of the
mixture are found by bisection. The median is the point target: it beats the optimum where points are few.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtune_jax.fits.law import Points, weighted_mean
from vtune_jax.fits.power_law import BETA_BOUNDS, project, psi

_BETAS, _NODES, _BISECTIONS = 48, 16, 60
_PASSES = 4  # one is enough for noisy points; near-exact ones have a peak far narrower than the first grid
_REACH = 7.0  # standard deviations of s on either side


class Mixture(NamedTuple):
    """Student t components of the log loss at the budget."""

    log_weight: Float[Array, " components"]
    centre: Float[Array, " components"]
    scale: Float[Array, " components"]
    freedom: Float[Array, ""]


@partial(jax.jit, static_argnums=3)
def quantiles(
    points: Points, t_target: Float[Array, " domains"], prior: Float[Array, " 2"], levels: tuple[float, ...]
) -> Float[Array, "domains levels"]:
    """Quantiles of the log loss at the budget.

    Args:
        points: of each domain.
        t_target: log of the budget minus the mean log tokens of the points.
        prior: median of beta and standard deviation of its logarithm, of a log-normal prior.
        levels: cumulative probabilities.
    """
    return jax.vmap(lambda points, t: _quantiles(mixture(points, t, prior), levels), in_axes=(-1, 0))(points, t_target)


def mixture(points: Points, t_target: Float[Array, ""], prior: Float[Array, " 2"]) -> Mixture:
    """The posterior's components; each pass looks closer at the part of the b axis that carries weight."""

    def narrow(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        grid = jnp.linspace(*ends, _BETAS)
        evidence = jax.vmap(lambda log_b: _components(points, t_target, log_b, prior).log_weight.max())(grid)
        carries = evidence > evidence.max() - 9.0
        step = grid[1] - grid[0]
        first, last = grid[jnp.argmax(carries)] - step, grid[_BETAS - 1 - jnp.argmax(carries[::-1])] + step
        return jnp.maximum(first, ends[0]), jnp.minimum(last, ends[1])

    bounds = jnp.log(jnp.array(BETA_BOUNDS))
    low, high = jax.lax.fori_loop(0, _PASSES, narrow, (bounds[0], bounds[1]))
    grid = jnp.linspace(low, high, _BETAS)
    parts = jax.vmap(lambda log_b: _components(points, t_target, log_b, prior))(grid)
    return Mixture(parts.log_weight.ravel(), parts.centre.ravel(), parts.scale.ravel(), parts.freedom[0])


def _components(
    points: Points, t_target: Float[Array, ""], log_b: Float[Array, ""], prior: Float[Array, " 2"]
) -> Mixture:
    b = jnp.exp(log_b)
    _, s_hat, _ = project(points, b, jnp.asarray(jnp.inf))
    shape, weight = psi(points.inputs[0], b), points.weight
    count = weight.sum()
    freedom = jnp.maximum(count - 1.0, 1.0)

    def level(s: Float[Array, ""]) -> tuple[Array, Array]:
        residual = points.log_loss - jnp.log(jnp.maximum(1 - s * shape, 1e-12))
        centre = weighted_mean(residual, weight)
        return centre, (weight * (residual - centre) ** 2).sum()

    # A floor on the noise, far below any real one, keeps exact points from a width of zero.
    noise = jnp.sqrt(jnp.maximum(level(s_hat)[1] / jnp.maximum(count - 2.0, 1.0), 1e-16))
    deviation = noise / jnp.sqrt((weight * (shape - weighted_mean(shape, weight)) ** 2).sum())
    low, high = jnp.maximum(s_hat - _REACH * deviation, 0.0), jnp.minimum(s_hat + _REACH * deviation, b)
    node, node_weight = (jnp.asarray(values) for values in np.polynomial.legendre.leggauss(_NODES))
    s = 0.5 * (low + high) + 0.5 * (high - low) * node
    centre, squares = jax.vmap(level)(s)
    squares = jnp.maximum(squares, 1e-16)
    width = jnp.maximum(0.5 * (high - low), 1e-300) * node_weight
    log_prior = -0.5 * ((log_b - jnp.log(prior[0])) / prior[1]) ** 2
    return Mixture(
        # 1 / b makes the reducible share s / b uniform on [0, 1].
        log_weight=-0.5 * freedom * jnp.log(squares) + jnp.log(width) - log_b + log_prior,
        centre=centre + jnp.log(jnp.maximum(1 - s * psi(t_target, b), 1e-12)),
        scale=jnp.sqrt(squares / (freedom * count)),
        freedom=freedom,
    )


def _quantiles(posterior: Mixture, levels: tuple[float, ...]) -> Float[Array, " levels"]:
    share = jax.nn.softmax(posterior.log_weight)
    carries = share > 1e-12
    reach = 60.0 * posterior.scale
    low = jnp.where(carries, posterior.centre - reach, jnp.inf).min()
    high = jnp.where(carries, posterior.centre + reach, -jnp.inf).max()

    def below(value: Float[Array, ""]) -> Float[Array, ""]:
        # Wallace's normal approximation of Student's t: the incomplete beta function is far slower.
        freedom = posterior.freedom
        t = (value - posterior.centre) / posterior.scale
        z = (8 * freedom + 1) / (8 * freedom + 3) * jnp.sqrt(freedom * jnp.log1p(t**2 / freedom))
        return (share * jax.scipy.stats.norm.cdf(jnp.sign(t) * z)).sum()

    def bisect(level: Float[Array, ""]) -> Float[Array, ""]:
        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            under = below(middle) < level
            return jnp.where(under, middle, ends[0]), jnp.where(under, ends[1], middle)

        ends = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        return 0.5 * (ends[0] + ends[1])

    return jax.vmap(bisect)(jnp.array(levels))
