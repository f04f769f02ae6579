"""The mixture that does not move: the control of every experiment."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import remembering
from vtune_jax.core.types import LossHistory, Method, Targets, Weights
from vtune_jax.rules.arm import Arm

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


def prior_weights(tokens: Sequence[int] | np.ndarray, power: float = 1.0) -> np.ndarray:
    """`w_i = n_i^a / sum_j n_j^a`: natural shares for `a = 1`, uniform for `a = 0`.

    Args:
        tokens: available per domain, positive.
        power: a >= 0. What some call temperature is 1 / a.

    Raises:
        ValueError: a domain without tokens, or a negative power.
    """
    if power < 0:
        raise ValueError(f"power must not be negative, got {power}.")
    counts = np.asarray(tokens, np.float64)
    if not (counts > 0).all():
        raise ValueError(f"tokens must be positive in every domain, got {counts.tolist()}.")
    # Divided by the largest first: 10**13 tokens to a large power would overflow.
    shares = (counts / counts.max()) ** power
    return shares / shares.sum()


def unimax_weights(
    tokens: Sequence[int] | np.ndarray, budget: float | int, max_epochs: float | int
) -> tuple[np.ndarray, float]:
    """UniMax: uniform over the domains as far as none is read more than `max_epochs` times.

    From the smallest domain to the largest, with r domains and a budget of C_r left: `U_i = min(C_r / r, N n_i)`,
    `C_{r-1} = C_r - U_i`; then `w = U / sum U`. Source: Chung et al. 2023, arXiv:2304.09151 (in characters there).

    Args:
        tokens: available per domain, positive.
        budget: tokens of the whole run, C.
        max_epochs: N.

    Returns:
        weights, float64, and the part of the budget that cannot be spent within N epochs (0 where all can).

    Raises:
        ValueError: an argument that is not positive.
    """
    counts = np.asarray(tokens, np.float64)
    if not (counts > 0).all():
        raise ValueError(f"tokens must be positive in every domain, got {counts.tolist()}.")
    if not (budget > 0 and max_epochs > 0):
        raise ValueError(f"budget and max_epochs must be positive, got {budget} and {max_epochs}.")
    share, left = np.zeros(len(counts)), float(budget)
    for done, domain in enumerate(np.argsort(counts, kind="stable")):
        share[domain] = min(left / (len(counts) - done), max_epochs * counts[domain])
        left -= share[domain]
    return share / share.sum(), max(0.0, float(budget - share.sum()))


def stratified_weights(tokens: Sequence[int] | np.ndarray, groups: Sequence[str], power: float = 1.0) -> np.ndarray:
    """Groups of domains share evenly, the domains of a group by `n_i^a`: `w_i = n_i^a / (G sum_{j in group} n_j^a)`.

    Args:
        tokens: available per domain, positive.
        groups: the group that each domain belongs to, of G different ones.
        power: a >= 0, within a group.

    Raises:
        ValueError: not one group per domain, or as `prior_weights`.
    """
    if len(groups) != len(tokens):
        raise ValueError(f"groups must name one group per domain ({len(tokens)}), got {len(groups)}.")
    counts, of = np.asarray(tokens), np.array(groups)
    weights = np.zeros(len(counts))
    for group in set(groups):
        weights[of == group] = prior_weights(counts[of == group], power)
    return weights / weights.sum()


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
