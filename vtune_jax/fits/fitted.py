"""Loss curves with their fit, whichever of the two laws of one run describes them: LD, or LRA with annealed areas.

LD is LRA without annealed area, so that what is done with a fitted curve is written once, for both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vtune_jax.fits.laws.annealing import LRA, AnnealingFit, annealed_curves_of, to_annealing_fit
from vtune_jax.fits.laws.law import Points
from vtune_jax.fits.laws.power_law import LD, PowerLawFit, Width, checked_width, curves_of, face_of, to_fit
from vtune_jax.fits.points import Measured, on_device
from vtune_jax.fits.posterior import Budgets
from vtune_jax.fits.solver import solve


class Target(NamedTuple):
    """Where a curve is to be read off."""

    tokens: float  # or S1 where there is annealing
    annealed: float = 0.0  # S2


class FittedCurves(NamedTuple):
    """Curves of all domains, their optimum and what it leaves over."""

    measured: Measured
    points: Points  # padded, on the host
    middle: Float[np.ndarray, " domains"]  # mean log tokens
    scale: Float[np.ndarray, " domains"]  # annealed area in the points' unit
    fit: PowerLawFit | AnnealingFit
    parameters: Float[np.ndarray, "4 domains"]  # c, s, b, k
    residuals: Float[np.ndarray, "points domains"]  # log loss minus log model; 0 where there is no point
    face: Int[np.ndarray, " domains"]

    @property
    def annealed(self) -> bool:
        """Whether the points carry annealed areas."""
        return isinstance(self.fit, AnnealingFit)

    @property
    def law_parameters(self) -> int:
        """How many numbers the law has."""
        return 4 if self.annealed else 3

    @property
    def seen(self) -> Bool[np.ndarray, "points domains"]:
        """Where there is a point."""
        return self.measured.seen

    def budgets(self, targets: list[Target]) -> Budgets:
        """Targets in the points' coordinates, [budgets, lanes]; lanes beyond the domains repeat the first."""
        lanes = self.points.weight.shape[1]
        t = np.log([[target.tokens] for target in targets]) - self.middle
        q = np.array([[target.annealed] for target in targets]) / self.scale
        filled = (np.concatenate([x, np.repeat(x[:, :1], lanes - x.shape[1], axis=1)], axis=1) for x in (t, q))
        return Budgets(*(jnp.asarray(x) for x in filled))

    def predict(self, target: Target) -> Float[np.ndarray, " domains"]:
        """The fitted law's loss at a target."""
        c, s, b, k = self.parameters
        t = np.log(target.tokens) - self.middle
        inner = 1 - s * host_psi(t, b) - k * target.annealed / self.scale
        return np.exp(c) * np.maximum(inner, 1e-12)


def host_psi(t: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`power_law.psi` in numpy; b is never below its bound, so that nothing cancels in double precision."""
    return -np.expm1(-b * t) / b


def fit_curves(measured: Measured, delta: Width = "auto") -> FittedCurves:
    """The optimum of every domain, in float64.

    Args:
        measured: with annealed areas as its only other column, or none.
        delta: Huber width.
    """
    width = checked_width(delta)
    fit: PowerLawFit | AnnealingFit
    with jax.enable_x64(True):
        if measured.others:
            curves = annealed_curves_of(measured)
            solution = jax.tree.map(np.asarray, solve(LRA, on_device(curves.points), jnp.asarray(width)))
            points, middle, scale = curves
            fit = to_annealing_fit(solution, curves)
        else:
            points, middle = curves_of(measured)
            scale = np.ones_like(middle)
            solution = jax.tree.map(np.asarray, solve(LD, on_device(points), jnp.asarray(width)))
            fit = to_fit(solution, middle)
    found = solution.parameters[:, : len(middle)]
    c, s, b, *rest = found
    k = rest[0] if rest else np.zeros_like(c)
    places = slice(0, len(measured.losses))
    t, *q = points.inputs[:, places, : len(middle)]
    inner = 1 - s * host_psi(t, b) - (k * q[0] if q else 0.0)
    residuals = points.log_loss[places, : len(middle)] - c - np.log(np.maximum(inner, 1e-12))
    law = LRA if measured.others else LD
    return FittedCurves(
        measured=measured,
        points=points,
        middle=middle,
        scale=scale,
        fit=fit,
        parameters=np.stack([c, s, b, k]),
        residuals=np.where(measured.seen, residuals, 0.0),
        face=face_of(law, solution.piece[: len(middle)], s, b),
    )
