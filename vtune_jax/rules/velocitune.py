"""Velocitune: more of the budget for domains that learn slowly.

Source: Luo et al. 2025, "Velocitune: A Velocity-based Dynamic Domain Reweighting Method for Continual Pre-training",
ACL 2025, arXiv:2411.14318. The authors published no code; the step size, the smoothing and the guard on the
denominator are ours (see `PUBLISHED.departures`).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vtune_jax.core.history import last_seen, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.scores import remaining_fraction
from vtune_jax.core.types import LossHistory, Method, Targets, Weights
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["accumulating", "from_prior"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocitune(MethodConfig):
    """Weights grow with the remaining fraction of the way to the target loss.

    `R = clip((loss - target) / (initial - target), 0, 1)`, `w' = (1 - c) softmax(log w + eta R) + c / k`, with the
    held-out losses of the last observation. With learning velocity `V = 1 - R` the same update reads
    `w' proportional to w exp(-eta V)`.

    In the form "from_prior" past updates do not count: `w'` proportional to `prior exp(-eta V)`, normalised, so that
    domains of equal velocity have their prior's proportions again.

    A domain that is missing from the newest observation is judged by its last loss within four observations. The method
    needs held-out losses and targets.
    """

    name: Literal["velocitune"] = "velocitune"
    form: Form = "accumulating"  # the paper's form as far as known; or "from_prior"
    step_size: float = number(1.0)  # eta; the paper's form has no step size, that is 1
    smoothing: float = number(0.0, high=1.0)  # c, share of the new weights that is uniform; the paper's form is 0
    clamp: bool = True  # limits R to [0, 1]
    min_gap: float = number(1e-3)  # nats; a domain whose target is not this far below its initial loss gets R = 0

    def method(self) -> Method:
        """See `MethodConfig`."""
        init, observe = remembering("heldout", window=4)

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            loss, seen = last_seen(history)
            remaining = remaining_fraction(loss, targets, clamp=self.clamp, min_gap=self.min_gap)
            if self.form == "from_prior":
                # Domains without evidence keep their weight; the others have the prior's proportions among themselves.
                mass, share = (jnp.where(seen, values, 0.0).sum() for values in (weights, targets.prior))
                weights = jnp.where(seen, targets.prior * mass / jnp.where(share > 0, share, 1.0), weights)
            return exponentiated_gradient(weights, remaining, seen, step_size=self.step_size, smoothing=self.smoothing)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "targets"}))


velocitune = factory_of(Velocitune)

PUBLISHED = Published(
    config=Velocitune,
    source="Luo et al. 2025, arXiv:2411.14318",
    place=10,
    departures=(
        "step size, smoothing and floor are options; their defaults (1, 0, 0) are the paper's form as far as known",
        "a domain whose target is not below its initial loss gets a remaining fraction of 0",
        "a domain without evidence keeps its weight",
        "`from_prior` is the other form that descriptions of the method allow: `prior exp(-eta V)`, normalised",
    ),
)
