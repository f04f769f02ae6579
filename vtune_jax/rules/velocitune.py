"""Velocitune: more of the budget for domains that learn slowly.

Source: Luo et al. 2025, "Velocitune: A Velocity-based Dynamic Domain Reweighting Method for Continual Pre-training",
ACL 2025, arXiv:2411.14318. The authors published no code; the step size, the smoothing and the guard on the
denominator are not taken from it (see BUILD.md, "Departures").
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import last_seen, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.scores import remaining_fraction
from vtune_jax.core.types import LossHistory, Method, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm

Form = Literal["accumulating", "from_prior"]


def velocitune(
    *,
    form: Form = "accumulating",
    step_size: Scalar = 1.0,
    smoothing: Scalar = 0.0,
    clamp: bool = True,
    min_gap: Scalar = 1e-3,
    window: int = 4,
) -> Method:
    """Weights grow with the remaining fraction of the way to the target loss.

    `R = clip((loss - target) / (initial - target), 0, 1)`, `w' = (1 - c) softmax(log w + eta R) + c / k`, with the
    held-out losses of the last observation. With learning velocity `V = 1 - R` the same update reads
    `w' proportional to w exp(-eta V)`.

    The form "from_prior" keeps no account of the past: `w'` proportional to `prior exp(-eta V)`, normalised, so that
    domains of equal velocity have their prior's proportions again.

    Args:
        form: "accumulating", the paper's as far as known, or "from_prior".
        step_size: eta >= 0. The paper's form has no step size, that is 1.
        smoothing: c in [0, 1], mixed in as a uniform share; 0 in the paper's form.
        clamp: limits R to [0, 1].
        min_gap: nats. A domain whose target is not at least this far below its initial loss gets R = 0.
        window: observations kept; a domain missing from the newest one is judged by its last within them.

    Returns:
        A method that needs held-out losses and targets.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    if form not in ("accumulating", "from_prior"):
        raise ValueError(f"form must be accumulating or from_prior, got '{form}'.")
    assert_within(step_size=step_size, min_gap=min_gap)
    assert_within(0.0, 1.0, smoothing=smoothing)

    init, observe = remembering("heldout", window)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        loss, seen = last_seen(history)
        remaining = remaining_fraction(loss, targets, clamp=clamp, min_gap=min_gap)
        if form == "from_prior":
            # Domains without evidence keep their weight; the others have the prior's proportions among themselves.
            mass, share = (jnp.where(seen, values, 0.0).sum() for values in (weights, targets.prior))
            weights = jnp.where(seen, targets.prior * mass / jnp.where(share > 0, share, 1.0), weights)
        return exponentiated_gradient(weights, remaining, seen, step_size=step_size, smoothing=smoothing)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "targets"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocitune(Arm):
    """Velocitune's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["velocitune"] = "velocitune"
    form: Form = "accumulating"  # or "from_prior": weights follow the velocity of now, not its history
    step_size: float = 1.0  # eta; the paper's form is 1
    smoothing: float = 0.0  # c, the uniform share of each update; the paper's form is 0
    clamp: bool = True  # remaining fractions limited to [0, 1]
    min_gap: float = 1e-3  # nats between initial and target loss below which a domain is left alone

    def method(self) -> Method:
        """See `Arm`."""
        return velocitune(
            form=self.form,
            step_size=self.step_size,
            smoothing=self.smoothing,
            clamp=self.clamp,
            min_gap=self.min_gap,
        )
