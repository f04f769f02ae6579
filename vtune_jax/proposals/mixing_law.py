"""Data mixing laws: the loss on each task as an exponential function of the mixture.

`L(r) = C + exp(t . r)`, one law per task. Weights sum to one, so the factor K of `C + K exp(t . r)` only shifts all of
t by log K, and is not kept apart. olmix's log-linear law has the same form.

Sources: Ye et al. 2024, "Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance",
arXiv:2403.16952, and its code, yegcjs/mixinglaws; allenai/olmix, `olmix/fit/utils.py`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import OptimizeResult, least_squares

_FLOORS = (0.02, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.995)
"""Starting values of C as shares of the smallest loss; the rest of each start follows by linear regression."""
_TOLERANCE, _MOST_EVALUATIONS = 1e-12, 300
_RIDGE = 1e-9  # on the regression: runs of zero weight on a domain say nothing about its t


class MixingLaws(NamedTuple):
    """One law per task."""

    log_c: Float[np.ndarray, " tasks"]
    t: Float[np.ndarray, "tasks domains"]  # with log K in it
    objective: Float[np.ndarray, " tasks"]  # mean Huber loss of the residuals

    def predict(self, mixtures: Float[np.ndarray, "runs domains"]) -> Float[np.ndarray, "runs tasks"]:
        """Losses in nats per token."""
        return np.asarray(np.exp(self.log_c) + np.exp(np.asarray(mixtures) @ self.t.T))


def fit_mixing_laws(mixtures: np.ndarray, losses: np.ndarray, *, delta: float = 0.05) -> MixingLaws:
    """Fits every task's law in float64 by scipy's trust-region least squares with a Huber loss, from ten starts.

    A start fixes C; `log(L - C) = t . r` is then linear. The original draws thousands of random starts for L-BFGS.

    Args:
        mixtures: on the simplex; [runs, domains].
        losses: nats per token, positive; [runs, tasks].
        delta: Huber width in nats per token; larger residuals count linearly.

    Raises:
        ValueError: shapes that do not fit, mixtures off the simplex, losses that are not positive and finite, or fewer
            runs than the law has parameters.
    """
    mixtures, losses = np.asarray(mixtures, np.float64), np.asarray(losses, np.float64)
    _assert_runs(mixtures, losses)
    if len(mixtures) < mixtures.shape[1] + 1:
        raise ValueError(
            f"mixtures must hold at least {mixtures.shape[1] + 1} runs, one per parameter, got {len(mixtures)}."
        )
    best = [
        min((_descend(mixtures, loss, floor, delta) for floor in _FLOORS), key=lambda end: float(end.cost))
        for loss in losses.T
    ]
    parameters = np.stack([end.x for end in best])
    objective = np.array([end.cost for end in best]) / len(mixtures)
    return MixingLaws(parameters[:, 0], parameters[:, 1:], objective)


def _assert_runs(mixtures: np.ndarray, losses: np.ndarray) -> None:
    if mixtures.ndim != 2 or losses.ndim != 2 or len(mixtures) != len(losses):
        raise ValueError(
            f"losses must be [runs, tasks] for as many runs as mixtures, got {losses.shape} and {mixtures.shape}."
        )
    if not (np.isfinite(mixtures).all() and (mixtures >= 0).all() and np.allclose(mixtures.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("mixtures must lie on the simplex, row by row.")
    if not (np.isfinite(losses).all() and (losses > 0).all()):
        raise ValueError("losses must be positive and finite.")


def _descend(
    mixtures: Float[np.ndarray, "runs domains"], loss: Float[np.ndarray, " runs"], floor: float, delta: float
) -> OptimizeResult:
    """The optimum of (log C, t) for one task from one start; its cost is the summed Huber loss."""
    c = floor * loss.min()
    gram = mixtures.T @ mixtures + _RIDGE * np.eye(mixtures.shape[1])
    start = np.append(np.log(c), np.linalg.solve(gram, mixtures.T @ np.log(loss - c)))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(parameters[0]) + np.exp(mixtures @ parameters[1:]) - loss)

    def slopes(parameters: np.ndarray) -> np.ndarray:
        rise = np.exp(mixtures @ parameters[1:])
        return np.column_stack([np.full(len(loss), np.exp(parameters[0])), rise[:, None] * mixtures])

    with np.errstate(over="ignore"):  # a trial step that overflows is refused
        return least_squares(
            residuals,
            start,
            slopes,
            loss="huber",
            f_scale=delta,
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            gtol=_TOLERANCE,
            max_nfev=_MOST_EVALUATIONS,
        )
