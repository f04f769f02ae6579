"""Metrics as JSON lines that an interrupted and resumed run writes exactly as an unbroken one.

Only what the seed determines goes here; clocks do not.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class JsonLines:
    """An append-only file of rows, each with a `step`, that can be cut back to a checkpoint."""

    def __init__(self, path: Path | None) -> None:
        """Opens (and creates the folder of) a file; None writes nothing."""
        self.path = path
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows and hands them to the operating system, so that a killed process loses none of them."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole rows; a last line cut short by a kill is left out."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def cut(self, step: int) -> None:
        """Drops the rows after `step`: the resumed run writes them again."""
        if self.path is None:
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        replacement = self.path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        replacement.replace(self.path)


def plain(value: Any) -> Any:
    """Arrays and numpy scalars as JSON values; NaN and infinities, which JSON lacks, as null."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
