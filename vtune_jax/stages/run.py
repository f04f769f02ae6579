"""A whole experiment by one call from Python."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.experiment.load import load
from vtune_jax.machine.compiled import keep_compiled
from vtune_jax.machine.memory import keep_freed_memory
from vtune_jax.machine.progress import Progress
from vtune_jax.report.results import Results
from vtune_jax.stages.pipeline import Pipeline


def run(
    config: ExperimentConfig | Path | str,
    *,
    folder: Path | str | None,
    store: Path | str | None,
    quiet: bool,
    overrides: Mapping[str, Any],
) -> Results:
    """See `vtune_jax.run`."""
    if isinstance(config, ExperimentConfig):
        if overrides:
            raise ValueError(
                f"overrides are for a config's file, got {sorted(overrides)}; use dataclasses.replace on a config."
            )
        resolved = config
    else:
        resolved = load(Path(config), values={key.replace("__", "."): overrides[key] for key in overrides})
    keep_freed_memory()
    keep_compiled()
    run_folder = Path("runs") / resolved.name if folder is None else Path(os.fspath(folder))
    pipeline = Pipeline(resolved, run_folder, Progress(silent=quiet), store=None if store is None else Path(store))
    return pipeline.report()
