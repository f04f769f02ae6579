"""Projections in relative entropy, against a general optimiser and their own conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from vtune_jax.core.projection import divergence, to_box, within_divergence


def box_problem(seed, domains=5):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(domains, 0.5))
    inside = rng.dirichlet(np.ones(domains))
    return weights, inside * rng.uniform(0, 1, domains), inside + (1 - inside) * rng.uniform(0, 0.5, domains)


@pytest.mark.parametrize("seed", range(8))
def test_the_box_projection_is_the_minimum_that_a_general_optimiser_finds(seed):
    weights, low, high = box_problem(seed)
    found = minimize(
        lambda w: np.sum(w * np.log(np.maximum(w, 1e-300) / weights)),
        np.clip(weights, low, high) / np.clip(weights, low, high).sum(),
        jac=lambda w: np.log(np.maximum(w, 1e-300) / weights) + 1,
        bounds=list(zip(np.maximum(low, 1e-9), high, strict=True)),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    with jax.enable_x64(True):
        ours = np.asarray(to_box(*map(jnp.asarray, (weights, low, high))))
    np.testing.assert_allclose(ours, found.x, atol=2e-6)
    np.testing.assert_allclose(ours.sum(), 1.0, rtol=1e-12)


@given(seed=st.integers(0, 10**6), domains=st.sampled_from([1, 2, 7, 100, 1000]))
@settings(max_examples=60, deadline=None)
def test_the_box_projection_obeys_bounds_sums_to_one_and_projects_once(seed, domains):
    weights, low, high = (jnp.asarray(part, jnp.float32) for part in box_problem(seed, domains))
    once = to_box(weights, low, high)
    assert (np.asarray(once) >= np.asarray(low) - 1e-7).all()
    assert (np.asarray(once) <= np.asarray(high) + 1e-7).all()
    np.testing.assert_allclose(once.sum(), 1.0, atol=1e-5)
    np.testing.assert_allclose(to_box(once, low, high), once, atol=1e-5)


def test_a_zero_weight_is_raised_to_its_bound_and_no_further():
    even = to_box(jnp.array([0.0, 0.5, 0.5]), jnp.full(3, 0.1), jnp.ones(3))
    np.testing.assert_allclose(even, [0.1, 0.45, 0.45], rtol=1e-6)
    # Where the others are full, it takes the rest.
    rest = to_box(jnp.array([0.0, 0.0, 1.0]), jnp.zeros(3), jnp.array([1.0, 1.0, 0.4]))
    np.testing.assert_allclose(rest, [0.3, 0.3, 0.4], rtol=1e-5)


def test_weights_within_the_box_stay_as_they_are():
    weights = jnp.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(to_box(weights, jnp.zeros(3), jnp.ones(3)), weights, rtol=1e-6)


def test_the_gradient_of_the_box_projection_is_that_of_a_difference():
    with jax.enable_x64(True):
        weights, low, high = map(jnp.asarray, box_problem(3))
        pull = jnp.arange(5.0)

        def value(ceiling):
            return to_box(weights, low, jnp.minimum(high, jnp.maximum(low, ceiling))) @ pull

        slope = jax.grad(value)(0.35)
        difference = (value(0.35 + 1e-6) - value(0.35 - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-8)


def test_the_divergence_by_hand():
    found = divergence(jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25]))
    np.testing.assert_allclose(found, 0.5 * np.log(2.0), rtol=1e-6)
    assert np.isinf(divergence(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])))


@pytest.mark.parametrize("seed", range(6))
def test_the_trust_region_projection_is_the_minimum_that_a_general_optimiser_finds(seed):
    rng = np.random.default_rng(seed)
    weights, prior = rng.dirichlet(np.full(4, 0.7)), rng.dirichlet(np.full(4, 3.0))
    radius = 0.5 * float(np.sum(weights * np.log(weights / prior)))

    def spread(w, base):
        return np.sum(w * np.log(np.maximum(w, 1e-300) / base))

    found = minimize(
        lambda w: spread(w, weights),
        prior,
        jac=lambda w: np.log(np.maximum(w, 1e-300) / weights) + 1,
        bounds=[(1e-12, 1)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w: radius - spread(w, prior)},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    with jax.enable_x64(True):
        ours = np.asarray(within_divergence(jnp.asarray(weights), jnp.asarray(prior), radius))
    np.testing.assert_allclose(ours, found.x, atol=2e-5)
    np.testing.assert_allclose(spread(ours, prior), radius, rtol=1e-6)


def test_a_prior_of_zero_keeps_a_domain_out_and_radius_zero_is_the_prior():
    prior = jnp.array([0.0, 0.4, 0.6])
    out = within_divergence(jnp.array([0.5, 0.25, 0.25]), prior, 0.01)
    assert out[0] == 0
    # Divergence is quadratic near the prior: float64 resolves weights to 1e-8 there, float32 to 1e-4.
    with jax.enable_x64(True):
        none = within_divergence(jnp.array([0.2, 0.5, 0.3]), jnp.full(3, 1 / 3), 0.0)
    np.testing.assert_allclose(none, 1 / 3, rtol=1e-6)
