"""How target losses are predicted: proxies within a budget, and a law fitted to them."""

import dataclasses
import math
from typing import Literal

from vtune_jax.fits.laws.annealing import SHORT_RUN_MODEL_ERROR
from vtune_jax.fits.policy import Policy

MOST_BUDGET = 2
"""Largest `TargetsConfig.budget`: proxies that cost more than twice the run itself predict what one could measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """How target losses are predicted: proxy runs within a budget, and a law fitted to their losses."""

    # Compute of all proxies and their evaluations, as a share of the real run's training compute; at most 2.
    budget: float = 0.2
    # "one": one annealed run, evaluated along the way, and the law with annealing; "several": annealed runs of halving
    # lengths, evaluated at their ends, and the law L(D).
    proxies: Literal["one", "several"] = "one"
    # Evaluations along the proxy under "one", at least 8; fewer are made if they would cost a quarter of the budget.
    evaluations: int = 24
    # Stop before the budget is spent once half the interval of every target is below this share of the gap between
    # initial loss and target; 0: spend the whole budget in one round.
    half_width: float = 0.0
    # Share of each domain's rows, counted from the first, that proxies draw from; 1: a random part of all rows.
    subsample: float = 1.0
    # lambda of the law with annealing, per step; 0: 0.999, and less for runs of under 12,500 steps.
    decay: float = 0.0
    # Probability that an interval is meant to hold the loss really reached, between 0 and 1.
    level: float = 0.9
    # Error of the law itself, in log loss per decade extrapolated; widens the intervals.
    model_error_per_decade: float = SHORT_RUN_MODEL_ERROR
    # Take the prior of the law's exponent from all domains together (partial pooling), not from past runs.
    share_beta: bool = False
    # Nats; a target less than this below the initial loss is unusable.
    min_gap: float = 1e-2
    # What becomes of a domain without a usable target: "last_seen" takes the loss of its longest proxy, "pooled" the
    # law of the other domains, "given" the `fallback`, and "error" stops.
    when_unusable: Policy = "last_seen"
    # Also count targets as unusable that are under-determined, too wide or too far.
    strict: bool = False
    # The user's own target losses for when_unusable = "given", nats per token, one per domain.
    fallback: tuple[float, ...] = ()
    # CSV file of losses measured elsewhere (tokens, loss, domain); no proxy is run then. Empty: proxies are run.
    table: str = ""
    # The user's own target losses, nats per token, one per domain; no proxy is run then. Empty: they are predicted.
    losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.budget <= MOST_BUDGET:
            raise ValueError(f"budget must lie in (0, {MOST_BUDGET}], got {self.budget}")
        if self.evaluations < 8:
            raise ValueError(f"evaluations must be at least 8, got {self.evaluations}")
        for field in ("half_width", "model_error_per_decade", "min_gap"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if not 0 < self.subsample <= 1:
            raise ValueError(f"subsample must lie in (0, 1], got {self.subsample}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie in (0, 1), got {self.level}")
        for field in ("losses", "fallback"):
            if any(not (math.isfinite(loss) and loss > 0) for loss in getattr(self, field)):
                raise ValueError(f"{field} must be positive and finite, got {list(getattr(self, field))}")
        if self.table and self.losses:
            raise ValueError("table must be empty where losses are given")
        if self.when_unusable == "given" and not self.fallback:
            raise ValueError('fallback must name one loss per domain with when_unusable = "given", got none')
