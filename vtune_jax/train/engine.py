"""An engine advances a state step by step; the loop records, saves and resumes whatever it is.

Runs on a mixture are advanced from the host (`host_engine`) or from accelerator memory (`device_engine`): both realise
the same plan, so they train on identical batches. Proxies side by side are advanced by `lanes`.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from jax.sharding import Mesh

from vtune_jax.data.mixture.limits import End
from vtune_jax.errors import UserError

Row = dict[str, Any]
"""One record of metrics, with the `step` after which it was taken."""
S = TypeVar("S")


class Fault(NamedTuple):
    """Numbers that make a state worthless."""

    what: str
    remedy: str


class Advanced(NamedTuple, Generic[S]):
    """What an engine has done."""

    state: S
    rows: Sequence[Row]  # one for each step made; each has `loss`
    updates: Sequence[Row] = ()  # what the engine decided or measured at its own boundaries
    stop: End | UserError | None = None  # why fewer steps were made than asked for; the state is sound
    fault: Fault | None = None  # the state is not to be saved


class Engine(Protocol[S]):
    """Advances a state, a pytree of arrays that is also what a checkpoint holds."""

    mesh: Mesh | None
    """The devices on which the state lies; None for the one device."""

    def next_stop(self, step: int) -> int:
        """The first step after this one that `advance` must not cross."""
        ...

    def adapt(self, state: S) -> S:
        """A state of other data, moved to its place in these."""
        ...

    def start(self, state: S, step: int) -> None:
        """Takes up its work at a state after so many steps."""
        ...

    def advance(self, state: S, steps: int) -> Advanced[S]:
        """Makes `steps` steps, or fewer where the data end; the state's memory is used again."""
        ...

    def close(self) -> None:
        """Lets workers go."""
        ...


def not_finite(rows: Sequence[Row]) -> Fault | None:
    """The first row whose loss or gradient norm is not a finite number."""
    for row in rows:
        if not (np.isfinite(row["loss"]) and np.isfinite(row["gradient_norm"])):
            return Fault(
                f"the loss is {row['loss']:.4g} with gradient norm {row['gradient_norm']:.4g} at step {row['step']}",
                "lower peak_learning_rate or clip_norm, or lengthen warmup_fraction",
            )
    return None
