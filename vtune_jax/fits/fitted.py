"""Loss curves with their fit, for every law of the family in `laws.curve`.

A law without a second column is the same family with k = 0, so that what is done with a fitted curve is written once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vtune_jax.fits.laws.curve import face_of, psi_on_host
from vtune_jax.fits.laws.form import Points
from vtune_jax.fits.laws.law import Budget, Law, Optimum
from vtune_jax.fits.points import Measured, on_device
from vtune_jax.fits.posterior import BudgetInputs
from vtune_jax.fits.solver import Width, checked_width, solve


class FittedCurves(NamedTuple):
    """Curves of all domains, their optimum and its residuals."""

    law: Law[Any]
    measured: Measured
    points: Points  # padded, on the host
    units: tuple[Float[np.ndarray, " domains"], ...]  # see `Coordinates`
    fit: Any  # the law's own typed fit
    parameters: Float[np.ndarray, "4 domains"]  # c, s, b, k
    residuals: Float[np.ndarray, "points domains"]  # log loss minus log model; 0 where there is no point
    face: Int[np.ndarray, " domains"]  # see `curve.Face`

    @property
    def present(self) -> Bool[np.ndarray, "points domains"]:
        """Where there is a point."""
        return self.measured.present

    @property
    def along(self) -> Float[np.ndarray, "points domains"]:
        """Values of the column along which the curve runs: tokens, or S1."""
        return np.asarray(self.measured.columns[0])

    @property
    def domains(self) -> int:
        """Number of curves."""
        return int(self.residuals.shape[1])

    def budget_inputs(self, budgets: Sequence[Budget]) -> BudgetInputs:
        """Budgets in the points' coordinates, [budgets, lanes]; lanes beyond the domains repeat the first."""
        lanes = self.points.weight.shape[1]
        t, *rest = self.law.inputs_at(budgets, self.units)
        q = rest[0] if rest else np.zeros_like(t)
        filled = (np.concatenate([x, np.repeat(x[:, :1], lanes - x.shape[1], axis=1)], axis=1) for x in (t, q))
        return BudgetInputs(*(jnp.asarray(x) for x in filled))

    def predict(self, budget: Budget) -> Float[np.ndarray, " domains"]:
        """The fitted law's loss at a budget."""
        return np.asarray(losses_at(self.law.inputs_at([budget], self.units), self.parameters)[0])


def losses_at(
    inputs: Sequence[Float[np.ndarray, "places domains"]], parameters: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """`exp(c) (1 - s psi(t; b) - k q)`, at least a tiny share of `exp(c)`.

    Args:
        inputs: t, and q if the law has a second column.
        parameters: c, s, b and k, one row each; k is not read without q.
    """
    c, s, b = parameters[:3]
    inner = 1 - s * psi_on_host(inputs[0], b)
    if len(inputs) > 1:
        inner = inner - parameters[3] * inputs[1]
    return np.asarray(np.exp(c) * np.maximum(inner, 1e-12))


def fit_curves(law: Law[Any], measured: Measured, delta: Width = "auto") -> FittedCurves:
    """The optimum of every domain, in float64.

    Args:
        law: of the family.
        measured: with the law's columns.
        delta: Huber width on log residuals.
    """
    width = checked_width(delta)
    coordinates = law.coordinates(measured)
    points, domains = coordinates.points, measured.losses.shape[1]
    with jax.enable_x64(True):
        solution = solve(law.form, on_device(points), jnp.asarray(width))
    optimum = Optimum.of(solution, domains)
    c, s, b, *rest = optimum.parameters
    k = rest[0] if rest else np.zeros_like(c)
    places = slice(0, len(measured.losses))
    t, *q = points.inputs[:, places, :domains]
    inner = 1 - s * psi_on_host(t, b) - (k * q[0] if q else 0.0)
    residuals = points.log_loss[places, :domains] - c - np.log(np.maximum(inner, 1e-12))
    return FittedCurves(
        law=law,
        measured=measured,
        points=points,
        units=coordinates.units,
        fit=law.to_fit(optimum, coordinates.units),
        parameters=np.stack([c, s, b, k]),
        residuals=np.where(measured.present, residuals, 0.0),
        face=face_of(law.form, optimum.piece, s, b),
    )
