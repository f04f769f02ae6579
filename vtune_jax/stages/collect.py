"""All results gathered for the report."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vtune_jax import settings
from vtune_jax.core.scores import remaining_fraction
from vtune_jax.core.targets import make_targets
from vtune_jax.core.types import Targets
from vtune_jax.experiment.arms import Arm
from vtune_jax.machine.json_values import from_json
from vtune_jax.report.results import (
    ArmResult,
    Column,
    Curve,
    Final,
    Points,
    Results,
    RunFacts,
    StepRow,
    TargetResult,
    Update,
    column,
)
from vtune_jax.rules.config import MethodConfig
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.heldout_losses import HeldoutLosses
from vtune_jax.stages.seal import read_seal
from vtune_jax.stages.session import Session
from vtune_jax.stages.target_losses import TargetLosses
from vtune_jax.stages.train_arm import TrainedArm


def collect(
    session: Session,
    corpus: Corpus,
    initial: HeldoutLosses,
    targets: TargetLosses | None,
    arms: dict[str, TrainedArm],
    evaluation: dict[str, HeldoutLosses],
) -> Results:
    """Everything the report shows.

    Args:
        session: of the run.
        corpus: that was read.
        initial: losses of the base model.
        targets: target losses; None if no arm needs them.
        arms: trained, by name.
        evaluation: losses of their final models, by name.
    """
    unknown = np.full(len(corpus.names), np.nan)
    target, error = (unknown, unknown) if targets is None else (targets.target, targets.standard_error)
    constants = make_targets(initial.domains, target, error, corpus.prior)
    return Results(
        experiment=session.config.name,
        domains=corpus.names,
        base=corpus.prepared.base_name,
        initial_base_loss=initial.base,
        arms={
            arm.name: _arm(arm, arms[arm.name], initial, evaluation[arm.name], constants) for arm in session.config.arms
        },
        targets=_target_result(session, initial, targets),
        corpus=corpus.prepared.manifest.as_json(),
        run=run_facts(session, corpus),
    )


def _target_result(session: Session, initial: HeldoutLosses, targets: TargetLosses | None) -> TargetResult:
    if targets is not None:
        found = targets.predicted
        return TargetResult(
            initial=column(initial.domains),
            target=column(found.target),
            lower=list(found.lower),
            upper=list(found.upper),
            verdict=list(found.verdict),
            advice=list(found.advice),
            law=None if found.law is None else {name: list(values) for name, values in found.law.items()},
            curve=None
            if found.curve is None
            else Curve(tokens=list(found.curve.tokens), loss=[list(losses) for losses in found.curve.loss]),
            points=Points(
                tokens=list(found.points.tokens),
                loss=[list(losses) for losses in found.points.loss],
                run=list(found.points.run or ()),
            ),
            target_tokens=targets.target_tokens,
            proxy_tokens=targets.proxy_tokens,
            level=targets.level,
            notes=list(found.notes),
        )
    config, domains = session.config, len(initial.domains)
    nothing: Column = [None] * domains
    return TargetResult(
        initial=column(initial.domains),
        target=nothing,
        lower=nothing,
        upper=nothing,
        verdict=["not needed"] * domains,
        advice=[""] * domains,
        law=None,
        curve=None,
        points=Points(tokens=[], loss=[]),
        target_tokens=config.train.steps * config.data.batch_tokens,
        proxy_tokens=0,
        level=config.targets.level,
        notes=["no arm of this experiment needs target losses: none were predicted"],
    )


def _arm(arm: Arm, trained: TrainedArm, initial: HeldoutLosses, final: HeldoutLosses, constants: Targets) -> ArmResult:
    domains = len(initial.domains)

    def remaining(losses: Column) -> Column:
        values = np.array([np.nan if loss is None else loss for loss in losses])
        known = column(np.asarray(remaining_fraction(jnp.asarray(values, jnp.float32), constants, clamp=False)))
        # Without a target there is no way to it.
        return [
            None if np.isnan(target) else value
            for value, target in zip(known, np.asarray(constants.target), strict=True)
        ]

    first = {
        "step": 0,
        "tokens": 0,
        "weights": trained.start["mixture"],
        "heldout_loss": initial.domains.tolist(),
        "train_loss": [None] * domains,
        "tokens_read": [0] * domains,
        "epochs": [0.0] * domains,
    }
    left = remaining(final.domains.tolist())
    farthest = max((share for share in left if share is not None), default=None)
    return ArmResult(
        name=arm.name,
        method=describe(arm),
        updates=[
            from_json(Update, {**row, "remaining": remaining(row["heldout_loss"])}) for row in (first, *trained.updates)
        ],
        train=[from_json(StepRow, row) for row in trained.steps],
        final=Final(
            heldout_loss=final.domains.tolist(),
            base_loss=final.base,
            remaining=left,
            smallest_progress=None if farthest is None else 1 - farthest,
            average_loss=float(np.mean(final.domains)),
        ),
    )


def describe(arm: Arm) -> str:
    """A method with its hyper-parameters and its role, as one would call it; what is at its default is left out."""
    defaults = {field.name: field.default for cls in (MethodConfig, Arm) for field in dataclasses.fields(cls)}
    fields = {
        key: value
        for key, value in settings.as_plain(arm).items()
        if key not in ("name", "label") and not (key in defaults and value == settings.as_plain(defaults[key]))
    }
    return f"{arm.method.name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def run_facts(session: Session, corpus: Corpus) -> RunFacts:
    """What is needed to run it again, and who made the stages: the process that collects may be another."""
    config = session.config
    return RunFacts(
        seed=config.seed,
        config_sha256=settings.digest(config),
        command=session.command,
        made_by={role: read_seal(stage.folder).made_by for role, stage in session.finished.items()},
        parameters=config.model.parameters(corpus.prepared.vocab_size),
        token_budget=config.train.steps * config.data.batch_tokens,
        interval=config.mixture.interval,
        prior=corpus.prior.tolist(),
    )
