"""The tokenizer: byte-level BPE that is trained, or any that is given; and documents encoded with it."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vtune_jax.data.corpora.gguf_tokenizer import gguf_tokenizer, is_gguf
from vtune_jax.data.corpora.long_texts import LONG, pieces
from vtune_jax.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MOST_LOST = 0.1
"""Largest share of a domain's characters that may have no token, and of its tokens that may be the unknown one."""
_BATCH_DOCUMENTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to be trained on the corpus, or the file of an existing one."""

    vocab_size: int = 2048  # of a trained tokenizer: its tokens, the 256 bytes and the end-of-text token among them
    file: str = ""  # path of an existing tokenizer.json, or of a .gguf; empty: a tokenizer is trained
    end_of_text: str = ""  # the token after each document in an existing tokenizer; empty: <|endoftext|>
    train_bytes: int = 64 << 20  # bytes of text that a tokenizer is trained on, at most

    def __post_init__(self) -> None:
        if self.vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), got {self.vocab_size}")
        if self.vocab_size > 1 << 24:
            raise ValueError(f"vocab_size must be at most 2**24, got {self.vocab_size}")
        if self.train_bytes < 1:
            raise ValueError(f"train_bytes must be at least 1, got {self.train_bytes}")
        if self.end_of_text and not self.file:
            raise ValueError(f"end_of_text must be left out where a tokenizer is trained, got '{self.end_of_text}'")


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
    tokenizer.train_from_iterator((piece for text in documents for piece in pieces(text)), trainer)
    return tokenizer


def load_tokenizer(path: Path, end: str = "") -> Tokenizer:
    """Reads a tokenizer from its JSON; published ones may cut or pad what they encode, which this one does not.

    Args:
        path: of the file.
        end: its end-of-text token; empty: `END_OF_TEXT`.

    Raises:
        UserError: the file is missing, is no tokenizer, has no such token, or cannot encode every text.
    """
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}", "give the path of a tokenizer.json")
    try:
        tokenizer = gguf_tokenizer(path) if is_gguf(path) else Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    # The tokenizers library raises plain Exception whatever is wrong with the file.
    except Exception as error:
        raise UserError(f"{path} is no tokenizer ({error!s:.80})", "give a tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The text of the end-of-text token inside a document must not become that token.
    tokenizer.encode_special_tokens = True
    if tokenizer.token_to_id(end or END_OF_TEXT) is None:
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        found = f"its special tokens are {', '.join(special[:8])}" if special else "it has no special tokens"
        raise UserError(
            f"the tokenizer {path} has no token {end or END_OF_TEXT}; {found}",
            "set corpus.tokenizer.end_of_text to the token that ends its documents",
        )
    try:
        tokenizer.encode_batch_fast(["a text\nof \u2603 and \U0001f33b"], add_special_tokens=False)
    except Exception as error:
        raise UserError(f"the tokenizer {path} cannot encode every text ({error!s:.80})", _NO_UNKNOWN) from error
    return tokenizer


_NO_UNKNOWN = "give a tokenizer with an unknown token, or with all bytes"


def end_of_text(tokenizer: Tokenizer, end: str = "") -> int:
    """The id of the end-of-text token, which trained and loaded tokenizers always have."""
    token: int | None = tokenizer.token_to_id(end or END_OF_TEXT)
    assert token is not None
    return token


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The largest id and one: published vocabularies have holes."""
    return max(tokenizer.get_vocab().values()) + 1


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for whatever has none."""
    model = json.loads(tokenizer.to_str())["model"]
    token: int | None = model.get("unk_id")
    name = model.get("unk_token")
    return tokenizer.token_to_id(name) if token is None and isinstance(name, str) else token


def knows_all_bytes(tokenizer: Tokenizer) -> bool:
    """Whether every text has tokens that say all of it: the vocabulary has the 256 bytes, and they are used."""
    parts, vocabulary = json.loads(tokenizer.to_str()), tokenizer.get_vocab()
    if parts["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return True
    split = json.dumps([parts["pre_tokenizer"], parts["normalizer"]])
    return '"ByteLevel"' in split and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())


def dtype_of(vocab_size: int) -> np.dtype:
    """The smallest unsigned type for token ids: two bytes where they fit."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenCounts(NamedTuple):
    """What became of the documents of one side."""

    documents: int
    tokens: int  # with the end-of-text tokens
    bytes: int  # of text
    characters: int  # that are no white space, where a character may be lost; else 0
    lost: int  # of them, without any token
    unknown: int  # tokens that are the unknown one


def encode(
    texts: Iterable[str], sides: Iterable[int], outs: Mapping[int, BinaryIO], tokenizer: Tokenizer, end: int
) -> dict[int, TokenCounts]:
    """Writes documents one after another, each followed by the end-of-text token.

    Memory grows neither with the number of documents nor, where they can be cut into pieces, with their length.

    Args:
        texts: the documents.
        sides: a number for each document; it is written to `outs[side]`, or nowhere if there is no such file.
        outs: the files, by side.
        tokenizer: to encode with.
        end: the end-of-text token.

    Returns:
        what was written to each file, by side.

    Raises:
        UserError: a text that the tokenizer cannot encode.
    """
    dtype = dtype_of(vocabulary_size(tokenizer))
    lossless, unknown = knows_all_bytes(tokenizer), unknown_token(tokenizer)
    # Where all bytes have tokens nothing can be lost, and the places of the tokens in the text need not be known.
    batched = tokenizer.encode_batch_fast if lossless else tokenizer.encode_batch
    counts = {side: np.zeros(len(TokenCounts._fields), np.int64) for side in outs}
    kept = ((text, side) for text, side in zip(texts, sides, strict=True) if side in outs)
    for batch in _batches(kept, tokenizer):
        try:
            encoded = batched([piece.text for piece in batch], add_special_tokens=False)
        except Exception as error:  # the library's own
            raise UserError(f"a text cannot be encoded ({error!s:.80})", _NO_UNKNOWN) from error
        for piece, entry in zip(batch, encoded, strict=True):
            ids = np.array(entry.ids + [end] * piece.ends, dtype)
            outs[piece.side].write(ids.tobytes())
            characters, lost = (0, 0) if lossless else _lost(piece.text, entry.offsets)
            unknowns = 0 if unknown is None else int((ids[: len(entry.ids)] == unknown).sum())
            counts[piece.side] += (piece.ends, len(ids), len(piece.text.encode()), characters, lost, unknowns)
    return {side: TokenCounts(*count.tolist()) for side, count in counts.items()}


class _Piece(NamedTuple):
    text: str
    side: int
    ends: bool  # whether it is the last of its document


def _batches(documents: Iterable[tuple[str, int]], tokenizer: Tokenizer) -> Iterator[list[_Piece]]:
    """Documents together, long ones in pieces: some hundred at once, or fewer of four times `LONG` characters."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    batch: list[_Piece] = []
    characters = 0
    for text, side in documents:
        parts = list(pieces(text, ids)) if len(text) > LONG else [text]
        for number, part in enumerate(parts, start=1):
            batch.append(_Piece(part, side, number == len(parts)))
            characters += len(part)
            if len(batch) == _BATCH_DOCUMENTS or characters >= 4 * LONG:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _lost(text: str, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """Characters that are no white space, and those of them that no token covers."""
    edges = np.zeros(len(text) + 1, np.int32)
    if offsets:
        starts, stops = np.array(offsets).T
        np.add.at(edges, starts, 1)
        np.add.at(edges, stops, -1)
    written = ~np.fromiter(map(str.isspace, text), bool, len(text))
    return int(written.sum()), int((written & (np.cumsum(edges)[:-1] == 0)).sum())
