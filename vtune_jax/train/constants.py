"""What a run holds fixed but a compiled step must not: runs that differ only here share one program."""

from typing import NamedTuple

from jaxtyping import PyTree

from vtune_jax.train.heldout import Heldout
from vtune_jax.train.numbers import Numbers


class RunConstants(NamedTuple):
    """An argument of the train step beside state and batch."""

    heldout: Heldout  # the rows behind every held-out loss
    numbers: Numbers
    reference: PyTree = None  # parameters of the reference model, of methods that need one
