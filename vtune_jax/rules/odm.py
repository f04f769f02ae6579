"""Online data mixing: domains as arms of a bandit, the training loss as the reward.

Source: Albalak et al. 2023, "Efficient Online Data Mixing For Language Model Pre-Training", arXiv:2312.02406, and its
code, alon-albalak/online-data-mixing, `megatron/data/data_sampling_utils.py`. None of the code's forms is the paper's.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import newest, newest_first, remembering
from vtune_jax.core.reweighting import share_out
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm

Form = Literal["exp3", "smoothed_softmax", "smoothed_share", "paper"]

_MOST = 1e30  # of a reward; keeps sums of extreme losses finite


class Rewards(NamedTuple):
    """What the bandit carries."""

    reward: Float[Array, " domains"]  # R, cumulative or averaged
    exploration: Float[Array, ""]  # epsilon of the newest update
    before: Float[Array, ""]  # and of the one before


def odm(*, form: Form = "exp3", reward_scale: Scalar = 0.1, memory: Scalar = 0.9, warmup: int = 0) -> Method:
    """`w = (1 - k eps_t) q + eps_t`, with exploration `eps_t = min(1 / k, sqrt(ln k / (k t)))` at optimiser step t.

    R is updated for the domains seen, with their training loss b and the weight w that they were drawn with:

    - exp3: `R + s b / w`, `q = softmax(eps_{t-1} R)`
    - smoothed_softmax: `a R + (1 - a) exp(b)`, `q = softmax(eps_{t-1} R)`
    - smoothed_share: the same R, `q = R / sum R`
    - paper: `a R + (1 - a) b / w`, `q = softmax(eps_{t-1} R)`

    Args:
        form: the first three are the code's Exp3 and its two smoothed means, the last the paper's rule.
        reward_scale: s >= 0, of exp3.
        memory: a in [0, 1], of the other forms.
        warmup: optimiser steps up to which nothing is remembered and weights stay.

    Returns:
        A method that needs training losses and the weights that they were drawn with. While k eps = 1, that is up to
        step k ln k, its weights are uniform, whatever they were before.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    if form not in ("exp3", "smoothed_softmax", "smoothed_share", "paper"):
        raise ValueError(f"form must be exp3, smoothed_softmax, smoothed_share or paper, got '{form}'.")
    assert_within(reward_scale=reward_scale, warmup=warmup)
    assert_within(0.0, 1.0, memory=memory)
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
        held: Rewards = history.memory
        loss, seen = newest(history)
        dtype, domains = held.reward.dtype, held.reward.shape[0]
        # Exp of an extreme loss overflows; a reward that large is one-hot anyway.
        weighted = loss / jnp.maximum(observation.weights, jnp.finfo(dtype).tiny)
        reward = {
            "exp3": held.reward + reward_scale * weighted,
            "paper": memory * held.reward + (1.0 - memory) * weighted,
        }.get(form, memory * held.reward + (1.0 - memory) * jnp.exp(jnp.clip(loss, -60.0, 60.0)))
        learns = seen & (observation.step > warmup)
        reward = jnp.where(learns, jnp.clip(reward, -_MOST, _MOST), held.reward).astype(dtype)
        step = jnp.maximum(observation.step, 1).astype(dtype)
        exploration = jnp.minimum(1.0 / domains, jnp.sqrt(jnp.log(domains) / (domains * step))).astype(dtype)
        new = Rewards(reward, exploration=exploration, before=held.exploration)
        return history._replace(
            memory=Rewards(*(jnp.where(learns.any(), a, b) for a, b in zip(new, held, strict=True)))
        )

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        held: Rewards = history.memory
        domains = weights.shape[0]
        if form == "smoothed_share":
            total = jnp.where(held.reward.sum() > 0, held.reward.sum(), 1.0)
            chosen = held.reward / total
        else:
            everyone = jnp.ones(domains, bool)
            logits = jnp.clip(held.before * held.reward, -_MOST, _MOST)
            chosen = share_out(jnp.full_like(weights, 1.0 / domains), logits, everyone)
        new = (1.0 - domains * held.exploration) * chosen + held.exploration
        _, seen = newest(history)
        moves = seen.any() & (history.step[newest_first(history)[0]] > warmup)
        return jnp.where(moves, new / new.sum(), weights).astype(weights.dtype)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"train", "weights"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odm(Arm):
    """Online data mixing's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["odm"] = "odm"
    form: Form = "exp3"  # "exp3", "smoothed_softmax", "smoothed_share" as in the code, or "paper"
    reward_scale: float = 0.1  # of exp3
    memory: float = 0.9  # of the moving averages
    warmup: int = 0  # optimiser steps before weights move

    def method(self) -> Method:
        """See `Arm`."""
        return odm(form=self.form, reward_scale=self.reward_scale, memory=self.memory, warmup=self.warmup)
