"""ADO by hand and on planted laws; recorded numbers of its code are in `test_fixtures`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets
from vtune_jax.rules.ado import Ado, with_law
from vtune_jax.rules.ado_fit import Law, fit_laws, objective, smoothed, smoothing_rows
from vtune_jax.rules.config import numbers_of, with_numbers

PRIOR = jnp.array([0.25, 0.75])
TARGETS = Targets(*(jnp.full(2, jnp.nan),) * 3, prior=PRIOR)
SOON = {"start": 0, "ignore": 0, "stride": 1, "filter_window": 1, "tokens_per_count": 1.0}


def seen(losses, counts):
    counts = jnp.asarray(counts, jnp.int32)
    sums = LossSums(jnp.asarray(losses, jnp.float32) * counts, counts)
    return Observation(sums, sums, jnp.zeros(len(counts)), jnp.asarray(0))


def test_one_step_of_the_policy_by_hand():
    method = rules.ado(**SOON, refit_every=10**6, capacity=8)
    law = Law(jnp.log(jnp.array([2.0, 3.0])), jnp.zeros(2), jnp.array([0.5, 0.02]))
    history = method.observe(with_law(method.init(TARGETS), law), seen([3.0, 2.0], [40, 60]))
    weights = method.update(PRIOR, history, TARGETS)
    credit = 0.9 * np.array([0.25, 0.75]) + 0.1 * np.array([0.4, 0.6])
    # n is 100 for both; the small exponent counts as 0.05 in front, and as itself in the law.
    slope = np.array([0.5 * 2.0 * 100**-0.5 / 100, 0.05 * 3.0 * 100**-0.02 / 100])
    rho = np.array([0.25, 0.75]) * np.sqrt(credit) * slope
    rho /= rho.sum()
    np.testing.assert_allclose(weights, 0.9 * np.array([0.25, 0.75]) + 0.1 * rho, rtol=1e-5)
    # Time is 0: the average forgets where it started.
    np.testing.assert_allclose(history.memory.average, rho, rtol=1e-5)
    own = rules.ado(**SOON, refit_every=10**6, capacity=8, same_counts=False)
    history = own.observe(with_law(own.init(TARGETS), law), seen([3.0, 2.0], [40, 60]))
    assert history.memory.counts.tolist() == [40, 60]
    slope = np.array([0.5 * 2.0 * 40**-0.5 / 40, 0.05 * 3.0 * 60**-0.02 / 60])
    rho = np.array([0.25, 0.75]) * np.sqrt(credit) * slope
    np.testing.assert_allclose(history.memory.average, rho / rho.sum(), rtol=1e-5)


def test_a_share_below_the_least_is_raised_and_all_are_normalised_again():
    method = rules.ado(**SOON, refit_every=10**6, capacity=8, policy_decay=1.0)
    law = Law(jnp.array([-20.0, 0.0]), jnp.zeros(2), jnp.array([0.5, 0.5]))
    history = method.observe(with_law(method.init(TARGETS), law), seen([3.0, 2.0], [50, 50]))
    np.testing.assert_allclose(method.update(PRIOR, history, TARGETS), np.array([0.01, 1.0]) / 1.01, rtol=1e-5)


def test_mixteras_least_share_is_for_domains_seen_so_far():
    options = {**SOON, "refit_every": 0, "capacity": 8, "form": "mixtera", "policy_decay": 0.5}
    method = rules.ado(**options, least_share=0.2)
    prior = jnp.array([0.05, 0.05, 0.9])
    targets = Targets(*(jnp.full(3, jnp.nan),) * 3, prior=prior)
    law = Law(jnp.zeros(3), jnp.zeros(3), jnp.full(3, 0.5))
    history = method.observe(with_law(method.init(targets), law), seen([3.0, 2.0, 2.0], [0, 50, 50]))
    # rho follows prior^1.5 among the two that were seen; the first has what is left of the prior.
    rho = np.array([0.0, 0.05, 0.9]) ** 1.5 / (0.05**1.5 + 0.9**1.5)
    chosen = 0.5 * np.asarray(prior) + 0.5 * rho
    raised = np.array([chosen[0], 0.2, chosen[2]])
    np.testing.assert_allclose(method.update(prior, history, targets), raised / raised.sum(), rtol=1e-5)


def test_a_state_can_be_donated():
    method = rules.ado(**SOON, refit_every=0, capacity=8)
    observe = jax.jit(method.observe, donate_argnums=0)
    history = observe(method.init(TARGETS), seen([3.0, 2.0], [40, 60]))
    assert int(history.memory.time) == 1


def test_without_evidence_nothing_moves_even_once_there_is_a_law():
    method = rules.ado(**SOON, refit_every=0, capacity=8)
    law = Law(jnp.zeros(2), jnp.zeros(2), jnp.array([0.5, 0.1]))
    history = method.observe(with_law(method.init(TARGETS), law), seen([3.0, 2.0], [40, 60]))
    weights = method.update(PRIOR, history, TARGETS)
    later = method.observe(history, seen([3.0, 2.0], [0, 0]))
    np.testing.assert_array_equal(method.update(weights, later, TARGETS), weights)
    for part in ("credit", "average", "counts", "time"):
        np.testing.assert_array_equal(getattr(later.memory, part), getattr(history.memory, part))


def planted(length=400, batch=64.0):
    """Losses on two power laws that the penalties leave alone."""
    n = batch * np.arange(1, length + 1)
    return n, np.stack([np.exp(0.6) + 4.0 * n**-0.3, np.exp(0.9) + 9.0 * n**-0.6], axis=1)


def test_planted_laws_are_recovered_without_the_filter():
    n, losses = planted()
    with jax.enable_x64(True):
        law, value = jax.jit(fit_laws)(jnp.tile(n[:, None], (1, 2)), jnp.asarray(losses), jnp.ones(len(n), bool))
    np.testing.assert_allclose(law.alpha, [0.3, 0.6], rtol=1e-5)
    np.testing.assert_allclose(np.exp(law.log_beta), [4.0, 9.0], rtol=1e-4)
    np.testing.assert_allclose(law.log_e, [0.6, 0.9], rtol=1e-5)
    np.testing.assert_allclose(value, -1e-3, atol=1e-12)


def test_the_fit_in_single_precision_predicts_the_same_losses():
    n, losses = planted()
    counts = jnp.tile(n[:, None], (1, 2))
    law, _ = jax.jit(fit_laws)(jnp.float32(counts), jnp.float32(losses), jnp.ones(len(n), bool))
    assert law.alpha.dtype == jnp.float32
    predicted = np.exp(law.log_e) + np.exp(np.asarray(law.log_beta) - np.asarray(law.alpha) * np.log(n)[:, None])
    np.testing.assert_allclose(predicted, losses, rtol=1e-3)
    np.testing.assert_allclose(law.alpha, [0.3, 0.6], rtol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_no_worse_than_a_long_search_by_a_general_optimiser(seed):
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    n = 64.0 * np.arange(10, 400, 10)
    loss = np.exp(rng.uniform(0.4, 1.0)) + np.exp(rng.uniform(0.0, 3.0)) * n ** -rng.uniform(0.05, 0.7)
    loss = loss * np.exp(rng.normal(0, 0.005, len(n)))
    with jax.enable_x64(True):
        kept = jnp.ones(len(n), bool)
        _, value = jax.jit(fit_laws)(jnp.asarray(n[:, None]), jnp.asarray(loss[:, None]), kept)
        general = jax.jit(lambda law: objective(law, jnp.log(n), jnp.log(loss), kept))
        options = {"maxiter": 3000, "xatol": 1e-10, "fatol": 1e-15}
        best = min(
            minimize(general, start, method="Nelder-Mead", options=options).fun
            for start in ([1.0, 0.6, 0.2], [3.0, 0.6, 0.5], [0.0, 0.9, 0.1], [2.0, 0.5, 0.7], [5.0, 0.8, 0.6])
        )
    assert float(value[0]) <= best + 1e-9


@pytest.mark.parametrize("form", ["ado", "mixtera"])
def test_many_points_pull_the_irreducible_loss_below_its_penalty_in_ados_form_alone(form):
    # Near 1.2 nats, below exp(0.5): 3000 points pull with up to 3, the published penalty holds with 1, mixtera's more.
    from scipy.optimize import minimize

    n = 64.0 * np.arange(1, 3001)
    loss = 1.2 + 20.0 * n**-0.5
    with jax.enable_x64(True):
        kept = jnp.ones(len(n), bool)
        steepness = 1.0 if form == "ado" else 1e3 * len(n)
        law, value = jax.jit(fit_laws)(jnp.asarray(n[:, None]), jnp.asarray(loss[:, None]), kept, steepness)
        general = jax.jit(lambda law: objective(law, jnp.log(n), jnp.log(loss), kept, steepness))
        options = {"maxiter": 3000, "xatol": 1e-9, "fatol": 1e-13}
        starts = ([3.0, 0.18, 0.5], [3.0, 0.5, 0.6])
        best = min(minimize(general, start, method="Nelder-Mead", options=options).fun for start in starts)
    assert float(value[0]) <= best + 1e-6
    if form == "ado":
        assert 0.0 < float(law.log_e[0]) < 0.49
    else:
        np.testing.assert_allclose(law.log_e, 0.5, atol=1e-9)


def test_a_fit_of_points_without_information_is_finite_in_both_precisions():
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            counts = jnp.ones((20, 3), dtype) * jnp.arange(1, 21, dtype=dtype)[:, None]
            losses = jnp.ones((20, 3), dtype) * jnp.array([2.0, 1e-30, 1e4], dtype)
            for kept in (jnp.ones(20, bool), jnp.zeros(20, bool)):
                law, value = jax.jit(fit_laws)(counts, losses, kept)
                assert all(np.isfinite(part).all() and part.dtype == dtype for part in (*law, value))


def test_the_domains_of_a_fit_do_not_see_each_other():
    # More domains than are fitted side by side, so that some take turns.
    n, losses = planted(60)
    counts, many = jnp.tile(jnp.float32(n)[:, None], (1, 37)), jnp.tile(jnp.float32(losses), (1, 19))[:, :37]
    fit = jax.jit(fit_laws)
    law, _ = fit(counts, many, jnp.ones(60, bool))
    alone, _ = fit(counts[:, :2], many[:, :2], jnp.ones(60, bool))
    for part, single in zip(law, alone, strict=True):
        np.testing.assert_allclose(part, np.tile(single, 19)[:37], rtol=2e-3)


def test_the_smoothing_is_scipys_filter_ends_included():
    from scipy.signal import savgol_filter

    rng = np.random.default_rng(0)
    record = rng.normal(3, 1, (300, 2))
    with jax.enable_x64(True):
        # The record is longer than what has been written.
        found = smoothed(jnp.asarray(record), jnp.asarray(250), jnp.arange(250), smoothing_rows(101))
    np.testing.assert_allclose(found, savgol_filter(record[:250], 101, 3, axis=0), rtol=1e-9)


def run(method, losses, counts=(40, 60), targets=TARGETS):
    def body(carry, row):
        weights, history = carry
        history = method.observe(history, seen(row, counts))
        weights = method.update(weights, history, targets)
        return (weights, history), weights

    start = (targets.prior, method.init(targets))
    return jax.jit(lambda rows: jax.lax.scan(body, start, rows))(jnp.asarray(losses, jnp.float32))


def test_a_law_is_fitted_on_the_way_and_the_domain_that_still_falls_gets_more():
    n, _ = planted(60, batch=100.0)
    falls, flat = 2.0 + 30.0 * n**-0.5, np.full(60, 3.0)
    method = rules.ado(**{**SOON, "start": 20}, refit_every=10, capacity=64, policy_decay=1.0)
    (weights, history), path = run(method, np.stack([falls, flat], axis=1))
    np.testing.assert_array_equal(path[19], PRIOR)
    assert bool(history.memory.fitted)
    np.testing.assert_allclose(history.memory.law.alpha[0], 0.5, rtol=0.05)
    assert float(weights[0]) > 0.9
    assert float(path[20][0]) > float(PRIOR[0])


def test_a_run_in_single_precision_stays_close_to_double(record_property):
    n, _ = planted(60, batch=100.0)
    losses = np.stack([2.0 + 30.0 * n**-0.5, 2.5 + 10.0 * n**-0.3], axis=1)
    method = rules.ado(**{**SOON, "start": 20}, refit_every=10, capacity=64)
    _, single = run(method, losses)
    with jax.enable_x64(True):
        double_targets = Targets(*(jnp.asarray(np.asarray(part), jnp.float64) for part in TARGETS[:4]))
        _, double = run(method, losses, targets=double_targets)
    assert np.asarray(double).dtype == np.float64
    error = np.abs(np.asarray(single) - np.asarray(double)).max()
    record_property("largest error of a weight in float32", float(error))
    assert error < 5e-3


def test_two_problems_with_their_fits_mapped_over_equal_a_loop():
    n, _ = planted(30, batch=100.0)
    method = rules.ado(**{**SOON, "start": 10}, refit_every=10, capacity=32)
    rows = jnp.stack([2.0 + jnp.outer(n**-0.5, c) for c in (np.array([30.0, 10.0]), np.array([5.0, 20.0]))])
    mapped = jax.vmap(lambda losses: run(method, losses)[1])(rows)
    looped = np.stack([run(method, losses)[1] for losses in rows])
    assert np.abs(looped - np.asarray(PRIOR)).max() > 1e-3
    np.testing.assert_allclose(mapped, looped, atol=2e-4)


@pytest.mark.parametrize("form", ["ado", "mixtera"])
def test_numbers_as_data_give_the_policy_of_numbers_as_constants_alone_and_mapped_over(form):
    config = Ado(**SOON, form=form, refit_every=0, capacity=8, floor=0.01)
    law = Law(jnp.log(jnp.array([2.0, 3.0])), jnp.zeros(2), jnp.array([0.5, 0.02]))

    def policy(config):
        method, weights = config.build(), PRIOR
        history = with_law(method.init(TARGETS), law)
        for losses, counts in (([3.0, 2.0], [40, 60]), ([2.9, 1.9], [10, 90]), ([2.8, 1.9], [70, 30])):
            history = method.observe(history, seen(losses, counts))
            weights = method.update(weights, history, TARGETS)
        return weights

    traced = jax.jit(lambda numbers: policy(with_numbers(config, numbers)))
    numbers = numbers_of(config)
    others = jax.tree.map(lambda value: 0.8 * value, numbers)
    np.testing.assert_allclose(traced(numbers), policy(config), rtol=0, atol=1e-6)
    both = jax.tree.map(lambda *rows: jnp.stack(rows), numbers, others)
    mapped = jax.vmap(traced)(both)
    np.testing.assert_allclose(mapped, np.stack([traced(numbers), traced(others)]), rtol=0, atol=1e-6)
    assert np.abs(mapped[0] - mapped[1]).max() > 1e-4


def test_numbers_as_data_give_the_fits_of_numbers_as_constants():
    n, _ = planted(30, batch=100.0)
    losses = 2.0 + jnp.outer(n**-0.5, np.array([30.0, 10.0]))
    config = Ado(**{**SOON, "start": 10}, refit_every=10, capacity=32)
    traced = jax.jit(lambda numbers: run(with_numbers(config, numbers).build(), losses)[1])(numbers_of(config))
    constant = run(config.build(), losses)[1]
    assert np.abs(np.asarray(constant) - np.asarray(PRIOR)).max() > 1e-3
    np.testing.assert_allclose(traced, constant, atol=2e-4)


def test_when_the_record_is_full_the_newest_observations_are_fitted():
    n, losses = planted(100, batch=100.0)
    method = rules.ado(**SOON, refit_every=99, capacity=40, same_counts=True)
    (_, history), _ = run(method, losses)
    counts = jnp.tile(n[60:, None], (1, 2))
    law, _ = fit_laws(jnp.float32(counts), jnp.float32(losses[60:]), jnp.ones(40, bool))
    found = history.memory.law
    predicted, expected = (np.exp(one.log_e) + np.exp(one.log_beta - one.alpha * np.log(1e4)) for one in (found, law))
    np.testing.assert_allclose(predicted, expected, rtol=1e-4)


def test_an_absent_domain_is_recorded_at_its_last_loss_and_a_bad_one_counts_as_absent():
    method = rules.ado(**SOON, refit_every=10**6, capacity=8)
    history = method.observe(method.init(TARGETS), seen([3.0, 2.0], [0, 60]))
    np.testing.assert_allclose(history.memory.record.losses[0], [2.0, 2.0])  # the batch's mean, at the very start
    history = method.observe(history, seen([4.0, 1.0], [10, 0]))
    np.testing.assert_allclose(history.memory.record.losses[1], [4.0, 2.0])
    history = method.observe(history, seen([np.nan, 1.5], [10, 10]))
    np.testing.assert_allclose(history.memory.record.losses[2], [4.0, 1.5])
    before = history
    after = method.observe(history, seen([np.inf, np.nan], [10, 10]))
    assert int(after.memory.time) == int(before.memory.time)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_window": 100}, "filter_window must be odd, got 100"),
        ({"capacity": 100}, "capacity must be at least 1031, what a first fit takes, got 100"),
        ({"least_share": -0.1}, r"least_share must lie in \[0, 1\], got -0.1"),
        ({"tokens_per_count": 0.0}, "tokens_per_count must be positive, got 0.0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rules.ado(**options)


def test_the_first_fit_comes_when_the_config_says():
    config = Ado(start=12, refit_every=10, ignore=3, stride=2, filter_window=5, tokens_per_count=1.0)
    assert config.intervals(2) == 21
    _, losses = planted(25)
    _, path = run(config.build(), losses)
    moved = np.abs(np.asarray(path) - np.asarray(PRIOR)).max(axis=1) > 0
    assert moved.argmax() == 20
