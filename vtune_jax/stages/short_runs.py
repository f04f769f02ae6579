"""Short runs at a constant mixture, from the base model, annealed over their own length."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from vtune_jax.core.targets import blank_targets
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.rules import Static
from vtune_jax.stages.base_model import BaseModel
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.heldout_losses import losses_of
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.store import Finished
from vtune_jax.stages.trainer import Recipe, TrainingRun
from vtune_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class FromBase:
    """What every run from the base model on the domains depends on."""

    base: BaseModel
    corpus: Finished
    recipe: Recipe
    optimizer: OptimizerConfig
    seed: int
    prior: tuple[float, ...]
    streams: Streams = dataclasses.field(metadata={"bookkeeping": True})  # of the corpus, without limits


@dataclasses.dataclass(frozen=True)
class ShortRunInputs:
    """What short runs depend on: where they start, and how long they are."""

    start: FromBase
    steps: int


def from_base(session: Session, corpus: Corpus, base: BaseModel) -> FromBase:
    """What the runs of this experiment from its base model have in common."""
    config = session.config
    return FromBase(
        base=base,
        corpus=corpus.stage,
        recipe=base.trainer.recipe,
        optimizer=config.train.optimizer,
        seed=config.seed,
        prior=tuple(corpus.prior.tolist()),
        streams=corpus.unlimited,
    )


def train_at(start: FromBase, folder: Path, tools: Tools, steps: int, mixture: np.ndarray) -> PyTree:
    """The parameters at the end of a run at a constant mixture."""
    run = TrainingRun(method=Static(), optimizer=start.optimizer, steps=steps, seed=start.seed)
    with tools.progress.bar(f"{folder.name}: {steps} steps", steps) as tick:
        trainer = tools.trainer(start.recipe)
        return trainer.train(run, folder, start.streams, start.base.params(), blank_targets(mixture), tick=tick)


def losses_after(start: FromBase, folder: Path, tools: Tools, steps: int, mixture: np.ndarray) -> np.ndarray:
    """Held-out losses at the end of such a run, of which only these numbers are kept."""
    file = folder / "losses.json"
    if not file.exists():
        params = train_at(start, folder, tools, steps, mixture)
        write_json(file, losses_of(tools.trainer(start.recipe), params, start.streams).tolist())
        for heavy in ("params", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
    return np.array(read_json(file))
