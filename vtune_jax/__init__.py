"""Velocitune in JAX: domain weights that follow learning velocity, beside every rival rule.

What people use:

- `run(config_or_path, **overrides)`: an experiment, from corpora to results
- `vtune_jax.rules`: published methods as pure functions, and `Mixer` for any loop
- `vtune_jax.fits`: scaling laws, target losses with intervals and verdicts
- `vtune_jax.data`: the mixture, from tokens to batches

Importing the package imports none of these, so that `vtune-jax --help` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from vtune_jax.experiment.config import ExperimentConfig
    from vtune_jax.report.results import Results

__version__ = "0.2.0"

__all__ = ["__version__", "data", "fits", "rules", "run"]


def run(
    config: "ExperimentConfig | Path | str",
    *,
    folder: "Path | str | None" = None,
    store: "Path | str | None" = None,
    quiet: bool = True,
    **overrides: Any,
) -> "Results":
    """Runs an experiment from corpora to report, as `vtune-jax run` does, and returns its results.

    Finished stages are found in the store, so that a second call with the same arguments answers at once.

    Args:
        config: path of a TOML file, or a config made in Python.
        folder: of the run; None: `runs/NAME`.
        store: folder of finished stages; None: `store` beside the run folder.
        quiet: says nothing but notes.
        overrides: fields of a file's config, with `__` for each dot: `train__steps=3000`, `seed=2`, or whole tables:
            `arms=[{"name": "velocitune", "floor": 0.02}]`.

    Raises:
        UserError: whatever is wrong with the config, the corpora or the folders, with what to do about it.
        ValueError: overrides of a config that was made in Python; use `dataclasses.replace`.
    """
    running = importlib.import_module("vtune_jax.stages.run")
    results: Results = running.run(config, folder=folder, store=store, quiet=quiet, overrides=overrides)
    return results


def __getattr__(name: str) -> Any:
    if name in ("data", "fits", "rules"):
        return importlib.import_module(f"vtune_jax.{name}")
    raise AttributeError(f"module 'vtune_jax' has no attribute '{name}'")
