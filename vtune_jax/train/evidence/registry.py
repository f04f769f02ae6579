"""The kinds of evidence, found by looking: every module of this package with a constant `EVIDENCE` adds one."""

import functools

from vtune_jax.core.modules import constants_of
from vtune_jax.core.needs import NEEDS, Need, assert_known
from vtune_jax.train.evidence.kind import Evidence


@functools.cache
def kinds() -> tuple[Evidence, ...]:
    """All of them."""
    return tuple(constants_of(__package__, "EVIDENCE"))


@functools.cache
def known_needs() -> dict[str, Need]:
    """Everything that can be supplied: the table of `core`, and what kinds of evidence add to it."""
    return NEEDS | {need.name: need for kind in kinds() for need in kind.needs}


def needed(needs: frozenset[str]) -> tuple[Evidence, ...]:
    """The kinds that supply these needs of a method.

    Raises:
        ValueError: a need that nothing supplies.
    """
    known = known_needs()
    assert_known(needs, known)
    wanted = {known[need].evidence for need in needs}
    return tuple(kind for kind in kinds() if kind.name in wanted)
