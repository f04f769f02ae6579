"""Data mixing laws: an exponential law of each domain's loss in the mixture, and the mixture that minimises their mean.

Source: Ye et al. 2024, "Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance",
arXiv:2403.16952, and its code, yegcjs/mixinglaws. The fit is in `vtune_jax.proposals.mixing_law`.
"""

import dataclasses
from typing import Literal

from vtune_jax.rules.config import Published, number
from vtune_jax.rules.offline import Offline


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingLaws(Offline):
    """The minimum of exponential laws."""

    name: Literal["mixing_laws"] = "mixing_laws"
    delta: float = number(0.05, positive=True, static=True)  # nats; larger residuals count linearly
    # lambda times KL(mixture || prior) is added to what is minimised: so small that it only decides between equals.
    divergence_penalty: float = number(1e-3, static=True)


PUBLISHED = Published(
    config=MixingLaws,
    source="Ye et al. 2024, arXiv:2403.16952; yegcjs/mixinglaws",
    place=120,
    departures=(
        "K is a shift of t on the simplex and is not fitted apart",
        "scipy's least squares from ten starts where the original draws thousands for L-BFGS",
        "the minimum is found by a convex solver with a small divergence penalty, not on a grid of powers of two",
        "laws of model size and of steps are left out: the runs predict their own length",
    ),
)
