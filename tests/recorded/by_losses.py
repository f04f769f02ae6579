"""The rules that read losses alone."""

import jax.numpy as jnp
import numpy as np

from tests.recorded.comparing import close
from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets

VARIANTS = {
    "velocitune": {"clamped", "unclamped", "clamped_smoothed"},
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


def run(case):
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
        graph=case["targets"]["graph"],
        step_size=hyper["eta"],
        window=hyper["window"],
        masked=tuple(np.flatnonzero(hyper["target_mask"] or []).tolist()),
        normalize=hyper["normalize_loss"],
        scale_step=hyper["eta_schedule"],
        fade=hyper["dynamic_lambda"],
    )


METHODS = {"velocitune": velocitune, "dbl": dbl, "group_dro": group_dro, "odm": odm, "skillit": skillit}
