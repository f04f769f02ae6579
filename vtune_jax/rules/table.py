"""The methods in one table: name, config, source, and where they leave their source."""

from typing import NamedTuple

from vtune_jax.rules.static import Static
from vtune_jax.rules.velocitune import Velocitune


class Entry(NamedTuple):
    """One published method."""

    name: str
    config: type  # a dataclass with `build() -> Method`
    source: str
    departures: tuple[str, ...]


METHODS: tuple[Entry, ...] = (
    Entry("static", Static, "control", ()),
    Entry(
        "velocitune",
        Velocitune,
        "Luo et al. 2025, arXiv:2411.14318",
        (
            "step size, smoothing and floor are options; their defaults (1, 0, 0) are the paper's form as far as known",
            "a domain whose target is not below its initial loss gets a remaining fraction of 0",
            "a domain without evidence keeps its weight",
        ),
    ),
)
