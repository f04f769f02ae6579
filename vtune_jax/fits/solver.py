"""One solver for every law: damped Newton on the Huber objective from each piece's starts, all lanes side by side.

No start is random. For fixed exponents the laws are linear, so a grid of exponents finds the basins of the objective;
Newton's method from the best grid points, and from the starts on each face of the bounds, finds the optimum.
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.fits.laws.form import (
    PUBLISHED_DELTA,
    Derivatives,
    Form,
    Piece,
    Points,
    objective,
    solve_symmetric,
    spread,
)

_Lanes = TypeVar("_Lanes")
_Result = TypeVar("_Result")
Width = float | Literal["auto"]
"""Huber width on log residuals; "auto": 1.345 times the residuals' robust spread in a fit at the published width."""
_STEPS = 120
_TAIL, _NARROWEST = (
    8,
    32,
)  # when an eighth of the lanes is left, and that is at least 32, they go on in a narrower array
_TEST_RIDGE = 10.0  # on the diagonal, so that directions whose curvature is rounding error promise no progress
_LEAST_DELTA = 1e-6


def checked_width(delta: Width) -> float:
    """The width as the solver wants it: 0 for "auto".

    Raises:
        ValueError: it is neither "auto" nor positive.
    """
    if delta == "auto":
        return 0.0
    if not (isinstance(delta, int | float) and 0 < delta < np.inf):
        raise ValueError(f'delta must be positive or "auto", got {delta!r}.')
    return float(delta)


def chunk_of(points: int) -> int:
    """Lanes worked on together. More lanes would not fit the processor's cache and cost ten times as much each."""
    return max(16, 1 << (16_384 // points).bit_length() - 1)


class Status(enum.IntEnum):
    """How the search for a fit ended."""

    CONVERGED = 0
    NOT_CONVERGED = 1  # the gradient test failed: the parameters are the best found
    NOT_FINITE = 2  # the points gave no finite objective


class Solution(NamedTuple):
    """Optima in the parameters of the form's interior."""

    parameters: Float[Array, "parameters lanes"]
    objective: Float[Array, " lanes"]  # sum of Huber losses at the width used
    sigma: Float[Array, " lanes"]  # robust spread of the log residuals
    delta: Float[Array, " lanes"]  # width used
    piece: Int[Array, " lanes"]  # index into the form's pieces
    status: Int[Array, " lanes"]  # see `Status`


@partial(jax.jit, static_argnums=0)
def solve(form: Form, points: Points, delta: Float[Array, ""]) -> Solution:
    """The global optimum in every lane.

    Args:
        form: of the law; static.
        points: lanes a multiple of `chunk_of(points)` where there are more.
        delta: Huber width on log residuals; 0 stands for "auto", at least 1e-6, see `Width`.
    """
    # Far below the published width the objective is nearly a sum of absolute values, with a kink at every point. Such
    # widths are reached by rounds whose width shrinks tenfold. The automatic width takes a second round.
    fixed = delta > 0
    tenths = jnp.ceil(jnp.log10(jnp.maximum(PUBLISHED_DELTA / jnp.where(fixed, delta, 1.0), 1.0)) - 1e-6)
    rounds = 1 + jnp.where(fixed, tenths.astype(int), 1)

    def solve_chunk(chunk: Points) -> Solution:
        def round_of(count: Array, previous: Solution) -> Solution:
            first = jnp.where(fixed, jnp.maximum(delta, PUBLISHED_DELTA), PUBLISHED_DELTA)
            automatic = jnp.maximum(1.345 * previous.sigma, _LEAST_DELTA)
            later = jnp.where(fixed, jnp.maximum(delta, previous.delta * 0.1), automatic)
            width = jnp.where(count == 0, first, later)
            return _best_piece(form, chunk, width, [*form.interior.starts(chunk, width), previous.parameters])

        lanes, dtype = chunk.weight.shape[1:], chunk.log_loss.dtype
        number, whole = jnp.full(lanes, jnp.nan, dtype), jnp.zeros(lanes, int)
        unknown = jnp.full((form.size, *lanes), jnp.nan, dtype)
        begin = Solution(unknown, number, number, number, whole, whole)
        solution: Solution = jax.lax.fori_loop(0, rounds, round_of, begin)
        return solution

    return in_chunks(solve_chunk, points, chunk_of(points.weight.shape[0]))


@partial(jax.jit, static_argnums=0)
def solve_from(form: Form, points: Points, delta: Float[Array, " lanes"], starts: Float[Array, "p lanes"]) -> Solution:
    """The optimum that Newton's method reaches from the starts in the interior, or a better optimum on a face.

    Args:
        form: of the law; static.
        points: for instance bootstrap replicates, whose lanes differ in their weights alone.
        delta: Huber width of each lane.
        starts: in the interior's parameters.
    """
    chunk = chunk_of(points.weight.shape[0])
    return in_chunks(lambda part: _best_piece(form, part[0], part[1], [part[2]]), (points, delta, starts), chunk)


def in_chunks(function: Callable[[_Lanes], _Result], lanes_last: _Lanes, chunk: int) -> _Result:
    """Applies a function to chunks of lanes in turn. An array with a single lane goes to every chunk."""
    lanes = max(leaf.shape[-1] for leaf in jax.tree.leaves(lanes_last))
    if lanes <= chunk:
        return function(lanes_last)
    tree: Any
    leaves, tree = jax.tree.flatten(lanes_last)
    wide = [leaf.shape[-1] > 1 for leaf in leaves]
    split = [jnp.moveaxis(x.reshape(*x.shape[:-1], -1, chunk), -2, 0) for x, w in zip(leaves, wide, strict=True) if w]

    def apply(group: list[Array]) -> _Result:
        parts = iter(group)
        return function(tree.unflatten([next(parts) if w else leaf for leaf, w in zip(leaves, wide, strict=True)]))

    results = jax.lax.map(apply, split)
    whole: _Result = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], lanes), results)
    return whole


def _best_piece(form: Form, points: Points, delta: Float[Array, " lanes"], starts: list[Array]) -> Solution:
    lanes = points.weight.shape[1:]
    best: tuple[Solution, Array, Array] | None = None
    for index, piece in enumerate(form.pieces):
        begin = jnp.stack(starts) if piece is form.interior else piece.starts(points, delta)
        parameters, value, converged = _from_all(piece, points, delta, begin)
        status = jnp.where(converged, Status.CONVERGED, Status.NOT_CONVERGED)
        solution = Solution(
            parameters=piece.embed(parameters),
            objective=value,
            sigma=value,  # replaced below, once for the best piece: it needs a sort
            delta=delta,
            piece=jnp.full(lanes, index),
            status=jnp.where(jnp.isfinite(value), status, Status.NOT_FINITE),
        )
        residual = jnp.broadcast_to(points.log_loss - piece.log_model(parameters, points.inputs), points.weight.shape)
        candidate = solution, residual, jnp.full(lanes, len(parameters))
        # The simpler piece, which came first, is kept unless the other one is better by more than rounding.
        better = True if best is None else ~(value >= best[0].objective - rounding_of(points))
        best = jax.tree.map(lambda new, old, better=better: jnp.where(better, new, old), candidate, best or candidate)
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

    side_by_side = jnp.concatenate(list(starts), axis=-1)
    ends, value, converged = newton(piece, Points(*map(wide, points)), wide(delta), side_by_side)
    value = value.reshape(count, lanes)
    winner = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf), axis=0)[None]
    ends = jnp.take_along_axis(ends.reshape(-1, count, lanes), winner[None], axis=1)[:, 0]
    value, converged = (jnp.take_along_axis(x.reshape(count, lanes), winner, axis=0)[0] for x in (value, converged))
    return ends, value, converged


def newton(
    piece: Piece, points: Points, delta: Float[Array, " lanes"], start: Float[Array, "parameters lanes"]
) -> tuple[Float[Array, "parameters lanes"], Float[Array, " lanes"], Bool[Array, " lanes"]]:
    """Damped Newton on the Huber objective.

    `(H + lambda M) step = -gradient`, with H the Hessian and M that of the reweighted least-squares problem. lambda = 1
    nearly always descends, lambda near 0 is Newton's method. A step is taken only if the objective falls.

    Returns:
        parameters, objective, and whether the gradient test holds: before the last step, reweighted least squares
        expected the objective to fall by less than a millionth of itself (a thousandth in single precision), or by less
        than rounding.
    """
    rounding, dtype = rounding_of(points), start.dtype
    start = piece.into_bounds(start)
    value = objective(points, piece.log_model(start, points.inputs), delta)
    ones = jnp.ones(value.shape, dtype)
    walk = _Walk(start, value, ones, ones * jnp.inf, jnp.isfinite(value))
    walk = _walked(piece, points, delta, walk, jnp.asarray(0))
    enough = 1e-3 if dtype == jnp.float32 else 1e-6
    return walk.parameters, walk.value, walk.expected_fall <= enough * walk.value + rounding


class _Walk(NamedTuple):
    """Newton's state in every lane."""

    parameters: Float[Array, "parameters lanes"]
    value: Float[Array, " lanes"]
    damping: Float[Array, " lanes"]
    expected_fall: Float[Array, " lanes"]  # of the value, by reweighted least squares, before the last step
    busy: Bool[Array, " lanes"]


def _walked(piece: Piece, points: Points, delta: Array, walk: _Walk, count: Int[Array, ""]) -> _Walk:
    """Steps until every lane has ended. A step costs by its width, so the last lanes move to a narrower array."""
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
    whole: _Walk = jax.tree.map(lambda lanes, few: lanes.at[..., left].set(few), walk, ended)
    return whole


def _step(piece: Piece, points: Points, delta: Array, walk: _Walk) -> _Walk:
    parameters, value, damping, expected_fall, busy = walk
    size, eps, rounding = len(parameters), jnp.finfo(parameters.dtype).eps, rounding_of(points)
    gradient, hessian, metric = derivatives(piece, points, delta, parameters)
    # A parameter stays where it is if descent would push it out of its bounds.
    nudge = -jnp.sign(gradient) * 1e3 * eps * jnp.maximum(jnp.abs(parameters), 1.0)
    free = (piece.into_bounds(parameters + nudge) != parameters) | (gradient == 0)
    damped = [[hessian[i][j] + damping * metric[i][j] for j in range(size)] for i in range(size)]
    step, surrogate = _solved(damped, gradient, free), _solved(metric, gradient, free, _TEST_RIDGE)
    trial = piece.into_bounds(parameters + step)
    trial_value = objective(points, piece.log_model(trial, points.inputs), delta)
    # Newton's method converges quadratically: near the optimum, where a step is expected to gain less than 1e-12 of the
    # value, values agree to rounding and cannot judge it. This last step is taken because the gradient says so.
    last = (jnp.abs((gradient * step).sum(0)) <= 1e-12 * value + rounding * 1e-3) & (damping <= 1e-3)
    better = (trial_value < jnp.where(last, value * (1 + 100 * eps) + rounding, value)) & busy
    return _Walk(
        parameters=jnp.where(better, trial, parameters),
        value=jnp.where(better, trial_value, value),
        damping=jnp.where(better, damping * 0.15, jnp.minimum(damping * 5.0, 1e9)),
        expected_fall=jnp.where(busy, -0.5 * (gradient * surrogate).sum(0), expected_fall),
        busy=busy & ~last & ~(~better & (damping > 1e7)) & jnp.isfinite(value),
    )


def rounding_of(points: Points) -> Float[Array, " lanes"]:
    """The objective that rounding errors alone would give."""
    return points.weight.sum(0) * (10 * jnp.finfo(points.log_loss.dtype).eps) ** 2


def derivatives(
    piece: Piece, points: Points, delta: Float[Array, " lanes"], parameters: Float[Array, "parameters lanes"]
) -> tuple[Float[Array, "parameters lanes"], list[list[Array]], list[list[Array]]]:
    """Gradient and Hessian of the objective, and the Hessian of its reweighted least-squares problem."""
    size, tiny = len(parameters), jnp.finfo(parameters.dtype).tiny
    model, first, second = (piece.derivatives or _by_differentiation(piece))(parameters, points.inputs)
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
    def with_slopes(parameters: Array, inputs: Array) -> tuple[Array, list[Array], list[list[Array]]]:
        size = len(parameters)
        units = [jnp.zeros_like(parameters).at[i].set(1.0) for i in range(size)]

        def slope(p: Array, i: int) -> Array:
            tangent: Array = jax.jvp(lambda q: piece.log_model(q, inputs), (p,), (units[i],))[1]
            return tangent

        first = [slope(parameters, i) for i in range(size)]
        second = [
            [jax.jvp(lambda p, i=i: slope(p, i), (parameters,), (units[j],))[1] for j in range(i + 1)]
            for i in range(size)
        ]
        return piece.log_model(parameters, inputs), first, second

    return with_slopes


def _solved(
    matrix: list[list[Array]], gradient: Float[Array, "p lanes"], free: Bool[Array, "p lanes"], ridge: float = 1e-2
) -> Array:
    """Solves `matrix step = -gradient` in the parameters that may move; the step is 0 in the others.

    It is 0 throughout where the system has no finite solution.

    Args:
        matrix: symmetric.
        gradient: of the objective.
        free: which parameters may move.
        ridge: added to the diagonal, as a multiple of the rounding error of the diagonal's sum.
    """
    size, dtype = len(gradient), gradient.dtype
    scale = sum((jnp.abs(matrix[i][i]) for i in range(size)), jnp.asarray(jnp.finfo(dtype).tiny))
    rows = [[jnp.where(free[i] & free[j], matrix[i][j], 0.0) for j in range(size)] for i in range(size)]
    for i in range(size):
        rows[i][i] = rows[i][i] + jnp.where(free[i], ridge * jnp.finfo(dtype).eps * scale, scale)
    step = jnp.stack(solve_symmetric(rows, [jnp.where(free[i], -gradient[i], 0.0) for i in range(size)]))
    return jnp.where(jnp.isfinite(step).all(0), step, 0.0)
