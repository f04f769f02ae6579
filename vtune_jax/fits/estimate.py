"""Target losses from measured losses, for callers who know their points: along runs, or over model sizes."""

from typing import Any, NamedTuple

import numpy as np

from vtune_jax.fits.curves import MODEL_ERROR_PER_DECADE, Method, TargetEstimate, estimate_curves
from vtune_jax.fits.laws import annealing, chinchilla, power_law
from vtune_jax.fits.laws.form import PUBLISHED_DELTA
from vtune_jax.fits.laws.law import DropHead, Law, Question
from vtune_jax.fits.resampling import ResampledEstimate, estimate_by_resampling
from vtune_jax.fits.solver import Width


def estimate_targets(
    tokens: np.ndarray,
    losses: np.ndarray,
    target_tokens: int | float,
    *,
    initial_losses: np.ndarray | None = None,
    current_losses: np.ndarray | None = None,
    annealed: np.ndarray | None = None,
    target_annealed: float = 0.0,
    runs: np.ndarray | None = None,
    level: float = 0.9,
    method: Method = "posterior",
    delta: Width = "auto",
    drop_head: DropHead = "auto",
    beta_prior: tuple[float, float] | None = None,
    share_beta: bool = False,
    model_error_per_decade: float = MODEL_ERROR_PER_DECADE,
    min_gap: float = 1e-2,
    replicates: int = 1000,
    seed: int = 0,
    band: bool = False,
) -> TargetEstimate:
    """Predicts each domain's loss at the budget from its losses at fewer tokens.

    The law is `L(D) = E + B / D^beta` or, where annealed areas are given, `L = E + A / S1^alpha - C S2`, see
    `laws.annealing`. Under the first law points must come from runs annealed as the real run will be: the loss of a run
    still at a high learning rate says little of what an annealed run of as many tokens reaches.

    Args:
        tokens: training tokens behind each point, [points] or [points, domains]. All domains' tokens or the domain's
            own give the same prediction as long as the mixture was constant. With annealed areas: S1.
        losses: [points, domains], nats per token; NaN leaves a point out.
        target_tokens: the budget, or S1 at its end.
        initial_losses: [domains], of the base model; None: unknown.
        current_losses: [domains], of the model as it is; None: unknown.
        annealed: S2 at each point, shaped as tokens.
        target_annealed: S2 at the end of the budget.
        runs: which run each point comes from, shaped as tokens; None: all from one run, whose neighbouring residuals
            may correlate.
        level: of the interval.
        method: "posterior", whose median is the target; or "bootstrap", percentiles over case resamples with the
            optimum as target, for comparison with published work.
        delta: Huber width of the fit, whose weights also downweight outliers in the posterior.
        drop_head: points left out at the beginning of every curve; "auto": warm-up heads, where there are any.
        beta_prior: median and log standard deviation of the exponent; None: `power_law.BETA_PRIOR`, or
            `annealing.ALPHA_PRIOR` with annealed areas.
        share_beta: takes the prior from all domains together instead, see `shared_prior`.
        model_error_per_decade: of the law, in log loss per decade extrapolated; added in quadrature.
        min_gap: nats that a usable target must lie below the initial loss.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        band: also evaluates the prediction between the points and the budget.

    Returns:
        targets, intervals, diagnostics and verdicts. With three points (four with annealing) the interval is infinite.

    Raises:
        ValueError: as `fit_loss_curves`, a level outside (0, 1), or a budget that is not positive.
    """
    target_tokens = float(target_tokens)
    if not (np.isfinite(target_tokens) and target_tokens > 0):
        raise ValueError(f"target_tokens must be positive and finite, got {target_tokens}.")
    law: Law[Any] = power_law.LAW
    prior, columns, budget = power_law.BETA_PRIOR, [tokens], [target_tokens]
    if annealed is not None:
        law, prior = annealing.LAW, annealing.ALPHA_PRIOR
        columns.append(annealed)
        budget.append(float(target_annealed))
    return estimate_curves(
        law,
        columns,
        losses,
        tuple(budget),
        exponent_prior=beta_prior or prior,
        initial_losses=initial_losses,
        current_losses=current_losses,
        runs=runs,
        level=level,
        method=method,
        delta=delta,
        drop_head=drop_head,
        share_beta=share_beta,
        model_error_per_decade=model_error_per_decade,
        min_gap=min_gap,
        replicates=replicates,
        seed=seed,
        band=band,
    )


class SizeTarget(NamedTuple):
    """Where the law over model sizes is to be read off."""

    params: float
    tokens: float


def estimate_over_sizes(
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    target: SizeTarget | None,
    *,
    initial_losses: np.ndarray | None = None,
    current_losses: np.ndarray | None = None,
    level: float = 0.9,
    delta: Width = PUBLISHED_DELTA,
    replicates: int = 1000,
    seed: int = 0,
    min_gap: float = 1e-2,
) -> ResampledEstimate:
    """Fits `L(N, D) = E + A / N^alpha + B / D^beta` and predicts each domain's loss for a model size and a budget.

    Args:
        params: N > 0, [points] or [points, domains].
        tokens: D > 0, as params.
        losses: [points, domains]; NaN leaves a point out.
        target: where to predict; None: only the law.
        initial_losses: [domains], of the base model; None or NaN: unknown.
        current_losses: [domains], of the model as it is; None or NaN: unknown.
        level: of the interval.
        delta: Huber width on log residuals.
        replicates: of the bootstrap, at least two.
        seed: of the bootstrap.
        min_gap: nats that a usable target must lie below the initial loss.

    Raises:
        ValueError: as `fit_chinchilla`, a level outside (0, 1), fewer than two replicates, or a target that is not
            positive and finite.
    """
    question = Question(
        budget=None if target is None else (float(target.params), float(target.tokens)),
        initial_losses=initial_losses,
        current_losses=current_losses,
        level=level,
        delta=delta,
        replicates=replicates,
        seed=seed,
        min_gap=min_gap,
    )
    return estimate_by_resampling(chinchilla.LAW, (params, tokens), losses, question, least_values=3)
