"""The law with learning-rate annealing: its areas by hand, planted laws, scipy, and its faces."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import vtune_jax.fits.laws.annealing as annealing
from vtune_jax.fits.laws import power_law
from vtune_jax.fits.laws.annealing import areas, fit_annealing, predict
from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.solver import Status, _by_differentiation


def schedule(steps=300, warmup=15):
    at = np.arange(1, steps + 1)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.clip((at - warmup) / (steps - warmup), 0, 1)))
    return np.minimum(at / warmup, cosine)


def points(decay=0.99, count=24):
    of = areas(schedule(), decay=decay)
    at = np.unique(np.geomspace(20, 299, count).astype(int))
    return of.forward[at], of.annealed[at]


def test_areas_by_hand():
    # Rates 1, 1, 0.5, 0.5, 0.2 with lambda 0.5: falls 0, 0, 0.5, 0, 0.3; momenta 0, 0, 0.5, 0.25, 0.425.
    of = areas(np.array([1.0, 1.0, 0.5, 0.5, 0.2]), decay=0.5)
    np.testing.assert_allclose(of.forward, [1, 2, 2.5, 3, 3.2])
    np.testing.assert_allclose(of.annealed, [0, 0, 0.5, 0.75, 1.175])


def test_a_rate_may_end_at_zero():
    of = areas(np.array([1.0, 0.5, 0.0]), decay=1.0)
    np.testing.assert_allclose(of.forward, [1, 1.5, 1.5])
    np.testing.assert_allclose(of.annealed, [0, 0.5, 1.5])


def test_a_rise_of_the_rate_is_no_annealing():
    assert areas(np.linspace(0.1, 1, 10)).annealed.tolist() == [0.0] * 10


@pytest.mark.parametrize(
    ("rates", "decay"), [([0.0, 1.0], 0.9), ([1.0, -0.1], 0.9), ([1.0, np.nan], 0.9), ([1.0], 1.1)]
)
def test_impossible_schedules_are_refused(rates, decay):
    with pytest.raises(ValueError, match="must"):
        areas(np.array(rates), decay=decay)


def test_exact_points_give_the_planted_law_back():
    forward, annealed = points()
    planted = np.array([[2.0, 5.0, 0.4, 0.01], [0.0, 5.0, 0.2, 0.005], [1.0, 3.0, 0.6, 0.0], [1.5, 2.0, 0.9, 0.01]])
    E, A, alpha, C = planted.T
    losses = E + A * forward[:, None] ** -alpha - C * annealed[:, None]
    fit = fit_annealing(forward, annealed, losses)
    np.testing.assert_allclose(np.stack([fit.E, np.exp(fit.log_A), fit.alpha, fit.C], 1), planted, rtol=1e-6, atol=1e-8)
    assert (fit.status == Status.CONVERGED).all()
    np.testing.assert_allclose(predict(fit, 500.0, 20.0), E + A * 500.0**-alpha - C * 20, rtol=1e-8)


def test_without_annealing_it_is_the_law_of_the_forward_area():
    forward = np.geomspace(5, 200, 24)
    losses = (2 + 5 * forward**-0.4)[:, None]
    fit = fit_annealing(forward, np.zeros(24), losses)
    np.testing.assert_allclose([fit.E[0], fit.alpha[0], fit.C[0]], [2.0, 0.4, 0.0], rtol=1e-6, atol=1e-9)


def objective(parameters, forward, annealed, logs, delta):
    E, log_a, alpha, C = parameters
    model = (
        np.maximum(E, 0) + np.exp(log_a - np.clip(alpha, 1e-3, 3) * np.log(forward / 50)) - np.maximum(C, 0) * annealed
    )
    size = np.abs(logs - np.log(np.maximum(model, 1e-9)))
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum() / delta


@pytest.mark.parametrize("seed", range(4))
def test_no_search_finds_a_lower_objective(seed):
    rng = np.random.default_rng(seed)
    forward, annealed = points()
    noise = (0.001, 0.003, 0.01, 0.01)[seed]
    law = (
        rng.uniform(0, 2) + rng.uniform(1, 5) * (forward / 50) ** -rng.uniform(0.2, 1) - rng.uniform(0, 0.01) * annealed
    )
    losses = law * np.exp(noise * rng.standard_normal(len(law)))
    delta = (1e-3, 1e-3, 1e-2, 1.0)[seed]
    best = np.inf
    for start in ([0.5, 0.5, 0.3, 0.005], [1.5, 0.0, 0.8, 0.01], [0.0, 1.0, 0.15, 0.0]):
        for _ in range(4):
            found = minimize(
                objective,
                start,
                args=(forward, annealed, np.log(losses), delta),
                method="Nelder-Mead",
                options={"maxiter": 4000, "maxfev": 6000, "xatol": 1e-11, "fatol": 1e-14},
            )
            start = found.x
        best = min(best, found.fun * delta)
    ours = fit_annealing(forward, annealed, losses[:, None], delta=delta).objective[0]
    assert ours <= best * (1 + 1e-6)
    assert best <= ours * 1.05  # a search that comes nowhere near would show nothing


@pytest.mark.parametrize(("form", "rows"), [(power_law.FORM, 1), (annealing.FORM, 2)], ids=["LD", "LRA"])
def test_written_derivatives_equal_automatic_ones(form, rows):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        inputs = jnp.asarray(np.abs(rng.normal(0, 1, (rows, 9, 4))) * np.array([1.0, 0.2])[:rows, None, None])
        # Tiny b t too, where series take over.
        inputs = inputs.at[0, :3].mul(1e-4)
        for piece in form.pieces:
            points = Points(inputs, jnp.ones((9, 4)), jnp.ones((9, 4)))
            count = jax.eval_shape(piece.starts, points, jnp.full(4, 1.0)).shape[1]
            at = jnp.asarray(rng.uniform(0.1, 0.3, (count, 4)))
            written, automatic = (jax.jit(f)(at, inputs) for f in (piece.derivatives, _by_differentiation(piece)))
            for left, right in zip(jax.tree.leaves(written), jax.tree.leaves(automatic), strict=True):
                np.testing.assert_allclose(
                    np.broadcast_to(left, (9, 4)), np.broadcast_to(right, (9, 4)), rtol=1e-7, atol=1e-9
                )


def test_the_examples_run():
    examples = doctest.testmod(annealing)
    assert examples.attempted >= 3
    assert examples.failed == 0
