"""The law over model sizes: planted laws, scipy, and the points of Chinchilla's figure where somebody has them."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from vtune_jax.fits.laws.chinchilla import bootstrap_chinchilla, fit_chinchilla, predict
from vtune_jax.fits.solver import Status

FOLDER = Path(os.environ.get("VTUNE_CHINCHILLA", "../shared/data/chinchilla"))
NAMES = ("A", "B", "E", "alpha", "beta")


def planted(noise=0.0, seed=0, count=60):
    rng = np.random.default_rng(seed)
    params, tokens = (10 ** rng.uniform(low, low + 2.5, count) for low in (7.5, 9.0))
    losses = 1.7 + 400.0 / params**0.34 + 1800.0 / tokens**0.36
    return params, tokens, losses * np.exp(noise * rng.standard_normal(count))


def by_name(fit):
    return dict(zip(NAMES, (np.exp(fit.log_A), np.exp(fit.log_B), fit.E, fit.alpha, fit.beta), strict=True))


def test_exact_points_give_the_planted_law_back():
    params, tokens, losses = planted()
    fit = fit_chinchilla(params, tokens, losses[:, None])
    got = by_name(fit)
    for name, value in zip(NAMES, (400.0, 1800.0, 1.7, 0.34, 0.36), strict=True):
        np.testing.assert_allclose(got[name], value, rtol=1e-6)
    np.testing.assert_allclose(predict(fit, 1e10, 1e12), 1.7 + 400 / 1e10**0.34 + 1800 / 1e12**0.36, rtol=1e-8)
    assert fit.status[0] == Status.CONVERGED


def test_a_law_without_irreducible_loss_is_found_on_its_face():
    params, tokens, _ = planted()
    fit = fit_chinchilla(params, tokens, (20.0 / params**0.1 + 30.0 / tokens**0.15)[:, None])
    assert fit.E[0] < 1e-6
    np.testing.assert_allclose([fit.alpha[0], fit.beta[0]], [0.1, 0.15], rtol=1e-4)


def objective(parameters, n, d, logs, delta):
    a, b, e, alpha, beta = parameters
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    size = np.abs(logs - np.logaddexp.reduce(terms, axis=0))
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_never_worse_than_a_long_scipy_search(seed):
    params, tokens, losses = planted(noise=0.01, seed=seed)
    delta = (1e-3, 1e-2, 1.0)[seed]
    ours = fit_chinchilla(params, tokens, losses[:, None], delta=delta).objective[0]
    n, d = (np.log(x) - np.log(x).mean() for x in (params, tokens))
    best = np.inf
    for start in ([-1.0, -1.0, 0.5, 0.3, 0.3], [0.0, -2.0, 0.3, 0.5, 0.2], [-2.0, 0.0, 0.6, 0.2, 0.6]):
        for _ in range(3):
            found = minimize(
                lambda p: objective(p, n, d, np.log(losses), delta) / delta,
                start,
                method="Nelder-Mead",
                options={"maxiter": 6000, "maxfev": 9000, "xatol": 1e-10, "fatol": 1e-13},
            )
            start = found.x
        best = min(best, found.fun * delta)
    assert ours <= best * (1 + 1e-6)
    assert best <= ours * 1.01  # a search that comes nowhere near would show nothing


def test_replicates_equal_fits_of_the_points_drawn():
    params, tokens, losses = planted(noise=0.01)
    indices = np.random.default_rng(1).integers(0, 60, (5, 60))
    replicates = bootstrap_chinchilla(params, tokens, losses, indices)
    for place, drawn in enumerate(indices):
        alone = fit_chinchilla(params[drawn], tokens[drawn], losses[drawn][:, None])
        np.testing.assert_allclose(replicates.objective[place], alone.objective[0], rtol=1e-6)
        np.testing.assert_allclose(replicates.beta[place], alone.beta[0], rtol=1e-3)


def test_order_changes_nothing_and_too_few_points_are_refused():
    params, tokens, losses = planted(noise=0.01)
    order = np.random.default_rng(2).permutation(60)
    left = fit_chinchilla(params, tokens, losses[:, None])
    right = fit_chinchilla(params[order], tokens[order], losses[order][:, None])
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="at least 5 points in every domain, got 4"):
        fit_chinchilla(params[:4], tokens[:4], losses[:4, None])
    with pytest.raises(ValueError, match="params must be positive and finite, got 0"):
        fit_chinchilla(params * 0, tokens, losses[:, None])


def figure():
    rows = list(csv.DictReader((FOLDER / "epoch_chinchilla_245.csv").read_text().splitlines()))
    params, flops, losses = (np.array([float(row[n]) for row in rows]) for n in ("Model Size", "Training FLOP", "loss"))
    kept = losses < np.sort(losses)[-5]
    return tuple(column[kept] for column in (params, flops / (6 * params), losses))


@pytest.mark.skipif(not FOLDER.exists(), reason="the points have no licence; VTUNE_CHINCHILLA names their folder")
def test_the_fits_of_chinchillas_figure_are_found():
    params, tokens, losses = figure()
    assert len(losses) == 240
    expected = json.loads((FOLDER / "expected.json").read_text())["fits_240"]
    for delta, fit in expected.items():
        got = fit_chinchilla(params, tokens, losses[:, None], delta=float(delta))
        np.testing.assert_allclose(got.objective[0], fit["objective"], rtol=1e-7 if float(delta) < 1e-5 else 1e-9)
        for name, value in by_name(got).items():
            np.testing.assert_allclose(value[0], fit[name], rtol=1e-5)


@pytest.mark.skipif(not FOLDER.exists(), reason="the points have no licence; VTUNE_CHINCHILLA names their folder")
def test_the_published_standard_errors_follow_from_the_published_resamples():
    params, tokens, losses = figure()
    random = np.random.RandomState(42)
    rows = np.arange(240)
    indices = np.stack([random.choice(rows, size=240, replace=True) for _ in range(4000)])
    replicates = by_name(bootstrap_chinchilla(params, tokens, losses, indices))
    expected = json.loads((FOLDER / "expected.json").read_text())["bootstrap"]["converged"]["se"]
    for name, value in replicates.items():
        np.testing.assert_allclose(value.std(ddof=1), expected[name], rtol=1e-3)
