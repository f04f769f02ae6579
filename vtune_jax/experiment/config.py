"""The experiment as one frozen value: each part's config lives beside what it configures and is only nested here."""

import dataclasses
import math

import numpy as np

from vtune_jax import settings
from vtune_jax.core.checks import MOST, assert_within
from vtune_jax.core.names import assert_name
from vtune_jax.core.needs import Job, assert_known
from vtune_jax.core.targets import make_targets
from vtune_jax.data.corpora.config import CorpusConfig
from vtune_jax.data.mixture.config import DataConfig, MixtureConfig
from vtune_jax.experiment.arms import Arm
from vtune_jax.fits.config import TargetsConfig
from vtune_jax.models import DecoderConfig, ModelConfig, model_configs
from vtune_jax.rules import Static, Velocitune
from vtune_jax.train.evidence.registry import known_needs
from vtune_jax.train.loop import LoopConfig
from vtune_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The base model: trained here on the base domain, taken from an earlier run, or somebody else's."""

    steps: int = 200
    from_checkpoint: str = settings.bookkeeping("")  # folder of Hugging Face's format, or .gguf; its content counts
    from_run: str = ""  # run, or one configuration of it, whose base model is used; `steps` and `optimizer` are ignored
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        assert_within(1, MOST, steps=self.steps)
        if self.from_run and self.from_checkpoint:
            raise ValueError("from_run and from_checkpoint exclude each other: a model begins in one place")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The continual pre-training that every arm goes through."""

    steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        assert_within(1, MOST, steps=self.steps)


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

    name: str = dataclasses.field(metadata={"bookkeeping": True})
    seed: int = 0
    corpus: CorpusConfig
    data: DataConfig = DataConfig()
    model: ModelConfig = settings.choice(model_configs, DecoderConfig())
    mixture: MixtureConfig = MixtureConfig()
    pretrain: PretrainConfig = PretrainConfig()
    targets: TargetsConfig = TargetsConfig()
    proxies: ProxiesConfig = ProxiesConfig()
    train: TrainConfig = TrainConfig()
    loop: LoopConfig = LoopConfig()
    arms: tuple[Arm, ...] = (Arm(method=Velocitune()), Arm(method=Static()))

    def __post_init__(self) -> None:
        assert_name(name=self.name)
        if self.name == "store":
            raise ValueError("name must not be 'store', the folder of finished stages beside the run folders")
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

    def _assert_possible(self, arm: Arm) -> None:
        """Refuses an arm whose needs this experiment does not meet, and says what would."""
        names = tuple(domain.name for domain in self.corpus.domains)
        nothing = np.zeros(len(names))
        method = arm.method.build()
        roomy = {"sizes": nothing + 1.0, "budget": np.array(1e-9)}
        method.init(make_targets(nothing, nothing, nothing, nothing, roomy))
        arm.method.assert_fits(names)
        known = known_needs()
        assert_known(method.needs, known)
        least = max((known[need].least_mixtures(len(names)) for need in method.needs), default=0)
        if self.proxies.mixtures < least:
            raise ValueError(
                f"it needs runs at random mixtures; set proxies.mixtures to at least {least} "
                f"for {len(names)} domains, got {self.proxies.mixtures}"
            )
        wanted, interval = arm.method.intervals(len(names)), self.mixture.interval
        share = arm.proxy_share
        proxy = int(share * self.train.steps)
        for steps, run in (
            (self.train.steps, f"train.steps = {self.train.steps}"),
            (proxy, f"its proxy of {proxy} steps"),
        ):
            if steps and 1 < wanted > steps // interval:
                shorter = f"mixture.interval to at most {steps // wanted}, or " if steps >= wanted else ""
                longer = math.ceil(wanted * interval / (share or 1.0))
                raise ValueError(
                    f"its first round takes {wanted} intervals of {interval} steps; {run} gives {steps // interval} "
                    f"intervals; set {shorter}train.steps to at least {longer}"
                )

    @property
    def job(self) -> Job:
        """The numbers that decide how long the runs before an arm are."""
        proxies = self.proxies
        return Job(
            steps=self.train.steps,
            domains=len(self.corpus.domains),
            mixtures=proxies.mixtures,
            length=proxies.length,
            reference_length=proxies.reference_length,
        )

    @property
    def needs_targets(self) -> bool:
        """Whether any arm needs target losses."""
        return any("targets" in arm.method.build().needs for arm in self.arms)

    @property
    def trains_proxies(self) -> bool:
        """Whether some arm needs targets, and they come from proxies of this experiment."""
        return self.needs_targets and not (self.targets.losses or self.targets.table)

    @property
    def arm_labels(self) -> tuple[str, ...]:
        """What each arm is called in files and tables."""
        return tuple(arm.name for arm in self.arms)
