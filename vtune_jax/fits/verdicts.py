"""What is to be thought of a prediction: the verdicts, and which of them make a target unusable."""

import enum
from typing import NamedTuple

import numpy as np


class Verdict(enum.StrEnum):
    """What is to be thought of a domain's target; a domain may have several, worst first."""

    RISING = "rising loss"
    NOT_BELOW_INITIAL = "target not below initial"
    NOT_BELOW_CURRENT = "target not below current"
    WARM_UP_HEAD = "warm-up head"
    INTERVAL_BELOW_E = "interval below E"
    UNDER_DETERMINED = "under-determined"
    TARGET_BELOW_E = "target below E"
    TOO_WIDE = "too wide for a velocity"
    TOO_FAR = "extrapolates too far"
    BACKWARDS = "extrapolates backwards"
    CURVATURE = "curvature unresolved"
    NOT_CONVERGED = "not converged"
    OUTLIERS = "outliers"
    REPLICATES = "runs of one place differ"
    AUTOCORRELATED = "autocorrelated"
    FEW_POINTS = "few points"
    TRUSTWORTHY = "trustworthy"


class Judgement(NamedTuple):
    """A verdict with its number and what to do about it."""

    verdict: Verdict
    advice: str  # empty where the target is trustworthy


Judgements = tuple[tuple[Judgement, ...], ...]
"""Per domain all that apply, worst first; never empty."""
TRUSTED = (Judgement(Verdict.TRUSTWORTHY, ""),)
"""Of a domain that nothing is wrong with."""
UNUSABLE = frozenset(
    {
        Verdict.RISING,
        Verdict.NOT_BELOW_INITIAL,
        Verdict.NOT_BELOW_CURRENT,
        Verdict.WARM_UP_HEAD,
        Verdict.INTERVAL_BELOW_E,
    }
)
"""Verdicts under which a target must not enter a velocity."""
DOUBTFUL = frozenset({Verdict.UNDER_DETERMINED, Verdict.TARGET_BELOW_E, Verdict.TOO_WIDE, Verdict.TOO_FAR})
"""Verdicts under which a strict policy keeps a target out too."""
OF_TARGET = frozenset(
    {
        Verdict.NOT_BELOW_INITIAL,
        Verdict.NOT_BELOW_CURRENT,
        Verdict.INTERVAL_BELOW_E,
        Verdict.TARGET_BELOW_E,
        Verdict.TOO_WIDE,
        Verdict.TOO_FAR,
        Verdict.BACKWARDS,
    }
)
"""Verdicts about the target, which say nothing if no budget was asked for."""
FAR_DECADES, WIDEST_SHARE = 1.0, 0.25
"""Beyond the last point, and half an interval over the gap from initial loss to target: more is doubtful."""


def number(count: int) -> str:
    """Small counts in words."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)


def finite(values: np.ndarray) -> list[float | None]:
    """A column as JSON has it; what is infinite or unknown becomes null."""
    return [float(value) if np.isfinite(value) else None for value in values]
