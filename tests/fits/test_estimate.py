"""Targets of curves: planted laws, the promise of the intervals, every verdict, and the policies.

Each number of points and of domains is a program of its own to compile, so the tests keep to two sizes of each: 8 or 20
points (fewer are padded to 8), and 1 or 32 domains, of which statistics take several batches.
"""

import functools

import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.fits import Verdict, apply_policy, areas, estimate_targets
from vtune_jax.fits.solver import Status
from vtune_jax.fits.verdicts import UNUSABLE

TOKENS = np.geomspace(0.05, 0.4, 6)
DOMAINS = 32


def curves(noise, points, domains=DOMAINS, seed=0, rho=0.0):
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(0.05, 0.4, points)
    E, beta = rng.uniform(1, 3, domains), np.exp(np.log(0.5) + 0.5 * rng.standard_normal(domains))
    B = rng.uniform(0.3, 2, domains) * 0.14**beta
    errors = rng.standard_normal((points, domains))
    for place in range(1, points):
        errors[place] = rho * errors[place - 1] + np.sqrt(1 - rho**2) * errors[place]
    return tokens, (E + B / tokens[:, None] ** beta) * np.exp(noise * errors), E + B


def estimate(losses, initial, **options):
    losses = np.asarray(losses, np.float64)
    tokens = TOKENS[: len(losses)]
    return estimate_targets(tokens, losses, 1.0, initial_losses=np.asarray(initial, np.float64), **options)


@functools.cache
def batches(noise, points, rho=0.0, **options):
    """Curves, their true losses at 1 and their estimates, in eight batches of 32 domains."""
    drawn = [curves(noise, points, seed=seed, rho=rho) for seed in range(8)]
    options = {"model_error_per_decade": 0.0, **options}
    return [(truth, estimate_targets(tokens, losses, 1.0, **options)) for tokens, losses, truth in drawn]


def covered(found):
    return np.mean([(got.lower <= truth) & (truth <= got.upper) for truth, got in found])


def share_with(verdict, found):
    return np.mean([verdict in verdicts for _, got in found for verdicts in got.verdicts])


@pytest.mark.parametrize(("points", "noise"), [(4, 0.003), (6, 0.005), (8, 0.005), (20, 0.002)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(points, noise):
    for level, low, high in ((0.8, 0.74, 0.86), (0.95, 0.91, 0.98)):
        assert low <= covered(batches(noise, points, level=level)) <= high


def test_correlated_evaluations_widen_the_interval_and_are_told():
    correlated, independent = batches(0.005, 20, rho=0.7, level=0.95), batches(0.005, 20, level=0.95)
    assert covered(correlated) >= 0.8
    assert share_with(Verdict.AUTOCORRELATED, correlated) > 0.5
    assert share_with(Verdict.AUTOCORRELATED, independent) < 0.1


def test_the_bootstrap_says_about_the_same():
    truth, posterior = batches(0.005, 20, level=0.95)[0]
    tokens, losses, _ = curves(0.005, 20)
    options = {"method": "bootstrap", "replicates": 200, "level": 0.95, "model_error_per_decade": 0.0}
    got = estimate_targets(tokens, losses, 1.0, **options)
    assert 0.85 <= covered([(truth, got)]) <= 1.0
    ratio = np.median((got.upper - got.lower) / (posterior.upper - posterior.lower))
    assert 0.7 < ratio < 1.5
    np.testing.assert_allclose(got.target, got.fit.E + np.exp(got.fit.log_B), rtol=1e-9)


def test_outliers_are_told_and_hardly_move_the_target():
    tokens, losses, _ = curves(0.001, 20)
    spoiled = losses.copy()
    spoiled[12] *= 1.1
    clean, got = (estimate_targets(tokens, x, 1.0) for x in (losses, spoiled))
    assert np.median(np.abs(got.target / clean.target - 1)) < 0.003
    assert share_with(Verdict.OUTLIERS, [(None, got)]) > 0.9
    assert share_with(Verdict.OUTLIERS, [(None, clean)]) < 0.1


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
    assert {Verdict.UNDER_DETERMINED, Verdict.TOO_WIDE} <= set(got.verdicts[0])
    assert got.diagnosis(0)["half_width_share"] is None


def test_order_duplicates_and_gaps_change_nothing():
    tokens, losses, _ = curves(0.005, 20, domains=3)
    order = np.random.default_rng(1).permutation(20)
    one = estimate_targets(tokens, losses, 1.0)
    for other in (
        estimate_targets(tokens[order], losses[order], 1.0),
        estimate_targets(np.append(tokens, 0.2), np.vstack([losses, np.full((1, 3), np.nan)]), 1.0),
        estimate_targets(np.append(tokens, tokens[4:]), np.vstack([losses, losses[4:]]), 1.0),
    ):
        for name in ("target", "lower", "upper"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
        assert one.verdicts == other.verdicts


def test_points_written_twice_do_not_make_a_law_sure():
    got = estimate_targets(np.tile(TOKENS[:3], 2), np.tile(falling()[:3, None], (2, 1)), 1.0)
    assert got.upper[0] == np.inf
    assert got.verdict == (Verdict.UNDER_DETERMINED,)
    with pytest.raises(ValueError, match="at least 3 different points in every domain, got 2"):
        estimate_targets(np.tile(TOKENS[:2], 2), np.tile(falling()[:2, None], (2, 1)), 1.0)


def test_runs_of_two_lengths_determine_no_law_however_many_they_are():
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(20))
    tokens = np.repeat(TOKENS[[0, 4]], 10)
    got = estimate_targets(tokens, ((2 + 0.3 / tokens**0.5) * noise)[:, None], 1.0)
    assert got.upper[0] == np.inf
    assert "20 points at 2 places for three unknowns" in got.advices[0][0]


def test_independent_runs_of_equal_length_do_not_correlate():
    rng = np.random.default_rng(0)
    tokens = np.repeat(np.geomspace(0.05, 0.4, 5), 4)
    found = []
    for _ in range(4):
        losses = (2 + 0.3 / tokens[:, None] ** 0.5) * np.exp(0.01 * rng.standard_normal((20, DOMAINS)))
        found.append((None, estimate_targets(tokens, losses, 1.0)))
        np.testing.assert_allclose(found[-1][1].last_seen, losses[-4:].mean(axis=0))
    assert share_with(Verdict.AUTOCORRELATED, found) < 0.1


@pytest.mark.parametrize("delta", [1e-3, "auto"])
@pytest.mark.parametrize("points", [5, 8, 20])
def test_normal_residuals_are_no_outliers_however_few(points, delta):
    assert share_with(Verdict.OUTLIERS, batches(0.01, points, delta=delta)) < 0.02


def test_a_search_that_ended_early_is_told():
    found = [got for _, got in batches(0.03, 4, delta=1e-3)]
    ended = np.concatenate([got.fit.status != Status.CONVERGED for got in found])
    assert 0 < ended.sum() < 50
    noted = [Verdict.NOT_CONVERGED in verdicts for got in found for verdicts in got.verdicts]
    np.testing.assert_array_equal(noted, ended)


def falling(drop=0.5):
    return 3 + drop / TOKENS**0.5


@pytest.mark.parametrize(
    ("losses", "initial", "verdict", "advice"),
    [
        (np.linspace(3, 3.2, 6), 4.0, Verdict.RISING, "does not fall"),
        (falling(), 3.0, Verdict.NOT_BELOW_INITIAL, "not 0.01 nats below the initial loss 3.000"),
        (falling(0.01) * [1.01, 0.99, 1.01, 0.99, 1.01, 0.99], 3.1, Verdict.UNDER_DETERMINED, "standard deviations"),
        (falling(), 9.0, Verdict.TRUSTWORTHY, ""),
    ],
)
def test_each_domain_gets_the_worst_verdict_that_applies(losses, initial, verdict, advice):
    got = estimate(losses[:, None], [initial])
    assert got.verdict == (verdict,)
    assert advice in got.advice[0]


@pytest.mark.parametrize(
    ("tokens", "target", "verdict"),
    [
        (np.geomspace(0.005, 0.05, 6), 1.0, Verdict.TOO_FAR),
        (np.geomspace(0.2, 0.4, 6), 1.0, Verdict.CURVATURE),
        (np.geomspace(0.05, 0.4, 4), 1.0, Verdict.FEW_POINTS),
        (np.geomspace(0.05, 0.4, 6), 0.1, Verdict.BACKWARDS),
    ],
)
def test_the_design_of_the_points_is_judged(tokens, target, verdict):
    losses = 2 + 0.3 / tokens[:, None] ** 0.5
    got = estimate_targets(tokens, losses, target, initial_losses=np.array([9.0]))
    assert got.verdict == (verdict,)


def test_a_target_above_the_current_loss_is_told():
    got = estimate(falling()[:, None], [9.0], current_losses=np.array([3.2]))
    assert got.verdict == (Verdict.NOT_BELOW_CURRENT,)
    assert got.diagnostics.gap_to_current[0] == pytest.approx(3.2 - got.target[0])


def test_a_wide_target_is_too_wide_for_a_velocity():
    tokens, losses, _ = curves(0.02, 8, domains=1, seed=3)
    got = estimate_targets(tokens, losses, 1.0, initial_losses=losses[-1:].ravel() * 1.02)
    assert Verdict.TOO_WIDE in got.verdicts[0]


def test_the_annealing_law_predicts_another_schedule():
    def rates(steps):
        return 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))

    proxy, real = areas(rates(80), decay=0.95), areas(rates(400), decay=0.95)
    early = np.unique(np.geomspace(8, 79, 24).astype(int))
    late = np.unique(np.geomspace(21, 79, 2 * len(early)).astype(int))[-len(early) :]
    law = lambda of, step: 2 + 6 * of.forward[step] ** -0.4 - 0.05 * of.annealed[step]  # noqa: E731
    rng, truth = np.random.default_rng(0), law(real, -1)
    full, blurred, blind = [], [], []
    for _ in range(5):
        noise = np.exp(0.002 * rng.standard_normal((len(early), 8)))
        for steps, found in ((early, full), (late, blurred)):
            got = estimate_targets(
                proxy.forward[steps],
                law(proxy, steps)[:, None] * noise,
                real.forward[-1],
                annealed=proxy.annealed[steps],
                target_annealed=real.annealed[-1],
            )
            found.append((truth, got))
        last = early[-20:]
        blind.append(estimate_targets(8.0 + last, law(proxy, last)[:, None] * noise[-20:], 400.0).target)
    assert share_with(Verdict.CURVATURE, full) < 0.3
    assert share_with(Verdict.CURVATURE, blurred) > 0.9
    condition = [np.median([got.diagnostics.condition for _, got in found]) for found in (full, blurred)]
    assert condition[0] < 2e4 < 5e4 < condition[1]
    decades = [found[0][1].diagnostics.range_decades[0] for found in (full, blurred)]
    assert decades[0] > 0.6 > 0.45 > decades[1]
    error = np.median([np.abs(got.target - truth) for _, got in full])
    assert error < 0.15
    assert 0.8 <= covered(full) <= 1.0
    assert np.median(np.abs(np.array(blind) - truth)) > 2 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": 1.0}, "level must lie in"), ({"drop_head": 4}, 'must be "auto" or leave three points of the 6')],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(falling()[:, None], [9.0], **options)
    with pytest.raises(ValueError, match="target_tokens must be positive"):
        estimate_targets(TOKENS, falling()[:, None], 0.0)


def three():
    losses = np.stack([falling(), np.linspace(3, 3.2, 6), falling()], axis=1)
    initial = np.array([9.0, 4.0, 3.0])
    return estimate(losses, initial), initial, {"names": ("a", "b", "c")}


def test_unusable_targets_are_refused_or_replaced_aloud():
    got, initial, names = three()
    assert {got.verdict[1], got.verdict[2]} <= UNUSABLE
    with pytest.raises(UserError, match="no usable target loss for 'b': .*; 'c': "):
        apply_policy(got, initial, policy="error", **names)
    target, notes = apply_policy(got, initial, policy="last_seen", **names)
    np.testing.assert_allclose(target, [got.target[0], 3.2, falling()[-1]])
    assert len(notes) == 2
    assert "domain 'b'" in notes[0]
    assert "the remaining fraction counts as 0" in notes[1]
    target, notes = apply_policy(got, initial, policy="given", fallback=(1.0, 2.5, 2.0), **names)
    np.testing.assert_allclose(target, [got.target[0], 2.5, 2.0])
    assert "The given target, 2.500, is used" in notes[0]


def test_the_pooled_law_gives_a_rising_domain_the_others_fall_at_its_own_level():
    got, initial, names = three()
    target, notes = apply_policy(got, initial, policy="pooled", **names)
    # The common law is that of 'a', 3 + 0.5 / D^0.5; b keeps the mean height of its logarithms above it.
    height = np.log(np.linspace(3, 3.2, 6) / falling()).mean()
    np.testing.assert_allclose(target[1], 3.5 * np.exp(height), rtol=1e-3)
    np.testing.assert_allclose(target[2], 3.5, rtol=1e-3)
    assert "common law" in notes[0]


def test_a_strict_policy_also_replaces_doubtful_targets():
    tokens = np.geomspace(0.005, 0.05, 6)
    far = estimate_targets(tokens, (2 + 0.3 / tokens**0.5)[:, None], 1.0, initial_losses=np.array([9.0]))
    options = {"policy": "last_seen", "names": ("a",)}
    assert apply_policy(far, np.array([9.0]), **options)[1] == []
    target, notes = apply_policy(far, np.array([9.0]), strict=True, **options)
    np.testing.assert_allclose(target, [2 + 0.3 / 0.05**0.5])
    assert "decades beyond" in notes[0]


def test_domains_lend_each_other_their_beta():
    rng = np.random.default_rng(5)
    tokens, truth, losses = np.geomspace(0.05, 0.4, 8), [], []
    for _ in range(DOMAINS):
        E, B = rng.uniform(1, 3), rng.uniform(0.3, 1)
        losses.append((E + B * (tokens / 0.14) ** -1.3) * np.exp(0.006 * rng.standard_normal(8)))
        truth.append(E + B * (1 / 0.14) ** -1.3)
    losses = np.stack(losses, axis=1)
    alone, shared = (estimate_targets(tokens, losses, 1.0, share_beta=share) for share in (False, True))
    assert shared.beta_prior[0] > 0.8
    assert shared.beta_prior[1] < 0.6
    errors = [np.median(np.abs(got.target - truth)) for got in (alone, shared)]
    assert errors[1] < errors[0]
    assert (shared.upper - shared.lower).mean() < 0.8 * (alone.upper - alone.lower).mean()
    assert ((shared.lower <= truth) & (truth <= shared.upper)).mean() > 0.8
