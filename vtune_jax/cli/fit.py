"""The command `vtune-jax fit`: any points through a law; parameters, intervals, verdict and a picture.

It loads nothing of the trainer, and keeps what it compiles, so that a second call answers at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_table import Curves, read_curves
from vtune_jax.fits.laws.power_law import Width
from vtune_jax.fits.laws.registry import law_named


class Request(NamedTuple):
    """What is asked of the points."""

    points: Path
    law: str = "LD"
    predict: float | None = None  # tokens to predict the loss at
    params: float | None = None  # model size to predict it for, under LND
    initial: dict[str, float] | None = None  # initial loss by domain; the key "" stands for all
    current: dict[str, float] | None = None
    delta: Width = 1e-3
    drop_worst: int = 0
    drop_head: int | str = "auto"
    level: float = 0.95
    replicates: int | None = None  # of the bootstrap, under LND; None: 1000
    share_beta: bool = False
    plot: Path | None = None


class Answer(NamedTuple):
    """For people and for programs."""

    facts: dict[str, Any]
    picture: Path | None


def answer(request: Request) -> Answer:
    """Reads, fits, judges and draws.

    Raises:
        UserError: whatever is wrong with the table or the request.
    """
    try:
        law = law_named(request.law)
        _assert_askable(request, law.name)
        columns = law.columns if law.name == "LRA" else law.columns[::-1]
        table = read_curves(request.points, columns=columns, drop_worst=request.drop_worst)
        counts = (~np.isnan(table.losses)).sum(axis=0)
        if counts.min() < law.size:
            raise UserError(
                f"domain '{table.names[int(counts.argmin())]}' has {counts.min()} points, the law {law.name} needs at "
                f"least {law.size}",
                "measure more, or leave the domain out",
            )
        return _chinchilla(request, table) if law.name == "LND" else _curves(request, table, law.name)
    except OSError as error:
        raise UserError(
            f"cannot write the picture {request.plot} ({error.strerror or error})",
            "give another path with --plot, or --no-plot",
        ) from error
    except ValueError as error:
        raise UserError(str(error).rstrip("."), "mend that and run the same command again") from error


def _assert_askable(request: Request, law: str) -> None:
    """Refuses options that the law does not use, and numbers that make no sense."""
    unused = {
        "LND": {"--share-beta": request.share_beta, "--drop-head": request.drop_head != "auto"},
        "LD": {"--params": request.params is not None, "--replicates": request.replicates is not None},
        "LRA": {"--params": request.params is not None, "--replicates": request.replicates is not None},
    }[law]
    if named := [option for option, given in unused.items() if given]:
        raise UserError(f"the law {law} makes no use of {' and '.join(named)}", "leave it out, or choose another --law")
    if law == "LRA" and request.predict is not None:
        raise UserError(
            "--predict needs tokens, and the law LRA is read off at areas of a schedule",
            "leave --predict out, or use vtune_jax.fits.estimate_targets",
        )
    if law == "LND" and (request.predict is None) != (request.params is None):
        raise UserError("the law LND predicts for a size and a budget", "give --predict D together with --params N")
    of_target = {"--initial": request.initial, "--current": request.current}
    if request.predict is None and (named := [option for option, given in of_target.items() if given]):
        raise UserError(f"{' and '.join(named)} judge a target, and none is asked for", "give --predict too")
    for option, value in (("--predict", request.predict), ("--params", request.params)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"{option} must be positive and finite, got {value:g}", "give a plain count")


def _curves(request: Request, table: Curves, law: str) -> Answer:
    from vtune_jax.fits.diagnostics import NUMBERS_OF_TARGET, OF_TARGET, Verdict, unit_warnings
    from vtune_jax.fits.estimate import estimate_targets

    farthest = float(np.nanmax(np.where(np.isnan(table.losses), np.nan, table.tokens)))
    annealed = table.others.get("annealed_area")
    last_annealed = 0.0 if annealed is None else float(np.nanmax(np.where(np.isnan(table.losses), np.nan, annealed)))
    estimate = estimate_targets(
        table.tokens,
        table.losses,
        farthest if request.predict is None else request.predict,
        initial_losses=_by_domain(request.initial, table.names, "--initial"),
        current_losses=_by_domain(request.current, table.names, "--current"),
        annealed=annealed,
        target_annealed=last_annealed,
        runs=table.runs,
        level=request.level,
        delta=request.delta,
        drop_head=request.drop_head,  # type: ignore[arg-type]
        share_beta=request.share_beta,
        band=request.plot is not None,
    )
    fit = estimate.fit
    names = ("E", "log_B", "beta") if law == "LD" else ("E", "log_A", "alpha", "C")
    warned = list(table.notes)
    if law == "LD":
        seen = np.where(np.isnan(table.losses), np.nan, table.tokens)
        warned += unit_warnings(seen, fit.log_B, table.names)  # type: ignore[union-attr]
    hidden = frozenset() if request.predict is not None else OF_TARGET
    without = () if request.predict is not None else NUMBERS_OF_TARGET
    said = [
        [both for both in zip(*of, strict=True) if both[0] not in hidden] or [(Verdict.TRUSTWORTHY, "")]
        for of in zip(estimate.verdicts, estimate.advices, strict=True)
    ]
    domains = {
        name: {
            **{key: _plain(getattr(fit, key)[place]) for key in names},
            "objective": _plain(fit.objective[place]),
            "status": int(fit.status[place]),
            **(
                {key: _plain(getattr(estimate, key)[place]) for key in ("target", "lower", "upper")}
                if request.predict is not None
                else {}
            ),
            "verdicts": [str(verdict) for verdict, _ in said[place]],
            "advice": [advice for _, advice in said[place] if advice],
            "diagnostics": {
                key: value for key, value in estimate.diagnostics.as_json(place).items() if key not in without
            },
        }
        for place, name in enumerate(table.names)
    }
    facts = _facts(request, law, warned, domains)
    if request.plot is None:
        return Answer(facts, None)
    from vtune_jax.report.fit_pictures import save_curves

    band = estimate.band
    assert band is not None
    save_curves(
        request.plot,
        names=table.names,
        tokens=table.tokens.T.tolist(),
        losses=table.losses.T.tolist(),
        along=band.tokens.tolist(),
        middle=band.middle.T.tolist(),
        lower=band.lower.T.tolist(),
        upper=band.upper.T.tolist(),
        target=request.predict,
        level=request.level,
        abscissa="tokens" if law == "LD" else "sum of learning rates",
    )
    return Answer(facts, request.plot)


def _chinchilla(request: Request, table: Curves) -> Answer:
    from vtune_jax.fits.sizes import SizeTarget, estimate_over_sizes, interval

    at = None if request.predict is None or request.params is None else SizeTarget(request.params, request.predict)
    params = table.others["params"]
    estimate = estimate_over_sizes(
        params,
        table.tokens,
        table.losses,
        at,
        initial_losses=_by_domain(request.initial, table.names, "--initial"),
        current_losses=_by_domain(request.current, table.names, "--current"),
        level=request.level,
        delta=request.delta,
        replicates=request.replicates or 1000,
    )
    fit = estimate.fit
    domains: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(table.names):
        replicates = estimate.replicates[place]
        values = {
            "E": (fit.E[place], replicates.E),
            "A": (np.exp(fit.log_A[place]), np.exp(replicates.log_A)),
            "B": (np.exp(fit.log_B[place]), np.exp(replicates.log_B)),
            "alpha": (fit.alpha[place], replicates.alpha),
            "beta": (fit.beta[place], replicates.beta),
        }
        told = estimate.determined[place]
        domains[name] = {
            **{key: _plain(value) for key, (value, _) in values.items()},
            "log_A": _plain(fit.log_A[place]),
            "log_B": _plain(fit.log_B[place]),
            "objective": _plain(fit.objective[place]),
            "status": int(fit.status[place]),
            "standard_errors": {key: _plain(drawn.std(ddof=1)) if told else None for key, (_, drawn) in values.items()},
            "intervals": {
                key: [_plain(q) for q in interval(drawn, request.level, determined=told)]
                for key, (_, drawn) in values.items()
            },
        }
        if at is not None:
            domains[name] |= {key: _plain(getattr(estimate, key)[place]) for key in ("target", "lower", "upper")}
        seen = ~np.isnan(table.losses[:, place])
        domains[name] |= {
            "verdicts": [str(verdict) for verdict in estimate.verdicts[place]],
            "advice": [advice for advice in estimate.advices[place] if advice],
            "diagnostics": {
                "points": int(seen.sum()),
                "model_sizes": len(np.unique(params[seen, place])),
                "sigma": _plain(fit.sigma[place]),
            },
        }
    facts = _facts(request, "LND", list(table.notes), domains)
    if request.plot is None:
        return Answer(facts, None)
    from vtune_jax.report.fit_pictures import save_residuals

    predicted = np.stack([_predicted(fit, place, params, table.tokens) for place in range(len(table.names))], axis=1)
    save_residuals(
        request.plot,
        names=table.names,
        predicted=predicted.T.tolist(),
        losses=table.losses.T.tolist(),
    )
    return Answer(facts, request.plot)


def _predicted(fit: Any, place: int, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    of_size = np.exp(fit.log_A[place] - fit.alpha[place] * np.log(params[:, place]))
    return fit.E[place] + of_size + np.exp(fit.log_B[place] - fit.beta[place] * np.log(tokens[:, place]))


def _facts(request: Request, law: str, warned: Sequence[str], domains: dict[str, Any]) -> dict[str, Any]:
    return {
        "law": law,
        "formula": law_named(law).formula,
        "predict": request.predict,
        "level": request.level,
        "delta": request.delta,
        "warnings": list(warned),
        "domains": domains,
    }


def _by_domain(given: dict[str, float] | None, names: Sequence[str], option: str) -> np.ndarray | None:
    if not given:
        return None
    unknown = [name for name in given if name and name not in names]
    if unknown:
        raise UserError(
            f"{option} names {', '.join(map(repr, unknown))}; the table holds {', '.join(names)}", "mend it"
        )
    return np.array([given.get(name, given.get("", np.nan)) for name in names])


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def lines(facts: dict[str, Any]) -> list[str]:
    """An answer in words, for a terminal."""
    said = [facts["formula"], *(f"warning: {warning}" for warning in facts["warnings"])]
    level = f"{100 * facts['level']:.6g}%"
    for name, of in facts["domains"].items():
        said.append("" if name == "all" else f"\n{name}")
        shown = ("E", "A", "B", "log_B", "log_A", "C", "alpha", "beta")
        hidden = {"log_A", "log_B"} if facts["law"] == "LND" else set()
        for key in shown:
            if key in of and key not in hidden:
                said.append(f"  {key:<9} {_number(of[key])}{_interval(of.get('intervals', {}).get(key), level)}")
        said.append(f"  objective {_number(of['objective'])}")
        if "target" in of:
            said.append(f"  target    {_number(of['target'])}{_interval([of['lower'], of['upper']], level)}")
        if of["verdicts"]:
            said.append(f"  verdict   {', '.join(of['verdicts'])}")
        said += [f"            {advice}" for advice in of["advice"]]
    return said


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.8g}"


def _interval(bounds: Sequence[float | None] | None, level: str) -> str:
    if bounds is None:
        return ""
    low, high = ("unbounded" if bound is None else f"{bound:.6g}" for bound in bounds)
    return f"   {level} interval {low} to {high}"


def as_json(facts: dict[str, Any]) -> str:
    """An answer for programs."""
    return json.dumps(facts, indent=1, allow_nan=False)
