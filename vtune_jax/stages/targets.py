"""Target losses: what each domain would reach at the full budget, predicted from short proxy runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vtune_jax.core.types import Targets
from vtune_jax.errors import UserError
from vtune_jax.fits.targets import apply_policy, estimate_targets
from vtune_jax.stages.cache import write_json
from vtune_jax.stages.short_runs import static_run
from vtune_jax.stages.training import Streams
from vtune_jax.train.evaluate import mean_loss
from vtune_jax.train.state import make_targets

if TYPE_CHECKING:
    from vtune_jax.stages.pipeline import Pipeline


def predict_targets(pipeline: Pipeline, folder: Path) -> None:
    """Measures initial losses, trains the proxies, fits and writes `targets.json`."""
    config = pipeline.config
    options = config.targets
    initial = mean_loss(pipeline.lab.heldout_sums(pipeline.base_params, pipeline.streams.heldout))
    budget = config.train.steps * config.data.batch_tokens
    facts = {"initial": initial.tolist(), "target_tokens": budget, "level": options.level}
    facts |= own_targets(options.losses, initial) if options.losses else _fitted(pipeline, folder, initial, budget)
    for note in facts["notes"]:
        pipeline.progress.note(note)
    write_json(folder / "targets.json", facts)


def _fitted(pipeline: Pipeline, folder: Path, initial: np.ndarray, budget: int) -> dict[str, Any]:
    config = pipeline.config
    options = config.targets
    lengths = proxy_lengths(options.proxy_lengths, config.train.steps)
    # Every proxy reads the same sub-sample at the prior, and anneals over its own length: the end of a run that is
    # still at a high learning rate overstates what an annealed run of that many tokens reaches.
    stores = tuple(store.first(options.subsample) for store in pipeline.streams.stores)
    # Proxies are short: how often a domain may be read in the real run is not theirs to keep.
    streams = Streams(stores=stores, heldout=pipeline.streams.heldout)
    losses = np.stack(
        [static_run(pipeline, folder / f"proxy-{steps}", streams, steps, pipeline.prior) for steps in lengths]
    )
    tokens = np.array(lengths) * config.data.batch_tokens
    estimate = estimate_targets(
        tokens, losses, budget, initial_losses=initial, level=options.level, min_gap=options.min_gap
    )
    target, notes = apply_policy(estimate, initial, policy=options.when_unusable, names=pipeline.prepared.names)
    return {
        **estimate.as_json(),
        "target": target.tolist(),
        "points": {"tokens": tokens.tolist(), "loss": losses.tolist()},
        "proxy_tokens": int(tokens.sum()),
        "notes": notes,
    }


def proxy_lengths(shares: tuple[float, ...], steps: int) -> list[int]:
    """Optimiser steps of each proxy.

    Raises:
        UserError: fewer than three different lengths; the law has three unknowns.
    """
    lengths = sorted({max(1, round(share * steps)) for share in shares})
    if len(lengths) < 3:
        raise UserError(
            f"targets.proxy_lengths {list(shares)} give only {len(lengths)} different lengths at train.steps {steps}",
            "choose shares further apart, or more steps",
        )
    return lengths


def own_targets(losses: tuple[float, ...], initial: np.ndarray) -> dict[str, Any]:
    """The user's own target losses, in the form of a fit's."""
    given = list(losses)
    return {
        "target": given,
        "lower": given,
        "upper": given,
        "standard_error": [0.0] * len(given),
        "verdict": ["given"] * len(given),
        "advice": [""] * len(given),
        "law": None,
        "points": {"tokens": [], "loss": []},
        "proxy_tokens": 0,
        "notes": [],
    }


def targets_from(facts: dict[str, Any], prior: np.ndarray, constants: dict[str, np.ndarray] | None = None) -> Targets:
    """The run's constants from `targets.json`, and those that a method needs beside."""
    initial, target, error = (
        np.array([np.nan if value is None else value for value in facts[name]])
        for name in ("initial", "target", "standard_error")
    )
    return make_targets(initial, target, error, prior, constants)
