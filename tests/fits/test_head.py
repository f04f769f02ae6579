"""Warm-up heads: found where they are, not where they are not, and never fitted through."""

import math

import numpy as np
import pytest
from scipy.special import fdtrc
from scipy.stats import f

from vtune_jax.fits import Verdict, estimate_targets
from vtune_jax.fits.head import log_f_chance, trim_heads
from vtune_jax.fits.laws.power_law import LAW


def curves(count=20, domains=32, noise=0.003, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e6, 2e7, count)
    E, B, beta = rng.uniform(1, 3, domains), rng.uniform(0.5, 2, domains), rng.uniform(0.3, 0.8, domains)
    truth = E + B * (1e8 / 4e6) ** -beta
    return (
        tokens,
        (E + B * (tokens[:, None] / 4e6) ** -beta) * np.exp(noise * rng.standard_normal((count, domains))),
        truth,
    )


def with_head(losses, length=3, height=0.3):
    spoiled = losses.copy()
    spoiled[:length] *= np.exp(height * np.linspace(1, 0.3, length))[:, None]
    return spoiled


def test_a_head_is_found_and_the_target_is_as_if_it_had_not_been_measured():
    errors, dropped = [], []
    for seed in range(2):
        tokens, losses, truth = curves(seed=seed)
        got = estimate_targets(tokens, with_head(losses), 1e8)
        without = estimate_targets(tokens, losses, 1e8)
        blind = estimate_targets(tokens, with_head(losses), 1e8, drop_head=0)
        errors.append([np.abs(x.target / truth - 1) for x in (without, got, blind)])
        dropped.append(got.diagnostics.head_points)
    assert np.median(dropped) == 3
    assert (np.array(dropped) >= 2).mean() > 0.95
    errors = np.median(np.concatenate(errors, axis=1), axis=1)
    assert errors[1] < 1.6 * errors[0]
    assert errors[2] > 2 * errors[1]


@pytest.mark.parametrize("count", [5, 8, 20])
def test_curves_without_a_head_keep_their_points(count):
    dropped = []
    for seed in range(8):
        tokens, losses, _ = curves(count, seed=seed)
        dropped.append(trim_heads(LAW, LAW.checked((tokens,), losses)).dropped)
    assert (np.array(dropped) > 0).mean() < 0.02


def dense(count, warm_up, domains=4, noise=0.01, seed=0):
    """A point at every step, `2 + 300 / D^0.4`, after a warm-up at whose end the loss meets the law."""
    rng = np.random.default_rng(seed)
    tokens = 65536.0 * np.arange(1, count + 1)
    law = 2 + 300 / tokens**0.4
    start = tokens[warm_up]
    losses = np.where(tokens < start, 11 + (law[warm_up] - 11) * (tokens / start) ** 0.7, law)
    return tokens, losses[:, None] * np.exp(noise * rng.standard_normal((count, domains))), 2 + 300 / 1e9**0.4


@pytest.mark.parametrize(("count", "warm_up"), [(400, 57), (400, 16), (400, 150)])
def test_a_warm_up_of_many_points_is_found_by_its_length_in_decades(count, warm_up):
    tokens, losses, truth = dense(count, warm_up)
    got = estimate_targets(tokens, losses, 1e9, level=0.95)
    # The last points of the warm-up hardly differ from the law.
    assert (np.abs(got.diagnostics.head_points - warm_up) <= 0.1 * warm_up + 2).all()
    assert ((got.lower < truth) & (truth < got.upper)).mean() >= 0.75
    blind = estimate_targets(tokens, losses, 1e9, level=0.95, drop_head=0)
    assert np.abs(got.target / truth - 1).mean() < 0.5 * np.abs(blind.target / truth - 1).mean()


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_dense_curves_without_a_warm_up_keep_their_points(rho):
    tokens, losses, _ = dense(400, 0, domains=64, noise=0.0)
    errors = np.random.default_rng(0).standard_normal(losses.shape)
    for place in range(1, len(errors)):
        errors[place] = rho * errors[place - 1] + np.sqrt(1 - rho**2) * errors[place]
    losses = losses * np.exp(0.01 * errors)
    trimmed = trim_heads(LAW, LAW.checked((tokens,), losses))
    assert not trimmed.dropped.any()
    assert not trimmed.refused.any()


def test_a_warm_up_of_most_of_the_curve_is_told():
    tokens, losses, _ = dense(400, 280, domains=1, noise=0.003)
    assert Verdict.WARM_UP_HEAD in estimate_targets(tokens, losses, 1e9).verdicts[0]


@pytest.mark.parametrize("place", [(0.5, 3, 10), (4.0, 2, 30), (40.0, 57, 340), (1.0, 1, 4)])
def test_the_chance_of_a_head_is_that_of_the_f_distribution(place):
    ratio, extra, freedom = place
    expected = f.logsf(ratio * freedom / extra, extra, freedom)
    np.testing.assert_allclose(log_f_chance(np.array(ratio), np.array(extra), np.array(freedom)), expected, rtol=1e-8)


def test_a_chance_below_what_a_float_holds_is_a_number_all_the_same():
    # For whole a and b the incomplete beta function is the upper tail of a binomial law, here in whole numbers.
    a, b, ratio = 1284, 215, 400
    tail = sum(math.comb(a + b - 1, heads) * ratio ** (a + b - 1 - heads) for heads in range(a, a + b))
    expected = math.log(tail) - (a + b - 1) * math.log(ratio + 1)
    assert fdtrc(2 * b, 2 * a, ratio * a / b) == 0
    got = log_f_chance(np.array(float(ratio)), np.array(2 * b), np.array(2 * a))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_a_head_of_more_than_half_the_curve_is_refused():
    tokens, losses, _ = curves(20, domains=1, noise=0.0)
    off = np.array([height * sign for height in (0.9, 0.3, 0.1, 0.03) for sign in (-1, 1, -1)] + 8 * [0.0])
    got = estimate_targets(tokens, losses * np.exp(off)[:, None], 1e8)
    assert got.verdict == (Verdict.WARM_UP_HEAD,)
    assert "after the warm-up" in got.advice[0]


def test_a_given_number_of_points_is_left_out_whatever_their_order():
    tokens, losses, _ = curves(8, domains=2)
    order = np.random.default_rng(0).permutation(8)
    trimmed = trim_heads(LAW, LAW.checked((tokens[order],), losses[order]), 2)
    assert trimmed.measured.present.sum(axis=0).tolist() == [6, 6]
    assert np.isnan(trimmed.measured.losses[:2]).all()
