import doctest

import jax
import numpy as np
import pytest

import vtune_jax.fits
from vtune_jax.fits.laws.curve import Face
from vtune_jax.fits.laws.power_law import fit_loss_curves, predict


def planted(rng, domains, tokens):
    E, beta = rng.uniform(1, 3, domains), rng.uniform(0.2, 1.2, domains)
    B = rng.uniform(0.3, 2, domains) * np.exp(np.log(tokens).mean()) ** beta
    return E, B, beta, E + B / tokens[:, None] ** beta


@pytest.mark.parametrize("points", [4, 6, 20])
def test_exact_points_give_the_planted_law_back(points):
    tokens = np.geomspace(1e5, 2e6, points)
    E, B, beta, losses = planted(np.random.default_rng(points), 6, tokens)
    fit = fit_loss_curves(tokens, losses)
    np.testing.assert_allclose(fit.E, E, rtol=1e-6)
    np.testing.assert_allclose(fit.log_B, np.log(B), rtol=1e-6)
    np.testing.assert_allclose(fit.beta, beta, rtol=1e-6)
    assert (fit.face == Face.INTERIOR).all()
    np.testing.assert_allclose(predict(fit, 1e8), E + B / 1e8**beta, rtol=1e-9)


def test_a_pure_power_law_lies_on_the_face_without_irreducible_loss():
    tokens = np.geomspace(1e5, 1e7, 5)
    fit = fit_loss_curves(tokens, 7 * tokens[:, None] ** -0.1)
    assert fit.face[0] == Face.PURE_POWER_LAW
    np.testing.assert_allclose([fit.E[0], fit.beta[0], np.exp(fit.log_B[0])], [0, 0.1, 7], atol=1e-9)


@pytest.mark.parametrize("losses", [[3.0, 3.0, 3.0, 3.0], [3.0, 3.1, 3.2, 3.3]])
def test_losses_that_do_not_fall_are_flat(losses):
    fit = fit_loss_curves(np.array([1.0, 2.0, 4.0, 8.0]), np.array(losses)[:, None])
    assert fit.face[0] == Face.FLAT
    assert np.isfinite(fit.E[0])
    assert predict(fit, 100.0)[0] == pytest.approx(np.exp(np.log(losses).mean()), rel=0.06)


def test_order_duplicates_and_units_of_tokens_change_nothing():
    rng = np.random.default_rng(3)
    tokens = np.geomspace(1e5, 2e6, 7)
    losses = planted(rng, 3, tokens)[3] * np.exp(0.01 * rng.standard_normal((7, 3)))
    fit, order = fit_loss_curves(tokens, losses), rng.permutation(7)
    shuffled = fit_loss_curves(tokens[order], losses[order])
    for left, right in zip(fit, shuffled, strict=True):
        np.testing.assert_array_equal(left, right)
    thousands = fit_loss_curves(tokens / 1e3, losses)
    np.testing.assert_allclose(thousands.E, fit.E, rtol=1e-8)
    np.testing.assert_allclose(predict(thousands, 1e4), predict(fit, 1e7), rtol=1e-9)


def test_a_missing_point_is_as_if_it_were_not_there():
    rng = np.random.default_rng(4)
    tokens = np.geomspace(1e5, 2e6, 6)
    losses = planted(rng, 2, tokens)[3] * np.exp(0.01 * rng.standard_normal((6, 2)))
    masked = losses.copy()
    masked[2, 0] = np.nan
    without = fit_loss_curves(np.delete(tokens, 2), np.delete(losses[:, :1], 2, axis=0))
    np.testing.assert_allclose(fit_loss_curves(tokens, masked).E[0], without.E[0], rtol=1e-9)


def test_an_outlier_moves_the_robust_fit_less_than_least_squares():
    tokens = np.geomspace(1e5, 1e7, 20)
    E, B, beta, losses = planted(np.random.default_rng(5), 1, tokens)
    losses[10] *= 1.2
    robust, squares = fit_loss_curves(tokens, losses), fit_loss_curves(tokens, losses, delta=10.0)
    truth = E + B / 1e8**beta
    assert abs(predict(robust, 1e8) - truth) < 0.1 * abs(predict(squares, 1e8) - truth)


def test_the_callers_precision_is_left_alone_and_the_fit_is_float64():
    fit = fit_loss_curves(np.array([1.0, 2, 4, 8]), np.array([[4.0], [3.0], [2.5], [2.25]]))
    assert fit.E.dtype == np.float64
    assert not jax.config.jax_enable_x64
    # Halving gaps: 2 + 2 / D exactly.
    np.testing.assert_allclose([fit.E[0], fit.beta[0]], [2.0, 1.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("tokens", "losses", "message"),
    [
        ([1.0, 2, 0], [[1.0], [1.0], [1.0]], "tokens must be positive and finite, got 0.0"),
        ([1.0, 2, 3], [[1.0], [-1.0], [1.0]], "losses must be positive and finite, got -1.0"),
        ([1.0, 2, 3], [[1.0], [np.inf], [1.0]], "losses must be positive and finite"),
        ([1.0, 2], [[1.0], [1.0]], "at least 3 points in every domain, got 2"),
        ([1.0, 2, 3], [[1.0], [np.nan], [1.0]], "at least 3 points in every domain, got 2"),
        ([1.0, 2], [[1.0], [1.0], [1.0]], "tokens must have the losses' shape|repeat"),
    ],
)
def test_impossible_points_are_refused(tokens, losses, message):
    with pytest.raises(ValueError, match=message):
        fit_loss_curves(np.array(tokens), np.array(losses))


def test_the_example_in_the_package_runs():
    examples = doctest.testmod(vtune_jax.fits)
    assert examples.attempted >= 7
    assert examples.failed == 0
