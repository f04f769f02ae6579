"""Aioli in its versions."""

import jax
import jax.numpy as jnp

from tests.recorded.comparing import close
from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets

VARIANTS = {"aioli": {"default", "ema", "no_normalize", "one_hot", "diagonal", "prior"}}


def run(case):
    hyper, domains = case["hyperparams"], case["k"]
    weights = jnp.array(case["init"]["weights"])
    method = rules.aioli(
        step_size=hyper["eta"],
        favour=float(hyper["one_hot_factor"]),
        sweeps=hyper["lp_rounds"],
        hold=1,
        memory=hyper["ema"] or 0.0,
        normalize=hyper["normalize_A"],
        diagonal=hyper["diagonal"],
    )
    unknown = jnp.full(domains, jnp.nan)
    targets = Targets(unknown, unknown, unknown, weights)
    history = method.init(targets)
    observe, update = jax.jit(method.observe), jax.jit(method.update)
    for step in case["steps"]:
        inputs = step["inputs"]
        for index, losses in enumerate([inputs["losses_before"], *inputs["probe_losses"]]):
            sums = LossSums(jnp.array(losses), jnp.ones(domains, jnp.int32))
            seen = Observation(sums, sums, jnp.zeros(domains), jnp.asarray(step["t"]), weights=weights)
            history = observe(history, seen)
            if index == 0:
                # The recorded order instead of ours.
                order = jnp.array(inputs["probe_order"], history.memory.order.dtype)
                history = history._replace(memory=history.memory._replace(order=order))
            weights = update(weights, history, targets)
        close(weights, step["expected"]["weights"], case, f"step {step['t']}")
