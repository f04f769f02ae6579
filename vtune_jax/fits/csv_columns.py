"""Which columns of a table hold tokens, sizes and losses: by our names, by others in use, or by the user's word.

Public tables call the same columns differently, and trackers export a column of losses for every run.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_dialects import Sheet, parse_number

ALIASES = {
    "tokens": (
        "total_tokens",
        "num_tokens",
        "n_tokens",
        "token_count",
        "tokens_seen",
        "training_tokens",
        "train_tokens",
    ),
    "params": ("parameter_count", "parameters", "num_params", "num_parameters", "n_params", "model_size"),
    "step": ("step", "steps", "global_step", "train_global_step", "trainer_global_step"),
}
"""Other names of our columns, in any case; `-`, `/`, `.` and blanks count as `_`. Beside these: the one column whose
name holds the word loss is the loss."""
LETTERS = {"params": "N", "tokens": "D"}
"""Names of one letter, in upper case only: a small n or d often counts something else."""
_RANGES = re.compile(r"__(min|max)$", re.IGNORECASE)
_EXPORTED = " - "
_SPREADS = {"min", "max", "std", "stderr", "sem", "se", "var", "variance", "error"}
_LOOKED_AT = 20  # rows, to tell what a column may hold


class Naming(NamedTuple):
    """What the user says of a table's columns, by the options `--columns` and `--tokens-per-step`."""

    columns: tuple[tuple[str, str], ...] = ()  # (our name, name in the header); `loss` as often as there are domains
    tokens_per_step: float | None = None  # of a table that counts optimiser steps


class LossColumn(NamedTuple):
    """One column of losses; a table may have one for each run, or for each domain."""

    place: int  # in the header
    domain: str = ""  # that all of its losses are of; "": see the column `domain`
    run: str = ""  # likewise


class Layout(NamedTuple):
    """Where a table holds what."""

    header: tuple[str, ...]
    places: dict[str, int]  # of our columns in the header, apart from losses
    losses: tuple[LossColumn, ...]
    tokens_per_step: float | None  # what the column `tokens` is to be multiplied with
    notes: tuple[str, ...]

    def label(self, name: str, place: int) -> str:
        """A column in a message: our name, and the table's if it is another."""
        own = self.header[place]
        return name if own.lower() == name else f"{name} ({own!r})"


def parse_naming(text: str | None, tokens_per_step: float | None, known: Iterable[str]) -> Naming:
    """What `--columns tokens=D,loss=final loss` and `--tokens-per-step` say.

    Args:
        text: pairs of our name and the header's, or None.
        tokens_per_step: or None.
        known: names that the law has a use for, beside `tokens`, `params`, `step`, `loss`, `domain` and `run`.

    Raises:
        UserError: it is not written so, a name is unknown or there twice, or the number is not positive.
    """
    names = tuple(dict.fromkeys((*known, "tokens", "params", "step", "loss", "domain", "run")))
    pairs = []
    for part in re.split(r",(?=\s*\w+\s*=)", text) if text is not None else ():
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (equals and column):
            raise UserError(
                f"--columns is no list of NAME=COLUMN: {text!r}", "give for instance tokens=D,loss=final_loss"
            )
        if name not in names:
            raise UserError(f"--columns names {name!r}, which is no column of ours", f"use {', '.join(names)}")
        pairs.append((name, column))
    for kind, values in (("names", [n for n, _ in pairs if n != "loss"]), ("uses", [c for _, c in pairs])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(f"--columns {kind} {twice[0]!r} more than once", "name each column once")
    if tokens_per_step is not None and not (np.isfinite(tokens_per_step) and tokens_per_step > 0):
        raise UserError(
            f"--tokens-per-step must be positive and finite, got {tokens_per_step:g}",
            "give sequences in a batch times tokens in a sequence",
        )
    return Naming(tuple(pairs), tokens_per_step)


def find_columns(
    path: Path, sheet: Sheet, wanted: Sequence[str], *, optional: Sequence[str] = (), naming: Naming | None = None
) -> Layout:
    """Finds the columns of a table.

    Args:
        path: of the table, for messages.
        sheet: its cells.
        wanted: what each point must say beside its loss.
        optional: what it may say. A letter stands for such a column only where another one is named by its letter too.
        naming: what the user says of them; None: there are no options to say it by.

    Raises:
        UserError: a column that is needed is missing, there twice, or not as the user says.
    """
    header, said = sheet.header, naming or Naming()
    given = [(name, _named(path, header, column, name)) for name, column in said.columns]
    places = {name: place for name, place in given if name != "loss"}
    for name in (*wanted, *optional, "domain", "run", "step"):
        if name not in places and (place := _known(path, header, name)) is not None:
            places[name] = place
    for name in (*wanted, *optional):
        letter = LETTERS.get(name)
        paired = name in wanted or any(header[place] in LETTERS.values() for place in places.values())
        if name not in places and letter in header and paired:
            places[name] = header.index(letter)
    losses = tuple(LossColumn(place) for name, place in given if name == "loss") or _losses(path, header, places)
    if len(losses) > 1 and given:
        losses = tuple(loss._replace(domain=loss.domain or header[loss.place]) for loss in losses)
    per_step = _steps(path, header, places, said, wanted)
    missing = [name for name in (*wanted, *(() if losses else ("loss",))) if name not in places]
    if missing:
        raise _missing(path, sheet, missing, places, losses, naming)
    used = {name: place for name, place in places.items() if name in (*wanted, *optional, "domain", "run")}
    return Layout(tuple(header), used, losses, per_step, _told(path, header, used, losses, per_step))


def _named(path: Path, header: list[str], column: str, name: str) -> int:
    """The place of a column that the user names, in any case if no name agrees with it to the letter."""
    for names in (header, [own.lower() for own in header]):
        wanted = column if names is header else column.lower()
        if names.count(wanted) == 1:
            return names.index(wanted)
    raise UserError(
        f"--columns {name}={column}: {path} has {'several' if wanted in names else 'no'} columns {column!r}; found: "
        f"{', '.join(header)}",
        "use a name of its header",
    )


def _known(path: Path, header: list[str], name: str) -> int | None:
    """The place of a column under our own name, else under another one that is in use."""
    own = [place for place, column in enumerate(header) if column.lower() == name]
    found = own or [place for place, column in enumerate(header) if _plain(column) in ALIASES.get(name, ())]
    if len(found) > 1 and name != "step":
        columns = ", ".join(repr(header[place]) for place in found)
        if own:
            raise UserError(f"{path} has more than one column {name!r} ({columns})", "rename or remove one")
        raise UserError(
            f"{path} has more than one column of {name} ({columns})", f"name the one to use {name}, and no other"
        )
    return found[0] if found else None


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def _is_loss(column: str) -> bool:
    words = _plain(column).split("_")
    return ("loss" in words or column.lower().endswith("loss")) and not _SPREADS & set(words)


def _losses(path: Path, header: list[str], places: dict[str, int]) -> tuple[LossColumn, ...]:
    """The column `loss`, else the only one of losses, else those that a tracker has exported, else none."""
    if (own := _known(path, header, "loss")) is not None:
        return (LossColumn(own),)
    found = [
        place
        for place, column in enumerate(header)
        if _is_loss(column.rpartition(_EXPORTED)[2]) and not _RANGES.search(column)
    ]
    exported = [header[place].rpartition(_EXPORTED) for place in found]
    if not found or not all(dash for _, dash, _ in exported):
        return (LossColumn(found[0]),) if len(found) == 1 else ()
    metrics = {metric for _, _, metric in exported}
    return tuple(
        LossColumn(place, domain=metric if len(metrics) > 1 else "", run=run)
        for place, (run, _, metric) in zip(found, exported, strict=True)
    )


def _steps(path: Path, header: list[str], places: dict[str, int], said: Naming, wanted: Sequence[str]) -> float | None:
    """Tokens per step if the table counts steps, whose column then stands for tokens."""
    if said.tokens_per_step is None:
        return None
    if "tokens" not in wanted:
        raise UserError("the law makes no use of --tokens-per-step", "leave it out, or choose another --law")
    if "tokens" in places:
        raise UserError(
            f"{path} counts tokens, in column {header[places['tokens']]!r}, not steps", "leave out --tokens-per-step"
        )
    if "step" not in places:
        raise UserError(
            f"{path} has no column of steps; found: {', '.join(header)}",
            "leave out --tokens-per-step, or name the column: --columns step=COLUMN",
        )
    places["tokens"] = places["step"]
    return float(said.tokens_per_step)


def _missing(
    path: Path,
    sheet: Sheet,
    missing: list[str],
    places: dict[str, int],
    losses: tuple[LossColumn, ...],
    naming: Naming | None,
) -> UserError:
    """What is missing, what was found, and the options that name it."""
    header = sheet.header
    problem = f"{path} has no column {' and no column '.join(map(repr, missing))}; found: {', '.join(header)}"
    in_steps = "tokens" in missing and "step" in places
    if naming is None:
        names = ", ".join(name for name in dict.fromkeys((*places, *missing)) if name != "step")
        steps = " (tokens: steps times the tokens of one)" if in_steps else ""
        return UserError(problem, f"name its columns {names}{steps} and, for several domains, domain")
    taken = {*places.values(), *(loss.place for loss in losses)}
    pairs = [f"{name}={column}" for name, column in naming.columns]
    # Tokens first: where nothing else tells columns apart, tokens are the larger numbers.
    for name in sorted(missing, key=lambda name: name != "tokens"):
        if name == "tokens" and in_steps:
            continue
        place = _guess(sheet, name, taken)
        pairs.append(f"{name}={'COLUMN' if place is None else header[place]}")
        taken |= {place} if place is not None else set()
    options = [f"--columns {shlex.quote(','.join(pairs))}"] if pairs else []
    if in_steps:
        problem += f". It counts steps, in {header[places['step']]!r}"
        options.append("--tokens-per-step N, sequences in a batch times tokens in a sequence")
    return UserError(problem, f"give {' '.join(options)}")


def _guess(sheet: Sheet, name: str, taken: set[int]) -> int | None:
    """The free column of numbers that is most likely meant."""
    hints = {"tokens": "tok|data", "params": "param|size|model", "loss": "loss|nll|ce$|entropy|value"}.get(name, name)
    best: tuple[tuple[bool, bool, float], int] | None = None
    for place, column in enumerate(sheet.header):
        values = _numbers(sheet, place)
        if place in taken or _RANGES.search(column) or not len(values):
            continue
        middle = float(np.median(values))
        small = 0 < middle < 20
        score = (
            re.search(hints, column.lower()) is not None and not _SPREADS & set(_plain(column).split("_")),
            (small and "train" not in column.lower()) if name == "loss" else not small,
            -float(place) if name == "loss" else middle,
        )
        if best is None or score > best[0]:
            best = score, place
    return None if best is None or not any(best[0][:2]) else best[1]


def _numbers(sheet: Sheet, place: int) -> np.ndarray:
    """The first numbers of a column; none if it holds anything else."""
    try:
        values = [parse_number(cells[place], decimal_comma=sheet.decimal_comma) for _, cells in sheet.rows[:_LOOKED_AT]]
    except ValueError:
        return np.array([])
    return np.array([value for value in values if np.isfinite(value)])


def _told(
    path: Path, header: list[str], places: dict[str, int], losses: tuple[LossColumn, ...], per_step: float | None
) -> tuple[str, ...]:
    """Where columns were found under other names than ours."""
    found = [
        f"{name} from {header[place]!r}" + (f" times {per_step:g}" if name == "tokens" and per_step else "")
        for name, place in places.items()
        if header[place].lower() != name
    ]
    if len(losses) > 1:
        domains, runs = (len({getattr(loss, kind) for loss in losses}) for kind in ("domain", "run"))
        counted = f"{domains} domain{'s' * (domains > 1)} and {runs} run{'s' * (runs > 1)}"
        found.append(f"losses from {len(losses)} columns, of {counted}")
    elif header[losses[0].place].lower() != "loss":
        found.append(f"loss from {header[losses[0].place]!r}")
    notes = [f"{path.name}: {', '.join(found)}"] if found else []
    if any({"ppl", "perplexity"} & set(_plain(header[loss.place]).split("_")) for loss in losses):
        notes.append(f"{path.name}: its losses are named perplexities; give their logarithms")
    return tuple(notes)
