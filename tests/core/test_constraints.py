import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.constraints import with_floor
from vtune_jax.core.types import LossSums, Observation, Targets
from vtune_jax.rules import static, velocitune

STILL = static()._replace(update=lambda weights, history, targets: weights)
"""A method that wants nothing changed."""


def observed(method, losses):
    tokens = jnp.full(len(losses), 1000)
    sums = LossSums(jnp.array(losses) * tokens, tokens)
    evidence = Observation(sums, sums, jnp.zeros(len(losses)), jnp.asarray(1))
    return method.observe(method.init(targets(len(losses))), evidence)


def targets(domains):
    return Targets(*(jnp.full(domains, value) for value in (3.0, 2.0, 0.0, 1 / domains)))


def test_weights_above_the_floor_stay_where_the_method_leaves_them():
    weights = jnp.array([0.7, 0.2, 0.06, 0.04])
    method = with_floor(STILL, 0.01)
    for _ in range(50):
        weights = method.update(weights, method.init(targets(4)), targets(4))
    np.testing.assert_allclose(weights, [0.7, 0.2, 0.06, 0.04], rtol=1e-4)


def test_a_weight_below_the_floor_is_raised_to_it_at_once():
    weights = jnp.array([0.999, 0.001])
    method = with_floor(STILL, 0.05)
    new = method.update(weights, method.init(targets(2)), targets(2))
    assert float(new[1]) >= 0.05
    np.testing.assert_allclose(new.sum(), 1.0, rtol=1e-6)


def test_a_domain_at_the_floor_rises_again_when_it_lags():
    method = with_floor(velocitune(), 0.01)
    weights, history = jnp.array([0.99, 0.01]), observed(method, [2.0, 3.0])
    for _ in range(20):
        weights = method.update(weights, history, targets(2))
    assert float(weights[1]) > 0.9


def test_no_floor_is_the_method_itself():
    method = velocitune()
    assert with_floor(method, 0.0) is method


@pytest.mark.parametrize("floor", [-0.1, 0.6])
def test_impossible_floors_are_refused(floor):
    def use():
        method = with_floor(static(), floor)
        method.update(jnp.full(2, 0.5), method.init(targets(2)), targets(2))

    with pytest.raises(ValueError, match="floor must"):
        use()
