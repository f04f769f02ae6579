"""RegMix: a regression of the loss on the mixture by boosted trees, and a search by simulation.

Source: Liu et al. 2024, arXiv:2407.01492, and its code, sail-sg/regmix, `regression_fitting/regression.ipynb`. The
trees are LightGBM's, an extra: `pip install vtune-jax[offline]`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from vtune_jax.errors import UserError

Predict = Callable[[np.ndarray], np.ndarray]
SETTINGS = {"objective": "regression", "learning_rate": 0.01, "seed": 42, "metric": ["l1", "l2"], "verbosity": -1}
"""Settings of LightGBM, as in the original."""


def fit_trees(
    mixtures: Float[np.ndarray, "runs domains"],
    losses: Float[np.ndarray, " runs"],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    trees: int = 1000,
    **settings: Any,
) -> tuple[Predict, int]:
    """Boosted trees from mixtures to one loss; growing stops when three more trees do not help on the validation runs.

    Args:
        mixtures: of the runs.
        losses: at the ends of the runs.
        validation: mixtures and losses that are not fitted. The original takes its test runs, so that the score it
            reports for them is too good. None: all trees are grown.
        trees: largest number of trees.
        settings: further settings of LightGBM, beside `SETTINGS`.

    Returns:
        the prediction as a function of mixtures, and the number of trees.

    Raises:
        UserError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise UserError("RegMix needs LightGBM, which is not installed", "pip install 'vtune-jax[offline]'") from error
    data = lightgbm.Dataset(mixtures, losses)
    options: dict[str, Any] = {}
    if validation is not None:
        stop = lightgbm.early_stopping(stopping_rounds=3, verbose=False)
        options = {"valid_sets": [lightgbm.Dataset(*validation, reference=data)], "callbacks": [stop]}
    model = lightgbm.train({**SETTINGS, **settings}, data, num_boost_round=trees, **options)
    best = model.best_iteration or trees
    return lambda rows: np.asarray(model.predict(rows, num_iteration=model.best_iteration)), best


def search_by_simulation(
    predict: Predict, draws: Float[np.ndarray, "draws domains"], *, best: int = 128
) -> tuple[Float[np.ndarray, " domains"], np.ndarray]:
    """The mean of the mixtures with the lowest predictions, and all predictions.

    Trees predict the same loss for thousands of mixtures: every mixture that is as good as the last of the best counts.
    The original takes those of them that numpy's unstable sort puts first, which differ between processors.

    Args:
        predict: the prediction of one loss.
        draws: mixtures to choose from.
        best: number of mixtures to average.
    """
    predicted = predict(draws)
    last = np.partition(predicted, best - 1)[best - 1]
    return draws[predicted <= last].mean(axis=0), predicted
