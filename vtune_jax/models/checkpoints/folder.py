"""Hugging Face folders: config.json, safetensors in one file or in shards with an index, tokenizer.json; in and out.

Read without torch. Pickle files are refused: reading one runs whatever program it holds.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.models.checkpoints.checkpoint import BLOCKS, Checkpoint, path_of
from vtune_jax.models.checkpoints.families import family_named, family_of
from vtune_jax.models.checkpoints.names import Array, Place
from vtune_jax.models.decoder_config import DecoderConfig

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "generation_config.json", "chat_template.jinja")
"""Files that are handed on as they are."""
SHARD_BYTES = 5 * 10**9
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def open_folder(folder: Path) -> Checkpoint:
    """Looks at a folder.

    Raises:
        UserError: no config.json, an unknown family, no safetensors, shards that are missing or cut off.
    """
    said = _json(folder / CONFIG)
    family = family_named(said.get("model_type"))
    try:
        config = family.config(said)
    except KeyError as error:
        raise UserError(f"{folder / CONFIG} does not say {error}", "give the config.json of the model") from error
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is no config of {family.name}: {error}", "mend it") from error
    tensors = SafeTensors(folder)
    embedding = next(place.name for place in family.names.whole if "embedding" in place.ours)
    shape = tensors.shapes().get(embedding, ())
    config = dataclasses.replace(config, rows=shape[0] if shape else int(said.get("vocab_size", 1)))
    tokenizer = folder / TOKENIZER
    return Checkpoint(
        path=folder,
        family=family.name,
        config=config,
        names=family.names,
        tensors=tensors,
        stored=tensors.stored,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        end_of_text=_end_of_text(folder, said),
        files=(folder / CONFIG, *_files(folder).values()),
    )


class SafeTensors:
    """The tensors of a folder's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: safe_open(path, "numpy") for name, path in _files(folder).items()}
        self._file_of = {key: name for name, file in self._files.items() for key in file.keys()}  # noqa: SIM118
        index = folder / INDEX
        if index.is_file():
            listed = _json(index).get("weight_map", {})
            if absent := sorted(set(listed) - set(self._file_of)):
                raise UserError(
                    f"{index} names {absent[0]}, which its shard does not hold", "fetch the shards once more"
                )
        kinds = {self._slice(key).get_dtype() for key in self._file_of}
        if unknown := sorted(kinds - set(_DTYPES)):
            raise UserError(f"{folder} holds tensors of the kind {unknown[0]}", f"give one of {', '.join(_DTYPES)}")
        self.stored = ", ".join(sorted(_DTYPES[kind] for kind in kinds))
        self._shapes = {key: tuple(self._slice(key).get_shape()) for key in self._file_of}

    def _slice(self, name: str) -> Any:
        return self._files[self._file_of[name]].get_slice(name)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Tensors`."""
        return self._shapes

    def read(self, name: str) -> Array:
        """See `Tensors`."""
        array: Array = self._files[self._file_of[name]].get_tensor(name)
        return array


def _files(folder: Path) -> dict[str, Path]:
    """The safetensors files of a folder, each seen to be whole.

    Raises:
        UserError: there are none, one that the index names is missing, or one is cut off.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{index} names {absent[0]}, which is not there", "fetch that shard")
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        if pickles:
            raise UserError(
                f"{folder} holds {pickles[0]}, a pickle file, and reading one runs whatever program it holds",
                "fetch the model's safetensors, or convert it where you trust it",
            )
        raise UserError(f"{folder} holds no safetensors", "give a folder with model.safetensors or its shards")
    for name in names:
        try:
            with safe_open(folder / name, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name} is cut off or damaged ({error!s:.80})", "fetch it once more") from error
    return {name: folder / name for name in names}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}", "give a folder of Hugging Face's format, or a .gguf file") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error!s:.80})", "fetch it once more") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object", "fetch it once more")
    return value


def _end_of_text(folder: Path, said: Mapping[str, Any]) -> str:
    """The end-of-text token as the folder spells it: in tokenizer_config.json, else by the id in config.json."""
    if (folder / TOKENIZER_CONFIG).is_file():
        token = _json(folder / TOKENIZER_CONFIG).get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    ids = said.get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(first, int) and (folder / TOKENIZER).is_file():
        for token in _json(folder / TOKENIZER).get("added_tokens", []):
            if token.get("id") == first:
                return str(token["content"])
    return ""


def export(
    folder: Path,
    config: DecoderConfig,
    params: PyTree,
    *,
    vocabulary: int,
    dtype: str = "float32",
    beside: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `transformers` loads.

    Args:
        folder: to be made.
        config: of the decoder.
        params: its parameters.
        vocabulary: rows of the embedding.
        dtype: of the stored tensors.
        beside: a folder whose config.json is kept where it says the same, and whose tokenizer is handed on; None: none.
        shard_bytes: most bytes of a file.

    Raises:
        UserError: no published family has a decoder of this shape, or the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something already", "name a folder that is new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    said = _json(beside / CONFIG) if beside is not None and (beside / CONFIG).is_file() else {}
    family = family_named(said["model_type"]) if said else family_of(config)
    if not said:
        said = {
            "architectures": [family.architecture],
            "model_type": family.name,
            **family.json(config),
            "vocab_size": vocabulary,
        }
    said["torch_dtype"] = dtype
    write_json(folder / CONFIG, said)
    for name in BESIDE if beside is not None else ():
        if (beside / name).is_file():  # type: ignore[operator]
            shutil.copyfile(beside / name, folder / name)  # type: ignore[operator]
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    places = family.names.places(leaves)
    _write(
        folder,
        _tensors(leaves, places, config, jnp.dtype(dtype)),
        _sizes(leaves, places, jnp.dtype(dtype)),
        shard_bytes,
    )


def _tensors(
    leaves: Mapping[str, Any], places: Mapping[str, Place], config: DecoderConfig, dtype: Any
) -> Iterator[tuple[str, Array]]:
    """Their tensors, by name, one after another."""
    for place, prefix in _stored(places):
        parts = [np.asarray(leaves[prefix + path]) for path in place.ours]
        for layer in range(config.layers) if prefix else [None]:
            ours = tuple(part if layer is None else part[layer] for part in parts)
            yield place.name.format(layer), np.ascontiguousarray(place.layout.theirs(ours, config).astype(dtype))


def _stored(places: Mapping[str, Place]) -> Iterator[tuple[Place, str]]:
    seen = set()
    for path, place in places.items():
        if place.name not in seen:
            seen.add(place.name)
            yield place, BLOCKS if path.startswith(BLOCKS) else ""


def _sizes(leaves: Mapping[str, Any], places: Mapping[str, Place], dtype: Any) -> int:
    return sum(int(np.prod(leaves[path].shape)) * dtype.itemsize for path in places)


def _write(folder: Path, tensors: Iterator[tuple[str, Array]], total: int, shard_bytes: int) -> None:
    """One file, or shards with an index; each is written before the next is gathered."""
    shards: list[tuple[str, list[str]]] = []
    gathered: dict[str, Array] = {}

    def flush() -> None:
        name = f"part-{len(shards) + 1}.safetensors"
        save_file(gathered, folder / name, metadata={"format": "pt"})
        shards.append((name, list(gathered)))
        gathered.clear()

    held = 0
    for name, tensor in tensors:
        if gathered and held + tensor.nbytes > shard_bytes:
            flush()
            held = 0
        gathered[name] = tensor
        held += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / shards[0][0]).rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, (part, names) in enumerate(shards, start=1):
        final = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / part).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
