"""Olmix: exponential laws as in data mixing laws, minimised near the prior and without reading a domain too often.

Source: allenai/olmix, `olmix/fit/utils.py`. The fit is in `vtune_jax.proposals.mixing_law` and `convex_proposer`.
"""

import dataclasses
from typing import Literal

from vtune_jax.rules.config import Published, number
from vtune_jax.rules.offline import Offline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmix(Offline):
    """The minimum of exponential laws, near the prior and within a limit on epochs."""

    name: Literal["olmix"] = "olmix"
    delta: float = number(0.02, positive=True, static=True)  # nats; larger residuals count linearly
    divergence_penalty: float = number(0.05, static=True)  # lambda, of KL(mixture || prior) in what is minimised
    repeats: float = number(4.0, positive=True, static=True)  # largest number of epochs of a domain under the proposal


PUBLISHED = Published(
    config=Olmix,
    source="allenai/olmix, `olmix/fit/utils.py`",
    place=130,
    departures=(
        "the law keeps a constant C that olmix's does not have, and its exponent is fitted with it",
        "mirror descent instead of an interior-point solver; equal to its recorded solutions",
    ),
)
