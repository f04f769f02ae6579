"""Random mixtures for proxy runs.

Source: Liu et al. 2024, "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv:2407.01492, and its
code, sail-sg/regmix, `mixture_config/synthesize_mixture.py`.
"""

import numpy as np
from jaxtyping import Float

STRENGTHS = np.logspace(np.log10(0.1), np.log10(5.0), 15)
"""Concentrations s of the Dirichlet distributions that mixtures are drawn from."""
GRAIN = 2e-4
"""Weights are rounded to its multiples; smaller weights become zero."""
_MOST_TIMES_PRIOR = 15.0
_TRIES = 1000


def random_mixtures(
    prior: Float[np.ndarray, " domains"], count: int, rng: np.random.Generator, *, power: float = 0.5
) -> Float[np.ndarray, "count domains"]:
    """Different mixtures around a flattened prior.

    Each is drawn from `Dirichlet(s q)` with q proportional to `prior^power` and s one of fifteen strengths, drawn anew
    for each mixture. A mixture with a weight above fifteen times that of q is drawn again. Weights are rounded to
    multiples of 2e-4; smaller weights become zero.

    Args:
        prior: on the simplex.
        count: number of mixtures.
        rng: source of the draws.
        power: 1 keeps the prior, 0 makes it uniform.

    Raises:
        ValueError: a prior off the simplex, or so few possible mixtures that `count` different ones are not found.
    """
    prior = np.asarray(prior, np.float64)
    if not (np.isfinite(prior).all() and (prior >= 0).all() and abs(prior.sum() - 1) < 1e-6):
        raise ValueError(f"prior must lie on the simplex, got {prior.tolist()}.")
    flat = np.where(prior > 0, prior, 0.0) ** power * (prior > 0)
    flat /= flat.sum()
    kept: dict[tuple[int, ...], np.ndarray] = {}
    for _ in range(_TRIES * max(count, 1)):
        if len(kept) == count:
            break
        drawn = np.zeros(len(flat))
        drawn[flat > 0] = rng.dirichlet(flat[flat > 0] * rng.choice(STRENGTHS))
        if (drawn > np.minimum(_MOST_TIMES_PRIOR * flat, 1.0)).any() or not np.isfinite(drawn).all():
            continue
        units = np.where(drawn < GRAIN, 0, np.round(drawn / GRAIN)).astype(int)
        if units.sum():
            kept.setdefault(tuple(units), units / units.sum())
    if len(kept) < count:
        raise ValueError(f"count must be at most {len(kept)} different mixtures of {len(flat)} domains, got {count}.")
    return np.array(list(kept.values())).reshape(count, len(flat))
