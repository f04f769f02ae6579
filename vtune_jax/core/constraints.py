"""Constraints: wrappers that keep a method's weights where they may be."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtune_jax.core.checks import assert_within
from vtune_jax.core.numbers import is_off
from vtune_jax.core.projection import divergence, largest_share, to_box, within_divergence
from vtune_jax.core.types import LossHistory, Method, Scalar, Targets, Weights, constant

_LEAST = 1e-2
"""Smallest weight that the method is shown for a domain, as a share of the floor."""


def with_floor(method: Method, floor: Scalar) -> Method:
    """No domain's weight ends below the floor, which is removed again before the method sees its weights.

    The weights outside are `w = (1 - k floor) v + floor`, with v the method's own. Each update takes v back out of w,
    lets the method move it, and mixes the floor in again. Otherwise the floor would pull a rule that multiplies its
    weights towards uniform at every update.

    Args:
        method: any.
        floor: smallest weight of a domain, >= 0; times the number of domains at most 1. 0 changes nothing.

    Raises:
        ValueError: floor negative, or, when called for k domains, `floor * k > 1`.
    """
    assert_within(floor=floor)
    if is_off(floor):
        return method

    def init(targets: Targets) -> LossHistory:
        # Refused before anything is trained, not when the first update is traced.
        _assert_room(floor, targets.prior.shape[0])
        return method.init(targets)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        domains = weights.shape[0]
        _assert_room(floor, domains)
        # A weight at the floor leaves the method nothing to multiply; a tiny positive weight lets the domain recover.
        own = jnp.maximum(weights - floor, _LEAST * floor)
        new = method.update(own / own.sum(), history, targets)
        return (1.0 - floor * domains) * new + floor

    return method._replace(init=init, update=update)


def constrained(
    method: Method,
    *,
    floor: Scalar = 0.0,
    ceiling: Scalar = 1.0,
    largest_change: Scalar = math.inf,
    trust_region: Scalar = math.inf,
    max_repeats: Scalar = math.inf,
) -> Method:
    """Keeps every weight within bounds, near its last value and the mixture near the prior.

    - `floor <= w_i <= ceiling`, the floor as in `with_floor`
    - `w_i <= max_repeats n_i / D`: no domain of n tokens is read more often than that in a run of D tokens
    - `w_i / old_i` in `[1 / (1 + x), 1 + x]`, x the largest relative change per update
    - `KL(w || prior) <= trust_region` nats

    The method's answer is moved to the nearest weights in relative entropy for one constraint after another, and then
    towards the old weights as far as needed for all to hold: if the old weights obey all of them, so do the new. If
    they do not (a prior outside the bounds), floor, ceiling and repeats hold from the first update on, and the largest
    change and the trust region give way.

    A constraint at its default is left out of the program. Any number may be traced; checks that need its size are then
    left to whoever made it.

    Args:
        method: any.
        floor: smallest weight, >= 0.
        ceiling: largest weight, at most 1.
        largest_change: x > 0.
        trust_region: radius in nats, >= 0.
        max_repeats: epochs, > 0. If all domains together have too little text, each is read equally often.

    Returns:
        The method in its constraints; with `max_repeats` it needs "sizes".

    Raises:
        ValueError: a bound out of its range, or, when called for k domains, `floor k > 1`, `ceiling k < 1`, or a
            corpus too small for `max_repeats`.
    """
    assert_within(0.0, 1.0, floor=floor, ceiling=ceiling)
    assert_within(largest_change=largest_change, trust_region=trust_region, max_repeats=max_repeats)
    for name, value in (("ceiling", ceiling), ("largest_change", largest_change), ("max_repeats", max_repeats)):
        if is_off(value):
            raise ValueError(f"{name} must be positive, got {value}.")
    if _exceeds(floor, ceiling):
        raise ValueError(f"floor must not lie above ceiling = {ceiling}, got {floor}.")
    inner = with_floor(method, floor)
    repeats, moves, trusts = (not is_off(value, math.inf) for value in (max_repeats, largest_change, trust_region))
    if is_off(ceiling, 1.0) and not (repeats or moves or trusts):
        return inner

    def bounds(targets: Targets) -> tuple[Float[Array, " domains"], Float[Array, " domains"]]:
        low = jnp.full_like(targets.prior, floor)
        high = jnp.full_like(targets.prior, ceiling)
        if repeats:
            high = jnp.minimum(high, jnp.maximum(_repeat_caps(targets, max_repeats), low))
        # Caps that sum to less than one leave no mixture: all are scaled up by the same factor.
        return low, jnp.where(high.sum() < 1.0, high / high.sum(), high)

    def init(targets: Targets) -> LossHistory:
        domains = targets.prior.shape[0]
        _assert_room(floor, domains)
        if _exceeds(1 - 1e-9, ceiling * domains):
            raise ValueError(f"ceiling must be at least 1/{domains} for {domains} domains, got {ceiling}.")
        if repeats:
            _assert_enough(_repeat_caps(targets, max_repeats), max_repeats)
        return inner.init(targets)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        low, high = bounds(targets)
        new = inner.update(weights, history, targets)
        if trusts:
            new = within_divergence(new, targets.prior, trust_region)
        near_low, near_high = low, high
        if moves:
            near_low = jnp.minimum(jnp.maximum(low, weights / (1.0 + largest_change)), high)
            near_high = jnp.maximum(jnp.minimum(high, weights * (1.0 + largest_change)), low)
        # Old weights outside the bounds can be too far from them for a single update; then only the bounds count.
        fits = (near_low.sum() <= 1.0) & (near_high.sum() >= 1.0)
        new = to_box(new, jnp.where(fits, near_low, low), jnp.where(fits, near_high, high))
        if trusts:
            new = _towards(weights, new, targets.prior, trust_region, (low, high))
        return new.astype(weights.dtype)

    return Method(init, inner.observe, update, inner.needs | ({"sizes"} if repeats else set()))


def _towards(
    old: Weights, new: Weights, prior: Weights, radius: Scalar, bounds: tuple[Array, Array]
) -> Float[Array, " domains"]:
    """The new weights, or the last point on the line from the old weights to them that is within the trust region.

    Bounds, largest change and trust region are convex: where both ends of the line obey them, so do all its points.
    """
    share = largest_share(lambda share: divergence((1.0 - share) * old + share * new, prior) <= radius, old)
    low, high = bounds
    slack = 1e-6
    sound = ((old >= low - slack) & (old <= high + slack)).all() & (divergence(old, prior) <= radius)
    stays = (divergence(new, prior) <= radius) | ~sound
    return jnp.where(stays, new, (1.0 - share) * old + share * new)


def _repeat_caps(targets: Targets, max_repeats: Scalar) -> Float[Array, " domains"]:
    sizes = constant(targets, "sizes", "the tokens of each domain")
    return max_repeats * sizes / constant(targets, "budget", "the tokens of the whole run")


def _assert_enough(caps: Float[Array, " domains"], max_repeats: Scalar) -> None:
    if isinstance(caps, jax.core.Tracer):
        return
    total = np.asarray(caps, np.float64).sum()
    if total < 1 - 1e-6:
        raise ValueError(f"max_repeats must be at least {max_repeats / total:.3g} for the budget, got {max_repeats}.")


def _exceeds(value: Scalar, limit: Scalar) -> bool:
    """Whether a number lies above another, as far as Python knows: False where a number is traced."""
    return isinstance(value, int | float) and isinstance(limit, int | float) and value > limit


def _assert_room(floor: Scalar, domains: int) -> None:
    if _exceeds(floor * domains, 1.0):
        raise ValueError(f"floor must be at most 1/{domains} for {domains} domains, got {floor}.")
