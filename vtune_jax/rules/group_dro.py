"""Online group distributionally robust optimisation, read as a mixing rule: more of the worst domains.

Source: Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts", arXiv:1911.08731, and its code,
kohpangwei/group_DRO, `loss.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import newest, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights, constant
from vtune_jax.rules.config import Arm


class RunningLoss(NamedTuple):
    """What the CVaR form carries."""

    mean: Float[Array, " domains"]  # exponential average of training losses
    started: Bool[Array, " domains"]


def group_dro(*, step_size: Scalar = 0.01, adjustment: Scalar = 0.0, normalize: bool = False) -> Method:
    """Exponentiated ascent on the training losses: `a = l + C / sqrt(n)`, `w' = softmax(log w + eta a)`.

    As in the code, a domain that is absent from the batches counts as one of loss 0 and so loses weight.

    Args:
        step_size: eta >= 0.
        adjustment: C >= 0, for small domains; n are their sizes.
        normalize: divides a by its sum.

    Returns:
        A method that needs training losses, and sizes where there is an adjustment.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    assert_within(step_size=step_size, adjustment=adjustment)
    adjusted = not (isinstance(adjustment, int | float) and adjustment == 0)

    init, observe = remembering("train")

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        score, seen = newest(history)
        if adjusted:
            score = score + adjustment / jnp.sqrt(constant(targets, "sizes", "the tokens of each domain"))
        if normalize:
            score = score / jnp.maximum(score.sum(), jnp.finfo(score.dtype).tiny)
        present = jnp.broadcast_to(seen.any(), seen.shape)
        return exponentiated_gradient(weights, score, present, step_size=step_size)

    needs = frozenset({"train", "sizes"} if adjusted else {"train"})
    return Method(init=init, observe=observe, update=update, needs=needs)


def cvar_dro(
    *, alpha: Scalar = 0.2, decay: Scalar = 0.1, adjustment: Scalar = 0.0, natural_share: Scalar = 0.0
) -> Method:
    """The worst share alpha of the data gets all the weight.

    With `f = n / sum n`, domains are taken from the largest `e + C / sqrt(n)` down until their f sum to alpha:
    `q = f / alpha` for these, what is left for the next one; `w' = s f + (1 - s) q`. The exponential average e takes a
    domain's first loss whole and forgets by `decay` whenever the domain is seen. The code's `btl`.

    Args:
        alpha: in (0, 1].
        decay: of the average, in [0, 1].
        adjustment: C >= 0.
        natural_share: s in [0, 1].

    Returns:
        A method that needs training losses and sizes. It gives most domains no weight at all: give it a floor.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    assert_within(adjustment=adjustment)
    assert_within(0.0, 1.0, alpha=alpha, decay=decay, natural_share=natural_share)
    if isinstance(alpha, int | float) and alpha == 0:
        raise ValueError("alpha must be positive, got 0.")
    begin, remember = remembering("train")

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        return begin(targets)._replace(memory=RunningLoss(jnp.zeros(domains, dtype), jnp.zeros(domains, bool)))

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        history = remember(history, observation)
        running: RunningLoss = history.memory
        loss, seen = newest(history)
        average = jnp.where(running.started, (1.0 - decay) * running.mean + decay * loss, loss)
        mean = jnp.where(seen, average, running.mean).astype(running.mean.dtype)
        return history._replace(memory=RunningLoss(mean, running.started | seen))

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        running: RunningLoss = history.memory
        size = constant(targets, "sizes", "the tokens of each domain")
        order = jnp.argsort(-(running.mean + adjustment / jnp.sqrt(size)), stable=True)
        # Summed in this order, so that the order of the domains changes no bit.
        share = size / size[order].sum()
        worse = jnp.cumsum(share[order]) - share[order]
        taken = jnp.clip(alpha - worse, 0.0, share[order]) / alpha
        worst = jnp.zeros_like(share).at[order].set(taken / taken.sum())
        new = natural_share * share + (1.0 - natural_share) * worst
        return jnp.where(running.started.any(), new, weights).astype(weights.dtype)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"train", "sizes"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupDro(Arm):
    """Group DRO's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["group_dro"] = "group_dro"
    form: Literal["online", "cvar"] = "online"  # exponentiated ascent, or all weight to the worst share of the data
    step_size: float = 0.01  # eta, of the online form
    adjustment: float = 0.0  # C: domains of n tokens count as worse by C / sqrt(n)
    normalize: bool = False  # of the online form: losses as shares of their sum
    alpha: float = 0.2  # of the CVaR form: the share of the data that counts as worst
    decay: float = 0.1  # of the CVaR form: of the losses' exponential average
    natural_share: float = 0.0  # of the CVaR form: the share of the result that follows sizes

    def method(self) -> Method:
        """See `Arm`."""
        if self.form == "online":
            return group_dro(step_size=self.step_size, adjustment=self.adjustment, normalize=self.normalize)
        return cvar_dro(
            alpha=self.alpha, decay=self.decay, adjustment=self.adjustment, natural_share=self.natural_share
        )
