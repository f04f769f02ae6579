"""The base model: trained on the base domain, taken from an earlier run, or a published checkpoint."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.core.targets import blank_targets
from vtune_jax.data.mixture.config import DataConfig
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import checkpoint_of
from vtune_jax.machine.files import read_json, user_path, write_json
from vtune_jax.machine.mesh import everywhere
from vtune_jax.models.checkpoints import Checkpoint, load_params
from vtune_jax.rules import Static
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.run_folder import CONFIG, LATEST, STAGES, referenced_stages
from vtune_jax.stages.session import Session, Tools
from vtune_jax.stages.store import Finished
from vtune_jax.stages.trainer import Recipe, Trainer, TrainingRun
from vtune_jax.train.checkpoint import Checkpoints, canonical
from vtune_jax.train.optimizer import OptimizerConfig

ROLE = "base model"
FACTS = "model.json"


@dataclasses.dataclass(frozen=True)
class BaseModelInputs:
    """What the base model depends on."""

    corpus: Finished
    recipe: Recipe
    optimizer: OptimizerConfig
    steps: int
    seed: int
    streams: Streams = dataclasses.field(metadata={"bookkeeping": True})  # of the corpus, as the recipe reads it


@dataclasses.dataclass(frozen=True)
class CheckpointInputs:
    """What a base model depends on that somebody else has trained."""

    content: tuple[str, ...]  # hashes of its files
    recipe: Recipe
    checkpoint: Checkpoint = dataclasses.field(metadata={"bookkeeping": True})


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """The model that every proxy and every arm starts from."""

    stage: Finished
    trainer: Trainer = dataclasses.field(metadata={"bookkeeping": True})

    def params(self) -> PyTree:
        """Its parameters, read from disk at each call, so that nobody keeps them longer than needed."""
        return self.trainer.load_params(self.stage.folder)


def base_model(session: Session, corpus: Corpus) -> BaseModel:
    """The base model of this experiment."""
    config, recipe = session.config, recipe_of(session, corpus)
    trainer = session.tools.trainer(recipe)
    if config.pretrain.from_run:
        stage = _of_run(user_path(config.pretrain.from_run), recipe)
        return BaseModel(session.refer(ROLE, stage), trainer)
    if checkpoint := checkpoint_of(config):
        content = tuple(session.store.hashed(file) for file in checkpoint.files)
        # Of what training runs share, only the model and its tokenizer say what is read.
        read = Recipe(
            model=recipe.model,
            vocabulary=recipe.vocabulary,
            tokenizer=recipe.tokenizer,
            data=DataConfig(),
            interval=1,
        )
        published = CheckpointInputs(content, read, checkpoint)
        purpose = f"{checkpoint.path.name}, {config.model.parameters(recipe.vocabulary):,} parameters"
        stage = session.stage(ROLE, "checkpoint", published, _import, purpose=purpose, trains=False)
        return BaseModel(stage, trainer)
    # It reads one domain at constant weights: of the mixture only the interval matters, at which losses are measured.
    alone = dataclasses.replace(recipe, lag=0, allocation="systematic")
    pretrain = config.pretrain
    inputs = BaseModelInputs(corpus.stage, alone, pretrain.optimizer, pretrain.steps, config.seed, corpus.base)
    purpose = f"{pretrain.steps:,} steps on '{corpus.prepared.base_name}'"
    return BaseModel(session.stage(ROLE, "base-model", inputs, _train, purpose=purpose), trainer)


def recipe_of(session: Session, corpus: Corpus) -> Recipe:
    """What all training runs of this experiment have in common."""
    config, mixture = session.config, session.config.mixture
    most = getattr(config.model, "rows", 0)
    if most and corpus.prepared.vocab_size > most:
        raise UserError(
            f"the tokenizer has {corpus.prepared.vocab_size:,} tokens, the checkpoint's embedding {most:,} rows",
            "give the tokenizer that belongs to the checkpoint",
        )
    return Recipe(
        model=config.model,
        vocabulary=corpus.prepared.vocab_size,
        tokenizer=corpus.prepared.tokenizer_sha256,
        data=config.data,
        interval=mixture.interval,
        lag=mixture.lag,
        allocation=mixture.allocation,
        loop=config.loop,
    )


def _train(inputs: BaseModelInputs, folder: Path, tools: Tools) -> None:
    trainer = tools.trainer(inputs.recipe)
    run = TrainingRun(method=Static(), optimizer=inputs.optimizer, steps=inputs.steps, seed=inputs.seed)
    with tools.progress.bar(ROLE, inputs.steps) as tick:
        params = trainer.model.init(inputs.seed)
        trainer.train(run, folder, inputs.streams, params, blank_targets(np.ones(1)), tick=tick)
    write_json(folder / FACTS, inputs.recipe.facts)


def _import(inputs: CheckpointInputs, folder: Path, tools: Tools) -> None:
    mesh = tools.trainer(inputs.recipe).mesh
    params = load_params(inputs.checkpoint, place=lambda shapes: jax.tree.map(lambda leaf: everywhere(mesh), shapes))
    kept = Checkpoints(folder / "params", keep=1)
    kept.save(0, params, canonical(inputs.recipe.facts))
    kept.close()
    write_json(folder / FACTS, inputs.recipe.facts)


def _of_run(run: Path, ours: Recipe) -> Finished:
    stages = referenced_stages(run, ROLE)
    if not stages:
        raise UserError(
            f'pretrain.from_run = "{run}" holds no finished base model',
            "name the folder of a run whose base model is trained, as `vtune-jax pretrain` does",
        )
    if len({stage.digest for stage in stages.values()}) > 1:
        raise UserError(
            f'pretrain.from_run = "{run}" holds different base models, in {", ".join(stages)}',
            f"name one: {run / next(iter(stages))}",
        )
    found, place = next(iter(stages.values())), run if (run / CONFIG).exists() else run / LATEST
    facts = read_json(found.folder / FACTS)
    if facts["model"] != settings.digest(ours.model):
        raise UserError(f"the base model of {run} has another shape", f"copy [model] from {place / CONFIG}")
    if facts["tokenizer"] != ours.tokenizer:
        raise UserError(
            f"the base model of {run} was trained with another tokenizer",
            f"set corpus.tokenizer.file to the tokenizer.json of its corpus, see {place / STAGES}",
        )
    return found
