"""What a kind of evidence is: three pure functions that the train step calls, and a name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Int, PyTree

from vtune_jax.core.needs import Need
from vtune_jax.models import Batch, Model
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.learn import Learned


class Context(NamedTuple):
    """Where evidence is looked for."""

    model: Model
    needs: frozenset[str]  # of the method
    domains: int
    batch: Batch  # the newest
    constants: RunConstants


class Evidence(NamedTuple):
    """A kind of evidence: the constant `EVIDENCE` of a module in this package, found by `registry`.

    What it gathers between updates lives in `MixtureState.evidence` under its name, and so in every checkpoint; what it
    observes is handed to the method in `Observation.evidence` under the same name.
    """

    name: str
    """As `core.needs.Need.evidence` gives it: a method with such a need is supplied with this kind."""
    start: Callable[[frozenset[str], int, PyTree], PyTree]
    """`(needs, domains, params) -> gathered`, arrays before the first step; `()` where nothing is gathered."""
    gather: Callable[[PyTree, Context, Learned], PyTree]
    """`(gathered, context, learned) -> gathered`, after every optimiser step; `learned` holds the batch's losses."""
    observe: Callable[[PyTree, Context, PyTree, Int[Array, ""]], tuple[Any, PyTree]]
    """`(gathered, context, params, step) -> (evidence, gathered)`, at an update, at the parameters of now."""
    needs: tuple[Need, ...] = ()
    """Words by which methods ask for it, where they do not stand in `core.needs.NEEDS`."""
