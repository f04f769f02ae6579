"""Metrics as JSON lines that an interrupted and resumed run writes exactly as an unbroken run does.

Rows hold what the seed determines, and no times of the clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

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
        """All whole rows; a last line that a kill cut short is left out."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield orjson.loads(line)

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which the resumed run writes again."""
        if self.path is None:
            return
        write_whole(self.path, b"".join(as_json(row) for row in self.rows() if row["step"] <= step))
