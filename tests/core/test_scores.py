import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.scores import reachable, remaining_fraction
from vtune_jax.core.types import Targets


def targets(initial, target):
    zeros = jnp.zeros(len(initial))
    return Targets(jnp.array(initial), jnp.array(target), zeros, zeros + 1 / len(initial))


def test_a_quarter_of_the_way_left_is_a_quarter():
    got = remaining_fraction(jnp.array([2.25, 3.0, 2.0]), targets([3.0, 3.0, 3.0], [2.0, 2.0, 2.0]))
    np.testing.assert_allclose(got, [0.25, 1.0, 0.0])


def test_the_clamp_limits_both_sides_and_can_be_lifted():
    constants = targets([3.0, 3.0], [2.0, 2.0])
    np.testing.assert_allclose(remaining_fraction(jnp.array([4.0, 1.5]), constants), [1.0, 0.0])
    np.testing.assert_allclose(remaining_fraction(jnp.array([4.0, 1.5]), constants, clamp=False), [2.0, -0.5])


@pytest.mark.parametrize("target", [3.0, 3.5, 2.9995, np.nan, -np.inf])
def test_a_target_not_clearly_below_the_initial_loss_leaves_nothing_to_win(target):
    constants = targets([3.0, 3.0], [target, 2.0])
    got = remaining_fraction(jnp.array([2.5, 2.5]), constants, min_gap=1e-3)
    np.testing.assert_allclose(got, [0.0, 0.5])
    np.testing.assert_array_equal(reachable(constants, 1e-3), [False, True])
