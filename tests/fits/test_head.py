"""Warm-up heads: found where they are, not where they are not, and never fitted through."""

import numpy as np
import pytest

from vtune_jax.fits import Verdict, estimate_targets
from vtune_jax.fits.head import trim_heads
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
