from fractions import Fraction

import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.rules import prior_weights, unimax_weights

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


def test_unimax_by_hand():
    # Three domains of 10, 100 and 1,000 tokens, 300 to spend, at most 2 epochs. The smallest could have 100 but has 20;
    # of the 280 left the second has 140; the rest goes to the third.
    weights, unspent = unimax_weights([100, 10, 1000], 300, 2)
    np.testing.assert_allclose(weights, np.array([140, 20, 140]) / 300)
    assert unspent == 0


def test_unimax_tells_what_cannot_be_spent():
    weights, unspent = unimax_weights([10, 30], 100, 2)
    np.testing.assert_allclose(weights, [0.25, 0.75])
    assert unspent == 20


def test_unimax_spends_all_of_a_budget_that_many_equal_domains_can_take():
    # A billion tokens over 17 domains: no share is a whole number, and their sum is not the budget to the last bit.
    weights, unspent = unimax_weights([10**9] * 17, 10**9, 4)
    np.testing.assert_allclose(weights, 1 / 17, rtol=1e-12)
    assert unspent == 0.0
    # Exactly as much as there is, and a token more.
    assert unimax_weights([10**9] * 17, 4 * 17 * 10**9, 4)[1] == 0.0
    assert unimax_weights([10**9] * 17, 4 * 17 * 10**9 + 1, 4)[1] == 1.0


def test_unimax_is_uniform_where_data_allow_it():
    np.testing.assert_allclose(unimax_weights([50, 80, 60], 90, 1)[0], 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"), [(([0, 1], 10, 1), "tokens must be positive"), (([1, 1], 0, 1), "budget and max_epochs")]
)
def test_unimax_refuses_what_is_not_positive(arguments, message):
    with pytest.raises(ValueError, match=message):
        unimax_weights(*arguments)


def test_a_method_starts_from_the_experiments_prior_unless_it_has_a_mixture_of_its_own():
    prior, tokens = np.array([0.2, 0.3, 0.5]), np.array([100, 100, 800])
    assert rules.Velocitune().mixture(prior, tokens, 100) is prior
    assert rules.Static().mixture(prior, tokens, 100) is prior
    natural = rules.Static(form="natural").mixture(prior, tokens, 100)
    np.testing.assert_allclose(natural, [0.1, 0.1, 0.8])
    strata = rules.Static(form="stratified", groups=("a", "a", "b")).mixture(prior, tokens, 100)
    np.testing.assert_allclose(strata, [0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (rules.Static(form="stratified", groups=("a", "b")), r"groups must name one group per domain \(3\), got 2"),
        (rules.Olmix(domain_weights=(1.0, 2.0)), r"domain_weights must name one number per domain \(3\), got 2"),
        (rules.SkillIt(graph_domains=("b", "a", "c")), r"graph_domains must be the corpus' domains in their order"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_config_that_does_not_fit_the_corpus_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config.assert_fits(("a", "b", "c"))
    rules.Velocitune().assert_fits(("a", "b", "c"))
