"""The form of a law, which is all that the solver needs of it, and the arithmetic that every form shares.

Arrays have points first and lanes last: a lane is a domain, a start or a bootstrap replicate, and nothing mixes lanes.
A form is a tuple of pieces, simplest first: the faces on which some of the law's terms vanish, and its interior.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PUBLISHED_DELTA = 1e-3
"""Huber width on log residuals in the published Chinchilla fits."""


class Points(NamedTuple):
    """Measured losses, in the law's coordinates."""

    inputs: Float[Array, "inputs points #lanes"]  # 0 where the weight is 0
    log_loss: Float[Array, "points #lanes"]
    weight: Float[Array, "points lanes"]  # how often a point counts; 0 leaves it out


Derivatives = Callable[[Array, Array], tuple[Array, list[Array], list[list[Array]]]]
"""(parameters, inputs) -> log model, its slopes, and its second derivatives [i][j <= i], each [points, lanes]."""


class Piece(NamedTuple):
    """A smooth family of functions with bounds on its parameters."""

    name: str
    starts: Callable[[Points, Array], Array]  # (points, delta) -> [starts, parameters, lanes]
    log_model: Callable[[Array, Array], Array]  # ([parameters, lanes], inputs) -> [points, lanes]
    into_bounds: Callable[[Array], Array]  # the nearest parameters within the bounds
    embed: Callable[[Array], Array]  # from the piece's parameters to the interior's
    derivatives: Derivatives | None = None  # None: by automatic differentiation


class Form(NamedTuple):
    """Where a law's optimum may lie."""

    size: int  # number of the law's parameters, which are the interior's
    pieces: tuple[Piece, ...]  # simplest first: where two pieces fit equally well, the simpler one is taken

    @property
    def interior(self) -> Piece:
        """The piece with all parameters."""
        return self.pieces[-1]


def huber(residual: Float[Array, "..."], delta: Float[Array, "..."]) -> Float[Array, "..."]:
    """`r**2 / 2` within delta, linear beyond."""
    size = jnp.abs(residual)
    return jnp.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def objective(points: Points, log_model: Float[Array, "..."], delta: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sum of the Huber losses of the log residuals."""
    return (points.weight * huber(points.log_loss - log_model, delta)).sum(0)


def weighted_mean(values: Float[Array, "points ..."], weight: Float[Array, "points ..."]) -> Float[Array, "..."]:
    """Over the points whose weight is not zero."""
    return (weight * values).sum(0) / weight.sum(0)


def spread(
    residual: Float[Array, "points lanes"], weight: Float[Array, "points lanes"], parameters: Int[Array, " lanes"]
) -> Float[Array, " lanes"]:
    """`1.4826 median |r| sqrt(n / (n - parameters))`, a robust standard deviation; n - parameters is at least 1."""
    residual, weight = jnp.broadcast_arrays(residual, weight)
    count = (weight > 0).sum(0)
    size = jnp.sort(jnp.where(weight > 0, jnp.abs(residual), jnp.inf), axis=0)
    middle = [jnp.take_along_axis(size, place[None], axis=0)[0] for place in ((count - 1) // 2, count // 2)]
    return 1.4826 * 0.5 * (middle[0] + middle[1]) * jnp.sqrt(count / jnp.maximum(count - parameters, 1))


def nonnegative_least_squares(
    terms: Float[Array, "terms points #lanes"],
    values: Float[Array, "points #lanes"],
    weight: Float[Array, "points lanes"],
) -> Float[Array, "terms lanes"]:
    """Coefficients `>= 0` with the least weighted squares, by trying every subset of the terms.

    The work doubles with each term, so that this is for up to about five of them.
    """
    count = len(terms)
    values = jnp.broadcast_to(values, jnp.broadcast_shapes(values.shape, weight.shape))
    gram = [[(weight * terms[i] * terms[j]).sum(0) for j in range(count)] for i in range(count)]
    moment = [(weight * terms[i] * values).sum(0) for i in range(count)]
    best = jnp.zeros((count, *moment[0].shape), values.dtype)
    gained = jnp.zeros_like(moment[0])
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            found = solve_symmetric([[gram[i][j] for j in chosen] for i in chosen], [moment[i] for i in chosen])
            gain = sum(value * moment[i] for value, i in zip(found, chosen, strict=True))
            better = (gain > gained) & jnp.all(jnp.stack(found) >= 0, axis=0) & jnp.isfinite(gain)
            whole = jnp.zeros_like(best).at[np.array(chosen)].set(jnp.stack(found))
            best, gained = jnp.where(better, whole, best), jnp.where(better, gain, gained)
    return best


def solve_symmetric(matrix: list[list[Array]], right: list[Array]) -> list[Array]:
    """Solves one small linear system per lane by elimination without pivoting, all lanes at once.

    A pivot of zero gives an infinite or undefined solution, which the caller must refuse.
    """
    size = len(right)
    rows, right = [list(row) for row in matrix], list(right)
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            for column in range(pivot, size):
                rows[below][column] = rows[below][column] - factor * rows[pivot][column]
            right[below] = right[below] - factor * right[pivot]
    for pivot in reversed(range(size)):
        solved = sum(
            (rows[pivot][column] * right[column] for column in range(pivot + 1, size)), jnp.zeros_like(right[0])
        )
        right[pivot] = (right[pivot] - solved) / rows[pivot][pivot]
    return right


def best_of(
    starts: Float[Array, "starts parameters lanes"],
    values: Float[Array, "starts lanes"],
    kept: int,
    among: Bool[Array, "starts lanes"] | None = None,
) -> Float[Array, "kept parameters lanes"]:
    """The starts of lowest value, lane by lane; starts outside `among` are taken only where no others are left."""
    ranked = jnp.where(jnp.isfinite(values), values, jnp.inf)
    if among is not None:
        ranked = jnp.where(among, ranked, jnp.inf)
    order = jnp.argsort(ranked, axis=0)[:kept]
    return jnp.take_along_axis(starts, order[:, None, :], axis=0)
