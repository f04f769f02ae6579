"""The experiment as one frozen value: each part's config lives beside what it configures and is only nested here."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np

from vtune_jax import settings
from vtune_jax.data.corpus import CorpusConfig
from vtune_jax.data.mapped import MappedTokens
from vtune_jax.data.packing import PackedRows
from vtune_jax.data.plan import Allocation
from vtune_jax.data.reader import Workers
from vtune_jax.data.rows import BlockRows, RowStore, TokenRows
from vtune_jax.data.sources import RecordTokens
from vtune_jax.errors import UserError
from vtune_jax.fits.annealing import MODEL_ERROR_PER_DECADE
from vtune_jax.fits.policy import Policy
from vtune_jax.models import DecoderConfig
from vtune_jax.rules import (
    Ado,
    Aioli,
    DoGE,
    DoReMi,
    DynamicBatchLoading,
    Grape,
    GroupDro,
    MixingLaws,
    Odm,
    Olmix,
    RegMix,
    SkillIt,
    Static,
    Velocitune,
    prior_weights,
    unimax_weights,
)
from vtune_jax.rules.offline import Offline
from vtune_jax.train.loop import LoopConfig
from vtune_jax.train.optimizer import OptimizerConfig
from vtune_jax.train.state import make_targets

MethodConfig = (
    Velocitune
    | Static
    | DynamicBatchLoading
    | GroupDro
    | Odm
    | Ado
    | SkillIt
    | DoReMi
    | DoGE
    | Aioli
    | Grape
    | RegMix
    | MixingLaws
    | Olmix
)
BLOCK_TOKENS = 1 << 19
"""Tokens read together from ArrayRecord shards: sixteen records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The shape of a batch and how it reaches the model."""

    sequence: int = 128  # predicted tokens per row
    batch: int = 16  # rows per optimiser step, over all devices
    heldout_rows: int = 32  # per domain, behind every held-out loss; evenly spread over its held-out tokens
    evaluate_rows_at_once: int = 32  # rows whose logits are in memory together during an evaluation
    engine: Literal["grain", "device"] = "grain"
    packing: Literal["concatenate", "best_fit"] = "concatenate"  # "best_fit": whole documents, attention within each
    block_rows: int = 0  # neighbouring rows read together; 0: one of files, half a million tokens of ArrayRecord shards
    workers: int = 0  # that read ahead of the step; 0 reads in between, enough for local files
    worker_kind: Workers = "threads"  # or "processes"
    patience_seconds: float = 30.0  # to wait for token files that have vanished before the run saves and stops

    def __post_init__(self) -> None:
        for field in ("sequence", "batch", "heldout_rows", "evaluate_rows_at_once"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("block_rows", "workers", "patience_seconds"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")

    def rows_of(self, source: MappedTokens | RecordTokens, end: int) -> RowStore:
        """The rows that a run reads of one domain's tokens.

        Args:
            source: of the tokens.
            end: the end-of-text token.

        Raises:
            UserError: packing is asked for of tokens that are not in a file.
        """
        if self.packing == "best_fit":
            if not isinstance(source, MappedTokens):
                raise UserError(
                    "best-fit packing looks at all tokens of a domain, which ArrayRecord shards cannot show",
                    'set corpus.storage = "files" or data.packing = "concatenate"',
                )
            return PackedRows(source, self.sequence, end=end, name=source.name)
        if isinstance(source, MappedTokens) and self.block_rows <= 1:
            return TokenRows(source, self.sequence, name=source.name)
        block = self.block_rows or max(1, BLOCK_TOKENS // self.sequence)
        return BlockRows(source, self.sequence, block=block)

    @property
    def batch_tokens(self) -> int:
        """Predicted tokens per optimiser step."""
        return self.batch * self.sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The prior, and when weights move."""

    weights: tuple[float, ...] = ()  # prior per domain, in the order of corpus.domains; empty: from token counts
    power: float = 1.0  # of the token counts: 1 natural shares, 0 uniform
    unimax_epochs: float = 0.0  # positive: the UniMax prior, uniform as far as no domain is read more often than this
    interval: int = 20  # optimiser steps between weight updates
    lag: int = 0  # steps until new weights come into force; for storage too slow to be read ahead otherwise
    allocation: Allocation = "systematic"  # of a batch's rows to domains; or "multinomial", "deficit" (BUILD.md)

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        if not 0 <= self.lag < self.interval:
            raise ValueError(f"lag must lie in [0, interval = {self.interval}), got {self.lag}")
        if self.unimax_epochs < 0:
            raise ValueError(f"unimax_epochs must not be negative, got {self.unimax_epochs}")
        if self.unimax_epochs and (self.weights or self.power != 1.0):
            raise ValueError("unimax_epochs must be 0 where weights or power are given")
        if self.power < 0:
            raise ValueError(f"power must not be negative, got {self.power}")
        if any(weight < 0 for weight in self.weights):
            raise ValueError(f"weights must not be negative, got {list(self.weights)}")
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, got {list(self.weights)} with sum {sum(self.weights):.6g}")

    def prior(self, tokens: np.ndarray, budget: float = 1.0) -> np.ndarray:
        """Reference weights of domains with these many training tokens, float64; the budget matters for UniMax only."""
        if self.unimax_epochs:
            return unimax_weights(tokens, budget, self.unimax_epochs)[0]
        return np.array(self.weights) if self.weights else prior_weights(tokens, self.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The base model: trained here on the base domain, or taken from an earlier run."""

    steps: int = 200
    from_run: str = ""  # run folder whose base model is used; `steps` and `optimizer` are then ignored
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The continual pre-training that every arm goes through."""

    steps: int = 200
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxiesConfig:
    """Short runs that some methods need before they train; others pay nothing for them."""

    mixtures: int = 0  # random mixtures tried for RegMix, mixing laws and olmix
    length: float = 0.1  # of each of these runs and of a skill graph's, as a share of train.steps
    reference_length: float = 0.5  # of the run at the prior that gives DoReMi its reference model

    def __post_init__(self) -> None:
        if self.mixtures < 0:
            raise ValueError(f"mixtures must not be negative, got {self.mixtures}")
        for field in ("length", "reference_length"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field} must lie in (0, 1], got {getattr(self, field)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Corpora to report: everything that determines a run."""

    name: str
    seed: int = 0
    corpus: CorpusConfig
    data: DataConfig = DataConfig()
    model: DecoderConfig = DecoderConfig()
    mixture: MixtureConfig = MixtureConfig()
    pretrain: PretrainConfig = PretrainConfig()
    targets: TargetsConfig = TargetsConfig()
    proxies: ProxiesConfig = ProxiesConfig()
    train: TrainConfig = TrainConfig()
    loop: LoopConfig = LoopConfig()
    arms: tuple[MethodConfig, ...] = (Velocitune(), Static())

    def __post_init__(self) -> None:
        domains = len(self.corpus.domains)
        for field, values in (
            ("mixture.weights", self.mixture.weights),
            ("targets.losses", self.targets.losses),
            ("targets.fallback", self.targets.fallback),
        ):
            if values and len(values) != domains:
                raise ValueError(f"{field} must name one number per domain ({domains}), got {len(values)}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must lie in [0, 2**31), got {self.seed}")
        labels = self.arm_labels
        if not labels:
            raise ValueError("arms must hold at least one method, got none")
        if len(set(labels)) < len(labels):
            raise ValueError(f"arms must have different labels, got {list(labels)}")
        for label, arm in zip(labels, self.arms, strict=True):
            try:
                self._assert_possible(arm)
            except ValueError as error:
                raise ValueError(f"arms.{label}: {error}") from error

    def _assert_possible(self, arm: MethodConfig) -> None:
        """Refuses an arm whose needs this experiment does not provide, with what would."""
        names = tuple(domain.name for domain in self.corpus.domains)
        nothing = np.zeros(len(names))
        method = arm.build()
        roomy = {"sizes": nothing + 1.0, "budget": np.array(1e-9)}
        method.init(make_targets(nothing, nothing, nothing, nothing, roomy))
        if isinstance(arm, SkillIt) and arm.graph_domains not in ((), names):
            raise ValueError(f"graph_domains must be the corpus' domains in their order {list(names)}")
        if isinstance(arm, Static) and arm.groups and len(arm.groups) != len(names):
            raise ValueError(f"groups must name one group per domain ({len(names)}), got {len(arm.groups)}")
        if isinstance(arm, Offline) and len(arm.domain_weights) not in (0, len(names)):
            raise ValueError(
                f"domain_weights must name one number per domain ({len(names)}), got {len(arm.domain_weights)}"
            )
        # A law has one parameter per domain and one more; a quarter of the runs are left out when it is judged.
        least = 2 * (len(names) + 1)
        if "proxies" in method.needs and self.proxies.mixtures < least:
            raise ValueError(
                f"it needs runs at random mixtures; set proxies.mixtures to at least {least} "
                f"for {len(names)} domains, got {self.proxies.mixtures}"
            )
        for steps, where in ((self.train.steps, "train.steps"), (arm.proxy_share * self.train.steps, "its proxy")):
            rounds = int(steps) // self.mixture.interval
            if steps and rounds < (wanted := arm.intervals(len(names))) and wanted > 1:
                raise ValueError(
                    f"its first round takes {wanted} intervals of {self.mixture.interval} steps, {where} has {rounds}; "
                    "lower mixture.interval or train longer"
                )

    @property
    def trains_proxies(self) -> bool:
        """Whether targets come from proxies of this experiment."""
        return not (self.targets.losses or self.targets.table)

    @property
    def arm_labels(self) -> tuple[str, ...]:
        """What each arm is called in files and tables."""
        return tuple(arm.label or arm.name for arm in self.arms)


def load(path: Path, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """Reads an experiment from TOML; `name` defaults to the file's."""
    return settings.load(ExperimentConfig, path, overrides, defaults={"name": path.stem})
