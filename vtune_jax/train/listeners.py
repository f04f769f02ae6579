"""What is done with a run's numbers while it runs: the loop tells its listeners, and they write, show or watch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtune_jax.machine import hosts
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.machine.progress import Tick
from vtune_jax.train.engine import Row


class Listener:
    """Hears of everything and does nothing; a listener overrides what it needs."""

    def started(self, step: int) -> None:
        """The run goes on after this step, restored from a checkpoint; 0: it begins."""

    def stepped(self, rows: Sequence[Row]) -> None:
        """These steps have been made."""

    def updated(self, rows: Sequence[Row]) -> None:
        """The engine decided or measured this at a boundary: new weights, a proxy's evaluation."""

    def saved(self, step: int) -> None:
        """A checkpoint of this step is being written in the background."""

    def warned(self, message: str) -> None:
        """Something the user should see in one line."""

    def finished(self, step: int) -> None:
        """The run is over, after so many steps."""


class MetricsFiles(Listener):
    """Rows of steps in `steps.jsonl`, those of updates in `updates.jsonl`.

    Both are cut back to the checkpoint on resuming, so that an interrupted run leaves the same files as an unbroken
    one. All processes compute the same rows; the leading one writes them.
    """

    def __init__(self, folder: Path, interval: int | None = None) -> None:
        """Writes nothing yet.

        Args:
            folder: for the two files.
            interval: steps between updates, by which a missing row is seen; None: any number of updates will do.
        """
        self._interval = interval
        place = folder if hosts.leads() else None
        self._steps, self._updates = (JsonLines(place and place / f"{name}.jsonl") for name in ("steps", "updates"))

    def started(self, step: int) -> None:
        """See `Listener`."""
        self._steps.cut(step, step)
        self._updates.cut(step, step // self._interval if self._interval else None)

    def stepped(self, rows: Sequence[Row]) -> None:
        """See `Listener`."""
        self._steps.append(rows)

    def updated(self, rows: Sequence[Row]) -> None:
        """See `Listener`."""
        self._updates.append(rows)


class Shown(Listener):
    """Progress for a person: a bar's tick is told of steps, warnings go to `note`."""

    def __init__(self, tick: Tick, note: Callable[[str], None] = lambda message: None) -> None:
        """Shows nothing yet.

        Args:
            tick: see `machine.progress`.
            note: told of warnings.
        """
        self._tick, self._note = tick, note
        self._weights: dict[str, Any] = {}

    def started(self, step: int) -> None:
        """See `Listener`."""
        self._tick(step, {})

    def stepped(self, rows: Sequence[Row]) -> None:
        """See `Listener`."""
        newest: dict[str, Any] = {name: rows[-1][name] for name in ("loss", "tokens") if name in rows[-1]}
        self._tick(len(rows), {**newest, **self._weights})

    def updated(self, rows: Sequence[Row]) -> None:
        """See `Listener`."""
        if "weights" in rows[-1]:
            self._weights = {"weights": rows[-1]["weights"]}

    def warned(self, message: str) -> None:
        """See `Listener`."""
        self._note(message)
