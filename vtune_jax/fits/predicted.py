"""The targets of a run as plain values: what `targets.json` holds of a fit, or of the user's own numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.fits.laws.law import Budget, Diagnosis, Estimate
from vtune_jax.fits.policy import Policy, apply_policy
from vtune_jax.fits.verdicts import finite

Losses = tuple[float, ...]
"""One per domain, nats per token."""
Known = tuple[float | None, ...]
"""One per domain; None where there is no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossCurve:
    """What the fitted law predicts along the real run."""

    tokens: tuple[int, ...]
    loss: tuple[Losses, ...]  # [places][domains]

    @classmethod
    def of(cls, estimate: Estimate, tokens: Sequence[int], budgets: Sequence[Budget]) -> "LossCurve":
        """The law read off along a run.

        Args:
            estimate: of the law.
            tokens: after which it is read off.
            budgets: the same places in the law's columns.
        """
        losses = [tuple(estimate.predict(budget).tolist()) for budget in budgets]
        return cls(tokens=tuple(int(count) for count in tokens), loss=tuple(losses))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredPoints:
    """The points behind a fit that all domains share."""

    tokens: tuple[int | float, ...] = ()
    loss: tuple[Known, ...] = ()  # [points][domains]
    run: tuple[int, ...] | None = None  # which run each point comes from; None: unknown

    @classmethod
    def of(cls, tokens: np.ndarray, losses: np.ndarray, run: np.ndarray | None = None) -> "MeasuredPoints":
        """From arrays.

        Args:
            tokens: [points].
            losses: [points, domains], NaN where there is no point.
            run: [points], or None.
        """
        return cls(
            tokens=tuple(np.asarray(tokens).tolist()),
            loss=tuple(tuple(finite(row)) for row in losses),
            run=None if run is None else tuple(np.asarray(run).tolist()),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedTargets:
    """What each domain is to reach, and what is known of it; tuples have one entry per domain."""

    target: Losses  # used by the run
    lower: Known  # of the interval; None where it is unbounded, or where the policy replaced the target
    upper: Known
    standard_error: Known
    predicted: Known  # by the law, before the policy
    verdict: tuple[str, ...]  # the worst of each domain, or "given"
    advice: tuple[str, ...]
    verdicts: tuple[tuple[tuple[str, str], ...], ...] = ()  # all (verdict, advice), worst first; (): the user's own
    diagnostics: tuple[Diagnosis, ...] = ()  # numbers behind the verdicts; (): the user's own
    law: Mapping[str, Known] | None = None  # parameters by name; None: the user's own
    beta_prior: tuple[float, float] | None = None  # median and log deviation; None: a law without such a prior
    notes: tuple[str, ...] = ()  # what the user should be told
    curve: LossCurve | None = None
    points: MeasuredPoints = MeasuredPoints()

    @classmethod
    def from_estimate(
        cls,
        estimate: Estimate,
        initial_losses: np.ndarray,
        *,
        policy: Policy,
        names: Sequence[str],
        fallback: Sequence[float] = (),
        strict: bool = False,
        notes: Sequence[str] = (),
        curve: LossCurve | None = None,
        points: MeasuredPoints | None = None,
    ) -> "PredictedTargets":
        """The targets of an estimate, of curves or over model sizes, after the policy on unusable targets.

        Args:
            estimate: at the budget of the run.
            initial_losses: of the base model, [domains].
            policy: what becomes of an unusable target, see `apply_policy`.
            names: of the domains.
            fallback: for the policy `given`.
            strict: replaces doubtful targets too.
            notes: to be told before those of the policy.
            curve: along the real run, where there is one.
            points: behind the fit, where all domains share them.

        Raises:
            UserError: as `apply_policy`.
        """
        losses, replaced = apply_policy(
            estimate, initial_losses, policy=policy, names=names, fallback=fallback, strict=strict
        )
        kept = (losses == estimate.target).tolist()

        def of_kept(values: np.ndarray) -> Known:
            return tuple(value if keep else None for value, keep in zip(finite(values), kept, strict=True))

        prior = getattr(estimate, "beta_prior", None)
        return cls(
            target=tuple(losses.tolist()),
            lower=of_kept(estimate.lower),
            upper=of_kept(estimate.upper),
            standard_error=of_kept(estimate.standard_error),
            predicted=tuple(finite(estimate.target)),
            verdict=tuple(str(domain[0].verdict) for domain in estimate.judgements),
            advice=tuple(domain[0].advice for domain in estimate.judgements),
            verdicts=tuple(
                tuple((str(judgement.verdict), judgement.advice) for judgement in domain)
                for domain in estimate.judgements
            ),
            diagnostics=tuple(estimate.diagnosis(domain) for domain in range(len(losses))),
            law={name: tuple(finite(getattr(estimate.fit, name))) for name in estimate.law.parameters},
            beta_prior=prior and (float(prior[0]), float(prior[1])),
            notes=(*notes, *replaced),
            curve=curve,
            points=points or MeasuredPoints(),
        )

    @classmethod
    def given(cls, losses: Sequence[float]) -> "PredictedTargets":
        """The user's own target losses, which count as exact."""
        target = tuple(float(loss) for loss in losses)
        return cls(
            target=target,
            lower=target,
            upper=target,
            standard_error=(0.0,) * len(target),
            predicted=target,
            verdict=("given",) * len(target),
            advice=("",) * len(target),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for a file; `from_json` reads them back."""
        points: dict[str, Any] = {"tokens": list(self.points.tokens), "loss": [list(row) for row in self.points.loss]}
        if self.points.run is not None:
            points["run"] = list(self.points.run)
        return {
            "target": list(self.target),
            "lower": list(self.lower),
            "upper": list(self.upper),
            "standard_error": list(self.standard_error),
            "predicted": list(self.predicted),
            "verdict": list(self.verdict),
            "advice": list(self.advice),
            "verdicts": [
                [{"verdict": verdict, "advice": advice} for verdict, advice in domain] for domain in self.verdicts
            ],
            "diagnostics": [dict(numbers) for numbers in self.diagnostics],
            "law": None if self.law is None else {name: list(values) for name, values in self.law.items()},
            "beta_prior": None if self.beta_prior is None else list(self.beta_prior),
            "notes": list(self.notes),
            "curve": None
            if self.curve is None
            else {"tokens": list(self.curve.tokens), "loss": [list(row) for row in self.curve.loss]},
            "points": points,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PredictedTargets":
        """Reads what `as_json` wrote; other keys beside these are left alone.

        Raises:
            UserError: a key is missing or holds something else.
        """
        try:
            law, prior, curve, points = (content[name] for name in ("law", "beta_prior", "curve", "points"))
            return cls(
                **{name: tuple(content[name]) for name in _COLUMNS},
                verdicts=tuple(
                    tuple((row["verdict"], row["advice"]) for row in domain) for domain in content["verdicts"]
                ),
                diagnostics=tuple(dict(numbers) for numbers in content["diagnostics"]),
                law=None if law is None else {name: tuple(values) for name, values in law.items()},
                beta_prior=None if prior is None else (float(prior[0]), float(prior[1])),
                curve=None if curve is None else LossCurve(tokens=tuple(curve["tokens"]), loss=_rows(curve["loss"])),
                points=MeasuredPoints(
                    tokens=tuple(points["tokens"]),
                    loss=_rows(points["loss"]),
                    run=tuple(points["run"]) if "run" in points else None,
                ),
            )
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise UserError(
                f"the targets are not what this version writes ({type(error).__name__}: {error})",
                "delete the folder of that stage and run again",
            ) from error


_COLUMNS = ("target", "lower", "upper", "standard_error", "predicted", "verdict", "advice", "notes")


def _rows(rows: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in rows)
