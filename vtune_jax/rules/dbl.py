"""Dynamic batch loading: more of the budget for domains whose loss is furthest above its target.

Source: Xia et al. 2023, "Sheared LLaMA", arXiv:2310.06694, and its code, princeton-nlp/LLM-Shearing,
`llmshearing/callbacks/dynamic_loading_callback.py`.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import last_seen, remembering
from vtune_jax.core.reweighting import exponentiated_gradient, share_out
from vtune_jax.core.simplex import mix_with_uniform
from vtune_jax.core.types import LossHistory, Method, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm

Form = Literal["exponential", "bandit"]


def dynamic_batch_loading(
    *,
    form: Form = "exponential",
    step_size: Scalar = 1.0,
    smoothing: Scalar = 1e-4,
    clip: bool = False,
    window: int = 4,
) -> Method:
    """Weights grow with the gap between held-out loss and target, `d = loss - target` in nats.

    - exponential: `w' = (1 - c) softmax(log w + eta d) + c / k`
    - bandit: `w' = (1 - c) softmax(w + eta d) + c / k`; nearly without memory, since a weight adds at most 1 to a logit

    Args:
        form: the code's update types `doremi` and `bandit`.
        step_size: eta >= 0; the literal 1 in the code.
        smoothing: c in [0, 1]; the literal 1e-4 in the code, nothing in the paper.
        clip: `d = max(loss - target, 0)`, as in the paper; the code does not clip.
        window: observations kept; a domain missing from the newest one is judged by its last within them.

    Returns:
        A method that needs held-out losses and targets.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    if form not in ("exponential", "bandit"):
        raise ValueError(f"form must be 'exponential' or 'bandit', got '{form}'.")
    assert_within(step_size=step_size)
    assert_within(0.0, 1.0, smoothing=smoothing)

    init, observe = remembering("heldout", window)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        loss, seen = last_seen(history)
        gap = loss - targets.target
        gap = jnp.maximum(gap, 0.0) if clip else gap
        seen = seen & jnp.isfinite(gap)
        if form == "exponential":
            new = exponentiated_gradient(weights, gap, seen, step_size=step_size, smoothing=smoothing)
        else:
            logits = weights + jnp.clip(step_size * jnp.where(seen, gap, 0.0), -1e30, 1e30)
            new = mix_with_uniform(share_out(weights, logits, seen), smoothing)
        # Smoothing alone, over and over, would be a slow way to uniform weights.
        return jnp.where(seen.any(), new, weights).astype(weights.dtype)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "targets"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicBatchLoading(Arm):
    """Dynamic batch loading's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["dbl"] = "dbl"
    form: Form = "exponential"  # or "bandit"
    step_size: float = 1.0  # eta; 1 in the code
    smoothing: float = 1e-4  # c, the uniform share of each update; 1e-4 in the code
    clip: bool = False  # gaps below zero count as zero, as in the paper; the code does not clip

    def method(self) -> Method:
        """See `Arm`."""
        return dynamic_batch_loading(form=self.form, step_size=self.step_size, smoothing=self.smoothing, clip=self.clip)
