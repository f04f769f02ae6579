"""Metrics as JSON lines that an interrupted and resumed run writes exactly as an unbroken run does.

Rows hold what the seed determines, and no times of the clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from vtune_jax.errors import UserError
from vtune_jax.machine.files import write_whole
from vtune_jax.machine.json_values import as_json


class JsonLines:
    """A file of rows, each with a `step`, that grows at its end and can be cut back to a checkpoint."""

    def __init__(self, path: Path | None) -> None:
        """Creates the file's folder.

        Args:
            path: of the file; None writes nothing.
        """
        self.path = path
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows and hands them to the operating system, so that a killed process loses none of them."""
        if self.path is None:
            return
        with self.path.open("ab") as file:
            file.writelines(as_json(row) for row in rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows; a last line that a kill cut short is left out.

        Raises:
            UserError: a line that is no row.
        """
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield self._row(line, number)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = orjson.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{self.path} is damaged in line {number}", _FIX)
        return row

    def cut(self, step: int, rows: int | None = None) -> None:
        """Drops the rows after `step`, which the resumed run writes again.

        Args:
            step: to which the run has been restored.
            rows: how many there must be up to it; None: any number.

        Raises:
            UserError: the file is damaged, or rows are missing.
        """
        if self.path is None:
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        if rows is not None and len(kept) != rows:
            raise UserError(f"{self.path} has {len(kept):,} rows up to step {step:,} instead of {rows:,}", _FIX)
        write_whole(self.path, b"".join(map(as_json, kept)))


_FIX = "put the file back, or delete its folder to train that run again from its beginning"
