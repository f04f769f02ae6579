"""Online group distributionally robust optimisation, read as a mixing rule: more of the worst domains.

Source: Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts", arXiv:1911.08731, and its code,
kohpangwei/group_DRO, `loss.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.history import newest, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights, constant
from vtune_jax.rules.config import MethodConfig, Published, factory_of, is_off, number


class RunningLoss(NamedTuple):
    """What the CVaR form carries."""

    mean: Float[Array, " domains"]  # exponential average of training losses
    started: Bool[Array, " domains"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupDro(MethodConfig):
    """Exponentiated ascent on the training losses, or all weight to the worst share of the data.

    - online: `a = l + C / sqrt(n)`, `w' = softmax(log w + eta a)`, with the sizes n of the domains. As in the code, a
      domain that is absent from the batches counts as a domain of loss 0 and so loses weight.
    - cvar (the code's `btl`): with `f = n / sum n`, domains are taken from the largest `e + C / sqrt(n)` down until
      their f sum to alpha: `q = f / alpha` for these, what is left for the next; `w' = s f + (1 - s) q`. The
      exponential average e takes a domain's first loss whole and then forgets at the rate `decay` whenever the domain
      is seen. Most domains get no weight at all: give this form a floor.

    The method needs training losses, and sizes for the CVaR form and wherever there is an adjustment.
    """

    name: Literal["group_dro"] = "group_dro"
    form: Literal["online", "cvar"] = "online"
    step_size: float = number(0.01)  # eta, of the online form
    adjustment: float = number(0.0, off=0.0)  # C: domains of n tokens count as worse by `C / sqrt(n)` nats
    normalize: bool = False  # of the online form: divides a by its sum
    alpha: float = number(0.2, high=1.0, positive=True)  # of the CVaR form: the share of the data that counts as worst
    decay: float = number(0.1, high=1.0)  # of the CVaR form: weight of the newest loss in e
    natural_share: float = number(0.0, high=1.0)  # s, of the CVaR form: the share of the weights that follows sizes

    def method(self) -> Method:
        """See `MethodConfig`."""
        return self._online() if self.form == "online" else self._cvar()

    def _online(self) -> Method:
        adjusted = not is_off(self.adjustment)
        init, observe = remembering("train")

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            score, seen = newest(history)
            if adjusted:
                score = score + self.adjustment / jnp.sqrt(constant(targets, "sizes", "the tokens of each domain"))
            if self.normalize:
                score = score / jnp.maximum(score.sum(), jnp.finfo(score.dtype).tiny)
            present = jnp.broadcast_to(seen.any(), seen.shape)
            return exponentiated_gradient(weights, score, present, step_size=self.step_size)

        needs = frozenset({"train", "sizes"} if adjusted else {"train"})
        return Method(init=init, observe=observe, update=update, needs=needs)

    def _cvar(self) -> Method:
        begin, remember = remembering("train")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            return begin(targets)._replace(memory=RunningLoss(jnp.zeros(domains, dtype), jnp.zeros(domains, bool)))

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            history = remember(history, observation)
            running: RunningLoss = history.memory
            loss, seen = newest(history)
            average = jnp.where(running.started, (1.0 - self.decay) * running.mean + self.decay * loss, loss)
            mean = jnp.where(seen, average, running.mean).astype(running.mean.dtype)
            return history._replace(memory=RunningLoss(mean, running.started | seen))

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            running: RunningLoss = history.memory
            size = constant(targets, "sizes", "the tokens of each domain")
            order = jnp.argsort(-(running.mean + self.adjustment / jnp.sqrt(size)), stable=True)
            # Summed in this order, so that the order of the domains changes no bit.
            share = size / size[order].sum()
            worse = jnp.cumsum(share[order]) - share[order]
            taken = jnp.clip(self.alpha - worse, 0.0, share[order]) / self.alpha
            worst = jnp.zeros_like(share).at[order].set(taken / taken.sum())
            new = self.natural_share * share + (1.0 - self.natural_share) * worst
            return jnp.where(running.started.any(), new, weights).astype(weights.dtype)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"train", "sizes"}))


group_dro = factory_of(GroupDro, form="online")
cvar_dro = factory_of(GroupDro, form="cvar")

PUBLISHED = Published(
    config=GroupDro,
    source="Sagawa et al. 2020, arXiv:1911.08731; kohpangwei/group_DRO",
    place=30,
    departures=(
        'weights choose what is sampled by default; the original weighs the loss: `acts_on = "loss"`',
        "with no evidence at all nothing moves; as in the code, a single absent domain counts as having loss 0",
        "evidence is the mean loss since the last update, at every step in the original",
    ),
)
