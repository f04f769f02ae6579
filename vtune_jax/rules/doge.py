"""DoGE: more weight for domains whose gradient points where the target domains' gradients point.

Source: Fan, Pagliardini and Jaggi 2023, "DoGE: Domain Reweighting with Generalization Estimation", arXiv:2310.15393,
and its code, Olivia-fsm/DoGE, `src/trainer.py`; also HazyResearch/aioli, `trainer/doge_trainer.py`.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vtune_jax.core.history import remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import Alignment, LossHistory, Method, Observation, Targets, Weights, evidence
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Towards = Literal["train", "heldout"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoGE(MethodConfig):
    """`w' = (1 - c) softmax(log w + s / mu) + c / k`, with `s = clip(lr W / (mean ||g|| + 1e-6), lr low, lr high)`.

    `W_i = <g_i, sum_j g_j>` over the target domains j, every gradient of a domain's mean loss clipped to norm G first
    by `min(1, G / (||g|| + 1e-6))`; lr is the current learning rate.

    The method needs the alignment of gradients. Published use: on a small proxy, and the average of its weights is the
    mixture of the real run.
    """

    name: Literal["doge"] = "doge"
    step_scale: float = number(20.0)  # 1 / mu; 20 is the code's default, 100 that of its configuration
    smoothing: float = number(0.0, high=1.0)  # c
    lowest: float = number(0.0, low=-math.inf)  # low; 0 in the code, so that opposing gradients count as zero
    highest: float = number(5.0, low=-math.inf)  # high
    max_norm: float = number(5.0)  # G
    targets: tuple[int, ...] = ()  # the domains to become good at, by their place among the columns; empty: all
    towards: Towards = "train"  # whose gradients are the targets': of training batches, or of "heldout" text
    # A domain that is not in the batch keeps its last gradient, as in DoGE's code; else its row is zero, as in Aioli's.
    # Keeping takes as much memory as the parameters, times the number of domains.
    keep_absent: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        both = all(isinstance(value, int | float) for value in (self.lowest, self.highest))
        if both and not self.lowest <= self.highest:
            raise ValueError(f"lowest must not lie above highest = {self.highest}, got {self.lowest}.")

    def method(self) -> Method:
        """See `MethodConfig`.

        Raises:
            ValueError: when called, a target that is no domain, or an observation without alignment.
        """
        begin, remember = remembering("train")

        def init(constants: Targets) -> LossHistory:
            domains, dtype = constants.prior.shape[0], constants.prior.dtype
            if self.targets and not all(0 <= index < domains for index in self.targets):
                raise ValueError(f"targets must name domains in [0, {domains}), got {list(self.targets)}.")
            return begin(constants)._replace(memory=jnp.full(domains, jnp.nan, dtype))

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            alignment = evidence(observation, "alignment", "inner products of the domains' gradients")
            score = self._score(alignment).astype(history.memory.dtype)
            return remember(history, observation)._replace(memory=score)

        def update(weights: Weights, history: LossHistory, constants: Targets) -> Weights:
            score = history.memory
            seen = jnp.isfinite(score)
            new = exponentiated_gradient(weights, score, seen, step_size=self.step_scale, smoothing=self.smoothing)
            return jnp.where(seen.any(), new, weights)

        kind = "alignment" if self.towards == "train" else "heldout_alignment"
        needs = {kind, "last_gradients"} if self.keep_absent else {kind}
        return Method(init=init, observe=observe, update=update, needs=frozenset(needs))

    def _score(self, alignment: Alignment) -> Float[Array, " domains"]:
        shrunk, target_shrunk = (
            jnp.minimum(1.0, self.max_norm / (jnp.where(jnp.isfinite(norm), norm, 0.0) + 1e-6))
            for norm in (alignment.norm, alignment.target_norm)
        )
        inner = alignment.inner * shrunk[:, None] * target_shrunk
        inner = inner[:, jnp.array(self.targets)] if self.targets else inner
        norm = shrunk * alignment.norm
        rate = alignment.learning_rate
        score = rate * inner.sum(axis=1) / (norm.mean() + 1e-6)
        return jnp.clip(score, rate * self.lowest, rate * self.highest)


doge = factory_of(DoGE)

PUBLISHED = Published(
    config=DoGE,
    source="Fan et al. 2023, arXiv:2310.15393; Olivia-fsm/DoGE",
    place=80,
    departures=(
        "gradients are those of the last batch before an update, at the parameters after it",
        'weights choose what is sampled by default; the original weighs gradients: `acts_on = "loss"`',
        "`targets` are domains of the corpus; a target that is not trained on has weight 0 in the prior "
        'and `towards = "heldout"`',
        'Aioli\'s version is `towards = "heldout"`, `keep_absent = false`; its mixed batch is here the sum of '
        "all domains' held-out gradients, each clipped",
    ),
)
