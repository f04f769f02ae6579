"""The mixture that does not move: the control of every experiment."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from vtune_jax.core.history import remembering
from vtune_jax.core.priors import prior_weights, stratified_weights, unimax_weights
from vtune_jax.core.types import LossHistory, Method, Targets, Weights
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["prior", "natural", "uniform", "power", "unimax", "stratified"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(MethodConfig):
    """Keeps the prior, `w' = prior`: the experiment's prior, or one that follows from the sizes of the domains.

    It still records held-out losses, so that its curves can be compared. It needs nothing.
    """

    moves: ClassVar[bool] = False

    name: Literal["static"] = "static"
    form: Form = "prior"  # or from the tokens of each domain: "natural", "uniform", "power", "unimax", "stratified"
    power: float = number(0.5, static=True)  # a of "power", `n^a`, and of "stratified" within a group
    max_epochs: float = number(4.0, positive=True, static=True)  # of "unimax": largest number of epochs of a domain
    groups: tuple[str, ...] = ()  # of "stratified": the group of each domain, in their order

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.groups) != (self.form == "stratified"):
            raise ValueError(f'groups must be given for the form "stratified" and no other, got {list(self.groups)}.')

    def method(self) -> Method:
        """See `MethodConfig`."""
        init, observe = remembering("heldout")

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            return targets.prior

        return Method(init=init, observe=observe, update=update, needs=frozenset())

    def mixture(self, prior: np.ndarray, tokens: np.ndarray, budget: float | int) -> np.ndarray:
        """See `MethodConfig`; the budget matters to "unimax" only."""
        if self.form == "prior":
            return prior
        if self.form == "unimax":
            return unimax_weights(tokens, budget, self.max_epochs)[0]
        if self.form == "stratified":
            return stratified_weights(tokens, self.groups, self.power)
        return prior_weights(tokens, {"natural": 1.0, "uniform": 0.0, "power": self.power}[self.form])

    def assert_fits(self, names: tuple[str, ...]) -> None:
        """See `MethodConfig`."""
        if self.groups and len(self.groups) != len(names):
            raise ValueError(f"groups must name one group per domain ({len(names)}), got {len(self.groups)}")


static = factory_of(Static)

PUBLISHED = Published(
    config=Static,
    source="control; UniMax: Chung et al. 2023, arXiv:2304.09151",
    place=0,
    departures=(
        "UniMax counts tokens, characters in the paper; what cannot be spent is reported instead of scaled up silently",
        "stratified: groups share evenly, and within a group the power law of sizes holds",
    ),
)
