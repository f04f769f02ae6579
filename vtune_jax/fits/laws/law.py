"""What a scaling law is to those who fit it: its columns, its form, its parameters and its estimator.

A law's own file holds all of it in one constant, `LAW`; see `fits/README.md`, "How to add a law".
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from vtune_jax.fits.laws.form import Form, Points
from vtune_jax.fits.points import Measured, centred, checked_points, make_points
from vtune_jax.fits.solver import Solution, Width
from vtune_jax.fits.verdicts import Judgements

Budget = tuple[float, ...]
"""Where a law is read off: one value for each of its columns."""
DropHead = int | Literal["auto"]
Diagnosis = dict[str, float | int | str | None]
"""Numbers of one domain by name; None where there is none."""


class Column(NamedTuple):
    """What a point says beside its loss."""

    name: str  # in tables
    noun: str  # in messages, singular
    axis: str  # in pictures, and in "decades of ..."
    linear: bool = False  # the form takes it over its largest value, and it may be 0; else: its centred logarithm


class Coordinates(NamedTuple):
    """Points of every domain in the law's coordinates, padded, and what leads back from them."""

    points: Points
    units: tuple[Float[np.ndarray, " domains"], ...]  # per column: mean logarithm, or the value that is 1 if linear


class Optimum(NamedTuple):
    """A solution on the host, in float64 and without padded lanes: one entry per domain or replicate."""

    parameters: Float[np.ndarray, "parameters fits"]  # of the form's interior
    objective: Float[np.ndarray, " fits"]
    sigma: Float[np.ndarray, " fits"]
    delta: Float[np.ndarray, " fits"]
    piece: Int[np.ndarray, " fits"]  # index into the form's pieces
    status: Int[np.ndarray, " fits"]

    @classmethod
    def of(cls, solution: Solution, count: int) -> "Optimum":
        """The first lanes of a solution on the device."""
        parameters, objective, sigma, delta, piece, status = (np.asarray(x)[..., :count] for x in solution)
        parameters, objective, sigma, delta = (x.astype(np.float64) for x in (parameters, objective, sigma, delta))
        return cls(parameters, objective, sigma, delta, piece, status)


@runtime_checkable
class Fit(Protocol):
    """What every fit has beside its parameters; one entry per domain or replicate."""

    @property
    def objective(self) -> Float[np.ndarray, " fits"]:
        """Sum of the Huber losses of the log residuals, at the width used."""

    @property
    def sigma(self) -> Float[np.ndarray, " fits"]:
        """Robust spread of the log residuals."""

    @property
    def delta(self) -> Float[np.ndarray, " fits"]:
        """Huber width used."""

    @property
    def status(self) -> Int[np.ndarray, " fits"]:
        """How the search ended, see `solver.Status`."""


AnyFit = TypeVar("AnyFit", bound=Fit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the points, apart from the law."""

    budget: Budget | None = None  # where to predict the loss; None: only the law is wanted
    initial_losses: np.ndarray | None = None  # [domains], of the base model; None or NaN: unknown
    current_losses: np.ndarray | None = None  # [domains], of the model as it is; None or NaN: unknown
    runs: np.ndarray | None = None  # which run each point comes from, shaped as the losses; None: all from one
    level: float = 0.9  # of the intervals
    delta: Width = "auto"  # Huber width on log residuals
    min_gap: float = 1e-2  # nats that a usable target must lie below the initial loss
    seed: int = 0  # of the bootstrap
    drop_head: DropHead = "auto"  # points left out at the beginning of every curve
    share_beta: bool = False  # takes the exponent's prior from all domains together
    replicates: int = 1000  # of the bootstrap
    band: bool = False  # also evaluates the prediction between the points and the budget, for a picture


class Band(NamedTuple):
    """The prediction from the first point to the budget, for a picture."""

    along: Float[np.ndarray, " places"]  # values of the law's first column
    middle: Float[np.ndarray, "places domains"]
    lower: Float[np.ndarray, "places domains"]
    upper: Float[np.ndarray, "places domains"]


@runtime_checkable
class Estimate(Protocol):
    """What an estimator finds: fits, and predictions at the budget; per domain, nats per token.

    Without a budget every number of a target is NaN, and no verdict is about a target.
    """

    @property
    def law(self) -> "Law[Any]":
        """The law fitted."""

    @property
    def fit(self) -> Any:
        """The law's own typed fit."""

    @property
    def budget(self) -> Budget | None:
        """Where the targets were read off."""

    @property
    def target(self) -> Float[np.ndarray, " domains"]:
        """Predicted losses."""

    @property
    def lower(self) -> Float[np.ndarray, " domains"]:
        """Lower bounds of the intervals."""

    @property
    def upper(self) -> Float[np.ndarray, " domains"]:
        """Upper bounds of the intervals."""

    @property
    def standard_error(self) -> Float[np.ndarray, " domains"]:
        """Half the interval over the normal quantile of its level."""

    @property
    def level(self) -> float:
        """Probability that an interval is meant to hold the loss."""

    @property
    def last_seen(self) -> Float[np.ndarray, " domains"]:
        """The measured loss nearest to the budget."""

    @property
    def judgements(self) -> Judgements:
        """Verdicts with advice, per domain and worst first."""

    @property
    def band(self) -> Band | None:
        """The prediction for a picture; None if it was not asked for, or if the points lie on no curve."""

    def predict(self, budget: Budget) -> Float[np.ndarray, " domains"]:
        """The fitted law at another budget."""

    def pooled(self, usable: np.ndarray) -> Float[np.ndarray, " domains"]:
        """The law that the usable domains have in common, at each domain's own level.

        Raises:
            UserError: domains cannot share this law.
        """

    def diagnosis(self, domain: int) -> Diagnosis:
        """The numbers behind the verdicts of a domain."""

    def parameter_interval(self, domain: int, name: str) -> tuple[float, float] | None:
        """Interval of a shown parameter; None if this estimator gives none."""

    def parameter_error(self, domain: int, name: str) -> float | None:
        """Standard error of a shown parameter; None if this estimator gives none."""


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How predictions and their intervals come from points: `curves.by_posterior` or `resampling.by_resampling`."""

    estimate: "Callable[[Law[Any], Sequence[np.ndarray], np.ndarray, Question], Estimate]"
    """(law, columns in its order, losses [points, domains], question) -> estimate; a NaN loss leaves a point out."""
    options: frozenset[str]
    """Fields among `drop_head`, `share_beta` and `replicates` of a question that make a difference to it."""


def no_warnings(fit: Any, columns: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
    """No warnings, for a law that cannot tell wrong units."""
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law(Generic[AnyFit]):
    """A scaling law. It is hashable, and its form is static in compiled programs."""

    name: str
    formula: str
    columns: tuple[Column, ...]  # the order of inputs and of budgets; curves run along the first
    form: Form
    parameters: tuple[str, ...]  # fields of the fit, in the order in which files hold them
    shown: tuple[str, ...] = ()  # fields or properties of the fit that people read, in their order; (): `parameters`
    to_fit: Callable[[Optimum, tuple[np.ndarray, ...]], AnyFit]  # (optimum, units of the columns) -> typed fit
    predict: Callable[..., np.ndarray]  # (fit, *budget) -> loss of each fit
    estimator: Estimator
    warnings: Callable[[AnyFit, Sequence[np.ndarray], Sequence[str]], list[str]] = no_warnings
    """(fit, columns, names of the domains) -> signs of wrong units; columns are NaN where there is no point."""

    @property
    def size(self) -> int:
        """Number of parameters, and least number of points."""
        return self.form.size

    @property
    def column_names(self) -> tuple[str, ...]:
        """As tables name them."""
        return tuple(column.name for column in self.columns)

    @property
    def zero_allowed(self) -> frozenset[str]:
        """Names of the columns that may be 0."""
        return frozenset(column.name for column in self.columns if column.linear)

    @property
    def shown_parameters(self) -> tuple[str, ...]:
        """Names of the numbers that people read."""
        return self.shown or self.parameters

    def checked(self, columns: Sequence[np.ndarray], losses: np.ndarray, *, repeats: bool = False) -> Measured:
        """Points that this law can be fitted to, see `checked_points`.

        Raises:
            ValueError: as `checked_points`; the law needs as many points as it has parameters.
        """
        named = dict(zip(self.column_names, columns, strict=True))
        return checked_points(named, losses, least=self.size, repeats=repeats, zero_allowed=self.zero_allowed)

    def coordinates(self, measured: Measured, *, dtype: str = "float64") -> Coordinates:
        """Measurements as the form takes them."""
        inputs, units = [], []
        for column, values in zip(self.columns, measured.columns, strict=True):
            if column.linear:
                values = np.where(measured.present, values, 0.0)
                largest = values.max(axis=0)
                unit = np.where(largest > 0, largest, 1.0)
                inputs.append(values / unit)
            else:
                logs, unit = centred(values, measured.losses)
                inputs.append(logs)
            units.append(unit)
        return Coordinates(make_points(inputs, measured.losses, dtype=dtype), tuple(units))

    def inputs_at(self, budgets: Sequence[Budget], units: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Budgets as the form takes them: one array [budgets, domains] per column."""
        columns = zip(self.columns, np.array(budgets, np.float64).T, units, strict=True)
        return tuple(
            values[:, None] / unit if column.linear else np.log(values)[:, None] - unit
            for column, values, unit in columns
        )
