"""What domains can learn from each other: a shared prior on beta, and a common curve for a domain without its own."""

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from vtune_jax.fits.fitted import FittedCurves, Target, fit_curves
from vtune_jax.fits.laws.law import Points
from vtune_jax.fits.points import Measured, checked_points, on_device
from vtune_jax.fits.posterior import beta_grid, evidence

BETA_PRIOR = (0.5, 0.6)
"""Median of beta, and standard deviation of its logarithm."""
_MEDIANS, _DEVIATIONS = 33, 12
_LEAST_DEVIATION = 0.15
"""Of log beta between domains: exact equality is never believed, since it fails badly where it is wrong."""


def shared_prior(points: Points, domains: int, prior: tuple[float, float] = BETA_PRIOR) -> tuple[float, float]:
    """The prior of beta that the domains suggest together: partial pooling.

    Each domain's beta is drawn from a log-normal whose median m and deviation d are unknown; with the domains' marginal
    likelihoods p_i(beta),

        p(m, d) ~ N(log m; log prior) * halfnormal(d) * prod_i sum_beta p_i(beta) N(log beta; log m, d)

    Args:
        points: of all domains, padded.
        domains: how many of the lanes count.
        prior: of the median, as for a single domain; its deviation is also the scale of d.

    Returns:
        the posterior means of log m, as a median, and of d.
    """
    with jax.enable_x64(True):
        curves = np.asarray(evidence(on_device(points)))[:, :domains]
        log_beta = np.asarray(beta_grid())
    middle, scale = np.log(prior[0]), prior[1]
    medians = np.linspace(middle - 2.5 * scale, middle + 2.5 * scale, _MEDIANS)
    deviations = np.geomspace(_LEAST_DEVIATION, 2 * scale, _DEVIATIONS)
    distance = (log_beta[None, None] - medians[:, None, None]) / deviations[None, :, None]
    between = -0.5 * distance**2 - np.log(deviations)[None, :, None]
    likelihood = logsumexp(between[..., None] + curves - curves.max(axis=0), axis=2).sum(axis=-1)
    hyper = -0.5 * ((medians - middle) / scale)[:, None] ** 2 - 0.5 * (deviations / scale) ** 2
    # Deviations are spread geometrically: each stands for an interval in proportion to itself.
    log_weight = likelihood + hyper + np.log(deviations)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return float(np.exp(weight.sum(axis=1) @ medians)), float(weight.sum(axis=0) @ deviations)


def pooled_losses(curves: FittedCurves, target: Target, among: np.ndarray) -> Float[np.ndarray, " domains"]:
    """Each domain's own level times the law that the others have in common.

    `log L_i = a_i + log f`, f the law fitted to all points of the others together, each domain at its own height
    at the middle of all tokens. For a domain whose own points say nothing of how it falls.

    Args:
        curves: of all domains.
        target: where to read f off.
        among: whose points f is fitted to; [domains].

    Raises:
        ValueError: `among` names no domain.
    """
    chosen = np.asarray(among, bool)
    if not chosen.any():
        raise ValueError("among must name at least one domain.")
    measured, seen = curves.measured, curves.seen
    middle = float(np.exp(np.log(measured.tokens)[seen].mean()))
    heights = np.log(curves.predict(Target(middle)))
    used = seen & chosen
    tokens, *annealed = (column[used] for column in _columns(measured))
    together = checked_points(
        tokens,
        np.exp((np.log(measured.losses) - heights)[used])[:, None],
        **({"annealed_area": annealed[0]} if annealed else {}),
    )
    common = fit_curves(together)
    of_points = np.log(
        [common.predict(Target(*row))[0] for row in zip(*(x[seen] for x in _columns(measured)), strict=True)]
    )
    offsets = np.full(seen.shape, np.nan)
    offsets[seen] = np.log(measured.losses[seen]) - of_points
    return np.exp(np.nanmean(offsets, axis=0)) * common.predict(target)[0]


def _columns(measured: Measured) -> tuple[np.ndarray, ...]:
    return measured.tokens, *measured.others
