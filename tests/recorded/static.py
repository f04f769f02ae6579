"""Static mixtures from sizes."""

import numpy as np

from tests.recorded.comparing import close
from vtune_jax import rules

VARIANTS = {"static": {"all"}}


def run(case):
    hyper, tokens = case["hyperparams"], case["targets"]["tokens_per_domain"]
    expected = case["steps"][0]["expected"]["state"]
    weights, unspent = rules.unimax_weights(tokens, hyper["budget_tokens"], hyper["max_epochs"])
    found = {
        "natural": rules.prior_weights(tokens),
        "uniform": rules.prior_weights(tokens, 0.0),
        "power": rules.prior_weights(tokens, hyper["power"]),
        "unimax": weights,
        "unimax_epochs": weights * (hyper["budget_tokens"] - unspent) / np.array(tokens),
        "unimax_unspent_budget": unspent,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        close(found[name], value, case, name)
