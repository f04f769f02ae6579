"""The results of an experiment as one value and one JSON file, which the report is made from."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from vtune_jax.errors import UserError
from vtune_jax.machine.files import as_json, read_json, write_whole

SCHEMA_VERSION = 2
Column = list[float | None]
"""One number per domain; None where there is none."""


def column(values: Iterable[float]) -> Column:
    """Numbers of the domains, with None for NaN and infinities."""
    return [float(value) if math.isfinite(value) else None for value in values]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One method's run."""

    name: str
    method: str  # with its hyper-parameters
    updates: list[dict[str, Any]]
    """Rows of `step`, `tokens` and the columns `weights`, `heldout_loss`, `remaining`, `tokens_read`, `epochs`; the
    first is the base model at step 0."""
    train: list[dict[str, Any]]  # rows of `step`, `tokens`, `loss`, `learning_rate`, `gradient_norm`
    final: dict[str, Any]
    """`heldout_loss` and `remaining` columns; `base_loss`, `average_loss`, `smallest_progress`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What each domain was predicted to reach."""

    initial: Column
    target: Column
    lower: Column
    upper: Column
    verdict: list[str]
    advice: list[str]
    law: dict[str, Column] | None  # parameters by name: of L(D) = E + B / D^beta, or of the law with annealing
    curve: dict[str, Any] | None  # what the law predicts along the real run: `tokens`, `loss` [places][domains]
    points: dict[str, Any]  # `tokens` of each measurement, `loss` [points][domains]
    target_tokens: int
    proxy_tokens: int
    level: float
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """An experiment, ready to be shown."""

    experiment: str
    domains: tuple[str, ...]
    base: str
    initial_base_loss: float
    arms: dict[str, ArmResult]
    targets: TargetResult
    corpus: dict[str, Any]  # the manifest
    run: dict[str, Any]  # provenance

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
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is no results file ({error})", "run `vtune-jax report CONFIG` to make it"
            ) from error
        if found != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {found}, this program reads {SCHEMA_VERSION}",
                "run `vtune-jax report CONFIG` to make it again",
            )
        content["domains"] = tuple(content["domains"])
        content["targets"] = TargetResult(**content["targets"])
        content["arms"] = {name: ArmResult(**arm) for name, arm in content["arms"].items()}
        return cls(**content)

    @property
    def control(self) -> ArmResult | None:
        """The static arm that the others are compared with: the first whose method is static."""
        return next((arm for arm in self.arms.values() if arm.method.startswith("static")), None)

    @property
    def challengers(self) -> list[ArmResult]:
        """All arms but the control."""
        control = self.control
        return [arm for arm in self.arms.values() if control is None or arm.name != control.name]


def verdict_sentence(results: Results) -> str:
    """What came of it in one or two plain sentences, whichever way it went."""
    control, challengers = results.control, results.challengers
    if control is None or not challengers:
        arm = next(iter(results.arms.values()))
        return f"{arm.name} ended at {arm.final['average_loss']:.3f} nats per token on average."
    said = []
    for arm in challengers:
        ours, theirs = arm.final, control.final
        pairs = list(zip(ours["heldout_loss"], theirs["heldout_loss"], strict=True))
        lower = sum(a is not None and b is not None and a < b for a, b in pairs)
        difference = ours["average_loss"] - theirs["average_loss"]
        said.append(
            f"{arm.name} ended below {control.name} on {lower} of {len(results.domains)} domains: on average "
            f"{ours['average_loss']:.3f} against {theirs['average_loss']:.3f} nats per token ({difference:+.3f}). "
            f"The slowest domain came {_percent(ours['smallest_progress'])} of the way to its target, against "
            f"{_percent(theirs['smallest_progress'])}; the loss on the base domain '{results.base}' moved by "
            f"{ours['base_loss'] - results.initial_base_loss:+.3f} against "
            f"{theirs['base_loss'] - results.initial_base_loss:+.3f}."
        )
    return " ".join(said)


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.0%}"


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The final table as text: a header and one row per domain, then the average and the base domain."""
    control, arms, targets = results.control, list(results.arms.values()), results.targets
    compared = results.challengers if control else []
    header = ["domain", "initial", "target", *(arm.name for arm in arms)]
    header += [f"{arm.name} − {control.name}" for arm in compared if control]
    header += [f"{arm.name} to go" for arm in arms] + [f"{arm.name} epochs" for arm in arms]

    def row(
        name: str, initial: float | None, target: float | None, final: Callable[[ArmResult], float | None]
    ) -> list[str]:
        cells = [name, number(initial), number(target), *(number(final(arm)) for arm in arms)]
        return cells + [signed(final(arm), final(control)) for arm in compared if control]

    rows = []
    for index, name in enumerate(results.domains):
        values = row(name, targets.initial[index], targets.target[index], partial(_final_loss, index=index))
        values += [share(arm.final["remaining"][index]) for arm in arms]
        rows.append(values + [number(arm.updates[-1]["epochs"][index], 2) for arm in arms])
    average = row("average", _mean(targets.initial), _mean(targets.target), lambda arm: arm.final["average_loss"])
    base = row(f"{results.base} (base)", results.initial_base_loss, None, lambda arm: arm.final["base_loss"])
    blanks = [""] * (2 * len(arms))
    return header, [*rows, average + blanks, base + blanks]


def _final_loss(arm: ArmResult, index: int) -> float | None:
    return arm.final["heldout_loss"][index]


def number(value: float | None, places: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{places}f}"


def share(value: float | None) -> str:
    """A fraction in per cent, or a dash."""
    return "–" if value is None else f"{value:.0%}"


def signed(value: float | None, reference: float | None) -> str:
    """A difference with its sign, or a dash."""
    return "–" if value is None or reference is None else f"{value - reference:+.3f}"


def _mean(values: Column) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
