"""The command `vtune-jax fit`: any points through a law; parameters, intervals, verdict and a picture.

It loads nothing of the trainer, and keeps the programs that it compiles, so that a second call answers at once.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_columns import parse_naming
from vtune_jax.fits.csv_table import ONLY, LossTable, read_table
from vtune_jax.fits.laws.law import Budget, Diagnosis, DropHead, Estimate, Law, Question
from vtune_jax.fits.laws.registry import law_named
from vtune_jax.fits.solver import Width

Interval = tuple[float | None, float | None]
"""None: unbounded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the points."""

    points: Path
    columns: str | None = None  # which columns of the table are ours: "tokens=D,loss=final_ce"
    tokens_per_step: float | None = None  # of a table that counts steps
    best_of_place: bool = False
    law: str = "LD"
    predict: float | None = None  # tokens to predict the loss at
    params: float | None = None  # model size to predict the loss for, under laws over model sizes
    initial: dict[str, float] | None = None  # initial loss by domain; the key "" stands for all
    current: dict[str, float] | None = None  # current loss, likewise
    delta: Width = 1e-3
    drop_worst: int = 0
    drop_head: DropHead = "auto"
    level: float = 0.95
    replicates: int | None = None  # of the bootstrap; None: 1000
    share_beta: bool = False
    plot: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainAnswer:
    """What was found for one domain."""

    parameters: dict[str, float | None]  # those that people read, in their order
    stored: dict[str, float | None]  # others that the law's fit holds
    objective: float | None
    status: int
    errors: dict[str, float | None] | None  # standard errors of the parameters
    intervals: dict[str, Interval] | None  # of the parameters
    target: float | None
    interval: Interval | None  # of the target; None: no target was asked for
    verdicts: tuple[str, ...]
    advice: tuple[str, ...]
    diagnostics: Diagnosis

    def as_json(self) -> dict[str, Any]:
        """With keys only for what was found."""
        facts: dict[str, Any] = {**self.parameters, **self.stored, "objective": self.objective, "status": self.status}
        if self.intervals is not None:
            facts |= {
                "standard_errors": self.errors,
                "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            }
        if self.interval is not None:
            facts |= {"target": self.target, "lower": self.interval[0], "upper": self.interval[1]}
        return facts | {
            "verdicts": list(self.verdicts),
            "advice": list(self.advice),
            "diagnostics": self.diagnostics,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found, for people and for programs."""

    law: Law[Any]
    request: Request
    warnings: tuple[str, ...]
    domains: dict[str, DomainAnswer]

    def as_json(self) -> str:
        """For programs."""
        facts = {
            "law": self.law.name,
            "formula": self.law.formula,
            "predict": self.request.predict,
            "level": self.request.level,
            "delta": self.request.delta,
            "warnings": list(self.warnings),
            "domains": {name: domain.as_json() for name, domain in self.domains.items()},
        }
        return json.dumps(facts, indent=1, allow_nan=False)

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [self.law.formula, *(f"warning: {warning}" for warning in self.warnings)]
        level = f"{100 * self.request.level:.6g}%"
        for name, domain in self.domains.items():
            lines.append("" if name == ONLY else f"\n{name}")
            intervals: dict[str, Interval] = domain.intervals or {}
            for parameter, value in domain.parameters.items():
                lines.append(f"  {parameter:<9} {_number(value)}{_bounds(intervals.get(parameter), level)}")
            lines.append(f"  objective {_number(domain.objective)}")
            if domain.interval is not None:
                lines.append(f"  target    {_number(domain.target)}{_bounds(domain.interval, level)}")
            if head := domain.diagnostics.get("head_points"):
                lines.append(f"  head      the first {head} points are left out; --drop-head 0 keeps them")
            lines.append(f"  verdict   {', '.join(domain.verdicts)}")
            lines += [f"            {advice}" for advice in domain.advice]
        return lines


def answer(request: Request) -> Answer:
    """Reads, fits, judges and draws.

    Raises:
        UserError: whatever is wrong with the table or the request.
    """
    try:
        law = law_named(request.law)
        budget = _budget(request, law)
        _assert_used(request, law)
        naming = parse_naming(request.columns, request.tokens_per_step, law.column_names)
        table = read_table(
            request.points,
            columns=law.column_names,
            # Runs of another size are of another place, under laws of one size too.
            optional=("params",) if request.best_of_place and "params" not in law.column_names else (),
            zero_allowed=law.zero_allowed,
            drop_worst=request.drop_worst,
            best_only=request.best_of_place,
            naming=naming,
        )
        counts = (~np.isnan(table.losses)).sum(axis=0)
        if counts.min() < law.size:
            raise UserError(
                f"domain '{table.names[int(counts.argmin())]}' has {counts.min()} points, the law {law.name} needs at "
                f"least {law.size}",
                "measure more, or leave the domain out",
            )
        columns = [table.columns[name] for name in law.column_names]
        question = Question(
            budget=budget,
            initial_losses=_by_domain(request.initial, table.names, "--initial"),
            current_losses=_by_domain(request.current, table.names, "--current"),
            runs=table.runs,
            level=request.level,
            delta=request.delta,
            drop_head=request.drop_head,
            share_beta=request.share_beta,
            replicates=1000 if request.replicates is None else request.replicates,
            band=request.plot is not None,
        )
        estimate = law.estimator.estimate(law, columns, table.losses, question)
        if request.plot is not None:
            _draw(request.plot, estimate, columns, table, request)
        present = [np.where(np.isnan(table.losses), np.nan, column) for column in columns]
        return Answer(
            law=law,
            request=request,
            warnings=(*table.notes, *law.warnings(estimate.fit, present, table.names)),
            domains={name: _of_domain(estimate, place) for place, name in enumerate(table.names)},
        )
    except OSError as error:
        raise UserError(
            f"cannot write the picture {request.plot} ({error.strerror or error})",
            "give another path with --plot, or --no-plot",
        ) from error
    except ValueError as error:
        raise UserError(str(error).rstrip("."), "mend that and run the same command again") from error


def _budget(request: Request, law: Law[Any]) -> Budget | None:
    """Where the law is to be read off: the options give one value for each of its columns."""
    options = {"tokens": ("--predict D", request.predict), "params": ("--params N", request.params)}
    for name, value in options.values():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"{name.split()[0]} must be positive and finite, got {value:g}", "give a plain count")
    wanted = [name for name, (_, value) in options.items() if value is not None]
    if not wanted:
        return None
    if beyond := [name for name in law.column_names if name not in options]:
        raise UserError(
            f"--predict needs tokens, and the law {law.name} is read off at {' and '.join(beyond)}",
            "leave --predict out, or use vtune_jax.fits in Python",
        )
    if spare := [options[name][0].split()[0] for name in wanted if name not in law.column_names]:
        raise UserError(
            f"the law {law.name} makes no use of {' and '.join(spare)}", "leave it out, or choose another --law"
        )
    values = [options[name][1] for name in law.column_names]
    known = tuple(value for value in values if value is not None)
    if len(known) < len(values):
        together = " together with ".join(options[name][0] for name in reversed(law.column_names))
        raise UserError(f"the law {law.name} predicts for all of its columns", f"give {together}")
    return known


def _assert_used(request: Request, law: Law[Any]) -> None:
    """Refuses options that would make no difference."""
    chosen = {
        "share_beta": request.share_beta,
        "drop_head": request.drop_head != "auto",
        "replicates": request.replicates is not None,
    }
    unused = [name for name, given in chosen.items() if given and name not in law.estimator.options]
    if unused:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UserError(f"the law {law.name} makes no use of {listed}", "leave it out, or choose another --law")
    of_target = {"--initial": request.initial, "--current": request.current}
    if request.predict is None and (named := [option for option, losses in of_target.items() if losses]):
        raise UserError(f"{' and '.join(named)} judge a target, and none is asked for", "give --predict too")


def _of_domain(estimate: Estimate, place: int) -> DomainAnswer:
    law, fit = estimate.law, estimate.fit
    shown = law.shown_parameters
    intervals = {name: estimate.parameter_interval(place, name) for name in shown}
    known = {name: _interval(*bounds) for name, bounds in intervals.items() if bounds is not None}
    judgements = estimate.judgements[place]
    return DomainAnswer(
        parameters={name: _plain(getattr(fit, name)[place]) for name in shown},
        stored={name: _plain(getattr(fit, name)[place]) for name in law.parameters if name not in shown},
        objective=_plain(fit.objective[place]),
        status=int(fit.status[place]),
        errors={name: estimate.parameter_error(place, name) for name in known} if known else None,
        intervals=known or None,
        target=_plain(estimate.target[place]),
        interval=None if estimate.budget is None else _interval(estimate.lower[place], estimate.upper[place]),
        verdicts=tuple(str(judgement.verdict) for judgement in judgements),
        advice=tuple(judgement.advice for judgement in judgements if judgement.advice),
        diagnostics=estimate.diagnosis(place),
    )


def _draw(path: Path, estimate: Estimate, columns: Sequence[np.ndarray], table: LossTable, request: Request) -> None:
    """The curve with its interval where the law has one, else how far points lie from the fit."""
    from vtune_jax.report.fit_pictures import save_curves, save_residuals

    losses, band = table.losses.T.tolist(), estimate.band
    if band is None:
        predicted = estimate.law.predict(estimate.fit, *columns)
        save_residuals(path, names=table.names, predicted=predicted.T.tolist(), losses=losses)
        return
    save_curves(
        path,
        names=table.names,
        tokens=columns[0].T.tolist(),
        losses=losses,
        along=band.along.tolist(),
        middle=band.middle.T.tolist(),
        lower=band.lower.T.tolist(),
        upper=band.upper.T.tolist(),
        target=request.predict,
        level=request.level,
        abscissa=estimate.law.columns[0].axis,
    )


def _by_domain(losses: dict[str, float] | None, names: Sequence[str], option: str) -> np.ndarray | None:
    if not losses:
        return None
    unknown = [name for name in losses if name and name not in names]
    if unknown:
        raise UserError(
            f"{option} names {', '.join(map(repr, unknown))}; the table holds {', '.join(names)}",
            "use the names of the table's domains",
        )
    return np.array([losses.get(name, losses.get("", np.nan)) for name in names])


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(low: float, high: float) -> Interval:
    return _plain(low), _plain(high)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"


def _bounds(bounds: Interval | None, level: str) -> str:
    if bounds is None:
        return ""
    low, high = ("unbounded" if bound is None else f"{bound:.6g}" for bound in bounds)
    return f"   {level} interval {low} to {high}"
