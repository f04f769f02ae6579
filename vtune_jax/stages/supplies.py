"""What an arm gets before its first step: its mixture, its method's constants, a reference model.

Each is a stage of its own where it takes training: a reference model, runs at random mixtures, one run per domain for a
skill graph, a proxy on which a method moves weights whose average the arm then keeps. `core.needs.NEEDS` says how long
these runs are; `MAKERS` makes them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtune_jax.core.needs import NEEDS
from vtune_jax.core.targets import make_targets
from vtune_jax.errors import UserError
from vtune_jax.experiment.arms import Arm
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.rules.config import MethodConfig
from vtune_jax.rules.offline import Offline
from vtune_jax.rules.static import Static
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.heldout_losses import HeldoutLosses, losses_of
from vtune_jax.stages.mixture_runs import MIXTURE, mixture_runs, proposed_mixture, read_mixture
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase, ShortRunInputs, losses_after, train_at
from vtune_jax.stages.store import Finished
from vtune_jax.stages.target_losses import TargetLosses
from vtune_jax.stages.train_arm import Moving, carry_out, mean_weights

GRAPH = "graph.json"


class Context(NamedTuple):
    """What a need is met from."""

    session: Session
    corpus: Corpus
    start: FromBase

    @property
    def config(self) -> ExperimentConfig:
        """Of the experiment."""
        return self.session.config

    @property
    def budget(self) -> int:
        """Training tokens of an arm."""
        return self.config.train.steps * self.config.data.batch_tokens


class Supply(NamedTuple):
    """What meets a need."""

    stage: Finished | None = None
    constants: dict[str, np.ndarray] = {}  # noqa: RUF012  (never changed)


def supplied(context: Context, arm: Arm, initial: HeldoutLosses, targets: TargetLosses | None) -> Moving:
    """Everything that the arm needs, made by stages of its own where that takes training.

    Args:
        context: of the experiment.
        arm: whose method needs it.
        initial: losses of the base model.
        targets: target losses, of methods that need them.

    Raises:
        UserError: constants that the method cannot work with.
    """
    method, prior = arm.method, context.corpus.prior
    needs = method.build().needs
    supplies = {need: MAKERS[need](context) for need in NEEDS if need in needs and need in MAKERS}
    constants = {name: value for supply in supplies.values() for name, value in supply.constants.items()}
    stages = {need: supply.stage for need, supply in supplies.items() if supply.stage is not None}
    facts: dict[str, Any] = {}
    mixture = method.mixture(prior, context.corpus.tokens, context.budget)
    if isinstance(method, Offline):
        epochs = context.corpus.tokens / context.budget
        stages["mixture"] = proposed_mixture(context.session, stages["proxies"], method, arm.name, prior, epochs)
        facts = read_mixture(stages["mixture"])
        mixture = np.array(facts["mixture"])
    if targets is not None and targets.stage is not None:
        stages["targets"] = targets.stage
    moving = Moving(
        method=method if method.moves else constant_method(method),
        acts_on=arm.acts_on,
        mixture=tuple(mixture.tolist()),
        supplies={need: stage for need, stage in stages.items() if need not in ("reference", "proxies")},
        reference=stages.get("reference"),
        targets=_targets(initial, targets, mixture, constants),
        facts=facts,
    )
    if arm.proxy_share:
        stage = averaged_mixture(context, dataclasses.replace(moving, acts_on="loss"), arm)
        facts = read_mixture(stage)
        mixture = np.array(facts["mixture"])
        moving = Moving(
            method=constant_method(method),
            acts_on="sampling",
            mixture=tuple(mixture.tolist()),
            # What the proxy was made of counts in its own digest.
            supplies={"proxy": stage},
            reference=None,
            targets=_targets(initial, targets, mixture, constants),
            facts=facts,
        )
    try:
        moving.method.build().init(moving.targets)
    except ValueError as error:
        raise UserError(f"arm '{arm.name}': {str(error).rstrip('.')}", "change that value") from error
    return moving


def constant_method(method: MethodConfig) -> Static:
    """A method that stays at its mixture, within the constraints of another."""
    shared = {field.name: getattr(method, field.name) for field in dataclasses.fields(MethodConfig)}
    return Static(**{**shared, "name": "static"})


def skill_graph(context: Context) -> Supply:
    """`A[i, j] = (L_j before - L_j after) / L_j before`, from one short run on domain i alone: `graph.json`."""
    steps = runs_of("graph", context.config)
    purpose = f"one run of {steps[0]} steps on each domain alone"
    stage = context.session.stage(
        "skill graph", "graph", ShortRunInputs(context.start, steps[0]), _graph, purpose=purpose
    )
    return Supply(stage, {"graph": np.array(read_json(stage.folder / GRAPH))})


def reference_model(context: Context) -> Supply:
    """The base model trained on at the prior, to which methods compare losses."""
    (steps,) = runs_of("reference", context.config)
    inputs = ShortRunInputs(context.start, steps)
    purpose = f"a model trained at the prior for {steps} steps"
    return Supply(context.session.stage("reference model", "reference", inputs, _reference, purpose=purpose))


def sizes(context: Context) -> Supply:
    """Training tokens of each domain, and of the whole run."""
    return Supply(constants={"sizes": context.corpus.tokens, "budget": np.array(context.budget)})


def random_mixture_runs(context: Context) -> Supply:
    """Losses of runs at random mixtures."""
    return Supply(mixture_runs(context.session, context.start, runs_of("proxies", context.config)))


MAKERS: dict[str, Callable[[Context], Supply]] = {
    "sizes": sizes,
    "graph": skill_graph,
    "reference": reference_model,
    "proxies": random_mixture_runs,
}
"""What is made before an arm trains, by need. Evidence comes from the trainer, and targets from their stage."""


def runs_of(need: str, config: ExperimentConfig) -> tuple[int, ...]:
    """Optimiser steps of the runs that a need takes."""
    return NEEDS[need].runs(config.job)


@dataclasses.dataclass(frozen=True)
class ProxyInputs:
    """What a method's proxy depends on."""

    start: FromBase
    moving: Moving
    steps: int
    budget: int  # steps of the arm, by which its limits on the weights are set


def averaged_mixture(context: Context, moving: Moving, arm: Arm) -> Finished:
    """The mean of the weights that a method chooses on a proxy, which it weighs the loss of: `mixture.json`.

    The mean is over the weights after each update, without those it started from.
    """
    steps = proxy_steps(context.config, arm)
    names = context.corpus.names

    def work(inputs: ProxyInputs, folder: Path, tools: Tools) -> None:
        start = inputs.start
        title = f"proxy of {arm.name}"
        carry_out(start, inputs.moving, start.streams, inputs.steps, folder, tools, title=title, names=names)
        mean, updates = mean_weights(folder)
        write_json(folder / MIXTURE, {"mixture": mean.tolist(), "updates": updates})

    inputs = ProxyInputs(context.start, moving, steps, context.config.train.steps)
    purpose = f"{arm.method.name} moves the weights of a proxy for {steps} steps"
    return context.session.stage(f"proxy of {arm.name}", f"proxy-{arm.method.name}", inputs, work, purpose=purpose)


def proxy_steps(config: ExperimentConfig, arm: Arm) -> int:
    """Optimiser steps of the proxy on which an arm finds its mixture; 0 where it has none."""
    return max(config.mixture.interval, round(arm.proxy_share * config.train.steps)) if arm.proxy_share else 0


def _graph(inputs: ShortRunInputs, folder: Path, tools: Tools) -> None:
    start = inputs.start
    trainer = tools.trainer(start.recipe)
    losses = losses_of(trainer, start.base.params(), start.streams)
    alone = np.eye(len(losses))
    after = np.stack(
        [losses_after(start, folder / f"on-{row}", tools, inputs.steps, alone[row]) for row in range(len(alone))]
    )
    write_json(folder / GRAPH, ((losses - after) / losses).tolist())


def _reference(inputs: ShortRunInputs, folder: Path, tools: Tools) -> None:
    train_at(inputs.start, folder, tools, inputs.steps, np.array(inputs.start.prior))


def _targets(
    initial: HeldoutLosses, targets: TargetLosses | None, mixture: np.ndarray, constants: dict[str, np.ndarray]
) -> Any:
    unknown = np.full(len(mixture), np.nan)
    target, error = (unknown, unknown) if targets is None else (targets.target, targets.standard_error)
    return make_targets(initial.domains, target, error, mixture, constants)
