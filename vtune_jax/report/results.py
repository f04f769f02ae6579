"""The results of an experiment: typed values, one JSON file. Tables, figures and the page are made from them."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, write_whole
from vtune_jax.machine.json_values import as_json, from_json
from vtune_jax.machine.provenance import Provenance

SCHEMA_VERSION = 3
Column = list[float | None]
"""One number per domain; None where there is none."""


def column(values: Iterable[float]) -> Column:
    """Numbers of the domains, with None for NaN and infinities."""
    return [float(value) if math.isfinite(value) else None for value in values]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """The state after a weight update: what was measured, the new weights, and what has been read so far."""

    step: int  # optimiser steps done
    tokens: int  # trained on, of all domains
    weights: list[float]
    heldout_loss: Column  # nats per token
    train_loss: Column  # nats per token, in the last batch
    remaining: Column  # share of the way from the initial to the target loss that is left
    tokens_read: list[int]
    epochs: Column
    order: str = ""  # hash of all rows so far in their order; empty before the first step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRow:
    """An optimiser step."""

    step: int
    tokens: int  # trained on so far
    loss: float  # nats per token, on the batch
    learning_rate: float
    gradient_norm: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Final:
    """Where an arm ended. Losses are nats per held-out token."""

    heldout_loss: Column
    remaining: Column  # share of the way from the initial to the target loss that is left
    base_loss: float  # on the base domain
    average_loss: float  # mean over domains
    smallest_progress: float | None  # 1 - the largest `remaining`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One method's run."""

    name: str
    method: str  # with its hyper-parameters
    updates: list[Update]  # the first is the base model at step 0
    train: list[StepRow]
    final: Final


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Losses that a law was fitted to."""

    tokens: list[float]  # of each point
    loss: list[Column]  # [points][domains]
    run: list[int] = dataclasses.field(default_factory=list)  # of each point: which proxy run it is from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """What a law predicts along the real run."""

    tokens: list[float]  # of each place
    loss: list[Column]  # [places][domains]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetResult:
    """The loss that each domain was predicted to reach."""

    initial: Column
    target: Column
    lower: Column
    upper: Column
    verdict: list[str]
    advice: list[str]
    law: dict[str, Column] | None  # parameters by name: of L(D) = E + B / D^beta, or of the law with annealing
    curve: Curve | None
    points: Points
    target_tokens: int
    proxy_tokens: int
    level: float  # of the interval from `lower` to `upper`
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is needed to run an experiment again, and who ran it."""

    seed: int
    config_sha256: str
    command: str
    made_by: dict[str, Provenance]  # of each stage, by its role: "base model", "arm static"
    parameters: int  # of the model
    token_budget: int  # of each arm
    interval: int  # optimiser steps between weight updates
    prior: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusDomain:
    """What the manifest tells of a domain; None where the domain's source is tokens, whose documents are not known."""

    name: str
    is_base: bool
    train_documents: int | None
    train_tokens: int
    heldout_documents: int | None
    heldout_tokens: int
    duplicates: int | None  # documents dropped
    skipped: int | None  # documents that could not be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """An experiment, ready to be shown."""

    experiment: str
    domains: tuple[str, ...]
    base: str
    initial_base_loss: float
    arms: dict[str, ArmResult]
    targets: TargetResult
    corpus: dict[str, Any]  # the manifest of the prepared corpus
    run: RunFacts

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        write_whole(path, as_json({"schema_version": SCHEMA_VERSION, **vars(self)}))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads what `save` wrote.

        Raises:
            UserError: the file is missing, is no results file, or has another schema.
        """
        try:
            content = read_json(path)
            found = content.pop("schema_version", None)
            if found == SCHEMA_VERSION:
                return from_json(cls, content)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is no results file ({error})", "run `vtune-jax run CONFIG` to make it") from error
        raise UserError(
            f"{path} has schema version {found}, this program reads {SCHEMA_VERSION}",
            "run `vtune-jax run CONFIG` to make it again",
        )

    @property
    def control(self) -> ArmResult | None:
        """The static arm that the others are compared with: the first whose method is static."""
        return next((arm for arm in self.arms.values() if arm.method.startswith("static")), None)

    @property
    def challengers(self) -> list[ArmResult]:
        """All arms but the control."""
        control = self.control
        return [arm for arm in self.arms.values() if control is None or arm.name != control.name]

    @property
    def corpus_domains(self) -> list[CorpusDomain]:
        """The domains of the corpus, the base domain last."""
        return [
            CorpusDomain(
                name=entry["name"],
                is_base=entry["role"] == "base",
                train_documents=entry["train"].get("documents"),
                train_tokens=entry["train"]["tokens"],
                heldout_documents=entry["heldout"].get("documents"),
                heldout_tokens=entry["heldout"]["tokens"],
                duplicates=entry.get("duplicates"),
                skipped=entry.get("skipped"),
            )
            for entry in self.corpus.get("domains", [])
        ]
