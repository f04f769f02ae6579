"""Measured losses from a CSV file: one row per point, with a header."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_columns import Layout, Naming, find_columns
from vtune_jax.fits.csv_dialects import Sheet, parse_number, read_sheet
from vtune_jax.fits.laws.law import Law
from vtune_jax.fits.points import best_of_place

ONLY = "all"
"""Name of the one domain of a table without a column `domain`."""
MOST_NATS = 20
"""No cross-entropy is larger: a guess among a million tokens costs 13.8 nats."""


class LossTable(NamedTuple):
    """Columns as [points, domains]; a domain with fewer points has NaN losses at the end of its column."""

    names: tuple[str, ...]  # of the domains
    columns: dict[str, Float[np.ndarray, "points domains"]]  # valid numbers even where there is no point
    losses: Float[np.ndarray, "points domains"]
    runs: Int[np.ndarray, "points domains"] | None  # which run each point comes from; None: the table does not say
    notes: tuple[str, ...]  # which columns were read under other names, and lines that were left out, by number

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
    best_only: bool = False,
    naming: Naming | None = None,
) -> LossTable:
    """Reads a table; order and repetition of its lines do not matter to a fit.

    Args:
        path: CSV; column names in any case, or others that `csv_columns` knows. A column `run` labels the runs that
            points come from, with any text; other columns are ignored.
        columns: what each point must say beside `loss`; `domain` is optional unless `names` has more than one.
        optional: further columns, read if the table has them.
        zero_allowed: columns that may hold 0.
        names: domains that the table must hold, in this order; None: those that it holds, in order of appearance.
        drop_worst: leaves out the n largest losses of each domain, and every loss equal to the smallest of them.
        best_only: keeps the best of each place only, see `best_of_place`; before the worst are left out.
        naming: what the user says of the columns; None: there are no options to say it by.

    Raises:
        UserError: no such file, a column is missing or there twice, a value that is no number or not positive, no row,
            a domain that is not in the table, or a negative `drop_worst`.
    """
    if drop_worst < 0:
        raise UserError(
            f"the number of losses to leave out must not be negative, got {drop_worst}", "leave out 0 or more"
        )
    sheet = read_sheet(path)
    layout = find_columns(path, sheet, columns, optional=optional, naming=naming)
    by_domain = "domain" in layout.places or any(column.domain for column in layout.losses)
    if names is not None and len(names) > 1 and not by_domain:
        found = ", ".join(layout.header)
        raise UserError(f"{path} has no column 'domain'; found: {found}", "add one, with the domain of each line")
    columns = (*columns, *(name for name in optional if name in layout.places))
    points, notes = _read_points(path, sheet, layout, columns, zero_allowed)
    if not points:
        raise UserError(f"{path} holds no points", f"give rows of {', '.join((*columns, 'loss'))}")
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
    tables = [np.array(points[name]) for name in chosen]
    if best_only:
        kept = [table[~np.isnan(best_of_place(list(table.T[1:-1]), table[:, -1:]))[:, 0]] for table in tables]
        rows, left = sum(map(len, tables)), sum(map(len, kept))
        agreeing = ", ".join(("domain", *columns) if by_domain else columns)
        notes.append(f"{path.name}: {rows - left} of {rows} rows left out, which are not the best of their {agreeing}")
        tables = kept
    tables = [_without_worst(table, drop_worst, name) for table, name in zip(tables, chosen, strict=True)]
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
        runs=runs.astype(int) if "run" in layout.places or any(column.run for column in layout.losses) else None,
        notes=(*layout.notes, *notes),
    )


def _read_points(
    path: Path, sheet: Sheet, layout: Layout, columns: Sequence[str], zero_allowed: Collection[str]
) -> tuple[dict[str, list[list[float]]], list[str]]:
    """By domain, rows of a run's number, the columns and the loss; and notes on lines that were left out."""
    places = layout.places
    points: dict[str, list[list[float]]] = {}
    labels: dict[str, int] = {}
    incomplete: list[int] = []
    at_zero: list[int] = []
    for line, cells in sheet.rows:

        def number(name: str, place: int, line: int = line, cells: list[str] = cells) -> float:
            try:
                return parse_number(cells[place], decimal_comma=sheet.decimal_comma)
            except ValueError:
                what = f"{layout.label(name, place)} is no number: {cells[place]!r}"
                raise UserError(f"{path}, line {line}: {what}", "mend or remove the line") from None

        shared = {name: number(name, places[name]) for name in columns}
        if layout.tokens_per_step is not None:
            shared["tokens"] *= layout.tokens_per_step
        # In a row with losses of several runs or domains, those that were not measured there are no mistake.
        losses = [(column, number("loss", column.place)) for column in layout.losses]
        losses = [(column, loss) for column, loss in losses if not np.isnan(loss)]
        if not losses or np.isnan(list(shared.values())).any():
            incomplete.append(line)
            continue
        if any(value == 0 and name not in zero_allowed for name, value in shared.items()):
            # What a model loses before its first step is no point of a law that grows without bound there.
            at_zero.append(line)
            continue
        for column, loss in losses:
            for name, value in (*shared.items(), ("loss", loss)):
                if not (np.isfinite(value) and (value > 0 or (name in zero_allowed and value == 0))):
                    what = layout.label(name, places.get(name, column.place))
                    raise UserError(
                        f"{path}, line {line}: {what} must be positive and finite, got {value:g}",
                        "mend or remove the line",
                    )
            domain, run = (cells[places[name]] if name in places else "" for name in ("domain", "run"))
            domain, run = " ".join(filter(None, (domain, column.domain))), " ".join(filter(None, (run, column.run)))
            label = float(labels.setdefault(run, len(labels)))
            points.setdefault(domain or ONLY, []).append([label, *shared.values(), loss])
    left_out = (("without a number in every column", incomplete), (f"at 0 {' or '.join(columns)}", at_zero))
    return points, [f"{path.name}: left out, {why}: {_listed(lines)}" for why, lines in left_out if lines]


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
