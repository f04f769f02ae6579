"""The families of models, found by looking: every module of this package with a constant `FAMILY` adds one."""

import functools
from typing import Any

from vtune_jax.core.modules import constants_of
from vtune_jax.models.model import Family, Model


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, in the order of their modules' names."""
    return tuple(constants_of(__package__, "FAMILY"))


def model_configs() -> tuple[type[Any], ...]:
    """The config classes of all families, which an experiment's `[model]` chooses among by `name`."""
    return tuple(family.config for family in families())


def build(config: Any, vocabulary: int) -> Model:
    """The model that a config describes.

    Args:
        config: of any family.
        vocabulary: number of token ids.

    Raises:
        ValueError: a config of no family.
    """
    for family in families():
        if type(config) is family.config:
            return family.build(config, vocabulary)
    known = ", ".join(config.__name__ for config in model_configs())
    raise ValueError(f"config must be one of {known}, got {type(config).__name__}.")
