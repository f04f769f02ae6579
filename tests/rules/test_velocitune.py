import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets


def run(method, prior, initial, target, losses):
    targets = Targets(*(jnp.asarray(column) for column in (initial, target, np.zeros(len(prior)), prior)))
    weights, history = targets.prior, method.init(targets)
    tokens = jnp.full(len(prior), 1000)
    for step, loss in enumerate(losses):
        sums = LossSums(jnp.asarray(loss) * 1000, tokens)
        history = method.observe(history, Observation(sums, sums, jnp.zeros(len(prior)), jnp.asarray(step)))
        weights = method.update(weights, history, targets)
    return weights


def test_the_slow_domain_gains_by_the_exponential_of_the_difference():
    # Remaining fractions 0.9 and 0.1: odds of exp(0.8) after one update, exp(1.6) after two.
    weights = run(rules.velocitune(), [0.5, 0.5], [3.0, 4.0], [2.0, 2.0], [[2.9, 2.2]] * 2)
    np.testing.assert_allclose(weights[0] / weights[1], np.exp(1.6), rtol=1e-5)


def test_it_is_the_same_update_written_with_velocity():
    prior, loss = np.array([0.2, 0.3, 0.5]), np.array([2.5, 2.1, 2.8])
    velocity = 3.0 - loss
    expected = prior * np.exp(-0.7 * velocity)
    weights = run(rules.velocitune(step_size=0.7), prior, [3.0] * 3, [2.0] * 3, [loss])
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)


def test_without_the_clamp_a_domain_below_its_target_loses_weight():
    clamped = run(rules.velocitune(), [0.5, 0.5], [3.0, 3.0], [2.0, 2.0], [[1.5, 2.0]])
    unclamped = run(rules.velocitune(clamp=False), [0.5, 0.5], [3.0, 3.0], [2.0, 2.0], [[1.5, 2.0]])
    np.testing.assert_allclose(clamped, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(unclamped[0] / unclamped[1], np.exp(-0.5), rtol=1e-5)


def test_a_target_above_the_initial_loss_counts_as_nothing_left():
    weights = run(rules.velocitune(), [0.5, 0.5], [3.0, 3.0], [3.5, 2.0], [[3.0, 2.5]])
    np.testing.assert_allclose(weights[1] / weights[0], np.exp(0.5), rtol=1e-5)


def test_the_floor_of_the_config_holds_after_many_updates():
    method = rules.Velocitune(step_size=5.0, floor=0.05).build()
    weights = run(method, [0.25] * 4, [3.0] * 4, [2.0] * 4, [[3.0, 2.0, 2.0, 2.0]] * 50)
    assert np.asarray(weights).min() >= 0.05 - 1e-6


def test_vmap_over_step_sizes_equals_a_loop():
    def final(step_size):
        return run(rules.velocitune(step_size=step_size), [0.5, 0.5], [3.0, 3.0], [2.0, 2.0], [[2.9, 2.2]])

    sizes = jnp.array([0.0, 0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(final)(sizes), [final(float(size)) for size in sizes], rtol=1e-6)
    assert np.isfinite(jax.jacobian(final)(1.0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -1.0}, "step_size must not be negative, got -1.0"),
        ({"smoothing": 1.5}, r"smoothing must lie in \[0, 1\], got 1.5"),
        ({"min_gap": -0.1}, "min_gap must not be negative, got -0.1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused_when_building(options, message):
    with pytest.raises(ValueError, match=message):
        rules.velocitune(**options)
    with pytest.raises(ValueError, match=message):
        rules.Velocitune(**options)


def test_the_example_in_the_package_runs():
    outcome = doctest.testmod(rules)
    assert outcome.attempted >= 10
    assert outcome.failed == 0
