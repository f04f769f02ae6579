from fractions import Fraction

import numpy as np
import pytest

from vtune_jax.rules import prior_weights

TOKENS = [10, 30, 60]


def test_natural_weights_are_token_shares():
    np.testing.assert_allclose(prior_weights(TOKENS, 1.0), [float(Fraction(n, 100)) for n in TOKENS], rtol=1e-15)


def test_power_zero_is_uniform():
    np.testing.assert_allclose(prior_weights(TOKENS, 0.0), [1 / 3] * 3, rtol=1e-15)


def test_power_one_half_takes_square_roots():
    np.testing.assert_allclose(prior_weights([1, 4, 9], 0.5), np.array([1, 2, 3]) / 6, rtol=1e-15)


def test_ten_trillion_tokens_to_a_large_power_do_not_overflow():
    np.testing.assert_allclose(prior_weights([10**13, 5 * 10**12], 10.0), [1024 / 1025, 1 / 1025], rtol=1e-12)


@pytest.mark.parametrize(("tokens", "power"), [([1, 0], 1.0), ([1, 2], -1.0)])
def test_impossible_priors_are_refused(tokens, power):
    with pytest.raises(ValueError, match="must"):
        prior_weights(tokens, power)
