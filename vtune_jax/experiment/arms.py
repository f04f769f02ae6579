"""An arm: the role that one method plays in an experiment."""

import dataclasses
from typing import Literal

from vtune_jax import settings
from vtune_jax.core.checks import assert_within
from vtune_jax.core.names import assert_name
from vtune_jax.rules.config import MethodConfig
from vtune_jax.rules.registry import method_configs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One method in one experiment. In a file the method's own options stand in the same table, beside its `name`."""

    method: MethodConfig = settings.choice(method_configs, flat=True)
    label: str = settings.bookkeeping("")  # what the arm is called in files and tables; empty: the method's name
    acts_on: Literal["sampling", "loss"] = "sampling"  # what weights do: choose rows, or weigh tokens in the loss
    proxy_share: float = 0.0  # share of train.steps for which a proxy finds the mixture that the arm keeps; 0: no proxy

    def __post_init__(self) -> None:
        if self.label:
            assert_name(label=self.label)
        assert_within(0.0, 1.0, proxy_share=self.proxy_share)
        if not self.method.moves and (self.acts_on != "sampling" or self.proxy_share):
            raise ValueError("acts_on and proxy_share must be left alone where the mixture does not move.")

    @property
    def name(self) -> str:
        """The label, or the method's name."""
        return self.label or self.method.name
