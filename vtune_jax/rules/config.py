"""What the configs of all methods share: a label, how weights act, the filters and constraints around the method."""

import dataclasses
import math
from typing import Literal

from vtune_jax.core.checks import assert_within
from vtune_jax.core.constraints import constrained
from vtune_jax.core.filters import FilterConfig, NoFilter, filtered, gated
from vtune_jax.core.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A method as one arm of an experiment; a subclass adds hyper-parameters and says which `method` they make."""

    name: str = ""
    label: str = ""  # what the arm is called in files and tables; its name if empty
    acts_on: Literal["sampling", "loss"] = "sampling"  # "loss": sampled by the prior, tokens weighted in the loss
    proxy_share: float = 0.0  # positive: a proxy run of that share of the steps comes first; its mean weights are kept
    floor: float = 0.0  # smallest weight of any domain
    ceiling: float = 1.0  # largest weight of any domain
    largest_change: float = 0.0  # positive: a weight grows or shrinks at most by this factor, plus one, per update
    trust_region: float = 0.0  # positive: largest divergence from the prior, nats
    max_repeats: float = 0.0  # positive: no weight that would read a domain more often than this, in epochs
    gate: float = 0.0  # positive: weights move only where a loss has changed by this many standard errors
    filter: FilterConfig = NoFilter()  # of the losses that the method is shown

    def __post_init__(self) -> None:
        assert_within(0.0, 1.0, proxy_share=self.proxy_share)
        for field in ("largest_change", "trust_region", "max_repeats"):
            assert_within(**{field: getattr(self, field)})
        self.build()

    def method(self) -> Method:
        """The published method, with these hyper-parameters."""
        raise NotImplementedError

    def intervals(self, domains: int) -> int:
        """Updates before the weights say anything: the length of a first round of probes, else one."""
        return 1

    def build(self) -> Method:
        """That method on filtered losses, behind its gate and within its constraints."""
        method, by = self.method(), self.filter.build()
        method = gated(method if by is None else filtered(method, by), self.gate)
        return constrained(
            method,
            floor=self.floor,
            ceiling=self.ceiling,
            largest_change=self.largest_change or math.inf,
            trust_region=self.trust_region or math.inf,
            max_repeats=self.max_repeats or math.inf,
        )
