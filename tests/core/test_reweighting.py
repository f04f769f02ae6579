import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtune_jax.core.reweighting import exponentiated_gradient

JITTED = jax.jit(exponentiated_gradient)
EVERYTHING = st.floats(allow_nan=True, allow_infinity=True, width=32)


def step(weights, scores, seen=None, **options):
    seen = np.ones(len(weights), bool) if seen is None else seen
    options = {"step_size": 1.0, **options}
    return np.asarray(JITTED(jnp.array(weights), jnp.array(scores), jnp.array(seen), **options))


def test_half_a_unit_of_score_gives_odds_of_root_e():
    new = step([0.5, 0.5], [0.5, 0.0])
    np.testing.assert_allclose(new[0] / new[1], np.exp(0.5), rtol=1e-6)


def test_the_step_size_multiplies_the_score():
    new = step([0.2, 0.8], [1.0, 0.0], step_size=2.0)
    np.testing.assert_allclose(new[0] / new[1], 0.25 * np.exp(2.0), rtol=1e-6)


def test_equal_scores_change_nothing():
    np.testing.assert_allclose(step([0.1, 0.2, 0.7], [0.6, 0.6, 0.6]), [0.1, 0.2, 0.7], rtol=1e-6)


def test_a_domain_without_evidence_keeps_its_weight_and_the_others_share_the_rest():
    new = step([0.5, 0.3, 0.2], [9.0, 1.0, 0.0], seen=[False, True, True])
    np.testing.assert_allclose(new[0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(new[1] / new[2], 1.5 * np.e, rtol=1e-6)
    np.testing.assert_allclose(new.sum(), 1.0, rtol=1e-6)


def test_without_any_evidence_nothing_moves():
    np.testing.assert_array_equal(step([0.25, 0.75], [1.0, 0.0], seen=[False, False]), [0.25, 0.75])


def test_a_zero_weight_comes_back_only_by_smoothing():
    np.testing.assert_array_equal(step([0.0, 1.0], [5.0, 0.0]), [0.0, 1.0])
    np.testing.assert_allclose(step([0.0, 1.0], [5.0, 0.0], smoothing=0.1), [0.05, 0.95], rtol=1e-6)


@given(
    st.sampled_from([1, 3, 17]).flatmap(
        lambda k: st.tuples(
            st.lists(st.floats(0, 1, width=32), min_size=k, max_size=k).filter(lambda w: sum(w) > 1e-3),
            st.lists(EVERYTHING, min_size=k, max_size=k),
            st.lists(st.booleans(), min_size=k, max_size=k),
        )
    ),
    st.sampled_from([0.0, 1.0, 1e6]),
    st.sampled_from([0.0, 0.01, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_any_evidence_leaves_finite_weights_on_the_simplex_above_the_floor(problem, step_size, smoothing):
    raw, scores, seen = problem
    weights = (np.array(raw) / np.sum(raw)).astype(np.float32)
    new = step(weights, np.array(scores, np.float32), np.array(seen), step_size=step_size, smoothing=smoothing)
    assert np.isfinite(new).all()
    assert new.min() >= smoothing / len(weights) * (1 - 1e-5)
    np.testing.assert_allclose(new.sum(), 1.0, atol=1e-5)


def test_gradients_of_the_hyper_parameters_are_finite_even_at_a_zero_weight():
    def first(step_size, smoothing):
        weights = exponentiated_gradient(
            jnp.array([0.0, 0.4, 0.6]),
            jnp.array([1.0, 0.3, 0.0]),
            jnp.array([True, True, False]),
            step_size=step_size,
            smoothing=smoothing,
        )
        return weights[1]

    assert np.isfinite(jax.grad(first, argnums=(0, 1))(1.0, 0.1)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_of_the_weights_is_kept(dtype):
    weights = jnp.array([0.5, 0.5], dtype)
    assert exponentiated_gradient(weights, weights, jnp.ones(2, bool), step_size=1.0).dtype == dtype
