"""Constraints: wrappers that keep a method's weights where they may be."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vtune_jax.core.checks import assert_within
from vtune_jax.core.projection import divergence, largest_share, to_box, within_divergence
from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import LossHistory, Method, Scalar, Targets, Weights, constant

_LEAST = 1e-2
"""Least own weight of a domain, as a share of the floor."""


def with_floor(method: Method, floor: float) -> Method:
    """No domain's weight ends below the floor, which is removed again before the method sees its weights.

    The weights outside are `w = (1 - k floor) v + floor`, with v the method's own. Each update takes v back out of w,
    lets the method move it, and mixes the floor in again; a rule that multiplies its weights is therefore not pulled
    towards uniform by the floor at every update.

    Args:
        method: any.
        floor: smallest weight of a domain, >= 0; times the number of domains at most 1.

    Raises:
        ValueError: floor negative, or, when called for k domains, `floor * k > 1`.
    """
    assert_within(floor=floor)
    if floor == 0:
        return method

    def init(targets: Targets) -> LossHistory:
        # Told before anything is trained, not when the first update is traced.
        _assert_room(floor, targets.prior.shape[0])
        return method.init(targets)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        domains = weights.shape[0]
        _assert_room(floor, domains)
        # A prior below the floor has no v; a small one instead of zero lets the domain rise again.
        own = jnp.maximum(weights - floor, _LEAST * floor)
        return mix_with_uniform(method.update(own / own.sum(), history, targets), floor * domains)

    return method._replace(init=init, update=update)


def constrained(
    method: Method,
    *,
    floor: float = 0.0,
    ceiling: float = 1.0,
    largest_change: Scalar = math.inf,
    trust_region: Scalar = math.inf,
    max_repeats: float = math.inf,
) -> Method:
    """Keeps every weight within bounds, near its last value and the mixture near the prior.

    - `floor <= w_i <= ceiling`, the floor as in `with_floor`
    - `w_i <= max_repeats n_i / D`: no domain of n tokens is read more often than that in a run of D tokens
    - `w_i / old_i` in `[1 / (1 + x), 1 + x]`, x the largest relative change per update
    - `KL(w || prior) <= trust_region` nats

    The method's answer is moved to the nearest weights in relative entropy for one constraint after another, and then
    towards the old weights as far as needed for all to hold: if the old weights obey all of them, so do the new ones.
    If they do not (a prior outside the bounds), floor, ceiling and repeats hold from the first update on.

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
        if isinstance(value, int | float) and value == 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if floor > ceiling:
        raise ValueError(f"floor must not lie above ceiling = {ceiling}, got {floor}.")
    inner = with_floor(method, floor)
    repeats, moves, trusts = (not _is_infinite(value) for value in (max_repeats, largest_change, trust_region))
    if ceiling == 1 and not (repeats or moves or trusts):
        return inner

    def bounds(targets: Targets) -> tuple[Float[Array, " domains"], Float[Array, " domains"]]:
        low = jnp.full_like(targets.prior, floor)
        high = jnp.full_like(targets.prior, ceiling)
        if repeats:
            high = jnp.minimum(high, jnp.maximum(_repeat_caps(targets, max_repeats), low))
        # Caps that leave less than everything are scaled up together.
        return low, jnp.where(high.sum() < 1.0, high / high.sum(), high)

    def init(targets: Targets) -> LossHistory:
        domains = targets.prior.shape[0]
        _assert_room(floor, domains)
        if ceiling * domains < 1 - 1e-9:
            raise ValueError(f"ceiling must be at least 1/{domains} for {domains} domains, got {ceiling}.")
        if repeats and not isinstance(targets.prior, jax.core.Tracer):
            caps = np.asarray(_repeat_caps(targets, max_repeats), np.float64)
            if caps.sum() < 1 - 1e-6:
                raise ValueError(
                    f"max_repeats must be at least {max_repeats / caps.sum():.3g} for the budget, got {max_repeats}."
                )
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
        # Old weights outside the bounds can be too far from them for one update; then the bounds alone count.
        fits = (near_low.sum() <= 1.0) & (near_high.sum() >= 1.0)
        new = to_box(new, jnp.where(fits, near_low, low), jnp.where(fits, near_high, high))
        if trusts:
            new = _towards(weights, new, targets.prior, trust_region, (low, high))
        return new.astype(weights.dtype)

    return Method(init, inner.observe, update, inner.needs | ({"sizes"} if repeats else set()))


def _towards(
    old: Weights, new: Weights, prior: Weights, radius: Scalar, bounds: tuple[Array, Array]
) -> Float[Array, " domains"]:
    """New weights, or as much of the way to them from the old ones as stays within the trust region.

    Bounds, changes and the region are convex: what both ends obey, all between them obey.
    """
    share = largest_share(lambda share: divergence((1.0 - share) * old + share * new, prior) <= radius, old)
    low, high = bounds
    slack = 1e-6
    sound = ((old >= low - slack) & (old <= high + slack)).all() & (divergence(old, prior) <= radius)
    stays = (divergence(new, prior) <= radius) | ~sound
    return jnp.where(stays, new, (1.0 - share) * old + share * new)


def _repeat_caps(targets: Targets, max_repeats: float) -> Float[Array, " domains"]:
    sizes = constant(targets, "sizes", "the tokens of each domain")
    return max_repeats * sizes / constant(targets, "budget", "the tokens of the whole run")


def _is_infinite(value: Scalar) -> bool:
    return isinstance(value, int | float) and value == math.inf


def _assert_room(floor: float, domains: int) -> None:
    if floor * domains > 1:
        raise ValueError(f"floor must be at most 1/{domains} for {domains} domains, got {floor}.")
