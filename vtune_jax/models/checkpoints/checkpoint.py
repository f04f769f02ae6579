"""A published checkpoint, whatever its format: which decoder it is, and its parameters leaf by leaf.

Nothing is read before it is asked for, and a parameter is read in the pieces that its devices hold, so that the host
never holds the model twice.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vtune_jax.errors import UserError
from vtune_jax.models.checkpoints.names import Array, NameMap, Place
from vtune_jax.models.decoder import build_decoder
from vtune_jax.models.decoder_config import DecoderConfig

BLOCKS = "blocks."
"""In front of the paths of parameters that every layer has, which are stacked."""


class Tensors(Protocol):
    """The tensors of a checkpoint on disk."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """All of them by name, as they are stored."""
        ...

    def read(self, name: str) -> Array:
        """One of them, in the checkpoint's own dtype, or float32 where it is quantised."""
        ...


class Checkpoint(NamedTuple):
    """A checkpoint that has been looked at; its parameters are still on disk."""

    path: Path
    family: str
    config: DecoderConfig  # with `rows`
    names: NameMap
    tensors: Tensors
    stored: str  # dtype of its tensors, in words
    tokenizer: Path | None  # of its tokenizer, for `data.corpora.tokenizer`
    end_of_text: str  # spelt as its tokenizer does; empty: it does not say
    files: tuple[Path, ...]  # that it is made of, without its tokenizer


def load_params(
    checkpoint: Checkpoint,
    *,
    dtype: Any = jnp.float32,
    place: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """The parameters of a checkpoint, on the devices.

    Args:
        checkpoint: to be read.
        dtype: of the parameters.
        place: from the shapes of all parameters to a sharding for each; None: whole on one device.

    Raises:
        UserError: tensors that are missing, not known, or of another shape.
    """
    config = checkpoint.config
    shapes = build_decoder(config, config.rows).template()
    paths = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    places = checkpoint.names.places(paths)
    assert_complete(checkpoint, places)
    placed = jax.tree.map(lambda leaf: None, shapes) if place is None else place(shapes)
    tensors = _Cached(checkpoint.tensors)

    def load(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        path = path_of(keys)
        where = places[path]

        def piece(index: Any) -> Array:  # a slice of each axis
            if not path.startswith(BLOCKS):
                return np.asarray(_one(tensors, where, path, None, config, leaf.shape)[index], dtype)
            layers = range(*index[0].indices(leaf.shape[0]))
            sizes = [len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True)]
            stacked = np.empty(sizes, dtype)
            for row, layer in enumerate(layers):
                stacked[row] = _one(tensors, where, path, layer, config, leaf.shape[1:])[index[1:]]
            return stacked

        if sharding is None:
            return jnp.asarray(piece(tuple(slice(0, size) for size in leaf.shape)))
        return jax.make_array_from_callback(leaf.shape, sharding, piece)

    return jax.tree_util.tree_map_with_path(load, shapes, placed)


def path_of(keys: tuple[Any, ...]) -> str:
    """A parameter's path: the keys of its dictionaries, joined by dots."""
    return ".".join(str(key.key) for key in keys)


def assert_complete(checkpoint: Checkpoint, places: Mapping[str, Place]) -> None:
    """Refuses a checkpoint that lacks a tensor or has one that nobody would read.

    Args:
        checkpoint: whose tensors are looked at.
        places: of all parameters.

    Raises:
        UserError: names the first few.
    """
    layers = range(checkpoint.config.layers)
    wanted = {
        name
        for path, place in places.items()
        for name in ([place.name.format(layer) for layer in layers] if path.startswith(BLOCKS) else [place.name])
    }
    found = set(checkpoint.tensors.shapes())
    ignored = checkpoint.names.ignored
    if checkpoint.config.tied_head:
        # A tied head may be stored all the same; it is the embedding.
        ignored = (*ignored, *(place.name for place in checkpoint.names.whole if "head" in place.ours))
    missing = sorted(wanted - found)
    surplus = sorted(name for name in found - wanted if not name.endswith(ignored))
    if missing:
        raise UserError(
            f"{checkpoint.path} lacks {_listed(missing)}", f"give a whole checkpoint of the family {checkpoint.family}"
        )
    if surplus:
        raise UserError(
            f"{checkpoint.path} has tensors that a model of the family {checkpoint.family} has not: {_listed(surplus)}",
            "give the model itself, without adapters or heads for other tasks",
        )


class _Cached:
    """The last tensor read, as three parameters may lie in one."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors, self._name, self._value = tensors, "", np.empty(0)

    def read(self, name: str) -> Array:
        if name != self._name:
            self._name, self._value = name, self._tensors.read(name)
        return self._value


def _one(
    tensors: _Cached, place: Place, path: str, layer: int | None, config: DecoderConfig, shape: tuple[int, ...]
) -> Array:
    """A parameter of one layer, or of the whole model, in our layout."""
    name = place.name.format(layer)
    tensor = tensors.read(name)
    try:
        found = place.layout.ours(tensor, config)[place.ours.index(path.removeprefix(BLOCKS))]
    except ValueError:
        found = np.empty(0)
    if found.shape != shape:
        raise UserError(
            f"the tensor {name} has the shape {list(tensor.shape)}, "
            f"which is no {path.removeprefix(BLOCKS)} of {list(shape)}",
            "give a checkpoint whose config belongs to its tensors",
        )
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
