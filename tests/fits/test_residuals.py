"""Verdicts on residuals: by hand, on planted outliers and sweeps under both kinds of law, and none on clean points."""

import numpy as np
import pytest

from tests.fits.laws.test_chinchilla import planted
from tests.fits.test_head import dense
from vtune_jax.fits import SizeTarget, Verdict, apply_policy, best_of_place, estimate_over_sizes, estimate_targets
from vtune_jax.fits.residuals import outlier_chance, replicate_spread, standardised
from vtune_jax.fits.verdicts import DOUBTFUL

TOKENS = np.geomspace(1e7, 1e9, 20)
LAW = 2 + 300 / TOKENS**0.4


def over_sizes(params, tokens, losses):
    return estimate_over_sizes(params, tokens, losses.reshape(len(params), -1), SizeTarget(1e10, 1e12), replicates=2)


def test_the_spread_at_one_place_is_that_of_its_log_losses():
    places = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 3.0])
    logs = np.array([0.0, 0.2, 9.0, 1.0, 1.1, 1.2])
    # (2 * 0.1^2 + 2 * 0.1^2) / (1 + 2)
    spread, replicated = replicate_spread([places], np.exp(logs))
    assert spread == pytest.approx(np.sqrt(0.04 / 3))
    assert replicated == 2
    # Places that differ in one of two columns are different places.
    alone, none = replicate_spread([places, np.arange(6.0)], np.exp(logs))
    assert np.isnan(alone)
    assert none == 0


def test_sizes_of_residuals_leave_out_as_many_as_the_law_fits_through():
    residuals = np.array([0.0, -1e-12, 0.01, -0.02, 0.03, 0.3])
    np.testing.assert_allclose(standardised(residuals, 2), np.abs(residuals) / (1.4826 * 0.025))


def test_the_chance_of_a_far_residual_grows_with_the_points_and_shrinks_with_its_size():
    # Student's t with two degrees of freedom is beyond x on either side with chance 1 - x / sqrt(2 + x^2).
    assert outlier_chance(30.0, 9, 5) == pytest.approx(9 * (1 - 30 / np.sqrt(902)))
    assert outlier_chance(30.0, 100, 5) < outlier_chance(30.0, 9, 5) < outlier_chance(4.0, 9, 5)
    assert outlier_chance(0.1, 9, 5) == 1


def test_wild_points_are_told_under_the_law_over_sizes_with_their_place():
    params, tokens, losses = planted(noise=0.004)
    wild = losses.copy()
    wild[[0, 7, 11]] *= [1.5, 1.3, 1.4]
    got = over_sizes(params, tokens, wild)
    assert got.verdicts[0][0] == Verdict.OUTLIERS
    assert f"3 of {len(losses)} points" in got.advices[0][0]
    assert f"params {params[0]:.4g}, tokens {tokens[0]:.4g}" in got.advices[0][0]
    assert got.diagnosis(0)["outlier_share"] == 3 / len(losses)


def test_clean_points_over_sizes_are_trustworthy():
    params, tokens, losses = planted()
    noise = np.random.default_rng(0).standard_normal((len(losses), 64))
    got = over_sizes(params, tokens, losses[:, None] * np.exp(0.004 * noise))
    assert np.mean([Verdict.OUTLIERS in found for found in got.verdicts]) < 0.05
    assert not any(Verdict.REPLICATES in found or Verdict.UNDER_DETERMINED in found for found in got.verdicts)


def test_a_fall_lost_in_noise_is_told_under_the_law_over_sizes():
    params, tokens, losses = planted(noise=0.0)
    rng = np.random.default_rng(0)
    flat = 3 * (losses / losses.mean()) ** 0.01 * np.exp(0.03 * rng.standard_normal(len(losses)))
    assert Verdict.UNDER_DETERMINED in over_sizes(params, tokens, flat).verdicts[0]


@pytest.mark.parametrize("law", ["curve", "sizes"])
def test_a_sweep_is_told_from_seeds_and_the_best_of_each_place_has_no_such_verdict(law):
    params, tokens, losses = planted(noise=0.0) if law == "sizes" else (np.ones(20), TOKENS, LAW)
    params, tokens, losses = (np.tile(column, 3) for column in (params, tokens, losses))
    noise = np.random.default_rng(0).standard_normal(len(losses))

    def judged(losses):
        if law == "sizes":
            return over_sizes(params, tokens, losses)
        return estimate_targets(tokens, losses.reshape(-1, 1), 2e9)

    seeds, sweep = (losses * np.exp(spread * np.abs(noise)) for spread in (0.003, 0.05))
    assert Verdict.REPLICATES not in judged(seeds).verdicts[0]
    found = judged(sweep)
    advice = found.advices[0][found.verdicts[0].index(Verdict.REPLICATES)]
    assert "--best-of-place" in advice
    assert f"at {len(losses) // 3} places" in advice
    best = best_of_place([params, tokens], sweep[:, None])
    assert (~np.isnan(best)).sum() == len(losses) // 3
    assert Verdict.REPLICATES not in judged(best.ravel()).verdicts[0]


def test_a_target_below_the_level_of_its_own_law_is_doubtful():
    rng = np.random.default_rng(0)
    losses = LAW[:, None] * np.exp(0.03 * rng.standard_normal((20, 32)))
    got = estimate_targets(TOKENS, losses, 1e10)
    below = got.target < got.fit.E
    assert 0 < below.sum() < 32
    told = [bool({Verdict.TARGET_BELOW_E, Verdict.INTERVAL_BELOW_E} & set(found)) for found in got.verdicts]
    rising = [Verdict.RISING in found for found in got.verdicts]
    np.testing.assert_array_equal(told, below & ~np.array(rising))
    assert Verdict.TARGET_BELOW_E in DOUBTFUL


def test_a_target_whose_whole_interval_lies_below_the_level_of_its_law_is_unusable():
    tokens, losses, _ = dense(3000, 430, domains=1)
    got = estimate_targets(tokens, losses, 1e9, drop_head=0, model_error_per_decade=0.0)
    assert got.upper[0] < got.fit.E[0]
    assert Verdict.INTERVAL_BELOW_E in got.verdicts[0]
    target, notes = apply_policy(got, np.array([9.0]), policy="last_seen", names=("a",))
    assert target[0] == got.last_seen[0]
    assert "where its fitted law levels off" in notes[0]
