"""Online data mixing: domains as arms of a bandit, the training loss as the reward.

Source: Albalak et al. 2023, "Efficient Online Data Mixing For Language Model Pre-Training", arXiv:2312.02406, and its
code, alon-albalak/online-data-mixing, `megatron/data/data_sampling_utils.py`. None of the code's forms is the paper's.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vtune_jax.core.history import newest, newest_first, remembering
from vtune_jax.core.reweighting import share_out
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["exp3", "smoothed_softmax", "smoothed_share", "paper"]

_MOST = 1e30
"""Largest size of a reward: sums of extreme losses stay finite."""


class Rewards(NamedTuple):
    """What the bandit carries."""

    reward: Float[Array, " domains"]  # R, cumulative or averaged
    exploration: Float[Array, ""]  # epsilon of the newest update
    before: Float[Array, ""]  # epsilon of the update before it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odm(MethodConfig):
    """`w = (1 - k eps_t) q + eps_t`, with exploration `eps_t = min(1 / k, sqrt(ln k / (k t)))` at optimiser step t.

    R is updated for the domains seen, with their training loss b and the weight w that they were drawn with:

    - exp3: `R + s b / w`, `q = softmax(eps_{t-1} R)`
    - smoothed_softmax: `a R + (1 - a) exp(b)`, `q = softmax(eps_{t-1} R)`
    - smoothed_share: the same R, `q = R / sum R`
    - paper: `a R + (1 - a) b / w`, `q = softmax(eps_{t-1} R)`

    While `k eps = 1`, that is up to step `k ln k`, the weights are uniform, whatever they were before. The method needs
    training losses and the weights that they were drawn with.
    """

    name: Literal["odm"] = "odm"
    form: Form = "exp3"  # the first three are the code's Exp3 and its two smoothed means, "paper" is the paper's rule
    reward_scale: float = number(0.1)  # s, of exp3
    memory: float = number(0.9, high=1.0)  # a, of the other forms
    warmup: int = number(0)  # optimiser steps up to which nothing is remembered and weights stay

    def method(self) -> Method:
        """See `MethodConfig`."""
        begin, remember = remembering("train")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            even, before = (jnp.full((), 1.0 / domains, dtype) for _ in range(2))
            start = Rewards(jnp.zeros(domains, dtype), exploration=even, before=before)
            return begin(targets)._replace(memory=start)

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            if observation.weights is None:
                raise ValueError("observation.weights must hold the mixture that the training batches were drawn from.")
            history = remember(history, observation)
            old: Rewards = history.memory
            loss, seen = newest(history)
            dtype, domains = old.reward.dtype, old.reward.shape[0]
            weighted = loss / jnp.maximum(observation.weights, jnp.finfo(dtype).tiny)
            if self.form == "exp3":
                reward = old.reward + self.reward_scale * weighted
            else:
                # The exponential of an extreme loss overflows; with a reward that large q is one-hot anyway.
                gain = weighted if self.form == "paper" else jnp.exp(jnp.clip(loss, -60.0, 60.0))
                reward = self.memory * old.reward + (1.0 - self.memory) * gain
            learns = seen & (observation.step > self.warmup)
            reward = jnp.where(learns, jnp.clip(reward, -_MOST, _MOST), old.reward).astype(dtype)
            step = jnp.maximum(observation.step, 1).astype(dtype)
            exploration = jnp.minimum(1.0 / domains, jnp.sqrt(jnp.log(domains) / (domains * step))).astype(dtype)
            new = Rewards(reward, exploration=exploration, before=old.exploration)
            return history._replace(
                memory=Rewards(*(jnp.where(learns.any(), a, b) for a, b in zip(new, old, strict=True)))
            )

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            state: Rewards = history.memory
            domains = weights.shape[0]
            if self.form == "smoothed_share":
                total = jnp.where(state.reward.sum() > 0, state.reward.sum(), 1.0)
                chosen = state.reward / total
            else:
                everyone = jnp.ones(domains, bool)
                logits = jnp.clip(state.before * state.reward, -_MOST, _MOST)
                chosen = share_out(jnp.full_like(weights, 1.0 / domains), logits, everyone)
            new = (1.0 - domains * state.exploration) * chosen + state.exploration
            _, seen = newest(history)
            moves = seen.any() & (history.step[newest_first(history)[0]] > self.warmup)
            return jnp.where(moves, new / new.sum(), weights).astype(weights.dtype)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"train", "weights"}))


odm = factory_of(Odm)

PUBLISHED = Published(
    config=Odm,
    source="Albalak et al. 2023, arXiv:2312.02406; alon-albalak/online-data-mixing",
    place=40,
    departures=(
        "the default is the code's Exp3, rewards scaled by 0.1; `form` gives its smoothed means or the paper's",
        "evidence is the mean loss since the last update, at every step in the original",
        "with no evidence at all nothing moves, nor does the exploration rate",
    ),
)
