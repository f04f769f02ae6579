"""What a method may ask for, and where it comes from."""

from collections.abc import Iterable
from typing import NamedTuple


class Need(NamedTuple):
    """One thing that a method may name in `Method.needs`."""

    name: str
    meaning: str
    evidence: str = (
        ""  # must then be in the observation of every update: a field of it, or a kind in `Observation.evidence`
    )
    constants: tuple[str, ...] = ()  # what `Targets.constants` must then hold
    runs: str = ""  # what must have been trained before: "targets", "reference", "graph" or "proxies"


NEEDS = {
    need.name: need
    for need in (
        Need("heldout", "held-out losses per domain, at every update", evidence="heldout"),
        Need(
            "train",
            "losses of the training batches per domain since the last update, with counts",
            evidence="train",
        ),
        Need("weights", "the mixture that these batches were drawn from", evidence="weights"),
        Need("targets", "initial and target losses per domain, by the targets stage", runs="targets"),
        Need("sizes", "training tokens of each domain and the budget of the run", constants=("sizes", "budget")),
        Need(
            "reference",
            "losses on the same tokens of a model trained at the prior for `proxies.reference_length`",
            evidence="excess",
            runs="reference",
        ),
        Need(
            "alignment",
            "inner products of the domains' gradients on the last training batch",
            evidence="alignment",
        ),
        Need(
            "heldout_alignment",
            "inner products of these gradients with those of the domains' held-out losses",
            evidence="alignment",
        ),
        Need("last_gradients", "the last gradient of a domain that is absent from the batch, kept in the train state"),
        Need("probes", "intervals of training under mixtures of the method's own choice"),
        Need(
            "graph",
            "how much training on each domain helps each other one, by one run of `proxies.length` on each alone",
            constants=("graph",),
            runs="graph",
        ),
        Need(
            "proxies",
            "held-out losses of `proxies.mixtures` runs of `proxies.length` at random mixtures",
            runs="proxies",
        ),
    )
}
"""Everything that can be supplied, by name."""


def assert_known(needs: Iterable[str]) -> None:
    """Refuses needs that nothing can supply.

    Raises:
        ValueError: naming them, and what can be supplied.
    """
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"the method needs {sorted(unknown)}, but what can be supplied is {sorted(NEEDS)}.")
