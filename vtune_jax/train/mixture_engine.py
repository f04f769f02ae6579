"""What both engines of a mixture share: its boundaries, its place in changed data, and what is recorded."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vtune_jax.core.types import Cursor, LossSums, TokenCount, Weights
from vtune_jax.data.mixture.limits import End
from vtune_jax.data.mixture.on_host import adapted
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import RowStore
from vtune_jax.errors import UserError
from vtune_jax.machine.mesh import replicate
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.engine import Advanced, Fault, Row, not_finite
from vtune_jax.train.heldout import mean_loss
from vtune_jax.train.state import TrainState
from vtune_jax.train.step import StepMetrics


class Boundary(NamedTuple):
    """The mixture after an interval, as far as it is recorded."""

    weights: Weights
    heldout: LossSums  # at the last update
    trained: TokenCount  # up to the last update
    cursor: Cursor


def boundary(state: TrainState) -> Boundary:
    """The part of a state that is recorded."""
    return Boundary(*(getattr(state.mixture, name) for name in Boundary._fields))


Made = tuple[TrainState, Sequence[StepMetrics], End | UserError | None]
"""The state, metrics of each step made, and why there are fewer than asked for."""


class MixtureEngine(ABC):
    """Advances a train state by several steps that do not cross a weight update, nor weights' coming into force."""

    def __init__(
        self, spec: PlanSpec, stores: Sequence[RowStore], constants: RunConstants, *, mesh: Mesh | None
    ) -> None:
        numbers = constants.numbers
        self.mesh = mesh
        # One seed: the run's, whatever the spec says.
        self._spec, self._stores = dataclasses.replace(spec, seed=int(numbers.seed)), tuple(stores)
        self._interval, self._phase, self._lag = int(numbers.interval), int(numbers.phase), int(numbers.lag)
        self._constants = replicate(constants, mesh)
        self._step = 0
        self._rows = np.array(spec.rows, np.int64)
        self._batch_tokens = spec.batch * stores[0].length

    @abstractmethod
    def _learn(self, state: TrainState, steps: int) -> Made:
        """Trains on the next batches."""

    def next_stop(self, step: int) -> int:
        """The next weight update, or the next step at which weights come into force."""
        offsets = (self._phase, self._phase + self._lag)
        return min(step + self._interval - (step - offset) % self._interval for offset in offsets)

    def adapt(self, state: TrainState) -> TrainState:
        """See `Engine`."""
        cursor = adapted(self._spec.rows, jax.device_get(state.mixture.cursor))
        return state._replace(mixture=state.mixture._replace(cursor=cursor))

    def start(self, state: TrainState, step: int) -> None:
        """See `Engine`."""
        self._step = step

    def advance(self, state: TrainState, steps: int) -> Advanced[TrainState]:
        """See `Engine`."""
        state, metrics, stop = self._learn(state, steps)
        first, self._step = self._step, self._step + len(metrics)
        rows = [self._step_row(done, row) for done, row in enumerate(metrics, start=first + 1)]
        due = metrics and (self._step - self._phase) % self._interval == 0
        updates = [self._update_row(state, metrics[-1])] if due else []
        return Advanced(state, rows, updates, stop, not_finite(rows) or _no_shares(updates))

    def _step_row(self, done: int, metrics: StepMetrics) -> Row:
        names = ("loss", "learning_rate", "gradient_norm")
        return {"step": done, "tokens": done * self._batch_tokens, **{name: float(metrics[name]) for name in names}}

    def _update_row(self, state: TrainState, metrics: StepMetrics) -> Row:
        """What an update saw and decided, and what has been read so far."""
        mixture: Boundary = jax.device_get(boundary(state))
        cursor = mixture.cursor
        return {
            "step": self._step,
            "tokens": self._step * self._batch_tokens,
            "weights": mixture.weights,
            "heldout_loss": mean_loss(mixture.heldout),
            "train_loss": mean_loss(LossSums(metrics["train_nats"], metrics["train_tokens"])),
            "tokens_read": mixture.trained.exact(),
            "epochs": cursor.epoch + cursor.row / self._rows,
            "order": "".join(f"{word:08x}" for word in cursor.order.tolist()),
        }


def _no_shares(updates: Sequence[Row]) -> Fault | None:
    """Weights that are not on the simplex, which a quota would hide: no sum of NaN fails."""
    for row in updates:
        weights = np.asarray(row["weights"], np.float64)
        if not ((weights >= 0).all() and abs(weights.sum() - 1) < 1e-3):
            return Fault(
                f"the method's weights after step {row['step']} are {weights.tolist()}, not shares of one",
                "mend the method's update so that it returns non-negative, finite weights with sum 1",
            )
    return None
