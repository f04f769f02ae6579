"""Losses above a reference model's on the same training tokens, summed since the last update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from vtune_jax.core.losses import excess_sums
from vtune_jax.core.types import ExcessSums
from vtune_jax.train.evidence.kind import Context, Evidence
from vtune_jax.train.learn import Learned


def start(needs: frozenset[str], domains: int, params: PyTree) -> ExcessSums:
    """No tokens yet."""
    kinds = (jnp.float32, jnp.float32, jnp.int32, jnp.int32)
    return ExcessSums(*(jnp.zeros(domains, kind) for kind in kinds))


def gather(gathered: ExcessSums, context: Context, learned: Learned) -> ExcessSums:
    """Adds the batch's tokens, at the parameters that they were learnt from."""
    reference, _ = context.model.losses(context.constants.reference, context.batch)
    new = excess_sums(learned.nats, reference, learned.counted, context.batch["domain"], context.domains)
    total: ExcessSums = jax.tree.map(jnp.add, gathered, new)
    return total


def observe(
    gathered: ExcessSums, context: Context, params: PyTree, step: Int[Array, ""]
) -> tuple[ExcessSums, ExcessSums]:
    """Hands the sums over and starts again."""
    return gathered, jax.tree.map(jnp.zeros_like, gathered)


EVIDENCE = Evidence("excess", start, gather, observe)
