"""Held-out losses of a finished model on the domains and on the base domain."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from vtune_jax.data.tokens.streams import Streams
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.store import Finished
from vtune_jax.stages.trainer import Recipe, Trainer
from vtune_jax.train.heldout import mean_loss

FILE = "losses.json"


@dataclasses.dataclass(frozen=True)
class HeldoutInputs:
    """What these losses depend on."""

    model: Finished  # a stage that has left parameters
    corpus: Finished
    recipe: Recipe
    domains: Streams = dataclasses.field(metadata={"bookkeeping": True})  # of the corpus, as the recipe reads it
    base: Streams = dataclasses.field(metadata={"bookkeeping": True})


@dataclasses.dataclass(frozen=True)
class HeldoutLosses:
    """Nats per token."""

    stage: Finished
    domains: np.ndarray  # float64, one per domain
    base: float  # on the base domain: what it rises by is what was forgotten

    def identity(self) -> str:
        """What a stage that is built on these losses counts of them."""
        return self.stage.digest

    @classmethod
    def load(cls, stage: Finished) -> "HeldoutLosses":
        """Reads what the stage has left."""
        found = read_json(stage.folder / FILE)
        return cls(stage, np.array(found["heldout_loss"], np.float64), float(found["base_loss"]))


def heldout_losses(session: Session, corpus: Corpus, recipe: Recipe, model: Finished, role: str) -> HeldoutLosses:
    """The losses of a finished model.

    Args:
        session: of the run.
        corpus: whose held-out rows are read.
        recipe: of the model.
        model: the stage that has trained it.
        role: whose losses these are, for instance "arm static".
    """
    # Evaluation does not depend on how weights move.
    alone = dataclasses.replace(recipe, interval=1, lag=0, allocation="systematic")
    inputs = HeldoutInputs(model, corpus.stage, alone, corpus.unlimited, corpus.base)
    purpose = "held-out losses on the domains and on the base domain"
    return HeldoutLosses.load(
        session.stage(f"losses of {role}", "losses", inputs, _measure, purpose=purpose, trains=False)
    )


def losses_of(trainer: Trainer, params: PyTree, streams: Streams) -> np.ndarray:
    """Mean held-out loss of each domain, float64."""
    return mean_loss(trainer.heldout_sums(params, streams.heldout))


def _measure(inputs: HeldoutInputs, folder: Path, tools: Tools) -> None:
    trainer = tools.trainer(inputs.recipe)
    params = trainer.load_params(inputs.model.folder)
    domains, base = (losses_of(trainer, params, streams) for streams in (inputs.domains, inputs.base))
    write_json(folder / FILE, {"heldout_loss": domains.tolist(), "base_loss": float(base[0])})
