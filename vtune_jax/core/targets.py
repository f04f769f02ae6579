"""The constants of a run as arrays: initial and target losses, the prior, and what else a method needs."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.core.types import Targets


def make_targets(
    initial: np.ndarray,
    target: np.ndarray,
    target_error: np.ndarray,
    prior: np.ndarray,
    constants: dict[str, np.ndarray] | None = None,
) -> Targets:
    """Targets in float32 from host arrays; `constants` are what else the method needs, by name."""
    single = partial(jnp.asarray, dtype=jnp.float32)
    others = jax.tree.map(single, constants or ())
    return Targets(single(initial), single(target), single(target_error), single(prior), others)


def blank_targets(prior: np.ndarray) -> Targets:
    """Targets of a run whose method reads nothing but the prior: every loss is NaN."""
    nothing = np.full(prior.shape, np.nan)
    return make_targets(nothing, nothing, nothing, prior)
