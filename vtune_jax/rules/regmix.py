"""RegMix: boosted trees from mixtures to losses, and a search by simulation for the best mixture.

Source: Liu et al. 2024, "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv:2407.01492, and its
code, sail-sg/regmix. The fit is in `vtune_jax.proposals.trees`.
"""

import dataclasses
from typing import Literal

from vtune_jax.rules.config import Published, number
from vtune_jax.rules.offline import Offline


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegMix(Offline):
    """The mean of the simulated mixtures for which boosted trees predict the lowest loss."""

    name: Literal["regmix"] = "regmix"
    trees: int = number(1000, low=1)  # largest number of trees
    held_back: float = number(0.2, high=0.9, static=True)  # share of the runs that says when to stop adding trees
    draws: int = number(100_000, low=1)  # simulated mixtures, from Dirichlet(prior)
    best: int = number(128, low=1)  # how many of them are averaged
    draw_seed: int = 42


PUBLISHED = Published(
    config=RegMix,
    source="Liu et al. 2024, arXiv:2407.01492; sail-sg/regmix",
    place=110,
    departures=(
        "the runs have the real model's size, start from the base model and number tens, not 512 tiny ones",
        "what is regressed is the weighted mean of the domains' held-out losses",
        "trees stop by runs that are held back, not by the test runs; leaves may hold fewer than twenty runs",
        "all mixtures tied with the best 128 are averaged; the original takes what an unstable sort puts first",
    ),
)
