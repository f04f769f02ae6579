"""What the configs of all methods share: a label, and the constraints around the method."""

import dataclasses
from typing import Literal

from vtune_jax.core.checks import assert_within
from vtune_jax.core.constraints import with_floor
from vtune_jax.core.types import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A method as one arm of an experiment; a subclass adds hyper-parameters and says which `method` they make."""

    name: str = ""
    label: str = ""  # what the arm is called in files and tables; its name if empty
    acts_on: Literal["sampling", "loss"] = "sampling"  # "loss": sampled by the prior, tokens weighted in the loss
    proxy_share: float = 0.0  # positive: a proxy run of that share of the steps comes first; its mean weights are kept
    floor: float = 0.0  # smallest weight of any domain

    def __post_init__(self) -> None:
        assert_within(0.0, 1.0, proxy_share=self.proxy_share)
        self.build()

    def method(self) -> Method:
        """The published method, with these hyper-parameters."""
        raise NotImplementedError

    def intervals(self, domains: int) -> int:
        """Updates before the weights say anything: the length of a first round of probes, else one."""
        return 1

    def build(self) -> Method:
        """That method within its constraints."""
        return with_floor(self.method(), self.floor)
