"""Four small domains, weights that change every ten steps, and the batches that they must give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.core.simplex import to_quota
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import TokenRows

LENGTH, INTERVAL, BATCH = 8, 10, 12
SIZES = (60, 900, 25, 400)


@functools.cache
def stores():
    rng = np.random.default_rng(0)
    return tuple(TokenRows(rng.integers(0, 5000, size, np.uint16), LENGTH, name=f"d{size}") for size in SIZES)


def spec(batch=BATCH):
    return PlanSpec(rows=tuple(map(len, stores())), batch=batch, seed=7)


_rounded = jax.jit(to_quota)


def quota_of(weights):
    weights = np.asarray(weights, np.float32)
    return np.asarray(_rounded(jnp.asarray(weights / weights.sum())))


@functools.cache
def quota(version):
    weights = np.random.default_rng(version).dirichlet(np.ones(len(SIZES)))
    weights[version % len(SIZES)] *= version % 3 > 0
    return quota_of(weights / weights.sum())


def iterator(start=0, cursor=None, **options):
    made = MixtureIterator(spec(), stores(), quota=quota(0), interval=INTERVAL, **options)
    if start:
        made.seek(start, cursor, quota(start // INTERVAL))
    return made


def host_batches(steps, **options):
    made, batches = iterator(**options), []
    for step in range(options.get("start", 0), steps):
        if step % INTERVAL == 0:
            made.post(step // INTERVAL, quota(step // INTERVAL))
        batches.append(next(made))
    return batches, made


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left["domain"], right["domain"])
        np.testing.assert_array_equal(left["tokens"], right["tokens"])
