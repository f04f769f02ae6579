import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.fits import Verdict, apply_policy, estimate_targets
from vtune_jax.fits.targets import UNUSABLE

TOKENS = np.geomspace(0.05, 0.4, 6)


def curves(noise, points, domains=512, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(0.05, 0.4, points)
    E, beta = rng.uniform(1, 3, domains), np.exp(np.log(0.5) + 0.5 * rng.standard_normal(domains))
    B = rng.uniform(0.3, 2, domains) * 0.14**beta
    losses = (E + B / tokens[:, None] ** beta) * np.exp(noise * rng.standard_normal((points, domains)))
    return tokens, losses, E + B


def estimate(losses, initial, **options):
    losses = np.asarray(losses, np.float64)
    tokens = TOKENS[: len(losses)]
    return estimate_targets(tokens, losses, 1.0, initial_losses=np.asarray(initial, np.float64), **options)


@pytest.mark.parametrize(("points", "noise"), [(4, 0.003), (6, 0.005), (10, 0.005)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(points, noise):
    tokens, losses, truth = curves(noise, points)
    for level, low, high in ((0.8, 0.74, 0.86), (0.95, 0.90, 0.985)):
        got = estimate_targets(
            tokens, losses, 1.0, initial_losses=np.full(512, 9.0), level=level, model_error_per_decade=0.0
        )
        covered = ((got.lower <= truth) & (truth <= got.upper)).mean()
        assert low <= covered <= high


def test_the_error_of_the_law_widens_the_interval_by_the_decades_ahead():
    losses = 2 + 0.3 / TOKENS[:, None] ** 0.5
    without = estimate(losses, [5.0], model_error_per_decade=0.0)
    with_error = estimate(losses, [5.0], model_error_per_decade=0.02)
    # 1.645 standard errors of 0.02 per decade, log10(1 / 0.4) decades ahead, in log loss.
    expected = 1.6449 * 0.02 * np.log10(1 / 0.4)
    assert np.log(without.upper / without.target)[0] < 1e-3
    np.testing.assert_allclose(np.log(with_error.upper / with_error.target)[0], expected, rtol=0.02)


def test_a_near_exact_curve_gives_its_law_and_a_narrow_interval():
    got = estimate(2 + 0.3 / TOKENS[:, None] ** 0.5, [5.0], model_error_per_decade=0.0)
    np.testing.assert_allclose(got.target, [2.3], rtol=1e-4)
    assert got.verdict == (Verdict.TRUSTWORTHY,)
    assert got.advice == ("",)


def test_three_points_give_a_target_and_an_infinite_interval():
    got = estimate(2 + 0.3 / TOKENS[:3, None] ** 0.5, [5.0])
    assert np.isfinite(got.target[0])
    assert got.lower[0] == 0
    assert got.upper[0] == np.inf
    assert got.verdict == (Verdict.TOO_WIDE,)
    assert got.as_json()["upper"] == [None]


def falling(drop=0.5):
    return 3 + drop / TOKENS**0.5


@pytest.mark.parametrize(
    ("losses", "initial", "verdict", "said"),
    [
        (np.linspace(3, 3.2, 6), 4.0, Verdict.NOT_DECREASING, "does not fall"),
        (falling(), 3.0, Verdict.TARGET_NOT_BELOW_INITIAL, "not 0.01 nats below the initial loss 3.000"),
        (falling(0.01) * [1.01, 0.99, 1.01, 0.99, 1.01, 0.99], 3.1, Verdict.TOO_WIDE, "half-width is"),
        (falling(), 9.0, Verdict.TRUSTWORTHY, ""),
    ],
)
def test_each_domain_gets_the_first_verdict_that_applies(losses, initial, verdict, said):
    got = estimate(losses[:, None], [initial])
    assert got.verdict == (verdict,)
    assert said in got.advice[0]


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [
        (np.geomspace(0.005, 0.05, 6), Verdict.EXTRAPOLATES_TOO_FAR),
        (np.geomspace(0.2, 0.4, 6), Verdict.SHORT_RANGE),
        (np.geomspace(0.05, 0.4, 4), Verdict.FEW_POINTS),
    ],
)
def test_the_design_of_the_proxies_is_judged(tokens, verdict):
    losses = 2 + 0.3 / tokens[:, None] ** 0.5
    got = estimate_targets(tokens, losses, 1.0, initial_losses=np.array([9.0]))
    assert got.verdict == (verdict,)


def test_unusable_targets_are_refused_or_replaced_aloud():
    losses = np.stack([falling(), np.linspace(3, 3.2, 6), falling()], axis=1)
    initial = np.array([9.0, 4.0, 3.0])
    got, names = estimate(losses, initial), ("a", "b", "c")
    with pytest.raises(UserError, match="no usable target loss for 'b': .*; 'c': "):
        apply_policy(got, initial, policy="error", names=names)
    target, notes = apply_policy(got, initial, policy="last_seen", names=names)
    np.testing.assert_allclose(target, [got.target[0], 3.2, falling()[-1]])
    assert len(notes) == 2
    assert "domain 'b'" in notes[0]
    assert "its remaining fraction counts as 0" in notes[1]
    assert {got.verdict[1], got.verdict[2]} == UNUSABLE


def test_a_level_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="level must lie in"):
        estimate(falling()[:, None], [9.0], level=1.0)
