"""The byte-level BPE tokenizer: trained or loaded, and documents encoded with it."""

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vtune_jax.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_BATCH_DOCUMENTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to be trained on the corpus, or the file of an existing one."""

    vocab_size: int = 2048  # of a trained tokenizer: its tokens, the 256 bytes and the end-of-text token among them
    file: str = ""  # path of an existing tokenizer.json; empty: a tokenizer is trained
    train_bytes: int = 64 << 20  # bytes of text that a tokenizer is trained on, at most

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {self.vocab_size}")


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; the same documents in the same order give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer from its JSON.

    Raises:
        UserError: the file is missing, is no tokenizer, or has no end-of-text token.
    """
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}", "give the path of a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    # The tokenizers library raises plain Exception whatever is wrong with the file.
    except Exception as error:
        raise UserError(f"{path} is no tokenizer ({error!s:.80})", "give a tokenizer.json") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise UserError(f"the tokenizer {path} has no token {END_OF_TEXT}", "add it as a special token")
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end-of-text token, which trained and loaded tokenizers always have."""
    token: int | None = tokenizer.token_to_id(END_OF_TEXT)
    assert token is not None
    return token


def dtype_of(vocab_size: int) -> np.dtype:
    """The smallest unsigned type for token ids: two bytes where they fit."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def encode(
    texts: Iterable[str], sides: Iterable[int], outs: Mapping[int, BinaryIO], tokenizer: Tokenizer
) -> dict[int, dict[str, int]]:
    """Writes documents one after another, each followed by the end-of-text token.

    Memory does not grow with the number of documents.

    Args:
        texts: the documents.
        sides: a number for each document; it is written to `outs[side]`, or nowhere if there is no such file.
        outs: the files, by side.
        tokenizer: to encode with.

    Returns:
        `documents`, `tokens` and `bytes` of text written to each file, by side.
    """
    # The text of the end-of-text token inside a document must not become that token.
    tokenizer.encode_special_tokens = True
    end = end_of_text(tokenizer)
    dtype = dtype_of(tokenizer.get_vocab_size())
    counts = {side: {"documents": 0, "tokens": 0, "bytes": 0} for side in outs}
    kept = ((text, side) for text, side in zip(texts, sides, strict=True) if side in outs)
    while batch := list(islice(kept, _BATCH_DOCUMENTS)):
        encoded = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
        for (text, side), entry in zip(batch, encoded, strict=True):
            ids = np.array([*entry.ids, end], dtype)
            outs[side].write(ids.tobytes())
            count = counts[side]
            count["documents"] += 1
            count["tokens"] += len(ids)
            count["bytes"] += len(text.encode())
    return counts
