"""Targets from the law over model sizes, `L(N, D) = E + A / N**alpha + B / D**beta`, with intervals and verdicts.

Intervals are percentiles over case resamples, as in published fits. Where the points cannot determine the law, the
resamples agree on whatever the search began with: then the interval is unbounded, whatever they say.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vtune_jax.fits.bootstrap import draw_cases
from vtune_jax.fits.diagnostics import FAR_DECADES, NUMBERS, WIDEST_SHARE, Verdict
from vtune_jax.fits.laws.chinchilla import LND, ChinchillaFit, bootstrap_chinchilla, fit_chinchilla, predict
from vtune_jax.fits.laws.law import PUBLISHED_DELTA
from vtune_jax.fits.laws.power_law import Width
from vtune_jax.fits.solver import Status

LEAST_SIZES = 3
"""Different N, and different D: two determine no power law with a floor."""


class SizeTarget(NamedTuple):
    """Where the law is to be read off."""

    params: float
    tokens: float


class SizeEstimate(NamedTuple):
    """Fitted laws over model sizes, per domain; losses in nats per token. Numbers of a target are NaN without one."""

    fit: ChinchillaFit
    replicates: tuple[ChinchillaFit, ...]  # of each domain
    determined: tuple[bool, ...]  # whether the points could tell the law's parameters at all
    target: Float[np.ndarray, " domains"]
    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]
    last_seen: Float[np.ndarray, " domains"]  # at the most tokens of the size nearest to the target's
    verdicts: tuple[tuple[Verdict, ...], ...]  # worst first
    advices: tuple[tuple[str, ...], ...]


def estimate_over_sizes(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    at: SizeTarget | None,
    *,
    initial_losses: np.ndarray | None = None,
    current_losses: np.ndarray | None = None,
    level: float = 0.9,
    delta: Width = PUBLISHED_DELTA,
    replicates: int = 1000,
    seed: int = 0,
    min_gap: float = 1e-2,
) -> SizeEstimate:
    """Fits every domain's law and predicts its loss for a model size and a budget.

    Args:
        params: N > 0, [points] or [points, domains].
        tokens: D > 0, as params.
        losses: [points, domains]; NaN leaves a point out.
        at: where to predict; None: only the law.
        initial_losses: [domains], of the base model; None or NaN: unknown.
        current_losses: [domains], of the model as it is; None or NaN: unknown.
        level: of the interval.
        delta: Huber width.
        replicates: of the bootstrap, at least two.
        seed: of the draws.
        min_gap: nats that a usable target must lie below the initial loss.

    Raises:
        ValueError: as `fit_chinchilla`, a level outside (0, 1), fewer than two replicates, or a target that is not
            positive and finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {replicates}.")
    for name, value in zip(SizeTarget._fields, at or (), strict=False):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"target_{name} must be positive and finite, got {value}.")
    losses = np.asarray(losses, np.float64)
    params, tokens = (
        np.broadcast_to(column[:, None] if column.ndim == 1 else column, losses.shape)
        for column in (np.asarray(params, np.float64), np.asarray(tokens, np.float64))
    )
    domains = losses.shape[1]
    fit = fit_chinchilla(params, tokens, losses, delta=delta)
    unknown = np.full(domains, np.nan)
    target = unknown if at is None else predict(fit, *at)
    initial, current = (unknown if given is None else np.asarray(given) for given in (initial_losses, current_losses))
    replicas, determined, bounds, last_seen, said = [], [], [], [], []
    for domain in range(domains):
        seen = ~np.isnan(losses[:, domain])
        points = _OfDomain(*(column[seen, domain] for column in (params, tokens, losses)))
        cases = draw_cases(len(points.losses), replicates, seed=seed, different=LND.size)
        replicas.append(bootstrap_chinchilla(*points, cases, delta=float(fit.delta[domain])))
        reason = _undetermined(points)
        determined.append(not reason)
        notes = [(Verdict.UNDER_DETERMINED, reason)] if reason else []
        if at is None:
            bounds.append((np.nan, np.nan))
            last_seen.append(np.nan)
        else:
            low, high = interval(predict(replicas[-1], *at), level, determined=not reason)
            bounds.append((max(min(low, target[domain]), 0.0), max(high, target[domain])))
            last_seen.append(_longest_of_nearest(points, at))
            gaps = initial[domain] - target[domain], current[domain] - target[domain]
            notes = _of_target(points, at, target[domain], bounds[-1], gaps, min_gap, notes)
        if fit.status[domain] != Status.CONVERGED:
            notes.append(
                (Verdict.NOT_CONVERGED, "the search ended before the gradient test held; this is the best found")
            )
        said.append(notes or [(Verdict.TRUSTWORTHY, "")])
    lower, upper = np.array(bounds).T
    return SizeEstimate(
        fit=fit,
        replicates=tuple(replicas),
        determined=tuple(determined),
        target=target,
        lower=lower,
        upper=upper,
        last_seen=np.array(last_seen),
        verdicts=tuple(tuple(verdict for verdict, _ in of) for of in said),
        advices=tuple(tuple(advice for _, advice in of) for of in said),
    )


def interval(drawn: np.ndarray, level: float, *, determined: bool) -> tuple[float, float]:
    """Of a quantity that each replicate gives; unbounded where the points cannot determine the law."""
    if not determined:
        return -np.inf, np.inf
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


class _OfDomain(NamedTuple):
    """The points of one domain, [points]."""

    params: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray


def _undetermined(points: _OfDomain) -> str:
    """Why the points cannot tell the law's parameters; empty where they can."""
    different = len(np.unique(np.stack(points[:2], axis=1), axis=0))
    sizes, lengths = len(np.unique(points.params)), len(np.unique(points.tokens))
    if different <= LND.size:
        return (
            f"{different} different points for {NUMBERS[LND.size]} unknowns leave nothing to tell the error by; "
            "measure more"
        )
    if sizes < LEAST_SIZES:
        return (
            f"{sizes} model size{'s' * (sizes > 1)} cannot tell how the loss falls with size; measure at least "
            f"{LEAST_SIZES}, or fit one size's points by the law LD"
        )
    if lengths < LEAST_SIZES:
        return f"{lengths} token counts cannot tell how the loss falls with tokens; measure at least {LEAST_SIZES}"
    return ""


def _of_target(
    points: _OfDomain,
    at: SizeTarget,
    target: float,
    bounds: tuple[float, float],
    gaps: tuple[float, float],
    min_gap: float,
    notes: list[tuple[Verdict, str]],
) -> list[tuple[Verdict, str]]:
    """The notes of a domain and those of its target, worst first; gaps are from the initial and the current loss."""
    below_initial, below_current = gaps
    worst: list[tuple[Verdict, str]] = []
    if below_initial < min_gap:
        why = f"its target {target:.3f} is not {min_gap:g} nats below the initial loss {target + below_initial:.3f}"
        worst.append((Verdict.NOT_BELOW_INITIAL, why))
    if below_current <= 0:
        why = f"its target {target:.3f} is not below the current loss {target + below_current:.3f}"
        worst.append((Verdict.NOT_BELOW_CURRENT, why))
    notes = worst + notes
    way = points.losses.max() - target if np.isnan(below_initial) else below_initial
    share = (bounds[1] - bounds[0]) / 2 / max(way, min_gap)
    if share > WIDEST_SHARE:
        wide = f"half the interval is {share:.0%} of the way from the initial loss to the target"
        notes.append((Verdict.TOO_WIDE, (wide if np.isfinite(share) else "its interval is unbounded") + "; add points"))
    for what, here, asked in zip(("model sizes", "tokens"), points, at, strict=False):
        ahead = float(np.log10(asked / here.max()))
        if ahead > FAR_DECADES:
            why = f"the target lies {ahead:.1f} decades of {what} beyond the points; add larger ones"
            notes.append((Verdict.TOO_FAR, why))
    return notes


def _longest_of_nearest(points: _OfDomain, at: SizeTarget) -> float:
    distance = np.abs(np.log(points.params / at.params))
    near = np.isclose(distance, distance.min())
    return float(points.losses[near & (points.tokens == points.tokens[near].max())].mean())
