"""What domains can learn from each other: a shared prior of beta, and a common curve for a domain without its own."""

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from vtune_jax.fits.fitted import FittedCurves, fit_curves
from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.laws.law import Budget
from vtune_jax.fits.points import on_device
from vtune_jax.fits.posterior import beta_grid, evidence

_MEDIANS, _DEVIATIONS = 33, 12
_LEAST_DEVIATION = 0.15
"""Of log beta between domains. Exact equality is excluded, because it fails badly where it is wrong."""


def shared_prior(points: Points, domains: int, prior: tuple[float, float]) -> tuple[float, float]:
    """The prior of beta that the domains suggest together: partial pooling.

    Each domain's beta is drawn from a log-normal whose median m and deviation d are unknown; with the domains' marginal
    likelihoods p_i(beta),

        p(m, d) ~ N(log m; log prior) * halfnormal(d) * prod_i sum_beta p_i(beta) N(log beta; log m, d)

    Args:
        points: of all domains, padded.
        domains: how many of the lanes are domains, the others being padding.
        prior: median of beta and standard deviation of its logarithm, for m; the deviation is also the scale of d.

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
    # Deviations lie on a geometric grid, so each stands for an interval proportional to itself.
    log_weight = likelihood + hyper + np.log(deviations)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return float(np.exp(weight.sum(axis=1) @ medians)), float(weight.sum(axis=0) @ deviations)


def pooled_losses(curves: FittedCurves, budget: Budget, among: np.ndarray) -> Float[np.ndarray, " domains"]:
    """Each domain's own level times the law that the others have in common.

    `log L_i = a_i + log f`, f the law fitted to all points of the others together, each domain divided by its loss at
    the middle of the first column. For a domain whose own points say nothing of how it falls.

    Args:
        curves: of all domains.
        budget: where to read f off.
        among: the domains whose points f is fitted to; [domains].

    Raises:
        ValueError: `among` names no domain.
    """
    chosen = np.asarray(among, bool)
    if not chosen.any():
        raise ValueError("among must name at least one domain.")
    columns, losses, present = curves.measured.columns, curves.measured.losses, curves.present
    middle = float(np.exp(np.log(curves.along)[present].mean()))
    # A second column, annealed area, is 0 there.
    heights = np.log(curves.predict((middle, *[0.0] * (len(columns) - 1))))
    used = present & chosen
    scaled = np.exp((np.log(losses) - heights)[used])[:, None]
    common = fit_curves(curves.law, curves.law.checked([column[used] for column in columns], scaled))
    rows = zip(*(column[present] for column in columns), strict=True)
    offsets = np.full(present.shape, np.nan)
    offsets[present] = np.log(losses[present]) - np.log([common.predict(row)[0] for row in rows])
    return np.asarray(np.exp(np.nanmean(offsets, axis=0)) * common.predict(budget)[0])
