"""GGUF files, llama.cpp's format, through the `gguf` package: metadata, names, quantised tensors.

Llama's query and key rows are stored for neighbouring pairs, as in Meta's files; they are put back into halves.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.errors import UserError
from vtune_jax.models.checkpoints.checkpoint import Checkpoint
from vtune_jax.models.checkpoints.names import TURNED, Array, Layout, NameMap, Place, linear, norm
from vtune_jax.models.decoder_config import DecoderConfig, RotaryScaling

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
"""Kinds of tensors that are read."""
_LLAMA_3 = tuple(RotaryScaling(kind="llama3", factor=factor) for factor in (8.0, 32.0))
"""Stretched frequencies stand in these files as a tensor of factors; these are those of Llama 3.1 and 3.2."""


def _halves(heads: Callable[[DecoderConfig], int]) -> Layout:
    """A linear map whose outputs are stored in neighbouring pairs."""

    def ours(tensor: Array, config: DecoderConfig) -> tuple[Array, ...]:
        pairs = tensor.reshape(heads(config), config.of_head // 2, 2, -1)
        rows = pairs.swapaxes(1, 2).reshape(len(tensor), -1)
        return (rows.T if tensor.ndim == 2 else rows[:, 0],)

    def theirs(parts: tuple[Array, ...], config: DecoderConfig) -> Array:
        rows = parts[0].T if parts[0].ndim == 2 else parts[0][:, None]
        halves = rows.reshape(heads(config), 2, config.of_head // 2, -1)
        pairs = halves.swapaxes(1, 2).reshape(len(rows), -1)
        return pairs if parts[0].ndim == 2 else pairs[:, 0]

    return Layout(ours, theirs)


def _names(query: Layout, key: Layout) -> NameMap:
    turning = tuple(
        Place(f"blk.{{}}.attn_{short}.{kind}", (f"attention.{name}.{ours}",), layout)
        for name, short, layout in (("query", "q", query), ("key", "k", key))
        for ours, kind in (("matrix", "weight"), ("bias", "bias"))
    )
    return NameMap(
        whole=(
            Place("token_embd.weight", ("embedding",)),
            *norm("norm", "output_norm"),
            Place("output.weight", ("head",), TURNED),
        ),
        of_layer=(
            *norm("attention_norm", "blk.{}.attn_norm"),
            *turning,
            *linear("attention.value", "blk.{}.attn_v"),
            *linear("attention.out", "blk.{}.attn_output"),
            *norm("attention.query_norm", "blk.{}.attn_q_norm"),
            *norm("attention.key_norm", "blk.{}.attn_k_norm"),
            *norm("mlp_norm", "blk.{}.ffn_norm"),
            *linear("mlp.gate", "blk.{}.ffn_gate"),
            *linear("mlp.up", "blk.{}.ffn_up"),
            *linear("mlp.down", "blk.{}.ffn_down"),
        ),
        ignored=("rope_freqs.weight",),
    )


_PAIRED = _names(_halves(lambda config: config.heads), _halves(lambda config: config.key_value_heads))
_ROWS = Layout(
    lambda tensor, _: (tensor.T if tensor.ndim == 2 else tensor,),
    lambda parts, _: parts[0].T if parts[0].ndim == 2 else parts[0],
)
ARCHITECTURES: Mapping[str, tuple[NameMap, Mapping[str, Any]]] = {
    "llama": (_PAIRED, {}),
    "qwen2": (_names(_ROWS, _ROWS), {"attention_bias": "inputs"}),
    "qwen3": (_names(_ROWS, _ROWS), {"query_key_norm": True}),
}
"""By `general.architecture`: names, and what else is known of the config."""


def open_gguf(path: Path) -> Checkpoint:
    """Looks at a GGUF file.

    Raises:
        UserError: the package is missing, the file is damaged, or of an architecture or with tensors that are not read.
    """
    reader = _reader(path)
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    architecture = str(said.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise UserError(f"{path} holds a model of the kind {architecture!r}", f"give one of {', '.join(ARCHITECTURES)}")
    names, fields = ARCHITECTURES[architecture]
    tensors = GGUFTensors(path, reader)
    return Checkpoint(
        path=path,
        family=architecture,
        config=_config(path, architecture, said, tensors, fields),
        names=names,
        tensors=tensors,
        stored=tensors.stored,
        tokenizer=path if "tokenizer.ggml.tokens" in reader.fields else None,
        end_of_text=_end_of_text(reader),
        files=(path,),
    )


class GGUFTensors:
    """The tensors of a GGUF file, mapped into memory and dequantised one by one."""

    def __init__(self, path: Path, reader: Any) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        kinds = {tensor.tensor_type.name for tensor in reader.tensors}
        if unknown := sorted(kinds - set(KINDS)):
            raise UserError(f"{path} holds tensors of the kind {unknown[0]}", f"give one of {', '.join(KINDS)}")
        self.stored = ", ".join(kind for kind in KINDS if kind in kinds)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Tensors`."""
        # The format names the fastest axis first.
        return {name: tuple(int(size) for size in tensor.shape[::-1]) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Array:
        """See `Tensors`."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        values: Array = dequantize(tensor.data, tensor.tensor_type)
        return values.reshape(tuple(int(size) for size in tensor.shape[::-1]))


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError("GGUF files are read by the package gguf", "pip install 'vtune-jax[gguf]'") from error
    try:
        return GGUFReader(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})", "give the path of a .gguf file") from error
    # The package fails in as many ways as a file can be damaged.
    except Exception as error:
        raise UserError(f"{path} is cut off or no GGUF file ({error!s:.80})", "fetch it once more") from error


def _config(
    path: Path, architecture: str, said: Mapping[str, Any], tensors: GGUFTensors, fields: Mapping[str, Any]
) -> DecoderConfig:
    def value(name: str) -> Any:
        key = f"{architecture}.{name}"
        if key not in said:
            raise UserError(f"{path} does not say {key}", "convert the model once more")
        return said[key]

    shapes = tensors.shapes()
    heads, width = int(value("attention.head_count")), int(value("embedding_length"))
    scaling = _scaling(path, architecture, said, tensors)
    # Stored in single precision; the shortest decimal is what was meant.
    epsilon, theta = (
        float(str(np.float32(number)))
        for number in (
            value("attention.layer_norm_rms_epsilon"),
            said.get(f"{architecture}.rope.freq_base", 10_000.0),
        )
    )
    try:
        return DecoderConfig(
            layers=int(value("block_count")),
            width=width,
            heads=heads,
            key_value_heads=int(said.get(f"{architecture}.attention.head_count_kv", heads)),
            head_width=int(said.get(f"{architecture}.attention.key_length", width // heads)),
            hidden=int(value("feed_forward_length")),
            tied_head="output.weight" not in shapes,
            rows=shapes.get("token_embd.weight", (0,))[0],
            rope_theta=theta,
            rope_scaling=scaling,
            window=int(said.get(f"{architecture}.attention.sliding_window", 0)),
            norm_epsilon=epsilon,
            **fields,
        )
    except ValueError as error:
        raise UserError(f"{path} is no model that can be built: {error}", "convert the model once more") from error


def _scaling(path: Path, architecture: str, said: Mapping[str, Any], tensors: GGUFTensors) -> RotaryScaling:
    kind = said.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=float(said[f"{architecture}.rope.scaling.factor"]))
    if kind != "none":
        raise UserError(f"{path} has rope scaling of the kind {kind!r}", "give a model with none or linear")
    if "rope_freqs.weight" not in tensors.shapes():
        return RotaryScaling()
    from vtune_jax.models.rotary import frequencies

    factors = tensors.read("rope_freqs.weight")
    theta = float(said.get(f"{architecture}.rope.freq_base", 10_000.0))
    plain = frequencies(2 * len(factors), theta, RotaryScaling())
    for scaling in _LLAMA_3:
        if np.allclose(plain / frequencies(2 * len(factors), theta, scaling), factors, rtol=1e-3):
            return scaling
    raise UserError(f"{path} has stretched frequencies that are not Llama 3's", "give the model's Hugging Face folder")


def _end_of_text(reader: Any) -> str:
    if "tokenizer.ggml.eos_token_id" not in reader.fields or "tokenizer.ggml.tokens" not in reader.fields:
        return ""
    tokens, end = reader.fields["tokenizer.ggml.tokens"], reader.fields["tokenizer.ggml.eos_token_id"].contents()
    return str(tokens.contents(end))
