"""Filters smooth the losses that a method is shown; a gate keeps a weight until its loss has changed significantly.

Both wrap any method. Their state lies in the loss history's memory, around the method's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from vtune_jax.core.checks import assert_within
from vtune_jax.core.numbers import LONGEST_MEMORY, assert_fields, is_off, number
from vtune_jax.core.types import LossHistory, LossSums, Method, Observation, Scalar, Targets, Weights


class Filter(NamedTuple):
    """A filter of one loss per domain, as pure functions."""

    init: Callable[[int, DTypeLike], PyTree]
    fold: Callable[
        [PyTree, Float[Array, " domains"], Float[Array, " domains"], Bool[Array, " domains"]],
        tuple[PyTree, Float[Array, " domains"]],
    ]
    """`(state, mean, variance of that mean, seen) -> (state, filtered mean)`; nats per token."""
    needs_variance: bool = False


class Filtered(NamedTuple):
    """The memory of a filtered method."""

    inner: PyTree  # the method's own
    heldout: PyTree
    train: PyTree


def filtered(method: Method, by: Filter) -> Method:
    """The method on filtered losses, held-out and training ones each by a filter of their own.

    A domain without tokens, or with a sum that is not finite, stays unseen and leaves the filter's state alone. Counts
    stay as they are: filtered nats are the filtered mean times the tokens.

    Raises:
        ValueError: when called, an observation without sums of squares though the filter uses sampling errors.
    """

    def init(targets: Targets) -> LossHistory:
        history = method.init(targets)
        states = (by.init(targets.prior.shape[0], targets.prior.dtype) for _ in range(2))
        return history._replace(memory=Filtered(history.memory, *states))

    def fold(state: PyTree, sums: LossSums, name: str, dtype: DTypeLike) -> tuple[PyTree, LossSums]:
        if by.needs_variance and sums.squares is None:
            raise ValueError(f"observation.{name}.squares must hold sums of squares for this filter, got None.")
        mean, variance, seen = moments(sums, dtype)
        state, smooth = by.fold(state, mean, variance, seen)
        nats = jnp.where(seen, smooth * sums.tokens, sums.nats)
        return state, sums._replace(nats=nats.astype(jnp.asarray(sums.nats).dtype))

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        memory: Filtered = history.memory
        dtype = history.nats.dtype
        heldout_state, heldout = fold(memory.heldout, observation.heldout, "heldout", dtype)
        train_state, train = fold(memory.train, observation.train, "train", dtype)
        inner = method.observe(
            history._replace(memory=memory.inner), observation._replace(heldout=heldout, train=train)
        )
        return inner._replace(memory=Filtered(inner.memory, heldout_state, train_state))

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        return method.update(weights, history._replace(memory=history.memory.inner), targets)

    return Method(init, observe, update, method.needs)


def moments(
    sums: LossSums, dtype: DTypeLike
) -> tuple[Float[Array, " domains"], Float[Array, " domains"], Bool[Array, " domains"]]:
    """Mean loss per token, the sampling variance of that mean, and whether the domain was seen.

    `variance = (squares / n - mean^2) / n`, as if the n tokens were independent; 0 where squares are not carried.
    """
    nats, tokens = jnp.asarray(sums.nats), jnp.asarray(sums.tokens)
    seen = (tokens > 0) & jnp.isfinite(nats)
    count = jnp.maximum(tokens, 1).astype(dtype)
    mean = (jnp.where(seen, nats, 0.0) / count).astype(dtype)
    if sums.squares is None:
        return mean, jnp.zeros_like(mean), seen
    squares = jnp.asarray(sums.squares)
    spread = jnp.where(seen & jnp.isfinite(squares), squares, 0.0).astype(dtype) / count - mean**2
    return mean, jnp.clip(jnp.nan_to_num(spread), 0.0, 1e30) / count, seen


class Averages(NamedTuple):
    """State of `ema`."""

    sum: Float[Array, " domains"]  # of losses, weighted
    weight: Float[Array, " domains"]  # of these weights; 1 - decay^n after n observations


def ema(decay: Scalar) -> Filter:
    """`m_n = (1 - d) sum_j d^(n-j) x_j / (1 - d^n)`: an exponential average without the pull towards zero at the start.

    Args:
        decay: d in [0, 1).
    """
    assert_within(0.0, 1.0, decay=decay)

    def fold(state: Averages, mean: Array, variance: Array, seen: Array) -> tuple[Averages, Float[Array, " domains"]]:
        new = Averages(decay * state.sum + (1.0 - decay) * mean, decay * state.weight + (1.0 - decay))
        kept = Averages(*(jnp.where(seen, a, b).astype(b.dtype) for a, b in zip(new, state, strict=True)))
        return kept, kept.sum / jnp.where(kept.weight > 0, kept.weight, 1.0)

    return Filter(lambda domains, dtype: Averages(jnp.zeros(domains, dtype), jnp.zeros(domains, dtype)), fold)


class Recent(NamedTuple):
    """State of `rolling_median`: each domain's own ring of losses."""

    losses: Float[Array, "window domains"]
    times: Int[Array, " domains"]  # losses seen


def rolling_median(window: int) -> Filter:
    """The median of a domain's last `window` losses, or of all losses while there are fewer.

    The median of an even number of losses is the mean of the middle two.

    Args:
        window: at least 1.
    """
    assert_within(1.0, window=window)

    def fold(state: Recent, mean: Array, variance: Array, seen: Array) -> tuple[Recent, Float[Array, " domains"]]:
        domains = mean.shape[0]
        row = state.times % window
        written = state.losses.at[row, jnp.arange(domains)].set(mean.astype(state.losses.dtype))
        losses = jnp.where(seen, written, state.losses)
        times = state.times + seen
        filled = jnp.minimum(times, window)
        # Rows never written sort behind all others.
        ordered = jnp.sort(jnp.where(jnp.arange(window)[:, None] < filled, losses, jnp.inf), axis=0)
        low, high = (jnp.maximum(filled - 1, 0) // 2), filled // 2
        middle = (
            jnp.take_along_axis(ordered, index[None], axis=0)[0] for index in (low, jnp.minimum(high, window - 1))
        )
        lower, upper = (jnp.where(filled > 0, value, 0.0) for value in middle)
        return Recent(losses, times), lower + 0.5 * (upper - lower)

    return Filter(
        lambda domains, dtype: Recent(jnp.zeros((window, domains), dtype), jnp.zeros(domains, jnp.int32)), fold
    )


class Level(NamedTuple):
    """State of `local_level`."""

    mean: Float[Array, " domains"]
    variance: Float[Array, " domains"]
    started: Bool[Array, " domains"]


def local_level(drift: Scalar, inflation: Scalar = 1.0) -> Filter:
    """The Kalman filter of a level that walks at random and is measured with the held-out estimate's own error.

    `level' = level + N(0, q^2)`, `loss = level' + N(0, v)`, with v the sampling variance of the mean loss (see
    `moments`). `P = P + q^2`, gain `K = P / (P + v)`, `level = level + K (loss - level)`, `P = (1 - K) P`. The first
    loss is taken whole, with `P = v`.

    Args:
        drift: q >= 0, nats per token that the true loss moves from one observation to the next, typically.
        inflation: >= 1, of v: tokens of one text are not independent.
    """
    assert_within(drift=drift)
    assert_within(1.0, inflation=inflation)

    def fold(state: Level, mean: Array, variance: Array, seen: Array) -> tuple[Level, Float[Array, " domains"]]:
        error = inflation * variance
        ahead = state.variance + drift**2
        total = ahead + error
        gain = jnp.where(total > 0, ahead / jnp.where(total > 0, total, 1.0), 1.0)
        gain = jnp.where(state.started, gain, 1.0)
        level = state.mean + gain * (mean - state.mean)
        uncertain = jnp.where(state.started, (1.0 - gain) * ahead, error)
        new = Level(level, uncertain, jnp.ones_like(state.started))
        # Without an observation the level drifts on unseen.
        kept = Level(state.mean, jnp.where(state.started, ahead, state.variance), state.started)
        chosen = Level(*(jnp.where(seen, a, b).astype(b.dtype) for a, b in zip(new, kept, strict=True)))
        return chosen, chosen.mean

    def init(domains: int, dtype: DTypeLike) -> Level:
        return Level(jnp.zeros(domains, dtype), jnp.zeros(domains, dtype), jnp.zeros(domains, bool))

    return Filter(init, fold, needs_variance=True)


class Gate(NamedTuple):
    """The memory of a gated method."""

    inner: PyTree  # the method's own
    loss: Float[Array, " domains"]  # when the domain's weight last moved
    variance: Float[Array, " domains"]
    known: Bool[Array, " domains"]
    moves: Bool[Array, " domains"]  # whether its weight may move now


def gated(method: Method, errors: Scalar) -> Method:
    """Weights move only where a loss has changed by more than z standard errors since that weight last moved.

    The standard error is `sqrt(v_then + v_now)`, from the sampling variances of the two means. Held-out texts are the
    same each time, so that this overstates the error of the change. Domains that may not move keep their weights; the
    others share the rest in the proportions that the method gives them. What counts is a domain's held-out loss, or its
    training loss if the method reads training losses only.

    Args:
        method: any.
        errors: z >= 0, the number of standard errors; 0: the method as it is.

    Raises:
        ValueError: z negative, or, when called, an observation without sums of squares.
    """
    assert_within(errors=errors)
    if is_off(errors):
        return method
    name = "train" if "train" in method.needs and "heldout" not in method.needs else "heldout"

    def init(targets: Targets) -> LossHistory:
        history = method.init(targets)
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        zeros, none = jnp.zeros(domains, dtype), jnp.zeros(domains, bool)
        return history._replace(memory=Gate(history.memory, zeros, zeros, none, none))

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        sums: LossSums = getattr(observation, name)
        if sums.squares is None:
            raise ValueError(f"observation.{name}.squares must hold sums of squares for the gate, got None.")
        memory: Gate = history.memory
        inner = method.observe(history._replace(memory=memory.inner), observation)
        loss, variance, seen = moments(sums, memory.loss.dtype)
        far = jnp.abs(loss - memory.loss) > errors * jnp.sqrt(variance + memory.variance)
        moves = seen & (~memory.known | far)
        then, error = jnp.where(moves, loss, memory.loss), jnp.where(moves, variance, memory.variance)
        return inner._replace(memory=Gate(inner.memory, then, error, memory.known | seen, moves))

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        memory: Gate = history.memory
        new = method.update(weights, history._replace(memory=memory.inner), targets)
        moving = jnp.where(memory.moves, new, 0.0)
        mass, total = jnp.where(memory.moves, weights, 0.0).sum(), moving.sum()
        shared = jnp.where(memory.moves & (total > 0), mass * new / jnp.where(total > 0, total, 1.0), weights)
        return jnp.where(memory.moves.all(), new, shared).astype(weights.dtype)

    return Method(init, observe, update, method.needs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoFilter:
    """Losses as they are."""

    name: Literal["none"] = "none"

    def build(self) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """An exponential average."""

    name: Literal["ema"] = "ema"
    half_life: float = number(2.0, positive=True)  # observations after which a loss counts half as much

    def __post_init__(self) -> None:
        assert_fields(self)

    def build(self) -> Filter:
        """The filter."""
        return ema(2.0 ** (-1.0 / self.half_life))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Median:
    """A rolling median."""

    name: Literal["median"] = "median"
    window: int = number(3, low=1, high=LONGEST_MEMORY)  # observations

    def __post_init__(self) -> None:
        assert_fields(self)

    def build(self) -> Filter:
        """The filter."""
        return rolling_median(self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalLevel:
    """A local-level Kalman filter."""

    name: Literal["local_level"] = "local_level"
    drift: float = number(0.01)  # q: nats per token that a loss typically moves between observations
    inflation: float = number(1.0, low=1.0)  # factor on the sampling variance: tokens of one text are not independent

    def __post_init__(self) -> None:
        assert_fields(self)

    def build(self) -> Filter:
        """The filter."""
        return local_level(self.drift, self.inflation)


FilterConfig = NoFilter | Ema | Median | LocalLevel
