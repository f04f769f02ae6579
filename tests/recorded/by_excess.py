"""DoReMi in its four versions."""

import jax.numpy as jnp
import numpy as np

from tests.recorded.comparing import close
from vtune_jax import rules
from vtune_jax.core.losses import excess_sums
from vtune_jax.core.types import ExcessSums, LossSums, Observation, Targets

FORMS = {
    "official": "official",
    "levanter": "levanter",
    "domain_level_aioli": "aioli",
    "domain_level_doge_repo": "doge",
}
VARIANTS = {"doremi": set(FORMS)}


def run(case):
    hyper, domains = case["hyperparams"], case["k"]
    weights = jnp.array(case["init"]["weights"])
    first = case["init"]["state"].get("perdomain_scores", [0.0])[0]
    method = rules.doremi(form=FORMS[case["variant"]], step_size=hyper["eta"], smoothing=hyper["c"], first_score=first)
    unknown = jnp.full(domains, jnp.nan)
    targets = Targets(unknown, unknown, unknown, weights)
    history, path = method.init(targets), []
    nothing = LossSums(jnp.zeros(domains), jnp.zeros(domains, jnp.int32))
    for step in case["steps"]:
        excess = excess_of(step["inputs"], domains)
        seen = Observation(nothing, nothing, jnp.zeros(domains), jnp.asarray(step["t"]), evidence={"excess": excess})
        history = method.observe(history, seen)
        weights = method.update(weights, history, targets)
        path.append(np.asarray(weights))
        close(weights, step["expected"]["weights"], case, f"step {step['t']}")


def excess_of(inputs, domains):
    """Sums per domain, by the function that the train step uses; or from means over one token."""
    if "pertoken_excess_loss" in inputs:
        excess = jnp.array(inputs["pertoken_excess_loss"])
        mask = jnp.array(inputs.get("token_mask", np.ones(excess.shape)), bool)
        return excess_sums(excess, jnp.zeros_like(excess), mask, jnp.array(inputs["domain_ids"]), domains)
    present = np.array([loss is not None for loss in inputs["losses"]])
    loss, reference = (np.array([value or 0.0 for value in inputs[name]]) for name in ("losses", "reference_losses"))
    raw = np.where(present, loss - reference, 0.0)
    return ExcessSums(
        jnp.maximum(raw, 0.0), jnp.asarray(raw), jnp.asarray(raw > 0, jnp.int32), jnp.asarray(present, jnp.int32)
    )
