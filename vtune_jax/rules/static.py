"""The mixture that does not move: the control of every experiment."""

import dataclasses
from typing import Literal

import numpy as np

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import remembering
from vtune_jax.core.priors import prior_weights, stratified_weights, unimax_weights
from vtune_jax.core.types import LossHistory, Method, Targets, Weights
from vtune_jax.rules.config import Arm

Form = Literal["prior", "natural", "uniform", "power", "unimax", "stratified"]


def static(window: int = 1) -> Method:
    """Keeps the prior: `w' = prior`. It still records held-out losses, so that its curves can be compared.

    Args:
        window: observations kept in its history.
    """

    init, observe = remembering("heldout", window)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        return targets.prior

    return Method(init=init, observe=observe, update=update, needs=frozenset())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(Arm):
    """A constant mixture: the prior, or one of its own."""

    name: Literal["static"] = "static"
    form: Form = "prior"  # or from the sizes of domains: "natural", "uniform", "power", "unimax", "stratified"
    power: float = 0.5  # a of "power", n^a; within groups of "stratified"
    max_epochs: float = 4.0  # of "unimax"
    groups: tuple[str, ...] = ()  # of "stratified": the group of each domain, in their order

    def __post_init__(self) -> None:
        assert_within(power=self.power)
        if self.max_epochs <= 0:
            raise ValueError(f"max_epochs must be positive, got {self.max_epochs}.")
        if bool(self.groups) != (self.form == "stratified"):
            raise ValueError(f'groups must be given for the form "stratified" and no other, got {list(self.groups)}.')
        super().__post_init__()

    def method(self) -> Method:
        """See `Arm`."""
        return static()

    def mixture(self, prior: np.ndarray, tokens: np.ndarray, budget: float | int) -> np.ndarray:
        """The weights of the whole run.

        Args:
            prior: on the simplex.
            tokens: available per domain.
            budget: tokens of the whole run; matters for UniMax only.
        """
        if self.form == "prior":
            return prior
        if self.form == "unimax":
            return unimax_weights(tokens, budget, self.max_epochs)[0]
        if self.form == "stratified":
            return stratified_weights(tokens, self.groups, self.power)
        return prior_weights(tokens, {"natural": 1.0, "uniform": 0.0, "power": self.power}[self.form])
