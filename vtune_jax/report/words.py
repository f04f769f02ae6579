"""Results in words: the sentence of the verdict, the final table, and numbers as text."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from vtune_jax.machine.provenance import Provenance
from vtune_jax.report.results import ArmResult, Column, Results


def verdict_sentence(results: Results) -> str:
    """How the arms ended, in one or two plain sentences for each challenger of the control."""
    control, challengers = results.control, results.challengers
    if control is None or not challengers:
        arm = next(iter(results.arms.values()))
        return f"{arm.name} ended at {arm.final.average_loss:.3f} nats per token on average."
    sentences = []
    for arm in challengers:
        ours, theirs = arm.final, control.final
        pairs = list(zip(ours.heldout_loss, theirs.heldout_loss, strict=True))
        lower = sum(a is not None and b is not None and a < b for a, b in pairs)
        difference = ours.average_loss - theirs.average_loss
        sentences.append(
            f"{arm.name} ended below {control.name} on {lower} of {len(results.domains)} domains: on average "
            f"{ours.average_loss:.3f} against {theirs.average_loss:.3f} nats per token ({difference:+.3f}). "
            f"The slowest domain came {_percent(ours.smallest_progress)} of the way to its target, against "
            f"{_percent(theirs.smallest_progress)}; the loss on the base domain '{results.base}' moved by "
            f"{ours.base_loss - results.initial_base_loss:+.3f} against "
            f"{theirs.base_loss - results.initial_base_loss:+.3f}."
        )
    return " ".join(sentences)


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
        values += [share(arm.final.remaining[index]) for arm in arms]
        rows.append(values + [number(arm.updates[-1].epochs[index], 2) for arm in arms])
    average = row("average", _mean(targets.initial), _mean(targets.target), lambda arm: arm.final.average_loss)
    base = row(f"{results.base} (base)", results.initial_base_loss, None, lambda arm: arm.final.base_loss)
    blanks = [""] * (2 * len(arms))
    return header, [*rows, average + blanks, base + blanks]


def _final_loss(arm: ArmResult, index: int) -> float | None:
    return arm.final.heldout_loss[index]


def _mean(values: Column) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def number(value: float | None, places: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{places}f}"


def count(value: int | None) -> str:
    """A whole number with its thousands apart, or a dash."""
    return "–" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """A fraction in per cent, or a dash."""
    return "–" if value is None else f"{value:.0%}"


def signed(value: float | None, reference: float | None) -> str:
    """A difference with its sign, or a dash."""
    return "–" if value is None or reference is None else f"{value - reference:+.3f}"


def facts(results: Results) -> list[tuple[str, str]]:
    """What is needed to run the experiment again: names and values."""
    methods = [(arm.name, arm.method) for arm in results.arms.values()]
    rest = {name.replace("_", " "): _fact(value) for name, value in vars(results.run).items() if name != "made_by"}
    return [*methods, *rest.items(), *_makers(results.run.made_by)]


def _makers(made_by: dict[str, Provenance]) -> list[tuple[str, str]]:
    """Commit, versions and machine; where not all stages were made by the same, of which stages each is."""
    found = []
    for fact in dataclasses.fields(Provenance):
        stages: dict[str, list[str]] = {}
        for role, maker in made_by.items():
            stages.setdefault(_fact(getattr(maker, fact.name)), []).append(role)
        for said, roles in stages.items():
            found.append((fact.name if len(stages) == 1 else f"{fact.name} of {', '.join(roles)}", said))
    return found


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in value)
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
