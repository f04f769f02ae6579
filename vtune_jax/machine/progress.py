"""What a run shows while it works: a live bar in a terminal, plain lines elsewhere, nothing when silent."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

Tick = Callable[[int, dict[str, Any]], None]
"""Told of progress: steps just done, and fields to show."""


class Progress:
    """Stage headings, notes and training bars, on standard error."""

    def __init__(self, *, silent: bool = False, stream: TextIO | None = None, line_every_s: float = 10.0) -> None:
        """Shows nothing yet.

        Args:
            silent: shows notes only.
            stream: where it is shown; None: standard error.
            line_every_s: least seconds between two lines of a bar where there is no terminal.
        """
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._silent = silent
        self._line_every_s = line_every_s

    def stage(self, name: str, purpose: str) -> None:
        """Announces a stage."""
        from rich.text import Text

        if not self._silent:
            self._console.print(Text.assemble((name, "bold"), f": {purpose}"))

    def note(self, message: str) -> None:
        """Shows a line that the user should see even when silent."""
        self._console.print(f"  {message}", markup=False)

    @contextmanager
    def bar(self, title: str, steps: int, names: Sequence[str] = ()) -> Iterator[Tick]:
        """Shows the progress of a training run, beginning with `compiling`.

        Args:
            title: of the run.
            steps: of the whole run.
            names: of the domains.

        Yields:
            what to call with the steps just done and fields: `loss`, `tokens` (so far) and `weights` (in the order of
            `names`). The first call with fields ends `compiling`; a call without fields tells how far an earlier
            process has come.
        """
        with self._bar(title, steps, _Meter(names, before="compiling")) as tick:
            yield tick

    @contextmanager
    def megabytes(self, title: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """Shows the progress through `total` bytes; yields what to call with bytes just done and bytes in all."""
        shown = 0
        with self._bar(f"{title}, MB", -(-total // 10**6), _Meter()) as tick:
            done_so_far = 0

            def advance(done: int, _: int) -> None:
                nonlocal shown, done_so_far
                done_so_far += done
                whole = -(-done_so_far // 10**6) if done_so_far >= total else done_so_far // 10**6
                tick(whole - shown, {})
                shown = whole

            yield advance

    @contextmanager
    def _bar(self, title: str, steps: int, meter: "_Meter") -> Iterator[Tick]:
        if self._silent:
            yield lambda done, fields: None
        elif self._console.is_terminal:
            yield from self._live(title, steps, meter)
        else:
            yield from self._lines(title, steps, meter)

    def _live(self, title: str, steps: int, meter: "_Meter") -> Iterator[Tick]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Live

        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}", markup=False),
        )
        with Live(*columns, console=self._console) as live:
            task = live.add_task(title, total=steps, status=meter.before)

            def tick(done: int, fields: dict[str, Any]) -> None:
                live.update(task, advance=done, status=meter.status(done, fields))

            yield tick

    def _lines(self, title: str, steps: int, meter: "_Meter") -> Iterator[Tick]:
        done_so_far, last = 0, time.monotonic()

        def tick(done: int, fields: dict[str, Any]) -> None:
            nonlocal done_so_far, last
            done_so_far += done
            status = meter.status(done, fields)
            left = meter.seconds_left(done_so_far, steps) if fields or not meter.before else None
            if done_so_far < steps and time.monotonic() - last < self._line_every_s:
                return
            last = time.monotonic()
            remaining = f"  {_clock(left)} left" if left else ""
            self._console.print(f"  {title} {done_so_far}/{steps}  {status}{remaining}", markup=False)

        yield tick


class _Meter:
    """Turns ticks into a short status: loss, tokens per second, weights, time left.

    Args:
        names: of the domains.
        before: the status until the first tick with fields.
    """

    def __init__(self, names: Sequence[str] = (), before: str = "") -> None:
        self._names, self.before = names, before
        self._start: tuple[float, int] | None = None
        self._first: tuple[float, int] | None = None

    def seconds_left(self, done: int, steps: int) -> float | None:
        """At the mean speed since the end of the first chunk, which compiles; None until then."""
        now = time.monotonic()
        if not done or self._first is None:
            self._first = (now, done) if done else None
            return None
        began, before = self._first
        return (steps - done) * (now - began) / (done - before) if done > before else None

    def status(self, done: int, fields: dict[str, Any]) -> str:
        if not fields:
            return self.before
        parts = []
        if "loss" in fields:
            parts.append(f"loss {fields['loss']:.3f}")
        if "tokens" in fields:
            now, tokens = time.monotonic(), fields["tokens"]
            # The first chunk compiles; the clock starts after it.
            began, before = self._start = self._start or (now, tokens)
            if tokens > before:
                parts.append(f"{(tokens - before) / (now - began):,.0f} tokens/s")
        if "weights" in fields and self._names:
            largest = sorted(zip(fields["weights"], self._names, strict=True), reverse=True)[:3]
            parts.append(" ".join(f"{name} {weight:.0%}" for weight, name in largest))
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
