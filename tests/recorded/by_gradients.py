"""DoGE in its versions."""

import jax.numpy as jnp
import numpy as np

from tests.recorded.comparing import close
from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets
from vtune_jax.train.evidence.alignment import align, latest

VARIANTS = {"doge": {"universal", "ood_target", "aioli_reimplementation"}}


def run(case):
    hyper, domains = case["hyperparams"], case["k"]
    weights = jnp.array(case["init"]["weights"])
    keeps = case["variant"] != "aioli_reimplementation"
    method = rules.doge(
        step_scale=1 / hyper["mu"],
        smoothing=hyper["reweight_eps"],
        lowest=hyper["dw_min"],
        highest=hyper["dw_max"],
        max_norm=hyper["max_grad_norm"],
        towards="train" if keeps else "heldout",
        keep_absent=keeps,
    )
    unknown = jnp.full(domains, jnp.nan)
    targets = Targets(unknown, unknown, unknown, weights)
    history, kept = method.init(targets), None
    nothing = LossSums(jnp.zeros(domains), jnp.zeros(domains, jnp.int32))
    for step in case["steps"]:
        inputs = step["inputs"]
        width = max(len(gradient) for gradient in inputs["grads"] if gradient is not None)
        present = jnp.array([gradient is not None for gradient in inputs["grads"]])
        new = jnp.array([np.zeros(width) if gradient is None else gradient for gradient in inputs["grads"]])
        kept = {"w": new if kept is None or not keeps else latest(kept["w"], new, present)}
        train = {"w": kept["w"][jnp.array(hyper.get("train_ids", range(domains)))]}
        if keeps:
            towards = {"w": kept["w"][jnp.array(hyper["target_ids"])]}
        else:
            towards = {"w": jnp.array([inputs["validation_grad"]])}
        alignment = align(train, towards, jnp.asarray(inputs["lr"]))
        seen = Observation(
            nothing, nothing, jnp.zeros(domains), jnp.asarray(step["t"]), evidence={"alignment": alignment}
        )
        history = method.observe(history, seen)
        weights = method.update(weights, history, targets)
        close(weights, step["expected"]["weights"], case, f"step {step['t']}")
