"""Runs at random mixtures, for all offline arms, and the mixture that each of these arms proposes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.proposals.propose import propose
from vtune_jax.proposals.random_mixtures import random_mixtures
from vtune_jax.rules.offline import Offline
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.short_runs import FromBase, losses_after
from vtune_jax.stages.store import Finished

RUNS, MIXTURE = "runs.json", "mixture.json"


@dataclasses.dataclass(frozen=True)
class MixtureRunsInputs:
    """What the runs at random mixtures depend on."""

    start: FromBase
    steps: tuple[int, ...]  # of each run; the first is at the prior


@dataclasses.dataclass(frozen=True)
class ProposalInputs:
    """What a proposed mixture depends on."""

    runs: Finished
    method: Offline
    prior: tuple[float, ...]
    epochs: tuple[float, ...]  # tokens of each domain as a share of the run's budget


def mixture_runs(session: Session, start: FromBase, steps: tuple[int, ...]) -> Finished:
    """Held-out losses after short runs at the prior and at random mixtures: `runs.json`."""
    purpose = f"{len(steps)} runs of {steps[0]} steps at random mixtures"
    return session.stage("random mixtures", "mixtures", MixtureRunsInputs(start, steps), _train, purpose=purpose)


def proposed_mixture(
    session: Session, runs: Finished, method: Offline, arm: str, prior: np.ndarray, epochs: np.ndarray
) -> Finished:
    """The mixture that an offline method proposes from these runs, and how well it predicts: `mixture.json`.

    Raises:
        UserError: the method cannot use the runs.
    """
    inputs = ProposalInputs(runs, method, tuple(prior.tolist()), tuple(epochs.tolist()))

    def work(inputs: ProposalInputs, folder: Path, tools: Tools) -> None:
        try:
            _propose(inputs, folder)
        except ValueError as error:
            raise UserError(f"arm '{arm}': {str(error).rstrip('.')}", "change that, or proxies.mixtures") from error

    purpose = "the mixture that its law proposes"
    return session.stage(f"mixture of {arm}", "proposal", inputs, work, purpose=purpose, trains=False)


def read_mixture(stage: Finished) -> dict[str, Any]:
    """What a stage has left in `mixture.json`: the mixture and what is known of it."""
    return dict(read_json(stage.folder / MIXTURE))


def _train(inputs: MixtureRunsInputs, folder: Path, tools: Tools) -> None:
    start, prior = inputs.start, np.array(inputs.start.prior)
    rng = np.random.default_rng([start.seed, 1])
    mixtures = np.vstack([prior, random_mixtures(prior, len(inputs.steps) - 1, rng)])
    losses = [
        losses_after(start, folder / f"mixture-{number}", tools, steps, mixture)
        for number, (steps, mixture) in enumerate(zip(inputs.steps, mixtures, strict=True))
    ]
    write_json(folder / RUNS, {"mixtures": mixtures.tolist(), "losses": np.stack(losses).tolist()})


def _propose(inputs: ProposalInputs, folder: Path) -> None:
    found = read_json(inputs.runs.folder / RUNS)
    mixtures, losses = np.array(found["mixtures"]), np.array(found["losses"])
    facts = propose(inputs.method, mixtures, losses, np.array(inputs.prior), np.array(inputs.epochs))
    write_json(folder / MIXTURE, facts)
