"""Gradients domain by domain, and how they lie to each other: the evidence of methods that align gradients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.types import Alignment
from vtune_jax.models import Batch, Model
from vtune_jax.train.evidence.kind import Context, Evidence
from vtune_jax.train.heldout import Heldout
from vtune_jax.train.learn import Learned, mean_nats
from vtune_jax.train.optimizer import learning_rate


def batch_gradients(model: Model, params: PyTree, batch: Batch, domains: int) -> tuple[PyTree, Bool[Array, " domains"]]:
    """The gradient of every domain's mean loss on a training batch, stacked in front; one domain at a time.

    Returns:
        gradients (zero for a domain that is absent), and which domains are in the batch.
    """

    def mean_loss(params: PyTree, chosen: Bool[Array, " rows"]) -> Float[Array, ""]:
        nats, counted = model.losses(params, batch)
        return mean_nats(nats, counted & chosen[:, None])

    chosen = batch["domain"] == jnp.arange(domains)[:, None]
    return jax.lax.map(lambda rows: jax.grad(mean_loss)(params, rows), chosen), chosen.any(axis=1)


def heldout_gradients(model: Model, params: PyTree, heldout: Heldout) -> PyTree:
    """The gradient of every domain's mean held-out loss, stacked in front; one domain at a time."""

    @jax.checkpoint
    def row_losses(params: PyTree, row: Batch) -> tuple[Float[Array, " places"], Bool[Array, " places"]]:
        nats, counted = model.losses(params, {name: array[None] for name, array in row.items()})
        return nats[0], counted[0]

    def mean_loss(params: PyTree, rows: Batch) -> Float[Array, ""]:
        return mean_nats(*jax.lax.map(lambda row: row_losses(params, row), rows, batch_size=16))

    return jax.lax.map(lambda rows: jax.grad(mean_loss)(params, rows), heldout)


def latest(kept: PyTree, new: PyTree, present: Bool[Array, " domains"]) -> PyTree:
    """New gradients where a domain is present, its kept one where not."""

    def choose(old: Array, fresh: Array) -> Array:
        return jnp.where(present.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

    return jax.tree.map(choose, kept, new)


def align(train: PyTree, target: PyTree, learning_rate: Float[Array, ""]) -> Alignment:
    """All inner products between two stacks of gradients, and their norms.

    Args:
        train: stacked over domains.
        target: stacked over the domains to become good at; may be `train` itself.
        learning_rate: of now.
    """

    def inner(left: PyTree, right: PyTree) -> Float[Array, "left right"]:
        products = jax.tree.map(lambda a, b: a.reshape(len(a), -1) @ b.reshape(len(b), -1).T, left, right)
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    def norm(stack: PyTree) -> Float[Array, " domains"]:
        squares = jax.tree.map(lambda a: (a.reshape(len(a), -1) ** 2).sum(axis=1), stack)
        return jnp.sqrt(sum(jax.tree.leaves(squares), start=jnp.zeros(())))

    return Alignment(inner(train, target), norm(train), norm(target), jnp.asarray(learning_rate))


def start(needs: frozenset[str], domains: int, params: PyTree) -> PyTree:
    """A gradient of zero for each domain, for methods that keep the last one of a domain that is absent."""
    if "last_gradients" not in needs:
        return ()
    return jax.tree.map(lambda leaf: jnp.zeros((domains, *leaf.shape), leaf.dtype), params)


def gather(gathered: PyTree, context: Context, learned: Learned) -> PyTree:
    """Nothing: gradients are taken at an update only."""
    return gathered


def observe(gathered: PyTree, context: Context, params: PyTree, step: Int[Array, ""]) -> tuple[Alignment, PyTree]:
    """Gradients of the newest batch, at the parameters after it, towards each other or towards held-out rows'."""
    model, constants, numbers = context.model, context.constants, context.constants.numbers
    train, present = batch_gradients(model, params, context.batch, context.domains)
    if "last_gradients" in context.needs:
        gathered = train = latest(gathered, train, present)
    heldout = "heldout_alignment" in context.needs
    towards = heldout_gradients(model, params, constants.heldout) if heldout else train
    return align(train, towards, learning_rate(numbers.optimizer, step, numbers.horizon)), gathered


EVIDENCE = Evidence("alignment", start, gather, observe)
