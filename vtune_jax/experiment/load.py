"""An experiment from its file; on a published checkpoint, the model and the tokenizer are the checkpoint's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtune_jax import settings
from vtune_jax.core.names import name_from
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.files import user_path
from vtune_jax.machine.mesh import assert_devices
from vtune_jax.models import DecoderConfig
from vtune_jax.models.checkpoints import Checkpoint, open_checkpoint

COMPUTED = ("dtype", "remat")
"""Fields of `[model]` that say how a model is computed, not what it is; a checkpoint leaves them to the config."""


def load(path: Path, overrides: tuple[str, ...] = (), *, values: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Reads an experiment from TOML, see `settings.load`; `name` defaults to `name_from` that of the file.

    Where it begins from a checkpoint, the model and the tokenizer that the file leaves out are filled in.

    Raises:
        UserError: a mistake in the file, a checkpoint that cannot be read, or no device.
    """
    assert_devices()  # what a method says of a config is computed
    config = settings.load(ExperimentConfig, path, overrides, values=values, defaults={"name": name_from(path.stem)})
    return with_checkpoint(config)


def checkpoint_of(config: ExperimentConfig) -> Checkpoint | None:
    """The checkpoint that an experiment begins from, looked at; None where the base model is trained."""
    place = config.pretrain.from_checkpoint
    return open_checkpoint(user_path(place)) if place else None


def with_checkpoint(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the model and the tokenizer of its checkpoint; as it is where there is none.

    Raises:
        UserError: the checkpoint cannot be read, or `[model]` says another shape.
    """
    found = checkpoint_of(config)
    if found is None:
        return config
    ours = config.model
    computed = {name: getattr(ours, name) for name in COMPUTED if isinstance(ours, DecoderConfig)}
    model = dataclasses.replace(found.config, **computed)
    if ours not in (model, DecoderConfig(**computed)):
        differing = [
            f"{field.name} = {getattr(ours, field.name, None)} (the checkpoint: {getattr(model, field.name)})"
            for field in dataclasses.fields(model)
            if getattr(ours, field.name, None) != getattr(model, field.name)
        ]
        raise UserError(
            f"[model] is not that of {found.path}: {', '.join(differing[:3])}",
            f"leave all of [model] out but {' and '.join(COMPUTED)}",
        )
    tokenizer = config.corpus.tokenizer
    if not tokenizer.file:
        tokenizer = dataclasses.replace(tokenizer, file=str(_tokenizer(found)), end_of_text=found.end_of_text)
    corpus = dataclasses.replace(config.corpus, tokenizer=tokenizer)
    return dataclasses.replace(config, model=model, corpus=corpus)


def _tokenizer(found: Checkpoint) -> Path:
    if found.tokenizer is None:
        raise UserError(f"{found.path} has no tokenizer.json", "set corpus.tokenizer.file to that of the model")
    return found.tokenizer.absolute()
