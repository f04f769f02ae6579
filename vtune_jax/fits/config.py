"""How target losses are predicted: proxies within a budget, and a law fitted to them."""

import dataclasses
import math
from typing import Literal

from vtune_jax.fits.laws.annealing import MODEL_ERROR_PER_DECADE
from vtune_jax.fits.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """How target losses are predicted: proxy runs within a budget, and a law fitted to them (`stages/proxies.py`)."""

    budget: float = 0.2  # compute of all proxies with their evaluations, as a share of the real run's training
    proxies: Literal["one", "several"] = "one"  # one run under the law with annealing, or several annealed ones
    evaluations: int = 24  # along a proxy under "one"; fewer where they would take over a quarter of the budget
    half_width: float = (
        0.0  # half the interval over the gap from initial to target that is good enough; 0: spend it all
    )
    subsample: float = (
        1.0  # share of each domain's rows that proxies draw from, the first ones; 1: a random part of all
    )
    decay: float = 0.0  # lambda of the annealing law; 0: 0.999, and less for runs of under 12,500 steps
    level: float = 0.9  # of the interval
    model_error_per_decade: float = MODEL_ERROR_PER_DECADE  # of the law, in log loss per decade extrapolated
    share_beta: bool = False  # a prior of beta that the domains have in common: partial pooling
    min_gap: float = 1e-2  # nats; a target must lie this far below the initial loss
    when_unusable: Policy = (
        "last_seen"  # what becomes of a domain without a usable target; or "error", "pooled", "given"
    )
    strict: bool = False  # also for targets that are under-determined, too wide or too far
    fallback: tuple[float, ...] = ()  # the user's own targets for when_unusable = "given", one per domain
    table: str = ""  # CSV file of losses measured elsewhere (tokens, loss, domain); then no proxy runs
    losses: tuple[float, ...] = ()  # the user's own targets for every domain; then no proxy runs either

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 2:
            raise ValueError(f"budget must lie in (0, 2], got {self.budget}")
        if self.evaluations < 8:
            raise ValueError(f"evaluations must be at least 8, got {self.evaluations}")
        for field in ("half_width", "model_error_per_decade"):
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
