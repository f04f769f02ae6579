"""Dynamic batch loading: more of the budget for domains whose loss is furthest above its target.

Source: Xia et al. 2023, "Sheared LLaMA", arXiv:2310.06694, and its code, princeton-nlp/LLM-Shearing,
`llmshearing/callbacks/dynamic_loading_callback.py`.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vtune_jax.core.history import last_seen, remembering
from vtune_jax.core.reweighting import exponentiated_gradient, share_out
from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import LossHistory, Method, Targets, Weights
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["exponential", "bandit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicBatchLoading(MethodConfig):
    """Weights grow with the gap between held-out loss and target, `d = loss - target` in nats.

    - exponential: `w' = (1 - c) softmax(log w + eta d) + c / k`
    - bandit: `w' = (1 - c) softmax(w + eta d) + c / k`. Past updates hardly count: a weight adds at most 1 to a logit.

    A domain that is missing from the newest observation is judged by its last loss within four observations. The method
    needs held-out losses and targets.
    """

    name: Literal["dbl"] = "dbl"
    form: Form = "exponential"  # the code's update type `doremi`; or "bandit", as there
    step_size: float = number(1.0)  # eta; the literal 1 in the code
    smoothing: float = number(1e-4, high=1.0)  # c, uniform share of the new weights; the literal 1e-4 in the code
    clip: bool = False  # `d = max(loss - target, 0)`, as in the paper; the code does not clip

    def method(self) -> Method:
        """See `MethodConfig`."""
        init, observe = remembering("heldout", window=4)

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            loss, seen = last_seen(history)
            gap = loss - targets.target
            gap = jnp.maximum(gap, 0.0) if self.clip else gap
            seen = seen & jnp.isfinite(gap)
            if self.form == "exponential":
                new = exponentiated_gradient(weights, gap, seen, step_size=self.step_size, smoothing=self.smoothing)
            else:
                logits = weights + jnp.clip(self.step_size * jnp.where(seen, gap, 0.0), -1e30, 1e30)
                new = mix_with_uniform(share_out(weights, logits, seen), self.smoothing)
            # Repeated without evidence, the smoothing alone would make the weights uniform.
            return jnp.where(seen.any(), new, weights).astype(weights.dtype)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "targets"}))


dynamic_batch_loading = factory_of(DynamicBatchLoading)

PUBLISHED = Published(
    config=DynamicBatchLoading,
    source="Xia et al. 2023, arXiv:2310.06694; princeton-nlp/LLM-Shearing",
    place=20,
    departures=(
        "as in the code, gaps below zero count and 1e-4 is mixed in as uniform; the paper clips (`clip`)",
        "step size and smoothing are options; literals in the code",
        "a domain without evidence keeps its weight",
    ),
)
