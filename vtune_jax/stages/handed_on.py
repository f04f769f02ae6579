"""The model of a finished arm as a folder in Hugging Face's format."""

import shutil
from pathlib import Path

from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.machine.files import user_path
from vtune_jax.machine.mesh import template
from vtune_jax.models import DecoderConfig, build
from vtune_jax.models.checkpoints import export
from vtune_jax.models.checkpoints.families import family_of
from vtune_jax.stages.base_model import ROLE
from vtune_jax.stages.run_folder import CONFIG, configurations, read_stages, referenced_stages
from vtune_jax.train.checkpoint import Checkpoints

BASE = "base"
"""What the base model is called beside the arms' labels."""


def hand_on(run: Path, arm: str, folder: Path, *, dtype: str = "float32") -> str:
    """Writes the model of an arm, or the base model.

    Args:
        run: folder of a run, or of one of its configurations; of several the last that has this arm is taken.
        arm: its label, or `BASE`.
        folder: to be made.
        dtype: of the stored tensors.

    Returns:
        the family that it is written as.

    Raises:
        UserError: no such run or arm, an arm that is not finished, or a model that no published family describes.
    """
    role = ROLE if arm == BASE else f"arm {arm}"
    found = referenced_stages(run, role)
    if not found:
        places = [run] if (run / CONFIG).exists() else configurations(run)
        if not places:
            raise UserError(f"{run} is no folder of a run", "give the folder that `vtune-jax run` has written")
        known = sorted(
            {name.removeprefix("arm ") for place in places for name in read_stages(place) if name.startswith("arm ")}
        )
        raise UserError(
            f"{run} holds no finished arm '{arm}'", f"give one of {', '.join([*known, BASE])}, after it is trained"
        )
    name, stage = list(found.items())[-1]
    place = run if (run / CONFIG).exists() else run / name
    config = load(place / CONFIG)
    model_config = config.model
    if not isinstance(model_config, DecoderConfig):
        raise UserError(f"models named '{model_config.name}' have no published format", "export a decoder")
    corpora = referenced_stages(place, "corpus")
    prepared = PreparedCorpus.open(next(iter(corpora.values())).folder)
    checkpoints = Checkpoints(stage.folder / "params")
    restored = checkpoints.restore(template(build(model_config, prepared.vocab_size).template(), None), {})
    checkpoints.close()
    if restored is None:
        raise UserError(f"the finished stage {stage.folder} has no usable parameters", "run it again")
    origin = user_path(config.pretrain.from_checkpoint) if config.pretrain.from_checkpoint else None
    beside = origin if origin is not None and origin.is_dir() else None
    rows = model_config.embedded(prepared.vocab_size)
    export(folder, model_config, restored.state, vocabulary=rows, dtype=dtype, beside=beside)
    if beside is None:
        shutil.copyfile(prepared.folder / "tokenizer.json", folder / "tokenizer.json")
    return family_of(model_config).name
