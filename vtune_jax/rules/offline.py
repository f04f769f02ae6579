"""Offline methods: a constant mixture that a fit through runs at random mixtures proposes.

The fits are in `vtune_jax.fits` (`mixing_law`, `convex_proposer`, `regression`); here is what an arm is told of them.
"""

import dataclasses
from typing import Literal

from vtune_jax.core.checks import assert_within
from vtune_jax.core.types import Method
from vtune_jax.rules.config import Arm
from vtune_jax.rules.static import static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offline(Arm):
    """What the offline methods share."""

    domain_weights: tuple[float, ...] = ()  # of each domain's loss in what is minimised; empty: equal

    def __post_init__(self) -> None:
        if any(weight <= 0 for weight in self.domain_weights):
            raise ValueError(f"domain_weights must be positive, got {list(self.domain_weights)}.")
        if self.acts_on != "sampling" or self.proxy_share:
            raise ValueError("acts_on and proxy_share must be left alone where the mixture does not move.")
        super().__post_init__()

    def method(self) -> Method:
        """The mixture does not move; it is the prior that the arm is given."""
        return static()._replace(needs=frozenset({"proxies"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegMix(Offline):
    """Boosted trees and a search by simulation."""

    name: Literal["regmix"] = "regmix"
    trees: int = 1000  # at most
    held_back: float = 0.2  # share of the runs that say when to stop
    draws: int = 100_000  # of Dirichlet(prior)
    best: int = 128  # of them are averaged
    draw_seed: int = 42

    def __post_init__(self) -> None:
        assert_within(1.0, trees=self.trees, draws=self.draws, best=self.best)
        assert_within(0.0, 0.9, held_back=self.held_back)
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingLaws(Offline):
    """Exponential laws, minimised."""

    name: Literal["mixing_laws"] = "mixing_laws"
    delta: float = 0.05  # nats; residuals beyond it count linearly
    divergence_penalty: float = 1e-3  # lambda, so small that it only picks one of equal mixtures

    def __post_init__(self) -> None:
        assert_within(divergence_penalty=self.divergence_penalty)
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, got {self.delta}.")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmix(Offline):
    """Exponential laws, minimised near the prior and without reading a domain too often."""

    name: Literal["olmix"] = "olmix"
    delta: float = 0.02  # nats; residuals beyond it count linearly
    divergence_penalty: float = 0.05  # lambda
    repeats: float = 4.0  # most epochs of a domain under the proposal

    def __post_init__(self) -> None:
        assert_within(divergence_penalty=self.divergence_penalty)
        for field in ("delta", "repeats"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}.")
        super().__post_init__()
