"""The train state: one pytree that holds everything a step may change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import Cursor, LossSums, Method, MixtureState, Targets, TokenCount
from vtune_jax.data.mixture.spec import start_cursor
from vtune_jax.train.evidence.registry import needed
from vtune_jax.train.numbers import MethodLike, build_method
from vtune_jax.train.optimizer import fresh_memory


class TrainState(NamedTuple):
    """A checkpoint is this tree and nothing else: the data position is `step`, the cursor and the quota in it."""

    step: Int[Array, ""]  # optimiser steps done
    params: PyTree
    optimizer: optax.OptState
    mixture: MixtureState


def start_mixture(method: Method, targets: Targets, params: PyTree = None) -> MixtureState:
    """The mixture before the first step: the prior's weights, nothing read, nothing observed."""
    domains = targets.prior.shape[0]
    # Arrays of their own, none twice: a donated state must not hold the same buffer in two places.
    return MixtureState(
        weights=jnp.array(targets.prior),
        quota=to_quota(targets.prior),
        pending=to_quota(targets.prior),
        cursor=Cursor(*(jnp.array(column) for column in start_cursor(domains))),
        heldout=no_losses(domains),
        train=no_losses(domains),
        trained=TokenCount(*(jnp.zeros(domains, jnp.uint32) for _ in range(2))),
        history=jax.tree.map(jnp.array, method.init(targets)),
        targets=targets,
        evidence={kind.name: kind.start(method.needs, domains, params) for kind in needed(method.needs)},
    )


def no_losses(domains: int) -> LossSums:
    """Sums over no tokens."""
    return LossSums(jnp.zeros(domains), jnp.zeros(domains, jnp.int32), squares=jnp.zeros(domains))


def start(params: PyTree, method: MethodLike | Method, targets: Targets, numbers: Any = None) -> TrainState:
    """The state before the first step. Copies its arguments: the step donates the state, and the caller keeps his.

    Args:
        params: of the base model.
        method: or its config.
        targets: of the run.
        numbers: of the method, in place of the config's own; may be traced.
    """
    params, targets = jax.tree.map(jnp.array, (params, targets))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=fresh_memory(params),
        mixture=start_mixture(build_method(method, numbers), targets, params),
    )
