"""Which options of the law with annealing suit short runs best? On development seeds alone, which no table holds.

python -m experiments.target_error.measure --data FOLDER --seeds 0 6 --to experiments/target_error/development.jsonl
python -m experiments.target_error.choose     # prints the table, from development.jsonl
"""

from pathlib import Path

import numpy as np

from experiments.tables import markdown
from experiments.target_error.predict import newest, one
from vtune_jax.fits.laws.annealing import ALPHA_PRIOR, SHORT_RUN_MODEL_ERROR, SHORT_RUN_SHARE

CURVES = Path(__file__).with_name("development.jsonl")
BUDGETS = (0.1, 0.2, 0.4)
MEMORIES = (0.05, 0.065, SHORT_RUN_SHARE, 0.1, 0.125)
ERRORS = (0.02, 0.05, SHORT_RUN_MODEL_ERROR, 0.1)
PRIORS = (ALPHA_PRIOR, (0.1, 0.6), (0.5, 0.6))


def main() -> None:
    records = newest(CURVES)
    choices = [{"memory": memory} for memory in MEMORIES]
    choices += [{"model_error_per_decade": error} for error in ERRORS]
    choices += [{"beta_prior": prior} for prior in PRIORS] + [{"share_beta": True}, {"first_share": 4}]
    header = ["prediction minus truth: median (median size; share of truths in the 90 % interval)"]
    body = [[", ".join(f"{k} {v}" for k, v in choice.items()), *cells(records, **choice)] for choice in choices]
    print(markdown(header + [f"{budget:.0%}" for budget in BUDGETS], body))


def cells(
    records: list[dict], *, budgets: tuple[float, ...] = BUDGETS, memory: float = SHORT_RUN_SHARE, **options
) -> list[str]:
    """One per budget, the options that are not named as they were chosen."""
    said = []
    for budget in budgets:
        errors, inside = [], []
        for record in records:
            steps = record["steps"]
            run, truth = record["runs"][f"annealed {round(budget * steps)}"], record["runs"]["real"]["loss"][-1]
            estimate = one(record, run, decay=1 - 1 / (memory * steps), **options)
            errors.extend(estimate.target - truth)
            inside.extend((estimate.lower <= truth) & (truth <= estimate.upper))
        said.append(f"{np.median(errors):+.2f} ({np.median(np.abs(errors)):.2f}; {np.mean(inside):.2f})")
    return said


if __name__ == "__main__":
    main()
