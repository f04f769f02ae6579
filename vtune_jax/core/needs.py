"""What a method may ask for, and where it comes from."""

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Job(NamedTuple):
    """The numbers of an experiment that decide how long the runs before an arm are."""

    steps: int  # optimiser steps of an arm
    domains: int
    mixtures: int  # random mixtures that are tried
    length: float  # of a short run, as a share of an arm's steps
    reference_length: float  # of the reference model's run, as a share of an arm's steps

    def share(self, length: float) -> int:
        """Optimiser steps of a run of this share of an arm's length, at least one."""
        return max(1, round(length * self.steps))


def no_runs(job: Job) -> tuple[int, ...]:
    """Of needs that take no training."""
    return ()


class Need(NamedTuple):
    """One thing that a method may name in `Method.needs`."""

    name: str
    meaning: str
    evidence: str = (
        ""  # must then be in the observation of every update: a field of it, or a kind in `Observation.evidence`
    )
    constants: tuple[str, ...] = ()  # what `Targets.constants` must then hold
    stage: str = ""  # what the stage that meets the need before an arm trains is called
    runs: Callable[[Job], tuple[int, ...]] = no_runs  # optimiser steps of each run of that stage
    least_mixtures: Callable[[int], int] = lambda domains: 0  # random mixtures that it takes, by number of domains


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
        Need("targets", "initial and target losses per domain, by the targets stage", stage="targets"),
        Need("sizes", "training tokens of each domain and the budget of the run", constants=("sizes", "budget")),
        Need(
            "reference",
            "losses on the same tokens of a model trained at the prior for `proxies.reference_length`",
            evidence="excess",
            stage="reference model",
            runs=lambda job: (job.share(job.reference_length),),
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
            stage="skill graph",
            runs=lambda job: (job.share(job.length),) * job.domains,
        ),
        Need(
            "proxies",
            "held-out losses of `proxies.mixtures` runs of `proxies.length` at random mixtures",
            stage="random mixtures",
            runs=lambda job: (job.share(job.length),) * job.mixtures,
            # A law has one parameter per domain and one more; a quarter of the runs are left out when it is judged.
            least_mixtures=lambda domains: 2 * (domains + 1),
        ),
    )
}
"""Everything that can be supplied, by name."""


def assert_known(needs: Iterable[str], known: Iterable[str] = NEEDS) -> None:
    """Refuses needs that nothing can supply.

    Args:
        needs: of a method.
        known: names of what can be supplied.

    Raises:
        ValueError: naming them, and what can be supplied.
    """
    if unknown := set(needs) - set(known):
        raise ValueError(f"the method needs {sorted(unknown)}, but what can be supplied is {sorted(known)}.")
