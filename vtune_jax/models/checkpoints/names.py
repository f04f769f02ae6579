"""Where a parameter of the decoder stands in a checkpoint: names and layouts as data.

A path of ours is the names of a parameter's dictionaries joined by dots, without `blocks` and its axis of layers:
`attention.query.matrix`. Hugging Face stores a linear map as [outputs, inputs], GGUF as rows of outputs; ours are
[inputs, outputs].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vtune_jax.models.decoder_config import DecoderConfig

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one or more of our parameters lie in one tensor of a checkpoint."""

    ours: Callable[[Array, DecoderConfig], tuple[Array, ...]]  # their tensor -> our parameters
    theirs: Callable[[tuple[Array, ...], DecoderConfig], Array]  # and back


def _fused(tensor: Array, config: DecoderConfig) -> tuple[Array, ...]:
    # [heads * 3 * head_width, ...]: for each head its query, its key and its value.
    split = tensor.reshape(config.heads, 3, config.of_head, -1)
    parts = (split[:, index].reshape(config.heads * config.of_head, -1) for index in range(3))
    return tuple(part.T if tensor.ndim == 2 else part[:, 0] for part in parts)


def _fuse(parts: tuple[Array, ...], config: DecoderConfig) -> Array:
    rows = [(part.T if part.ndim == 2 else part[:, None]).reshape(config.heads, config.of_head, -1) for part in parts]
    fused = np.stack(rows, axis=1).reshape(3 * config.heads * config.of_head, -1)
    return fused if parts[0].ndim == 2 else fused[:, 0]


PLAIN = Layout(lambda tensor, _: (tensor,), lambda parts, _: parts[0])
TURNED = Layout(lambda tensor, _: (tensor.T,), lambda parts, _: parts[0].T)
"""A linear map: [outputs, inputs]."""
FUSED = Layout(_fused, _fuse)
"""Query, key and value of each head side by side, as in GPT-NeoX."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor of a checkpoint."""

    name: str  # with {} for the layer's number
    ours: tuple[str, ...]  # paths of the parameters in it
    layout: Layout = PLAIN


@dataclasses.dataclass(frozen=True)
class NameMap:
    """All tensors of a checkpoint of one kind."""

    whole: tuple[Place, ...]
    of_layer: tuple[Place, ...]
    ignored: tuple[str, ...] = ()  # endings of tensors that say nothing, as they can be computed

    def places(self, paths: Mapping[str, Any] | set[str]) -> dict[str, Place]:
        """The place of each of these parameters, by its path; those of layers begin with `blocks.`."""
        found = {path: place for place in self.whole for path in place.ours}
        found |= {f"blocks.{path}": place for place in self.of_layer for path in place.ours}
        return {path: found[path] for path in paths}


def linear(path: str, name: str) -> tuple[Place, ...]:
    """A linear map and its bias, where a model has one."""
    return (
        Place(f"{name}.weight", (f"{path}.matrix",), TURNED),
        Place(f"{name}.bias", (f"{path}.bias",)),
    )


def norm(path: str, name: str) -> tuple[Place, ...]:
    """A norm's scale and its bias, where a model has one."""
    return Place(f"{name}.weight", (f"{path}.scale",)), Place(f"{name}.bias", (f"{path}.bias",))
