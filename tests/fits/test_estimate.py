import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.fits import Target, Verdict, apply_policy, areas, estimate_targets
from vtune_jax.fits.diagnostics import UNUSABLE
from vtune_jax.fits.solver import Status

TOKENS = np.geomspace(0.05, 0.4, 6)


def curves(noise, points, domains=512, seed=0, rho=0.0):
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


def covered(tokens, losses, truth, level, **options):
    got = estimate_targets(tokens, losses, 1.0, level=level, model_error_per_decade=0.0, **options)
    return ((got.lower <= truth) & (truth <= got.upper)).mean(), got


@pytest.mark.parametrize(("points", "noise"), [(4, 0.003), (6, 0.005), (10, 0.005), (20, 0.002)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(points, noise):
    tokens, losses, truth = curves(noise, points)
    for level, low, high in ((0.8, 0.74, 0.86), (0.95, 0.91, 0.98)):
        assert low <= covered(tokens, losses, truth, level)[0] <= high


def test_correlated_evaluations_widen_the_interval_and_are_told():
    tokens, losses, truth = curves(0.005, 20, rho=0.7)
    share, got = covered(tokens, losses, truth, 0.95)
    assert share >= 0.8
    told, quiet = (
        np.mean([Verdict.AUTOCORRELATED in said for said in of.verdicts])
        for of in (got, covered(*curves(0.005, 20), 0.95)[1])
    )
    assert told > 0.5
    assert quiet < 0.1


def test_the_bootstrap_says_about_the_same():
    tokens, losses, truth = curves(0.005, 20, domains=64)
    share, got = covered(tokens, losses, truth, 0.95, method="bootstrap", replicates=300)
    assert 0.85 <= share <= 1.0
    posterior = covered(tokens, losses, truth, 0.95)[1]
    ratio = np.median((got.upper - got.lower) / (posterior.upper - posterior.lower))
    assert 0.7 < ratio < 1.5
    np.testing.assert_allclose(got.target, got.fit.E + np.exp(got.fit.log_B), rtol=1e-9)


def test_outliers_are_told_and_hardly_move_the_target():
    tokens, losses, _ = curves(0.001, 20, domains=32)
    spoiled = losses.copy()
    spoiled[12] *= 1.1
    clean, got = (estimate_targets(tokens, x, 1.0) for x in (losses, spoiled))
    assert np.median(np.abs(got.target / clean.target - 1)) < 0.003
    assert np.mean([Verdict.OUTLIERS in said for said in got.verdicts]) > 0.9
    assert np.mean([Verdict.OUTLIERS in said for said in clean.verdicts]) < 0.1


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
    assert got.as_json()["upper"] == [None]


def test_order_duplicates_and_gaps_change_nothing():
    tokens, losses, _ = curves(0.005, 12, domains=3)
    order = np.random.default_rng(1).permutation(12)
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
    losses = (2 + 0.3 / tokens[:, None] ** 0.5) * np.exp(0.01 * rng.standard_normal((20, 512)))
    got = estimate_targets(tokens, losses, 1.0)
    assert np.mean([Verdict.AUTOCORRELATED in said for said in got.verdicts]) < 0.1
    np.testing.assert_allclose(got.last_seen, losses[-4:].mean(axis=0))


@pytest.mark.parametrize("delta", [1e-3, "auto"])
@pytest.mark.parametrize("points", [5, 8, 20])
def test_normal_residuals_are_no_outliers_however_few(points, delta):
    tokens, losses, _ = curves(0.01, points)
    got = estimate_targets(tokens, losses, 1.0, delta=delta)
    assert np.mean([Verdict.OUTLIERS in said for said in got.verdicts]) < 0.02


def test_a_search_that_ended_early_is_told():
    tokens, losses, _ = curves(0.03, 4, domains=512)
    got = estimate_targets(tokens, losses, 1.0, delta=1e-3)
    ended = got.fit.status != Status.CONVERGED
    assert 0 < ended.sum() < 100
    np.testing.assert_array_equal([Verdict.NOT_CONVERGED in said for said in got.verdicts], ended)


def falling(drop=0.5):
    return 3 + drop / TOKENS**0.5


@pytest.mark.parametrize(
    ("losses", "initial", "verdict", "said"),
    [
        (np.linspace(3, 3.2, 6), 4.0, Verdict.RISING, "does not fall"),
        (falling(), 3.0, Verdict.NOT_BELOW_INITIAL, "not 0.01 nats below the initial loss 3.000"),
        (falling(0.01) * [1.01, 0.99, 1.01, 0.99, 1.01, 0.99], 3.1, Verdict.UNDER_DETERMINED, "standard deviations"),
        (falling(), 9.0, Verdict.TRUSTWORTHY, ""),
    ],
)
def test_each_domain_gets_the_worst_verdict_that_applies(losses, initial, verdict, said):
    got = estimate(losses[:, None], [initial])
    assert got.verdict == (verdict,)
    assert said in got.advice[0]


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
    at = np.unique(np.geomspace(8, 79, 24).astype(int))
    law = lambda of, step: 2 + 6 * of.forward[step] ** -0.4 - 0.05 * of.annealed[step]  # noqa: E731
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal((len(at), 40)))
    got = estimate_targets(
        proxy.forward[at],
        law(proxy, at)[:, None] * noise,
        real.forward[-1],
        annealed=proxy.annealed[at],
        target_annealed=real.annealed[-1],
        level=0.9,
    )
    assert np.mean([Verdict.CURVATURE in said for said in got.verdicts]) < 0.3
    late = np.unique(np.geomspace(21, 79, 2 * len(at)).astype(int))[-len(at) :]  # as many: nothing compiles anew
    blurred = estimate_targets(
        proxy.forward[late], law(proxy, late)[:, None] * noise, real.forward[-1], annealed=proxy.annealed[late]
    )
    assert np.mean([Verdict.CURVATURE in said for said in blurred.verdicts]) > 0.9
    early, blunt = got.diagnostics, blurred.diagnostics
    assert np.median(early.condition) < 2e4 < 5e4 < np.median(blunt.condition)
    assert early.range_decades[0] > 0.6 > 0.45 > blunt.range_decades[0]
    truth = law(real, -1)
    assert np.median(np.abs(got.target - truth)) < 0.15
    assert 0.8 <= ((got.lower <= truth) & (truth <= got.upper)).mean() <= 1.0
    blind = estimate_targets(8.0 + at, law(proxy, at)[:, None] * noise, 400.0)
    assert np.median(np.abs(blind.target - truth)) > 2 * np.median(np.abs(got.target - truth))


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
        apply_policy(got, Target(1.0), initial, policy="error", **names)
    target, notes = apply_policy(got, Target(1.0), initial, policy="last_seen", **names)
    np.testing.assert_allclose(target, [got.target[0], 3.2, falling()[-1]])
    assert len(notes) == 2
    assert "domain 'b'" in notes[0]
    assert "the remaining fraction counts as 0" in notes[1]
    target, notes = apply_policy(got, Target(1.0), initial, policy="given", given=(1.0, 2.5, 2.0), **names)
    np.testing.assert_allclose(target, [got.target[0], 2.5, 2.0])
    assert "The given target, 2.500, is used" in notes[0]


def test_the_pooled_law_gives_a_rising_domain_the_others_fall_at_its_own_level():
    got, initial, names = three()
    target, notes = apply_policy(got, Target(1.0), initial, policy="pooled", **names)
    # The common law is that of 'a', 3 + 0.5 / D^0.5; b keeps the mean height of its logarithms above it.
    height = np.log(np.linspace(3, 3.2, 6) / falling()).mean()
    np.testing.assert_allclose(target[1], 3.5 * np.exp(height), rtol=1e-3)
    np.testing.assert_allclose(target[2], 3.5, rtol=1e-3)
    assert "common law" in notes[0]


def test_a_strict_policy_also_replaces_doubtful_targets():
    tokens = np.geomspace(0.005, 0.05, 6)
    far = estimate_targets(tokens, (2 + 0.3 / tokens**0.5)[:, None], 1.0, initial_losses=np.array([9.0]))
    options = {"policy": "last_seen", "names": ("a",)}
    assert apply_policy(far, Target(1.0), np.array([9.0]), **options)[1] == []
    target, notes = apply_policy(far, Target(1.0), np.array([9.0]), strict=True, **options)
    np.testing.assert_allclose(target, [2 + 0.3 / 0.05**0.5])
    assert "decades beyond" in notes[0]


def test_domains_lend_each_other_their_beta():
    rng = np.random.default_rng(5)
    tokens, truth, losses = np.geomspace(0.05, 0.4, 8), [], []
    for _ in range(24):
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
