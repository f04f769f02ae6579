"""Laws of mixtures, the mixture they propose, and trees: planted truths and general optimisers."""

import numpy as np
import pytest
from scipy.optimize import minimize

from vtune_jax.proposals.convex_proposer import propose_mixture
from vtune_jax.proposals.mixing_law import fit_mixing_laws
from vtune_jax.proposals.random_mixtures import GRAIN, random_mixtures
from vtune_jax.proposals.trees import fit_trees, search_by_simulation


def planted(seed, domains=4, tasks=3, runs=30):
    rng = np.random.default_rng(seed)
    t, c = rng.normal(-0.5, 0.8, (tasks, domains)), rng.uniform(0.5, 2.0, tasks)
    mixtures = rng.dirichlet(np.ones(domains), runs)
    return mixtures, c + np.exp(mixtures @ t.T), t, c


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_mixing_law_is_recovered(seed):
    mixtures, losses, t, c = planted(seed)
    laws = fit_mixing_laws(mixtures, losses)
    elsewhere = np.random.default_rng(99).dirichlet(np.ones(4), 50)
    np.testing.assert_allclose(laws.predict(elsewhere), c + np.exp(elsewhere @ t.T), rtol=1e-6)
    np.testing.assert_allclose(laws.t, t, rtol=1e-3, atol=1e-4)


def test_outliers_count_linearly():
    mixtures, losses, _, _ = planted(7, runs=40)
    spoiled = losses.copy()
    spoiled[3] += 1.0
    robust = fit_mixing_laws(mixtures, spoiled, delta=0.001).predict(mixtures)
    square = fit_mixing_laws(mixtures, spoiled, delta=10.0).predict(mixtures)
    others = np.arange(40) != 3
    assert np.abs(robust - losses)[others].max() < 0.1 * np.abs(square - losses)[others].max()


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_no_worse_than_a_long_search_by_a_general_optimiser(seed):
    mixtures, losses, _, _ = planted(seed, domains=3, tasks=1)
    noisy = losses[:, 0] + np.random.default_rng(seed).normal(0, 0.02, len(losses))
    delta = 0.05

    def objective(p):
        size = np.abs(np.exp(p[0]) + np.exp(np.clip(mixtures @ p[1:], -50, 50)) - noisy)
        return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).mean()

    starts = np.random.default_rng(seed).normal(0, 1, (20, 4))
    best = min(
        minimize(objective, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-14}).fun
        for start in starts
    )
    assert fit_mixing_laws(mixtures, noisy[:, None], delta=delta).objective[0] <= best * (1 + 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x: (m, x[:-1]), r"losses must be \[runs, tasks\] for as many runs as mixtures"),
        (lambda m, x: (2 * m, x), "mixtures must lie on the simplex"),
        (lambda m, x: (m, -x), "losses must be positive and finite"),
        (lambda m, x: (m[:4], x[:4]), "mixtures must hold at least 5 runs, one per parameter, got 4"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(change, message):
    mixtures, losses, _, _ = planted(0)
    with pytest.raises(ValueError, match=message):
        fit_mixing_laws(*change(mixtures, losses))


def test_two_equal_tasks_of_opposite_taste_are_solved_by_hand():
    # exp(x) + exp(1 - x) with an even prior: one half by symmetry.
    even = propose_mixture(np.eye(2), np.array([0.5, 0.5]), divergence_penalty=0.01)
    np.testing.assert_allclose(even.weights, 0.5, rtol=1e-9)
    # One task that only the first domain helps, x proportional to prior exp(-exp(t x) t / lambda).
    found = propose_mixture(np.array([[-1.0, 0.0]]), np.array([0.5, 0.5]), divergence_penalty=1.0)
    x = found.weights[0]
    np.testing.assert_allclose(np.log(x / (1 - x)), np.exp(-x), rtol=1e-8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capped", [False, True])
def test_the_proposal_is_the_minimum_that_a_general_optimiser_finds(seed, capped):
    rng = np.random.default_rng(seed)
    t, prior, a = rng.normal(0, 1, (5, 4)), rng.dirichlet(np.full(4, 2.0)), rng.dirichlet(np.ones(5))
    caps = prior + rng.uniform(0.02, 0.2, 4) if capped else None
    penalty = 0.05

    def objective(x):
        return (a * np.exp(t @ x)).sum() + penalty * (x * np.log(np.maximum(x, 1e-300) / prior)).sum()

    found = propose_mixture(t, prior, task_weights=a, divergence_penalty=penalty, caps=caps)
    general = minimize(
        objective,
        prior,
        jac=lambda x: (a * np.exp(t @ x)) @ t + penalty * (np.log(np.maximum(x, 1e-300) / prior) + 1),
        bounds=[(1e-12, 1.0 if caps is None else cap) for cap in (caps if capped else np.ones(4))],
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(4)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert found.objective <= general.fun + 1e-10
    np.testing.assert_allclose(found.weights, general.x, atol=2e-5)
    assert found.residual < 1e-8
    np.testing.assert_allclose(found.weights.sum(), 1.0, rtol=1e-12)
    if capped:
        assert (found.weights <= caps + 1e-9).all()
        assert (found.weights > caps - 1e-6).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": np.ones((2, 3))}, r"t must be finite of shape \[tasks, 2\], got shape \(2, 3\)"),
        ({"prior": np.array([0.5, 0.6])}, "prior must lie on the simplex"),
        ({"divergence_penalty": -1.0}, "divergence_penalty must not be negative, got -1.0"),
        ({"task_weights": np.array([1.0, -1.0])}, "task_weights must be 2 positive numbers"),
        ({"caps": np.array([0.2, 0.3])}, "caps must leave room for a mixture, their sum is 0.5"),
        ({"caps": np.array([0.2])}, "caps must be 2 numbers"),
    ],
)
def test_impossible_proposals_are_refused(options, message):
    problem = {"t": np.eye(2), "prior": np.array([0.5, 0.5]), **options}
    with pytest.raises(ValueError, match=message):
        propose_mixture(**problem)


def test_random_mixtures_are_different_rounded_and_not_far_above_the_prior():
    prior = np.array([0.01, 0.09, 0.4, 0.5])
    mixtures = random_mixtures(prior, 40, np.random.default_rng(0))
    assert mixtures.shape == (40, 4)
    np.testing.assert_allclose(mixtures.sum(axis=1), 1, rtol=1e-12)
    assert len({tuple(row) for row in mixtures.round(6).tolist()}) == 40
    flat = np.sqrt(prior) / np.sqrt(prior).sum()
    assert (mixtures <= np.minimum(15 * flat, 1) + 1e-3).all()
    assert mixtures.std(axis=0).min() > 0.05
    assert ((mixtures == 0) | (mixtures > 0.9 * GRAIN)).all()
    np.testing.assert_array_equal(mixtures, random_mixtures(prior, 40, np.random.default_rng(0)))


def test_domains_of_no_weight_stay_out_and_impossible_counts_are_refused():
    mixtures = random_mixtures(np.array([0.0, 0.5, 0.5]), 5, np.random.default_rng(0))
    assert (mixtures[:, 0] == 0).all()
    with pytest.raises(ValueError, match="count must be at most 1 different mixtures of 1 domains, got 2"):
        random_mixtures(np.ones(1), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="prior must lie on the simplex"):
        random_mixtures(np.ones(2), 2, np.random.default_rng(0))


def test_trees_find_the_domain_that_lowers_the_loss():
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(3), 200)
    losses = 3 - mixtures[:, 1] + rng.normal(0, 0.01, 200)
    predict, trees = fit_trees(mixtures[:160], losses[:160], (mixtures[160:], losses[160:]))
    assert 10 < trees <= 1000
    best, predicted = search_by_simulation(predict, rng.dirichlet(np.ones(3), 5000))
    assert best[1] > 0.8
    assert abs(predicted.min() - 2.0) < 0.3


def test_ties_are_averaged_whole():
    draws = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8]])
    best, _ = search_by_simulation(lambda rows: np.array([2.0, 1.0, 1.0, 1.0]), draws, best=2)
    np.testing.assert_allclose(best, draws[1:].mean(axis=0))
