"""One table of methods goes through one set of promises; a new method is tested by being listed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtune_jax.core.constraints import with_floor
from vtune_jax.core.types import LossSums, Observation, Targets
from vtune_jax.rules import METHODS, DynamicBatchLoading, GroupDro, Odm, SkillIt

CONFIGS = {entry.name: entry.config for entry in METHODS} | {
    "dbl bandit": functools.partial(DynamicBatchLoading, form="bandit"),
    "dbl clipped": functools.partial(DynamicBatchLoading, clip=True),
    "group_dro adjusted": functools.partial(GroupDro, adjustment=2.0, normalize=True),
    "group_dro cvar": functools.partial(GroupDro, form="cvar"),
    "odm smoothed_softmax": functools.partial(Odm, form="smoothed_softmax"),
    "odm smoothed_share": functools.partial(Odm, form="smoothed_share"),
    "skillit normalized": functools.partial(SkillIt, normalize=True, scale_step=True, fade=True),
    "odm paper": functools.partial(Odm, form="paper"),
}
EVERY_METHOD = pytest.mark.parametrize("name", CONFIGS)
FLOOR = 0.01


def problem(seed, domains, dtype=np.float32):
    rng = np.random.default_rng(seed)
    initial = rng.uniform(2, 5, domains).astype(dtype)
    target = (initial - rng.uniform(0.1, 2, domains)).astype(dtype)
    prior = rng.dirichlet(np.ones(domains)).astype(dtype)
    sizes = jnp.asarray(rng.uniform(1e3, 1e6, domains), dtype)
    targets = Targets(*map(jnp.asarray, (initial, target, np.zeros(domains, dtype), prior)), {"sizes": sizes})
    loss = initial - rng.uniform(-0.2, 1.2, domains) * (initial - target)
    tokens = rng.integers(1, 5000, domains)
    return targets, loss.astype(dtype), tokens


def observation(loss, tokens, step=10):
    domains = len(tokens)
    sums = LossSums(jnp.asarray(loss * tokens, jnp.float32), jnp.asarray(tokens, jnp.int32))
    even = jnp.full(domains, 1 / domains)
    return Observation(sums, sums, jnp.zeros(domains), jnp.asarray(step), weights=even)


@functools.cache
def built(name, floor=0.0):
    return with_floor(CONFIGS[name]().build(), floor)


@functools.partial(jax.jit, static_argnums=0)
def one_update(method, targets, evidence):
    history = method.observe(method.init(targets), evidence)
    return method.update(targets.prior, history, targets)


@EVERY_METHOD
@pytest.mark.parametrize("domains", [1, 2, 7, 1000])
def test_weights_stay_on_the_simplex(name, domains):
    targets, loss, tokens = problem(0, domains)
    new = one_update(CONFIGS[name]().build(), targets, observation(loss, tokens))
    assert (np.asarray(new) >= 0).all()
    np.testing.assert_allclose(np.asarray(new, np.float64).sum(), 1.0, atol=1e-5)


@EVERY_METHOD
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=5, max_size=5),
    tokens=st.lists(st.integers(0, 10**6), min_size=5, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_any_evidence_keeps_weights_finite_on_the_simplex_and_above_the_floor(name, losses, tokens):
    targets, _, _ = problem(1, 5)
    method = built(name, FLOOR)
    sums = LossSums(jnp.array(losses, jnp.float32), jnp.array(tokens, jnp.int32))
    evidence = Observation(sums, sums, jnp.zeros(5), jnp.asarray(1), weights=targets.prior)
    new = np.asarray(one_update(method, targets, evidence))
    assert np.isfinite(new).all()
    assert new.min() >= FLOOR * (1 - 1e-5)
    np.testing.assert_allclose(new.sum(), 1.0, atol=1e-5)


@EVERY_METHOD
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
@settings(max_examples=50, deadline=None)
def test_permuting_domains_permutes_weights(name, seed, order):
    targets, loss, tokens = problem(seed, 6)
    order = np.array(order)
    method = built(name)
    straight = np.asarray(one_update(method, targets, observation(loss, tokens)))
    permuted_targets = jax.tree.map(lambda column: column[order], targets)
    permuted = np.asarray(one_update(method, permuted_targets, observation(loss[order], tokens[order])))
    np.testing.assert_allclose(permuted, straight[order], rtol=1e-5, atol=1e-7)


@EVERY_METHOD
def test_jit_traces_once_per_shape(name):
    method, traces = CONFIGS[name]().build(), []

    @jax.jit
    def counted(targets, evidence):
        traces.append(1)
        return one_update(method, targets, evidence)

    for seed in range(3):
        targets, loss, tokens = problem(seed, 4)
        counted(targets, observation(loss, tokens, step=seed))
    assert len(traces) == 1


@EVERY_METHOD
def test_vmap_over_seeds_equals_a_loop(name):
    method = CONFIGS[name]().build()
    cases = [problem(seed, 4) for seed in range(5)]
    targets = jax.tree.map(lambda *rows: jnp.stack(rows), *(case[0] for case in cases))
    evidence = jax.tree.map(lambda *rows: jnp.stack(rows), *(observation(*case[1:]) for case in cases))
    mapped = jax.vmap(lambda t, e: one_update(method, t, e))(targets, evidence)
    looped = [one_update(method, case[0], observation(*case[1:])) for case in cases]
    np.testing.assert_allclose(mapped, np.stack(looped), rtol=1e-6)


@EVERY_METHOD
def test_a_method_can_be_scanned_over_and_keeps_its_dtype(name):
    method = CONFIGS[name]().build()
    targets, loss, tokens = problem(3, 4)

    def body(carry, step):
        weights, history = carry
        history = method.observe(history, observation(loss, tokens)._replace(step=step))
        weights = method.update(weights, history, targets)
        return (weights, history), weights

    (last, history), path = jax.lax.scan(body, (targets.prior, method.init(targets)), jnp.arange(6))
    assert path.shape == (6, 4)
    assert last.dtype == targets.prior.dtype
    assert int(history.entries) == 6


@EVERY_METHOD
def test_float64_is_kept(name):
    with jax.enable_x64(True):
        targets, loss, tokens = problem(4, 3, np.float64)
        assert one_update(CONFIGS[name]().build(), targets, observation(loss, tokens)).dtype == jnp.float64


@EVERY_METHOD
def test_no_evidence_at_all_moves_nothing(name):
    targets, loss, _ = problem(5, 4)
    new = one_update(CONFIGS[name]().build(), targets, observation(loss, np.zeros(4, np.int64)))
    np.testing.assert_allclose(new, targets.prior, rtol=1e-6)


def test_a_floor_that_cannot_be_kept_is_refused():
    targets, loss, tokens = problem(6, 4)
    method = with_floor(CONFIGS["static"]().build(), 0.3)
    with pytest.raises(ValueError, match="at most 1/4 for 4 domains, got 0.3"):
        one_update(method, targets, observation(loss, tokens))
    with pytest.raises(ValueError, match="floor must not be negative, got -0.1"):
        with_floor(method, -0.1)
