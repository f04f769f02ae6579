"""An engine feeds the train step: from the host (`host_engine`), or from accelerator memory (`device_engine`).

Both realise the same plan, so they train on identical batches.
"""

from typing import Protocol

import numpy as np

from vtune_jax.data.mixture.limits import End
from vtune_jax.errors import UserError
from vtune_jax.train.state import TrainState

MetricRows = list[dict[str, np.ndarray]]


class Engine(Protocol):
    """Advances a train state by several steps that do not cross a weight update, nor weights' coming into force."""

    ended: End | None
    """Why the last `advance` made fewer steps than asked: a limit of the data ends the run here."""
    failure: UserError | None
    """Why it made fewer steps: tokens that cannot be read. The state is sound."""

    def place(self, state: TrainState) -> TrainState:
        """The state on the devices."""
        ...

    def start(self, state: TrainState) -> TrainState:
        """Takes the data position from the state, and places it."""
        ...

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, MetricRows]:
        """Runs `steps` optimiser steps, or fewer; returns one row of metrics for each that was made."""
        ...

    def close(self) -> None:
        """Lets workers go."""
        ...
