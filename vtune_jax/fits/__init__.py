"""Scaling-law fits: from losses at few tokens to the loss at the full budget, with an interval and a verdict.

>>> import numpy as np
>>> from vtune_jax.fits import estimate_targets, fit_loss_curves
>>> tokens = np.array([1e6, 2e6, 4e6, 8e6, 16e6, 32e6])
>>> losses = 2.0 + 300.0 / tokens[:, None] ** 0.4  # one domain that obeys the law exactly
>>> fit = fit_loss_curves(tokens, losses)
>>> [round(float(value), 6) for value in (fit.E[0], np.exp(fit.log_B[0]), fit.beta[0])]
[2.0, 300.0, 0.4]
>>> estimate = estimate_targets(tokens, losses, 100e6, initial_losses=np.array([4.0]))
>>> round(float(estimate.target[0]), 4), str(estimate.verdict[0])
(2.1893, 'trustworthy')
"""

from vtune_jax.fits.curves import TargetEstimate
from vtune_jax.fits.diagnostics import Diagnostics
from vtune_jax.fits.estimate import SizeTarget, estimate_over_sizes, estimate_targets
from vtune_jax.fits.laws.annealing import AnnealingFit, areas, fit_annealing
from vtune_jax.fits.laws.chinchilla import ChinchillaFit, bootstrap_chinchilla, fit_chinchilla
from vtune_jax.fits.laws.power_law import PowerLawFit, fit_loss_curves, predict
from vtune_jax.fits.laws.registry import known_laws, law_named
from vtune_jax.fits.points import best_of_place
from vtune_jax.fits.policy import Policy, apply_policy
from vtune_jax.fits.predicted import LossCurve, MeasuredPoints, PredictedTargets
from vtune_jax.fits.resampling import ResampledEstimate
from vtune_jax.fits.verdicts import Judgement, Verdict

__all__ = [
    "AnnealingFit",
    "ChinchillaFit",
    "Diagnostics",
    "Judgement",
    "LossCurve",
    "MeasuredPoints",
    "Policy",
    "PowerLawFit",
    "PredictedTargets",
    "ResampledEstimate",
    "SizeTarget",
    "TargetEstimate",
    "Verdict",
    "apply_policy",
    "areas",
    "best_of_place",
    "bootstrap_chinchilla",
    "estimate_over_sizes",
    "estimate_targets",
    "fit_annealing",
    "fit_chinchilla",
    "fit_loss_curves",
    "known_laws",
    "law_named",
    "predict",
]
