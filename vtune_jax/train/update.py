"""One weight update: observe, let the rule choose new weights, round them once for the plan."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import Alignment, Method, MixtureState, Observation
from vtune_jax.train.heldout import Evaluate
from vtune_jax.train.state import RunConstants, no_losses


def update_mixture(
    method: Method,
    evaluate: Evaluate,
    mixture: MixtureState,
    params: PyTree,
    step: Int[Array, ""],
    constants: RunConstants,
    available: Bool[Array, " domains"],
    *,
    alignment: Alignment | None = None,
    drawn_by: Float[Array, " domains"] | None = None,
) -> MixtureState:
    """Observe, let the rule choose new weights, round them once for the plan.

    `drawn_by` is what batches are drawn by if not by the weights. The weight of a domain that has been read as often as
    allowed goes to the others in proportion; the rule is told by the observation and by the weights that it is given
    next.
    """
    trained = mixture.trained.plus(mixture.train.tokens)
    observation = Observation(
        heldout=evaluate(params, constants.heldout),
        train=mixture.train,
        trained_tokens=trained.as_float(),
        step=step,
        available=available,
        weights=mixture.weights if drawn_by is None else drawn_by,
        excess=mixture.excess,
        alignment=alignment,
    )
    history = method.observe(mixture.history, observation)
    weights = among(method.update(mixture.weights, history, mixture.targets), available)
    return mixture._replace(
        weights=weights,
        pending=to_quota(weights if drawn_by is None else among(drawn_by, available)),
        heldout=jax.tree.map(lambda new, old: new.astype(old.dtype), observation.heldout, mixture.heldout),
        train=no_losses(weights.shape[0]),
        excess=jax.tree.map(jnp.zeros_like, mixture.excess),
        trained=trained,
        history=history,
    )


def among(weights: Float[Array, " domains"], available: Bool[Array, " domains"]) -> Float[Array, " domains"]:
    """The weights of the available domains, scaled up to one; as they are if none of these has weight."""
    kept = jnp.where(available, weights, 0.0)
    # Untouched where nothing is missing: dividing by a sum of nearly one would change last bits.
    changed = ~available.all() & (kept.sum() > 0)
    return jnp.where(changed, kept / jnp.maximum(kept.sum(), jnp.finfo(kept.dtype).tiny), weights)
