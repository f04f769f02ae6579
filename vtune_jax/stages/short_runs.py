"""Short runs at a constant mixture, from the base model, on part of the data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PyTree

from vtune_jax.core.targets import blank_targets
from vtune_jax.data.tokens.streams import Streams
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.rules import Static
from vtune_jax.train.heldout import mean_loss

if TYPE_CHECKING:
    from vtune_jax.stages.pipeline import Pipeline


def static_run(pipeline: Pipeline, folder: Path, streams: Streams, steps: int, mixture: np.ndarray) -> np.ndarray:
    """Trains at a constant mixture, annealed over its own length; returns the held-out losses at its end."""
    params = train_statically(pipeline, folder, streams, steps, mixture)
    return mean_loss(pipeline.lab.heldout_sums(params, streams.heldout))


def train_statically(pipeline: Pipeline, folder: Path, streams: Streams, steps: int, mixture: np.ndarray) -> PyTree:
    """The parameters at the end of such a run."""
    with pipeline.progress.bar(f"{folder.name}: {steps} steps", steps) as tick:
        return pipeline.lab.train(
            folder,
            streams,
            pipeline.base_params,
            blank_targets(mixture),
            method_config=Static(),
            optimizer=pipeline.config.train.optimizer,
            steps=steps,
            seed=pipeline.config.seed,
            tick=tick,
            warn=pipeline.progress.note,
        )


def measured_run(pipeline: Pipeline, folder: Path, steps: int, mixture: np.ndarray) -> np.ndarray:
    """Losses after a short run on the domains, of which only these numbers are kept."""
    file = folder / "losses.json"
    if not file.exists():
        losses = static_run(pipeline, folder, pipeline.unlimited_streams, steps, mixture)
        write_json(file, losses.tolist())
        for heavy in ("params", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
    return np.array(read_json(file))


def short_run_key(pipeline: Pipeline, *fields: str) -> dict[str, Any]:
    """What every run from the base model depends on, and some more fields of the config."""
    return {"base": pipeline.pretrain.digest, **pipeline.run_key(*fields)}
