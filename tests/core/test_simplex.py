import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtune_jax.core.simplex import (
    QUOTA_ONE,
    effective_domains,
    from_quota,
    mix_with_uniform,
    to_quota,
)

# A few fixed sizes, so that each is compiled once.
shares = st.sampled_from([1, 2, 5, 40]).flatmap(
    lambda k: st.lists(st.floats(0, 1, width=32), min_size=k, max_size=k).filter(lambda values: sum(values) > 1e-3)
)
quota_of, mixed_with_uniform = jax.jit(to_quota), jax.jit(mix_with_uniform)


def normalised(values):
    values = np.array(values, np.float64)
    return (values / values.sum()).astype(np.float32)


@given(shares)
@settings(max_examples=200, deadline=None)
def test_quota_sums_to_one_exactly_and_stays_within_float32_of_the_weights(values):
    weights = normalised(values)
    quota = np.asarray(quota_of(jnp.asarray(weights)))
    assert quota.sum(dtype=np.int64) == QUOTA_ONE
    assert np.abs(quota / QUOTA_ONE - weights).max() <= 3e-7
    assert (quota[weights == 0] == 0).all()


@pytest.mark.parametrize("domains", [2, 7, 1000])
def test_quota_of_uniform_weights_differs_by_at_most_one_unit(domains):
    quota = np.asarray(to_quota(jnp.full(domains, 1 / domains, jnp.float32)))
    exact = QUOTA_ONE / domains
    # The largest share also absorbs what float32 rounds away, at most half a unit for each domain.
    assert np.sort(np.abs(quota - exact))[:-1].max() <= 1
    assert quota.sum() == QUOTA_ONE


def test_quota_gives_left_over_units_to_the_largest_remainders():
    # 2**24 / 3 = 5592405.33...: the three floors leave one unit, and the tie goes to the first.
    quota = np.asarray(to_quota(jnp.full(3, 1 / 3, jnp.float32)))
    assert sorted(quota.tolist()) == [5592405, 5592405, 5592406]


def test_from_quota_is_the_inverse_of_to_quota_for_binary_fractions():
    weights = jnp.array([0.5, 0.25, 0.125, 0.125])
    np.testing.assert_array_equal(from_quota(to_quota(weights)), weights)


@given(shares, st.floats(0, 1, width=32))
@settings(max_examples=100, deadline=None)
def test_mixing_with_uniform_keeps_the_floor_it_states(values, mass):
    weights = normalised(values)
    mixed = np.asarray(mixed_with_uniform(jnp.asarray(weights), mass))
    assert mixed.min() >= mass / len(weights) - 1e-7
    np.testing.assert_allclose(mixed.sum(), 1, atol=1e-5)


@pytest.mark.parametrize(("weights", "expected"), [([1.0, 0.0, 0.0], 1.0), ([0.25] * 4, 4.0), ([0.5, 0.5, 0.0], 2.0)])
def test_effective_domains_counts_the_domains_that_matter(weights, expected):
    np.testing.assert_allclose(effective_domains(jnp.array(weights)), expected, rtol=1e-6)


def test_quota_is_traced_once_per_shape():
    traces = []

    @jax.jit
    def counted(weights):
        traces.append(1)
        return to_quota(weights)

    for seed in range(3):
        counted(jax.random.dirichlet(jax.random.key(seed), jnp.ones(5)))
    assert len(traces) == 1
