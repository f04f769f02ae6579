"""The solver's promise: on every kind of curve the lowest objective that a long search by scipy can find."""

import numpy as np
import pytest
from scipy.optimize import minimize

from vtune_jax.fits import fit_loss_curves
from vtune_jax.fits.laws.power_law import BETA_BOUNDS
from vtune_jax.fits.solver import Status

KINDS = (
    "exact",
    "noisy",
    "half a decade",
    "near flat",
    "pure power law",
    "outliers",
    "warm-up head",
    "rising",
    "few points",
    "three points",
    "loud",
    "flat",
    "steep",
)


def curve(kind, rng):
    # Up to 8 points, and 17 to 20, are one compiled program each.
    count, decades = (
        int(rng.choice([5, 6, 7, 8, 17, 18, 19, 20])),
        0.5 if kind == "half a decade" else rng.uniform(0.5, 2),
    )
    noise = {"exact": 0.0, "flat": 0.0, "loud": 0.05}.get(kind, rng.choice([0.001, 0.003, 0.01, 0.02]))
    irreducible, beta, height = rng.uniform(1, 3), rng.uniform(0.1, 1.2), rng.uniform(0.3, 2)
    if kind == "pure power law":
        irreducible = 0.0
    if kind in ("near flat", "flat"):
        height = 0.01 if kind == "near flat" else 0.0
    if kind == "steep":
        beta = rng.uniform(1.5, 4)
    count = {"few points": int(rng.integers(4, 6)), "three points": 3}.get(kind, count)
    tokens = np.geomspace(1e6, 1e6 * 10**decades, count)
    scaled = tokens / np.exp(np.log(tokens).mean())
    losses = irreducible + height * scaled ** (0.3 * beta if kind == "rising" else -beta)
    losses = losses * np.exp(noise * rng.standard_normal(count))
    if kind == "outliers":
        places = rng.choice(count, max(1, count // 10), replace=False)
        losses[places] *= np.exp(rng.uniform(0.02, 0.1, len(places)) * rng.choice([-1, 1], len(places)))
    if kind == "warm-up head":
        losses[:3] *= np.exp(rng.uniform(0.05, 0.5) * np.array([1, 0.5, 0.2]))
    return tokens, losses


def value_and_gradient(parameters, t, logs, delta):
    """In (log level, reducible share, beta), whose bounds are a box."""
    level, share, beta = parameters
    fallen = -np.expm1(-beta * t)
    inner = np.maximum(1 - share * fallen, 1e-12)
    residual = logs - level - np.log(inner)
    size, pull = np.abs(residual), np.clip(residual, -delta, delta)
    value = np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)).sum()
    slopes = 1.0, -fallen / inner, -share * t * np.exp(-beta * t) / inner
    return value / delta, -np.array([(pull * slope).sum() for slope in slopes]) / delta


def best_of_scipy(tokens, losses, delta, *, betas, shares, polished):
    t, logs = np.log(tokens) - np.log(tokens).mean(), np.log(losses)
    tight = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12}
    ends = [
        minimize(
            value_and_gradient,
            [np.median(logs), share, beta],
            args=(t, logs, delta),
            jac=True,
            bounds=[(None, None), (0, 1), BETA_BOUNDS],
            method="L-BFGS-B",
            options=tight,
        )
        for beta in betas
        for share in shares
    ]
    ends.sort(key=lambda end: end.fun)

    def inside(parameters):
        level, share, beta = parameters
        return value_and_gradient([level, np.clip(share, 0, 1), np.clip(beta, *BETA_BOUNDS)], t, logs, delta)[0]

    best = ends[0].fun
    for end in ends[:polished]:
        for _ in range(2):
            end = minimize(
                inside, end.x, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-15, "maxiter": 3000}
            )
            best = min(best, end.fun)
    return best * delta


def assert_not_worse(kind, delta, seed, **search):
    tokens, losses = curve(kind, np.random.default_rng([KINDS.index(kind), seed]))
    best = best_of_scipy(tokens, losses, delta, **search)
    for dtype, relative in (("float64", 1e-6), ("float32", 1e-3)):
        fit = fit_loss_curves(tokens, losses[:, None], delta=delta, dtype=dtype)
        # What residuals of pure rounding amount to cannot be told from zero.
        rounding = len(tokens) * (10 * np.finfo(dtype).eps) ** 2
        assert fit.objective[0] <= best * (1 + relative) + rounding
        assert best <= fit.objective[0] * 1.5 + 1e-12  # a search that comes nowhere near would show nothing
        assert fit.status[0] == Status.CONVERGED


@pytest.mark.parametrize("kind", KINDS)
def test_no_search_finds_a_lower_objective(kind):
    assert_not_worse(kind, 1e-3, 0, betas=(0.05, 0.4, 1.5), shares=(0.3, 0.97), polished=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("delta", [1e-3, 5e-3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_long_search_finds_a_lower_objective(kind, delta, seed):
    betas, shares = (0.01, 0.05, 0.15, 0.4, 0.8, 1.5, 2.7), (0.02, 0.3, 0.7, 0.97, 1.0)
    assert_not_worse(kind, delta, seed, betas=betas, shares=shares, polished=3)
