"""Target losses with intervals and a verdict: whether each prediction may be used, and what to do if not."""

import enum
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from vtune_jax.errors import UserError
from vtune_jax.fits import posterior
from vtune_jax.fits.points import checked_points, on_device
from vtune_jax.fits.power_law import Face, PowerLawFit, curves_of, fit_loss_curves

Policy = Literal["error", "last_seen"]

BETA_PRIOR = (0.5, 0.6)
"""Median of beta, and standard deviation of its logarithm."""

MODEL_ERROR_PER_DECADE = 0.02
"""Error of the law itself, in log loss per decade extrapolated: empirical, from public training curves."""


class Verdict(enum.StrEnum):
    """What is to be thought of a domain's target; the first that applies."""

    NOT_DECREASING = "not decreasing"
    TARGET_NOT_BELOW_INITIAL = "target not below initial"
    TOO_WIDE = "too wide"
    EXTRAPOLATES_TOO_FAR = "extrapolates too far"
    SHORT_RANGE = "short range"
    FEW_POINTS = "few points"
    TRUSTWORTHY = "trustworthy"


UNUSABLE = frozenset({Verdict.NOT_DECREASING, Verdict.TARGET_NOT_BELOW_INITIAL})
"""Verdicts under which a target must not enter a velocity."""


class TargetEstimate(NamedTuple):
    """Predicted losses at the budget, per domain, nats per token."""

    target: Float[np.ndarray, " domains"]  # posterior median
    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]
    standard_error: Float[np.ndarray, " domains"]
    level: float  # of the interval
    fit: PowerLawFit
    last_seen: Float[np.ndarray, " domains"]  # the loss of the longest proxy
    verdict: tuple[Verdict, ...]
    advice: tuple[str, ...]  # one sentence each; empty where trustworthy

    def as_json(self) -> dict[str, Any]:
        """For `targets.json`; an infinite bound becomes null."""
        law = {"E": self.fit.E, "log_B": self.fit.log_B, "beta": self.fit.beta}
        return {
            **{name: _finite(getattr(self, name)) for name in ("target", "lower", "upper", "standard_error")},
            "level": self.level,
            "verdict": [str(verdict) for verdict in self.verdict],
            "advice": list(self.advice),
            "law": {name: _finite(values) for name, values in law.items()},
        }


def estimate_targets(
    tokens: np.ndarray,
    losses: np.ndarray,
    target_tokens: int | float,
    *,
    initial_losses: np.ndarray,
    level: float = 0.9,
    beta_prior: tuple[float, float] = BETA_PRIOR,
    model_error_per_decade: float = MODEL_ERROR_PER_DECADE,
    min_gap: float = 1e-2,
) -> TargetEstimate:
    """Predicts each domain's loss at the budget from its losses at fewer tokens.

    The points must come from runs annealed as the real one will be: a run still at a high learning rate overstates what
    an annealed run of as many tokens reaches.

    Args:
        tokens: training tokens behind each point, [points] or [points, domains]; all domains' tokens or the
            domain's own give the same prediction as long as the mixture was constant.
        losses: [points, domains], nats per token.
        target_tokens: the budget.
        initial_losses: [domains], of the base model.
        level: of the interval.
        beta_prior: median and log standard deviation.
        model_error_per_decade: added in quadrature to the interval.
        min_gap: nats that a usable target must lie below the initial loss.

    Returns:
        targets, intervals and verdicts. With three points the interval is infinite.

    Raises:
        ValueError: as `fit_loss_curves`, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    measured = checked_points(tokens, losses)
    tokens, losses = measured.tokens, measured.losses
    initial = np.asarray(initial_losses, np.float64)
    fit = fit_loss_curves(tokens, losses)
    points, middle = curves_of(measured)
    domains = len(middle)
    t_target = np.full(points.weight.shape[1], np.log(target_tokens) - middle[0])
    t_target[:domains] = np.log(target_tokens) - middle
    levels = ((1 - level) / 2, 0.5, (1 + level) / 2)
    with jax.enable_x64(True):
        logs = np.asarray(
            posterior.quantiles(
                on_device(points),
                jnp.asarray(t_target),
                jnp.asarray(beta_prior, jnp.float64),
                levels,
            )
        )[:domains]
    seen = ~np.isnan(losses)
    farthest = np.where(seen, tokens, 0.0).max(axis=0)
    nearest = np.where(seen, tokens, np.inf).min(axis=0)
    ahead = np.maximum(np.log10(target_tokens / farthest), 0.0)
    z = float(norm.ppf(levels[2]))
    model_error = z * model_error_per_decade * ahead
    below, above = (
        np.hypot(logs[:, 1] - logs[:, 0], model_error),
        np.hypot(logs[:, 2] - logs[:, 1], model_error),
    )
    count = seen.sum(axis=0)
    # Three points fix three unknowns: nothing is left to say how wrong they are.
    below, above = (np.where(count > 3, width, np.inf) for width in (below, above))
    target = np.exp(logs[:, 1])
    lower, upper = np.exp(logs[:, 1] - below), np.exp(logs[:, 1] + above)
    last = np.take_along_axis(losses, np.where(seen, tokens, 0.0).argmax(axis=0)[None], axis=0)[0]
    verdicts = [
        _judge(domain, fit, target, lower, upper, initial, count, ahead, np.log10(farthest / nearest), min_gap)
        for domain in range(len(target))
    ]
    return TargetEstimate(
        target=target,
        lower=lower,
        upper=upper,
        standard_error=(upper - lower) / (2 * z),
        level=level,
        fit=fit,
        last_seen=last,
        verdict=tuple(verdict for verdict, _ in verdicts),
        advice=tuple(advice for _, advice in verdicts),
    )


def _judge(
    domain: int,
    fit: PowerLawFit,
    target: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    initial: np.ndarray,
    count: np.ndarray,
    ahead: np.ndarray,
    range_decades: np.ndarray,
    min_gap: float,
) -> tuple[Verdict, str]:
    """The first verdict that applies, with its number and what to do."""
    gap = initial[domain] - target[domain]
    if fit.face[domain] == Face.FLAT:
        return (
            Verdict.NOT_DECREASING,
            "its loss does not fall with tokens; lengthen the proxies or leave the domain out",
        )
    if not gap >= min_gap:
        return (
            Verdict.TARGET_NOT_BELOW_INITIAL,
            f"its target {target[domain]:.3f} is not {min_gap:g} nats below the initial loss {initial[domain]:.3f}; "
            "there is little to learn from it at this budget",
        )
    share = 0.5 * (upper[domain] - lower[domain]) / gap
    if share > 0.25:
        return (
            Verdict.TOO_WIDE,
            f"the interval's half-width is {share:.0%} of the way from initial to target; add longer proxies",
        )
    if ahead[domain] > 1:
        return (
            Verdict.EXTRAPOLATES_TOO_FAR,
            f"the budget lies {ahead[domain]:.1f} decades beyond the longest proxy",
        )
    if range_decades[domain] < 0.7:
        return Verdict.SHORT_RANGE, f"the proxies span only {range_decades[domain]:.2f} decades of tokens"
    if count[domain] < 6:
        return (
            Verdict.FEW_POINTS,
            f"{count[domain]} points for three unknowns; the interval says how much that matters",
        )
    return Verdict.TRUSTWORTHY, ""


def apply_policy(
    estimate: TargetEstimate, initial_losses: np.ndarray, *, policy: Policy, names: Sequence[str]
) -> tuple[Float[np.ndarray, " domains"], list[str]]:
    """Targets to be used, and one line aloud for each that was replaced.

    Args:
        estimate: with verdicts.
        initial_losses: of the base model.
        policy: `error` refuses; `last_seen` takes the longest proxy's loss, which overstates what can be reached.
        names: of the domains.

    Raises:
        UserError: under `error`, naming every domain without a usable target.
    """
    target, notes = estimate.target.copy(), []
    unusable = [domain for domain, verdict in enumerate(estimate.verdict) if verdict in UNUSABLE]
    if unusable and policy == "error":
        said = "; ".join(f"'{names[domain]}': {estimate.advice[domain]}" for domain in unusable)
        raise UserError(f"no usable target loss for {said}", 'mend that, or set targets.when_unusable = "last_seen"')
    for domain in unusable:
        target[domain] = estimate.last_seen[domain]
        why = estimate.advice[domain]
        note = f"domain '{names[domain]}': {why}. Its longest proxy's loss {target[domain]:.3f} is used"
        if not target[domain] < initial_losses[domain]:
            note += f", which is not below the initial {initial_losses[domain]:.3f}: its remaining fraction counts as 0"
        notes.append(note)
    return target, notes


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
