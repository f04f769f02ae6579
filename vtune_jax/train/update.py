"""One weight update: observe, let the rule choose new weights, round them once for the plan."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import LossSums, Method, MixtureState, Observation, Weights
from vtune_jax.train.state import no_losses


def update_mixture(
    method: Method,
    mixture: MixtureState,
    step: Int[Array, ""],
    *,
    heldout: LossSums,
    available: Bool[Array, " domains"],
    evidence: dict[str, Any],
    drawn_by: Weights | None = None,
) -> MixtureState:
    """Observe, let the rule choose new weights, round them once for the plan.

    The weight of a domain that has been read as often as allowed goes to the others in proportion; the rule is told by
    the observation and by the weights that it is given next.

    Args:
        method: the rule and how it observes.
        mixture: before the update.
        step: optimiser steps done.
        heldout: losses of the parameters of now.
        available: which domains may give another row.
        evidence: what few methods need beside, by kind.
        drawn_by: what batches are drawn by, if not by the weights.
    """
    trained = mixture.trained.plus(mixture.train.tokens)
    observation = Observation(
        heldout=heldout,
        train=mixture.train,
        trained_tokens=trained.as_float(),
        step=step,
        available=available,
        weights=mixture.weights if drawn_by is None else drawn_by,
        evidence=evidence,
    )
    history = method.observe(mixture.history, observation)
    weights = among(method.update(mixture.weights, history, mixture.targets), available)
    return mixture._replace(
        weights=weights,
        pending=to_quota(weights if drawn_by is None else among(drawn_by, available)),
        heldout=jax.tree.map(lambda new, old: new.astype(old.dtype), heldout, mixture.heldout),
        train=no_losses(weights.shape[0]),
        trained=trained,
        history=history,
    )


def among(weights: Float[Array, " domains"], available: Bool[Array, " domains"]) -> Float[Array, " domains"]:
    """The weights of the available domains, scaled up to one; as they are if none of these has weight."""
    kept = jnp.where(available, weights, 0.0)
    # Untouched where nothing is missing: dividing by a sum of nearly one would change last bits.
    changed = ~available.all() & (kept.sum() > 0)
    return jnp.where(changed, kept / jnp.maximum(kept.sum(), jnp.finfo(kept.dtype).tiny), weights)
