"""The constant mixture that an offline method proposes from the losses of runs at random mixtures."""

from typing import Any

import numpy as np

from vtune_jax.proposals.convex_proposer import propose_mixture
from vtune_jax.proposals.mixing_law import fit_mixing_laws
from vtune_jax.proposals.trees import Predict, fit_trees, search_by_simulation
from vtune_jax.rules.mixing_laws import MixingLaws
from vtune_jax.rules.offline import Offline
from vtune_jax.rules.olmix import Olmix
from vtune_jax.rules.regmix import RegMix

FOLDS = 4
"""Of the cross-validation that says how far a method's predictions can be trusted."""


def propose(
    arm: Offline, mixtures: np.ndarray, losses: np.ndarray, prior: np.ndarray, epochs: np.ndarray
) -> dict[str, Any]:
    """The mixture an offline method chooses, what it predicts for it and for the prior, and how well it predicts.

    Args:
        arm: which method, with its options.
        mixtures: of the runs, [runs, domains].
        losses: held-out, at their ends, [runs, domains].
        prior: on the simplex.
        epochs: tokens of each domain as a share of the run's budget.
    """
    # Late: a third of what every command would need to start, for what few of them come to.
    from scipy.stats import spearmanr

    shares = np.array(arm.domain_weights) if arm.domain_weights else np.ones(losses.shape[1])
    shares = shares / shares.sum()
    predict = fitted(arm, mixtures, losses, shares)
    if isinstance(arm, RegMix):
        draws = np.random.RandomState(arm.draw_seed).dirichlet(np.maximum(prior, 1e-6), arm.draws)
        mixture, _ = search_by_simulation(predict, draws, best=arm.best)
    else:
        assert isinstance(arm, MixingLaws | Olmix)
        laws = fit_mixing_laws(mixtures, losses, delta=arm.delta)
        caps = arm.repeats * epochs if isinstance(arm, Olmix) else None
        mixture = propose_mixture(
            laws.t, prior, task_weights=shares, divergence_penalty=arm.divergence_penalty, caps=caps
        ).weights
    average = losses @ shares
    order = np.random.default_rng(0).permutation(len(mixtures))
    held = np.full(len(mixtures), np.nan)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        others = np.setdiff1d(order, out)
        if len(others) > mixtures.shape[1]:
            held[out] = fitted(arm, mixtures[others], losses[others], shares)(mixtures[out])
    known = np.isfinite(held)
    before, after = predict(np.stack([prior, mixture]))
    return {
        "mixture": (mixture / mixture.sum()).tolist(),
        "predicted_loss": {"prior": float(before), "mixture": float(after)},
        "runs": len(mixtures),
        "held_out_error": float(np.abs(held - average)[known].mean()) if known.any() else None,
        "held_out_rank_correlation": _finite(spearmanr(held[known], average[known])[0]) if known.sum() > 2 else None,
    }


def fitted(arm: Offline, mixtures: np.ndarray, losses: np.ndarray, shares: np.ndarray) -> Predict:
    """The method's prediction of the weighted mean loss, as a function of mixtures."""
    if not isinstance(arm, RegMix):
        assert isinstance(arm, MixingLaws | Olmix)
        laws = fit_mixing_laws(mixtures, losses, delta=arm.delta)
        return lambda wanted: laws.predict(wanted) @ shares
    average = losses @ shares
    back = round(arm.held_back * len(mixtures))
    order = np.random.default_rng(arm.draw_seed).permutation(len(mixtures))
    kept, stop = order[back:], order[:back]
    # LightGBM's own minimum of twenty runs a leaf would grow no tree on few of them.
    leaf = max(2, min(20, len(kept) // 8))
    validation = (mixtures[stop], average[stop]) if back else None
    return fit_trees(mixtures[kept], average[kept], validation, trees=arm.trees, min_data_in_leaf=leaf)[0]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
