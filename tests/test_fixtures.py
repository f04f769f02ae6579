"""Recorded numbers of each rule: every case of a method we have must come out, in float64.

The folder is given by VTUNE_FIXTURES, by default one that may lie beside the checkout; a small extract with the same
schema is kept beside the tests, so that they stand alone.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets

EXTRACT = Path(__file__).parent / "fixtures"
WHOLE = Path(os.environ.get("VTUNE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
NOT_YET = {"ado", "aioli", "doge", "doremi", "mixing_laws", "olmix", "regmix"}
"""Methods that are not implemented."""
CASES = [
    pytest.param(case, id=f"{folder.name}-{case['id']}")
    for folder in (EXTRACT, WHOLE)
    for path in sorted(folder.glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
    if case["method"] not in NOT_YET
]


VARIANTS = {
    "velocitune": {"clamped", "unclamped", "clamped_smoothed"},
    "static": {"all"},
    "dbl": {"doremi", "doremi_clipped", "bandit"},
    "group_dro": {"online", "online_normalized", "online_adjusted", "cvar_btl"},
    "skillit": {
        "skillit",
        "skillit_multi_eval",
        "skillit_normalized_eta_schedule",
        "skillit_dynamic_lambda",
        "skillit_target_mask",
        "aioli_reimplementation",
    },
    "odm": {"exp3_single", "exp3_group", "exp3_group_warmup", "smoothed_mean_single", "smoothed_mean_group"},
}


@pytest.mark.parametrize("case", CASES)
def test_fixtures(case):
    assert case["variant"] in VARIANTS[case["method"]]
    with jax.enable_x64(True):
        RUNS[case["method"]](case)


def run_static(case):
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


def run_by_losses(case):
    method = METHODS[case["method"]](case)
    prior = jnp.array(case["init"]["weights"])
    initial, target = (
        jnp.array(case["targets"].get(name, [np.nan] * case["k"])) for name in ("init_loss", "target_loss")
    )
    constants = {"sizes": jnp.array(case["targets"]["group_counts"])} if "group_counts" in case["targets"] else ()
    targets = Targets(initial, target, jnp.zeros_like(prior), prior, constants)
    weights, history = prior, method.init(targets)
    for step in case["steps"]:
        inputs = step["inputs"]
        index = jnp.asarray(inputs.get("iteration", step["t"]))
        for evidence in inputs.get("eval_losses_since_last_update", [None]):
            sums = losses(inputs if evidence is None else {"losses": evidence}, case["k"])
            seen = Observation(sums, sums, jnp.zeros(case["k"]), index, weights=weights)
            history = method.observe(history, seen)
        weights = method.update(weights, history, targets)
        close(weights, step["expected"]["weights"], case, f"step {step['t']}")


def losses(inputs, domains):
    """Sums over samples, or one sample for a domain's mean loss; null: not in the batch."""
    if "sample_losses" in inputs:
        of, values = np.array(inputs["domain_ids"]), np.array(inputs["sample_losses"])
        nats, tokens = (np.bincount(of, weights=w, minlength=domains) for w in (values, None))
    else:
        tokens = np.array([loss is not None for loss in inputs["losses"]])
        nats = np.array([loss or 0.0 for loss in inputs["losses"]])
    return LossSums(jnp.asarray(nats, jnp.float64), jnp.asarray(tokens, jnp.int32))


def close(found, expected, case, what):
    tolerance = case["numerics"]
    np.testing.assert_allclose(found, expected, rtol=tolerance["rtol"], atol=tolerance["atol"], err_msg=what)


def velocitune(case):
    hyper = case["hyperparams"]
    return rules.velocitune(step_size=hyper["eta"], clamp=hyper["clamp_remaining_fraction"], smoothing=hyper["c"])


def dbl(case):
    hyper = case["hyperparams"]
    form = {"doremi": "exponential", "doremi_clipped": "exponential", "bandit": "bandit"}[case["variant"]]
    clip = hyper["clip_negative_difference"]
    return rules.dynamic_batch_loading(form=form, step_size=hyper["eta"], smoothing=hyper["c"], clip=clip)


def group_dro(case):
    hyper = case["hyperparams"]
    if hyper["btl"]:
        return rules.cvar_dro(
            alpha=hyper["alpha"],
            decay=hyper["gamma"],
            adjustment=hyper["adjustment"],
            natural_share=hyper["min_var_weight"],
        )
    return rules.group_dro(
        step_size=hyper["step_size"], adjustment=hyper["adjustment"], normalize=hyper["normalize_loss"]
    )


def odm(case):
    hyper = case["hyperparams"]
    form = {
        "exp3_single": "exp3",
        "exp3_group": "exp3",
        "exp3_group_warmup": "exp3",
        "smoothed_mean_single": "smoothed_softmax",
        "smoothed_mean_group": "smoothed_share",
    }[case["variant"]]
    return rules.odm(
        form=form,
        reward_scale=hyper.get("reward_scale", 0.1),
        memory=hyper.get("smoothing_factor", 0.9),
        warmup=hyper.get("warmup_steps", 0),
    )


def skillit(case):
    hyper = case["hyperparams"]
    return rules.skillit(
        case["targets"]["graph"],
        step_size=hyper["eta"],
        window=hyper["window"],
        masked=tuple(np.flatnonzero(hyper["target_mask"] or []).tolist()),
        normalize=hyper["normalize_loss"],
        scale_step=hyper["eta_schedule"],
        fade=hyper["dynamic_lambda"],
    )


METHODS = {"velocitune": velocitune, "dbl": dbl, "group_dro": group_dro, "odm": odm, "skillit": skillit}
RUNS = {"static": run_static, **dict.fromkeys(METHODS, run_by_losses)}


def test_the_extract_covers_every_variant():
    found = {}
    for path in EXTRACT.glob("*.json"):
        for case in json.loads(path.read_text())["cases"]:
            found.setdefault(case["method"], set()).add(case["variant"])
    assert found == VARIANTS
