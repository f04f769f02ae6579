"""RegMix, data mixing laws and olmix's proposer: one step from runs to a mixture or a law."""

import numpy as np
import pytest

from tests.recorded.comparing import close
from vtune_jax.proposals.convex_proposer import propose_mixture
from vtune_jax.proposals.mixing_law import fit_mixing_laws
from vtune_jax.proposals.trees import fit_trees, search_by_simulation

VARIANTS = {"regmix": {"lightgbm"}, "mixing_laws": {"exp_law"}, "olmix": {"exact_proposer"}}


def run(case):
    step = case["steps"][0]
    inputs = {name: np.array(value) for name, value in step["inputs"].items()}
    {"regmix": regmix, "mixing_laws": mixing_laws, "olmix": olmix}[case["method"]](case, inputs, step["expected"])


def regmix(case, inputs, expected):
    lightgbm = pytest.importorskip("lightgbm")
    hyper, prior = case["hyperparams"], np.array(case["targets"]["prior"])
    validation = inputs["validation_mixtures"], inputs["validation_losses"]
    predict, trees = fit_trees(inputs["mixtures"], inputs["losses"], validation, trees=hyper["num_iterations"])
    draws = np.random.RandomState(hyper["simulation_seed"]).dirichlet(prior, hyper["num_simulated"])
    state, predicted = expected["state"], predict(draws)

    def true_loss(mixture):
        return 2 + np.exp(0.2 + mixture @ np.array(case["targets"]["true_t"]))

    if lightgbm.__version__ == case["numerics"]["requires"].split("==")[1].split()[0]:
        assert trees == state["best_iteration"]
        np.testing.assert_allclose(predicted.mean(), state["mean_of_simulations"], rtol=1e-9)
        np.testing.assert_allclose(predicted.min(), state["min_of_simulations"], rtol=1e-9)
        the_best_are_recorded(draws, predicted, hyper["top_k"], case, np.array(expected["weights"]))
    everyone, _ = search_by_simulation(predict, draws, best=hyper["top_k"])
    assert true_loss(everyone) <= state["true_loss_of_weights"] * (1 + 2e-3)
    assert true_loss(everyone) < state["true_loss_of_prior"]


def the_best_are_recorded(draws, predicted, best, case, recorded):
    """The recorded mixture is the mean of the best draws; of several equal ones at the end, any may have been taken.

    Which of them an unstable sort puts first depends on the processor. What the recorded mean implies for those that
    were taken must lie among all of them.
    """
    last = np.sort(predicted)[best - 1]
    better, equal = draws[predicted < last], draws[predicted == last]
    taken = best - len(better)
    implied = (best * recorded - better.sum(axis=0)) / taken
    if taken == len(equal):
        close(np.vstack([better, equal]).mean(axis=0), recorded, case, "weights")
    assert (implied >= equal.min(axis=0) - 1e-9).all()
    assert (implied <= equal.max(axis=0) + 1e-9).all()


def mixing_laws(case, inputs, expected):
    numerics = case["numerics"]
    laws = fit_mixing_laws(inputs["mixtures"], inputs["losses"][:, None], delta=case["hyperparams"]["huber_delta"])
    limit = expected["objective"] * (1 + numerics["objective_rtol"]) + numerics["objective_atol"]
    assert laws.objective[0] <= limit
    for mixtures, name in (("mixtures", "predicted_losses"), ("test_mixtures", "predicted_test_losses")):
        predicted = laws.predict(inputs[mixtures])[:, 0]
        np.testing.assert_allclose(predicted, expected[name], rtol=numerics["prediction_rtol"])


def olmix(case, inputs, expected):
    targets, numerics = case["targets"], case["numerics"]
    found = propose_mixture(
        inputs["task_t"],
        np.array(targets["prior"]),
        task_weights=np.array(targets["task_weights"]),
        divergence_penalty=case["hyperparams"]["kl_reg"],
        caps=None if targets["caps"] is None else np.array(targets["caps"]),
    )
    np.testing.assert_allclose(found.objective, expected["objective"], rtol=numerics["objective_rtol"])
    close(found.weights, expected["weights"], case, "weights")
