"""The tokenizer in a GGUF file: byte-level BPE whose splits into words are known by name."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from vtune_jax.errors import UserError

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, Any] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "default": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "llama-bpe": (
        pre_tokenizers.Split(Regex(_LLAMA_3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    "qwen2": (
        pre_tokenizers.Split(Regex(_LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
}
"""By `tokenizer.ggml.pre`: how a text is split before it is encoded."""
_CONTROL, _USER_DEFINED = 3, 4


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        UserError: the package is missing, the file is damaged, or its tokenizer is of another kind.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError("GGUF files are read by the package gguf", "pip install 'vtune-jax[gguf]'") from error
    try:
        fields = GGUFReader(path).fields
        said = {
            name: fields[f"tokenizer.ggml.{name}"].contents() if f"tokenizer.ggml.{name}" in fields else None
            for name in ("model", "pre", "tokens", "token_type", "merges")
        }
    # The package fails in as many ways as a file can be damaged.
    except Exception as error:
        raise UserError(f"{path} is cut off or no GGUF file ({error!s:.80})", "fetch it once more") from error
    kind, splits = said["model"], said["pre"] or "default"
    if kind != "gpt2" or splits not in _SPLITS or not said["tokens"] or not said["merges"]:
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r} with splits {splits!r}",
            "set corpus.tokenizer.file to the model's tokenizer.json",
        )
    merges = [tuple(merge.split(" ", 1)) for merge in said["merges"]]
    vocabulary = {token: place for place, token in enumerate(said["tokens"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(_SPLITS[splits]))
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(said["tokens"], said["token_type"] or [], strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return tokenizer


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its name."""
    return path.suffix.lower() == ".gguf"
