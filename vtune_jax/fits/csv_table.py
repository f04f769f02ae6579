"""Measured losses from a CSV file: one row per point, with a header."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_dialects import parse_number, read_sheet
from vtune_jax.fits.laws.law import Law

ONLY = "all"
MOST_NATS = 20
"""No cross-entropy is larger: a guess among a million tokens costs 13.8 nats."""
"""Name of the one domain of a table without a column `domain`."""


class LossTable(NamedTuple):
    """Columns as [points, domains]; a domain with fewer points has NaN losses at the end of its column."""

    names: tuple[str, ...]  # of the domains
    columns: dict[str, Float[np.ndarray, "points domains"]]  # valid numbers even where there is no point
    losses: Float[np.ndarray, "points domains"]
    runs: Int[np.ndarray, "points domains"] | None  # which run each point comes from; None: the table does not say
    notes: tuple[str, ...]  # lines that were left out, by number

    def assert_fittable(self, law: Law[Any], *, repeats: bool = False) -> None:
        """Refuses a table with too few points in a domain.

        Args:
            law: whose columns the table has.
            repeats: repeated rows count as often as they occur.

        Raises:
            ValueError: names the first such domain.
        """
        for domain, name in enumerate(self.names):
            only = slice(domain, domain + 1)
            try:
                law.checked([self.columns[c][:, only] for c in law.column_names], self.losses[:, only], repeats=repeats)
            except ValueError as error:
                raise ValueError(str(error).replace("every domain", f"domain '{name}'")) from error


def read_table(
    path: Path,
    *,
    columns: Sequence[str] = ("tokens",),
    optional: Sequence[str] = (),
    zero_allowed: Collection[str] = (),
    names: Sequence[str] | None = None,
    drop_worst: int = 0,
) -> LossTable:
    """Reads a table; order and repetition of its lines do not matter to a fit.

    Args:
        path: CSV; column names in any case. A column `run` labels the runs that points come from, with any text; other
            columns are ignored.
        columns: what each point must say beside `loss`; `domain` is optional unless `names` has more than one.
        optional: further columns, read if the table has them.
        zero_allowed: columns that may hold 0.
        names: domains that the table must hold, in this order; None: those that it holds, in order of appearance.
        drop_worst: leaves out the n largest losses of each domain, and every loss equal to the smallest of them.

    Raises:
        UserError: no such file, a column is missing or there twice, a value that is no number or not positive, no row,
            a domain that is not in the table, or a negative `drop_worst`.
    """
    if drop_worst < 0:
        raise UserError(
            f"the number of losses to leave out must not be negative, got {drop_worst}", "leave out 0 or more"
        )
    sheet = read_sheet(path)
    header = sheet.header
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path} has more than one column {', '.join(map(repr, twice))}", "rename or remove one")
    columns = (*columns, *(name for name in optional if name in header))
    missing = [name for name in (*columns, "loss") if name not in header]
    if names is not None and len(names) > 1 and "domain" not in header:
        missing.append("domain")
    if missing:
        raise UserError(
            f"{path} has no column {' and no column '.join(map(repr, missing))}; found: {', '.join(header)}",
            f"name its columns {', '.join((*columns, 'loss'))} and, for several domains, domain",
        )
    points: dict[str, list[list[float]]] = {}
    labels: dict[str, int] = {}
    incomplete: list[int] = []
    at_zero: list[int] = []
    for line, cells in sheet.rows:
        row = dict(zip(header, cells, strict=True))
        values = [_number(path, line, name, row[name], sheet.decimal_comma) for name in (*columns, "loss")]
        if np.isnan(values).any():
            incomplete.append(line)
            continue
        if any(value == 0 and name not in zero_allowed for name, value in zip(columns, values, strict=False)):
            # What a model loses before its first step is no point of a law that grows without bound there.
            at_zero.append(line)
            continue
        for name, value in zip((*columns, "loss"), values, strict=True):
            if not (np.isfinite(value) and (value > 0 or (name in zero_allowed and value == 0))):
                raise UserError(
                    f"{path}, line {line}: {name} must be positive and finite, got {value:g}", "mend or remove the line"
                )
        run = labels.setdefault(row.get("run", ""), len(labels))
        points.setdefault(row.get("domain", ONLY) or ONLY, []).append([run, *values])
    if not points:
        raise UserError(f"{path} holds no points", f"give rows of {', '.join((*columns, 'loss'))}")
    left_out = (("without a number in every column", incomplete), (f"at 0 {' or '.join(columns)}", at_zero))
    notes = [f"{path.name}: left out, {why}: {_listed(lines)}" for why, lines in left_out if lines]
    losses = [row[-1] for rows_of in points.values() for row in rows_of]
    if max(losses) > MOST_NATS:
        notes.append(
            f"{path.name}: losses up to {max(losses):g}, but no cross-entropy is above {MOST_NATS} nats per token; "
            "are they perplexities? Then give their logarithms"
        )
    if names is not None and (absent := [name for name in names if name not in points]):
        if len(names) == 1 and list(points) == [ONLY]:
            points = {names[0]: points[ONLY]}
        else:
            raise UserError(
                f"{path} holds no domain {', '.join(map(repr, absent))}; found: {', '.join(points)}",
                "use the names of corpus.domains",
            )
    chosen = tuple(names) if names is not None else tuple(points)
    tables = [_without_worst(np.array(points[name]), drop_worst, name) for name in chosen]
    longest = max(len(table) for table in tables)
    filled = np.full((len(columns) + 2, longest, len(chosen)), np.nan)
    for place, table in enumerate(tables):
        filled[:, : len(table), place] = table.T
        # Rows without a point repeat the other columns of the first point, so that they hold valid numbers.
        filled[:-1, len(table) :, place] = table[:1, :-1].T
    runs, *inputs = filled[:-1]
    return LossTable(
        names=chosen,
        columns=dict(zip(columns, inputs, strict=True)),
        losses=filled[-1],
        runs=runs.astype(int) if "run" in header else None,
        notes=tuple(notes),
    )


def _number(path: Path, line: int, name: str, text: str, decimal_comma: bool) -> float:
    try:
        return parse_number(text, decimal_comma=decimal_comma)
    except ValueError:
        raise UserError(f"{path}, line {line}: {name} is no number: {text!r}", "mend or remove the line") from None


def _without_worst(table: np.ndarray, count: int, name: str) -> np.ndarray:
    """The rows whose loss lies below the `count` largest."""
    if count == 0:
        return table
    if count >= len(table):
        raise UserError(
            f"domain '{name}' has {len(table)} points, of which {count} are to be left out", "leave out fewer"
        )
    return np.asarray(table[table[:, -1] < np.sort(table[:, -1])[-count]])


def _listed(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:10]))
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}{more}"
