"""One solver for every law: damped Newton on the Huber objective from each piece's starts, all lanes side by side.

There are no random starts. For fixed exponents the laws are linear, so a grid of exponents finds the basins; Newton
from the best of them, and from each face of the bounds, finds the optimum.
"""

import enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.fits.laws.law import (
    PUBLISHED_DELTA,
    Derivatives,
    Law,
    Piece,
    Points,
    objective,
    solve_symmetric,
    spread,
)

_STEPS = 120
_TAIL, _NARROWEST = 8, 32  # the last eighth of the lanes goes on alone, if that are so many
_TEST_RIDGE = 10.0  # directions that only rounding tells from none promise nothing
_LEAST_DELTA = 1e-6


def chunk_of(points: int) -> int:
    """Lanes worked on together: the temporaries of more leave the processor's cache, at ten times the cost."""
    return max(16, 1 << (16_384 // points).bit_length() - 1)


class Status(enum.IntEnum):
    """Of a fit."""

    CONVERGED = 0
    NOT_CONVERGED = 1  # the gradient test failed: numbers are the best found
    NOT_FINITE = 2  # the points gave no finite objective


class Solution(NamedTuple):
    """A fit in the law's own parameters."""

    parameters: Float[Array, "parameters lanes"]
    objective: Float[Array, " lanes"]  # sum of Huber losses at the width used
    sigma: Float[Array, " lanes"]  # robust spread of the log residuals
    delta: Float[Array, " lanes"]  # width used
    piece: Int[Array, " lanes"]  # index into the law's pieces
    status: Int[Array, " lanes"]  # see `Status`


@partial(jax.jit, static_argnums=0)
def solve(law: Law, points: Points, delta: Float[Array, ""]) -> Solution:
    """The global optimum in every lane.

    Args:
        law: static.
        points: lanes a multiple of `chunk_of(points)` where there are more.
        delta: Huber width on log residuals; 0 stands for 1.345 times the residuals' robust spread at the published
            width, at least 1e-6.
    """
    # Far below the published width the objective is nearly a sum of absolute values, with a kink at every point;
    # widths that shrink tenfold lead there. The data-driven width takes a second round.
    given = delta > 0
    tenths = jnp.ceil(jnp.log10(jnp.maximum(PUBLISHED_DELTA / jnp.where(given, delta, 1.0), 1.0)) - 1e-6)
    rounds = 1 + jnp.where(given, tenths.astype(int), 1)

    def one(part: Points) -> Solution:
        def best_at(count: Array, found: Solution) -> Solution:
            first = jnp.where(given, jnp.maximum(delta, PUBLISHED_DELTA), PUBLISHED_DELTA)
            data_driven = jnp.maximum(1.345 * found.sigma, _LEAST_DELTA)
            later = jnp.where(given, jnp.maximum(delta, found.delta * 0.1), data_driven)
            width = jnp.where(count == 0, first, later)
            return _best_piece(law, part, width, [*law.interior.starts(part, width), found.parameters])

        lanes, dtype = part.weight.shape[1:], part.log_loss.dtype
        number, whole = jnp.full(lanes, jnp.nan, dtype), jnp.zeros(lanes, int)
        nothing = jnp.full((law.size, *lanes), jnp.nan, dtype)
        return jax.lax.fori_loop(0, rounds, best_at, Solution(nothing, number, number, number, whole, whole))

    return in_chunks(one, points, chunk_of(points.weight.shape[0]))


@partial(jax.jit, static_argnums=0)
def solve_from(law: Law, points: Points, delta: Float[Array, " lanes"], starts: Float[Array, "p lanes"]) -> Solution:
    """The optimum that the interior's Newton reaches from given parameters, or a better one on a face.

    Args:
        law: static.
        points: for instance replicates, which differ in their weights alone.
        delta: Huber width of each lane.
        starts: in the interior's parameters.
    """
    chunk = chunk_of(points.weight.shape[0])
    return in_chunks(lambda part: _best_piece(law, part[0], part[1], [part[2]]), (points, delta, starts), chunk)


def in_chunks(function: Any, lanes_last: Any, chunk: int) -> Any:
    """Applies a function to chunks of lanes in turn. Arrays with a single lane are shared by all."""
    lanes = max(leaf.shape[-1] for leaf in jax.tree.leaves(lanes_last))
    if lanes <= chunk:
        return function(lanes_last)
    tree: Any
    leaves, tree = jax.tree.flatten(lanes_last)
    wide = [leaf.shape[-1] > 1 for leaf in leaves]
    split = [jnp.moveaxis(x.reshape(*x.shape[:-1], -1, chunk), -2, 0) for x, w in zip(leaves, wide, strict=True) if w]

    def one(group: list[Array]) -> Any:
        parts = iter(group)
        return function(tree.unflatten([next(parts) if w else leaf for leaf, w in zip(leaves, wide, strict=True)]))

    out = jax.lax.map(one, split)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], lanes), out)


def _best_piece(law: Law, points: Points, delta: Float[Array, " lanes"], starts: list[Array]) -> Solution:
    lanes = points.weight.shape[1:]
    best: tuple[Solution, Array, Array] | None = None
    for index, piece in enumerate(law.pieces):
        begin = jnp.stack(starts) if piece is law.interior else piece.starts(points, delta)
        at, value, settled = _from_all(piece, points, delta, begin)
        status = jnp.where(settled, Status.CONVERGED, Status.NOT_CONVERGED)
        solution = Solution(
            parameters=piece.embed(at),
            objective=value,
            sigma=value,  # follows when the best is known: sorting is dear
            delta=delta,
            piece=jnp.full(lanes, index),
            status=jnp.where(jnp.isfinite(value), status, Status.NOT_FINITE),
        )
        residual = jnp.broadcast_to(points.log_loss - piece.log_model(at, points.inputs), points.weight.shape)
        found = solution, residual, jnp.full(lanes, len(at))
        # Ties, up to rounding, go to the simpler piece, which came first.
        better = True if best is None else ~(value >= best[0].objective - rounding_of(points))
        best = jax.tree.map(lambda new, old, better=better: jnp.where(better, new, old), found, best or found)
    assert best is not None
    solution, residual, free = best
    return solution._replace(sigma=spread(residual, points.weight, free))


def _from_all(
    piece: Piece, points: Points, delta: Float[Array, " lanes"], starts: Float[Array, "starts parameters lanes"]
) -> tuple[Float[Array, "parameters lanes"], Float[Array, " lanes"], Bool[Array, " lanes"]]:
    """Newton from every start, side by side as further lanes, and the best of each lane."""
    count, _, lanes = starts.shape

    def wide(column: Array) -> Array:
        return column if column.shape[-1] == 1 else jnp.concatenate([column] * count, axis=-1)

    at, value, settled = newton(piece, Points(*map(wide, points)), wide(delta), jnp.concatenate(list(starts), axis=-1))
    value = value.reshape(count, lanes)
    winner = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf), axis=0)[None]
    at = jnp.take_along_axis(at.reshape(-1, count, lanes), winner[None], axis=1)[:, 0]
    value, settled = (jnp.take_along_axis(x.reshape(count, lanes), winner, axis=0)[0] for x in (value, settled))
    return at, value, settled


def newton(
    piece: Piece, points: Points, delta: Float[Array, " lanes"], start: Float[Array, "parameters lanes"]
) -> tuple[Float[Array, "parameters lanes"], Float[Array, " lanes"], Bool[Array, " lanes"]]:
    """Damped Newton on the Huber objective.

    `(H + lambda M) step = -gradient`, with H the Hessian and M that of the reweighted least-squares problem: lambda 1
    nearly always descends, lambda towards 0 is Newton. Only a decrease is accepted.

    Returns:
        parameters, objective, and whether the gradient test holds: before the last step, reweighted least squares
        promised a decrease of less than a millionth of the objective (a thousandth in single precision) or of rounding.
    """
    rounding, dtype = rounding_of(points), start.dtype
    start = piece.into_bounds(start)
    value = objective(points, piece.log_model(start, points.inputs), delta)
    ones = jnp.ones(value.shape, dtype)
    walk = _Walk(start, value, ones, ones * jnp.inf, jnp.isfinite(value))
    walk = _walked(piece, points, delta, walk, jnp.asarray(0))
    enough = 1e-3 if dtype == jnp.float32 else 1e-6
    return walk.at, walk.value, walk.promised <= enough * walk.value + rounding


class _Walk(NamedTuple):
    """Newton's state in every lane."""

    at: Float[Array, "parameters lanes"]
    value: Float[Array, " lanes"]
    damping: Float[Array, " lanes"]
    promised: Float[Array, " lanes"]  # by reweighted least squares, before the last step
    busy: Bool[Array, " lanes"]


def _walked(piece: Piece, points: Points, delta: Array, walk: _Walk, count: Int[Array, ""]) -> _Walk:
    """Steps until every lane has ended, the last of them in an array of their own: a turn costs by its width."""
    lanes = walk.value.shape[0]
    few = lanes // _TAIL if lanes >= _TAIL * _NARROWEST else 0

    def unfinished(carry: tuple[Array, _Walk]) -> Array:
        count, walk = carry
        return (count < _STEPS) & (walk.busy.sum() > few)

    def step(carry: tuple[Array, _Walk]) -> tuple[Array, _Walk]:
        count, walk = carry
        return count + 1, _step(piece, points, delta, walk)

    count, walk = jax.lax.while_loop(unfinished, step, (count, walk))
    if not few:
        return walk
    left = jnp.argsort(~walk.busy, stable=True)[:few]
    part, delta, begun = jax.tree.map(lambda x: x[..., left] if x.shape[-1] > 1 else x, (points, delta, walk))
    ended = _walked(piece, part, delta, begun, count)
    return jax.tree.map(lambda whole, few: whole.at[..., left].set(few), walk, ended)


def _step(piece: Piece, points: Points, delta: Array, walk: _Walk) -> _Walk:
    at, value, damping, promised, busy = walk
    size, eps, rounding = len(at), jnp.finfo(at.dtype).eps, rounding_of(points)
    gradient, hessian, metric = derivatives(piece, points, delta, at)
    # A parameter that its bound holds against the descent direction stays where it is.
    nudge = -jnp.sign(gradient) * 1e3 * eps * jnp.maximum(jnp.abs(at), 1.0)
    free = (piece.into_bounds(at + nudge) != at) | (gradient == 0)
    damped = [[hessian[i][j] + damping * metric[i][j] for j in range(size)] for i in range(size)]
    step, surrogate = _solved(damped, gradient, free), _solved(metric, gradient, free, _TEST_RIDGE)
    trial = piece.into_bounds(at + step)
    trial_value = objective(points, piece.log_model(trial, points.inputs), delta)
    # Newton is quadratic: a step that promises a relative gain of 1e-12 leads to where values no longer tell, and
    # is taken on the gradient's word.
    last = (jnp.abs((gradient * step).sum(0)) <= 1e-12 * value + rounding * 1e-3) & (damping <= 1e-3)
    better = (trial_value < jnp.where(last, value * (1 + 100 * eps) + rounding, value)) & busy
    return _Walk(
        at=jnp.where(better, trial, at),
        value=jnp.where(better, trial_value, value),
        damping=jnp.where(better, damping * 0.15, jnp.minimum(damping * 5.0, 1e9)),
        promised=jnp.where(busy, -0.5 * (gradient * surrogate).sum(0), promised),
        busy=busy & ~last & ~(~better & (damping > 1e7)) & jnp.isfinite(value),
    )


def rounding_of(points: Points) -> Float[Array, " lanes"]:
    """The objective of residuals that are nothing but rounding."""
    return points.weight.sum(0) * (10 * jnp.finfo(points.log_loss.dtype).eps) ** 2


def derivatives(
    piece: Piece, points: Points, delta: Float[Array, " lanes"], at: Float[Array, "parameters lanes"]
) -> tuple[Float[Array, "parameters lanes"], list[list[Array]], list[list[Array]]]:
    """Gradient and Hessian of the objective, and the Hessian of its reweighted least-squares problem."""
    size, tiny = len(at), jnp.finfo(at.dtype).tiny
    model, first, second = (piece.derivatives or _by_differentiation(piece))(at, points.inputs)
    residual, weight = points.log_loss - model, points.weight
    pull = weight * jnp.clip(residual, -delta, delta)
    inside = weight * (jnp.abs(residual) <= delta)
    majorant = weight * jnp.minimum(1.0, delta / jnp.maximum(jnp.abs(residual), tiny))
    hessian: list[list[Any]] = [[None] * size for _ in range(size)]
    metric: list[list[Any]] = [[None] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            product = first[i] * first[j]
            hessian[i][j] = hessian[j][i] = (inside * product - pull * second[i][j]).sum(0)
            metric[i][j] = metric[j][i] = (majorant * product).sum(0)
    return jnp.stack([-(pull * slope).sum(0) for slope in first]), hessian, metric


def _by_differentiation(piece: Piece) -> Derivatives:
    def of(at: Array, inputs: Array) -> tuple[Array, list[Array], list[list[Array]]]:
        units = [jnp.zeros_like(at).at[i].set(1.0) for i in range(len(at))]

        def slope(at: Array, i: int) -> Array:
            return jax.jvp(lambda at: piece.log_model(at, inputs), (at,), (units[i],))[1]

        first = [slope(at, i) for i in range(len(at))]
        second = [
            [jax.jvp(lambda at, i=i: slope(at, i), (at,), (units[j],))[1] for j in range(i + 1)] for i in range(len(at))
        ]
        return piece.log_model(at, inputs), first, second

    return of


def _solved(
    matrix: list[list[Array]], gradient: Float[Array, "p lanes"], free: Bool[Array, "p lanes"], ridge: float = 1e-2
) -> Array:
    """The step against a gradient in the parameters that are free; 0 in the others, and where there is no step.

    Args:
        matrix: symmetric.
        gradient: what the step goes against.
        free: which parameters may move.
        ridge: added to the diagonal, in units of the rounding of its sum.
    """
    size, dtype = len(gradient), gradient.dtype
    scale = sum((jnp.abs(matrix[i][i]) for i in range(size)), jnp.asarray(jnp.finfo(dtype).tiny))
    rows = [[jnp.where(free[i] & free[j], matrix[i][j], 0.0) for j in range(size)] for i in range(size)]
    for i in range(size):
        rows[i][i] = rows[i][i] + jnp.where(free[i], ridge * jnp.finfo(dtype).eps * scale, scale)
    step = jnp.stack(solve_symmetric(rows, [jnp.where(free[i], -gradient[i], 0.0) for i in range(size)]))
    return jnp.where(jnp.isfinite(step).all(0), step, 0.0)
