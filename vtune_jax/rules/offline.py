"""What the offline methods share: they propose a constant mixture by a fit through runs at random mixtures.

The fits are in `vtune_jax.proposals`; here are the options of each method, and what it does in training: nothing.
"""

import dataclasses
import math
from typing import ClassVar

from vtune_jax.core.types import Method
from vtune_jax.rules.config import MethodConfig
from vtune_jax.rules.static import static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offline(MethodConfig):
    """The base of the offline methods' configs."""

    moves: ClassVar[bool] = False

    domain_weights: tuple[float, ...] = ()  # of each domain's loss in the mean that is minimised; empty: equal

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < weight < math.inf for weight in self.domain_weights):
            raise ValueError(f"domain_weights must be positive and finite, got {list(self.domain_weights)}.")

    def method(self) -> Method:
        """The mixture does not move; the proposed mixture is the prior that the run is given."""
        return static()._replace(needs=frozenset({"proxies"}))

    def assert_fits(self, names: tuple[str, ...]) -> None:
        """See `MethodConfig`."""
        if len(self.domain_weights) not in (0, len(names)):
            raise ValueError(
                f"domain_weights must name one number per domain ({len(names)}), got {len(self.domain_weights)}"
            )
