"""The files of a prepared folder: the tokens of all parts joined, and checksums of files that stay where they are."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig, array_file
from vtune_jax.data.corpora.parts import Job
from vtune_jax.data.corpora.tokenizer import dtype_of, end_of_text, vocabulary_size
from vtune_jax.data.tokens.array_record import RECORD_TOKENS, write_records
from vtune_jax.data.tokens.manifest import (
    SIDES,
    BorrowedEntry,
    SectionEntry,
    ShardEntry,
    ShardsEntry,
    Side,
    SideEntry,
)
from vtune_jax.data.tokens.mapped import checksums
from vtune_jax.errors import UserError
from vtune_jax.machine.files import replacing, write_whole, written_whole

SideCounts = dict[str, dict[str, int]]
"""The fields of `TokenCounts` of a part, by side."""

_AT_ONCE = 1 << 21  # bytes copied, or tokens looked at


class JoinedFile:
    """One side's tokens of all domains, one domain after another, in one file; see `joined_file`."""

    def __init__(self, path: Path, dtype: np.dtype, out: BinaryIO) -> None:
        self.path, self.dtype, self.tokens = path, dtype, 0
        self._out = out

    def append(self, files: list[Path]) -> tuple[int, str]:
        """Writes a domain's parts; returns the token at which they begin, and their hash."""
        digest, first = hashlib.sha256(), self.tokens
        for content in _contents(files):
            digest.update(content)
            self._out.write(content)
            self.tokens += len(content) // self.dtype.itemsize
        return first, digest.hexdigest()


@contextmanager
def joined_file(path: Path, dtype: np.dtype) -> Iterator[JoinedFile]:
    """A side's file to be filled; it and its checksums are there when the block ends without an error."""
    with written_whole(path) as out:
        file = JoinedFile(path, dtype, out)
        yield file
    array = np.memmap(path, dtype, "r") if file.tokens else np.zeros(0, dtype)
    write_whole(path.with_suffix(".crc32"), checksums(array).tobytes())


def write_tokens(
    job: Job, config: CorpusConfig, folder: Path, tokenised: list[SideCounts], tokenizer: Tokenizer
) -> tuple[dict[str, int], dict[str, dict[Side, SideEntry]]]:
    """Writes every domain's tokens.

    Args:
        job: whose parts have been tokenised.
        config: of the corpus.
        folder: the prepared one.
        tokenised: what is known of each part.
        tokenizer: that the tokens belong to.

    Returns:
        tokens in each joined file, by its name; the entries of both sides, by domain.

    Raises:
        UserError: a source of tokens that does not fit the tokenizer.
    """
    dtype = dtype_of(vocabulary_size(tokenizer))
    entries: dict[str, dict[Side, SideEntry]] = {}
    with ExitStack() as stack:
        joined = {side: stack.enter_context(joined_file(folder / f"{side}.bin", dtype)) for side in SIDES}
        for domain in (*config.domains, config.base):
            if domain.is_tokens:
                entries[domain.name] = _borrowed(domain, config, folder, dtype, tokenizer)
                continue
            parts = [index for index, part in enumerate(job.parts) if part.domain is domain]
            entries[domain.name] = {
                side: _joined(job, config, joined[side], domain.name, side, parts, tokenised) for side in SIDES
            }
    return {file.path.name: file.tokens for file in joined.values()}, entries


def _joined(
    job: Job,
    config: CorpusConfig,
    out: JoinedFile,
    name: str,
    side: Side,
    parts: list[int],
    tokenised: list[SideCounts],
) -> SideEntry:
    """The parts of one side of a domain, one after another."""
    totals = {key: sum(tokenised[index][side][key] for index in parts) for key in ("documents", "tokens", "bytes")}
    files = [job.file(index, side) for index in parts]
    if side == "train" and config.storage == "array_record":
        folder = out.path.parent
        (folder / side).mkdir(parents=True, exist_ok=True)
        shards, digest = _shards(folder, f"{side}/{name}", files, out.dtype, config.shard_tokens)
        return ShardsEntry(**totals, shards=shards, record_tokens=RECORD_TOKENS, sha256=digest)
    first, digest = out.append(files)
    return SectionEntry(**totals, file=out.path.name, first=first, sha256=digest)


def _shards(
    folder: Path, stem: str, files: list[Path], dtype: np.dtype, shard_tokens: int
) -> tuple[tuple[ShardEntry, ...], str]:
    """Writes ArrayRecord shards of about `shard_tokens` tokens, in whole records; returns them and all tokens' hash."""
    each = max(1, shard_tokens // RECORD_TOKENS) * RECORD_TOKENS
    shards: list[ShardEntry] = []

    def write(tokens: np.ndarray) -> None:
        file = f"{stem}-{len(shards):05d}.array_record"
        with replacing(folder / file) as temporary:
            write_records(str(temporary), [tokens], dtype)
        shards.append(ShardEntry(file=file, tokens=len(tokens)))

    unwritten, digest = np.zeros(0, dtype), hashlib.sha256()
    for content in _contents(files):
        digest.update(content)
        unwritten = np.concatenate([unwritten, np.frombuffer(content, dtype)])
        while len(unwritten) >= each:
            write(unwritten[:each])
            unwritten = unwritten[each:]
    if len(unwritten):
        write(unwritten)
    return tuple(shards), digest.hexdigest()


def _borrowed(
    domain: DomainConfig, config: CorpusConfig, folder: Path, dtype: np.dtype, tokenizer: Tokenizer
) -> dict[Side, SideEntry]:
    """A domain whose source is tokens: its files stay where they are, only their checksums are written."""
    end, vocabulary = end_of_text(tokenizer, config.tokenizer.end_of_text), vocabulary_size(tokenizer)
    sources: dict[Side, str] = {"train": domain.source, "heldout": domain.heldout or domain.source}
    entries: dict[Side, SideEntry] = {}
    for side, source in sources.items():
        path = array_file(domain, source).absolute()
        array = _token_array(domain.name, path, dtype)
        for start in range(0, len(array), _AT_ONCE):
            largest = int(array[start : start + _AT_ONCE].max())
            if largest >= vocabulary:
                raise UserError(
                    f"domain '{domain.name}': {source} holds the token {largest}, the tokenizer has {vocabulary}",
                    "give the tokenizer that the tokens were made with as corpus.tokenizer.file",
                )
        first, stop = 0, len(array)
        if not domain.heldout:
            cut = _last_documents(array, config.heldout_fraction, end)
            if not 0 < cut < len(array):
                raise UserError(
                    f"domain '{domain.name}' ({source}) has no end-of-text token {end} to split it at",
                    "give the domain its own heldout tokens",
                )
            first, stop = (0, cut) if side == "train" else (cut, len(array))
        checks = f"{domain.name}.{side}.crc32"
        write_whole(folder / checks, checksums(array).tobytes())
        entries[side] = BorrowedEntry(
            file=str(path), checks=checks, first=first, tokens=stop - first, length=len(array)
        )
    return entries


def _token_array(domain: str, path: Path, dtype: np.dtype) -> np.ndarray:
    """The tokens of a file, mapped; a file whose bytes mean something else is refused."""
    where = f"domain '{domain}': {path}"
    if path.suffix.lower() == ".npy":
        try:
            array: np.ndarray = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise UserError(f"{where} is no .npy file ({error!s:.80})", "save it with np.save") from error
        if array.ndim != 1 or array.dtype != dtype:
            raise UserError(
                f"{where} holds {array.dtype} of {array.ndim} dimensions, not {dtype} of one",
                f"save it as np.save(path, tokens.astype('{dtype}'))",
            )
        if not len(array):
            raise UserError(f"{where} holds no token", "give a file of tokens")
        return array
    size, width = path.stat().st_size, dtype.itemsize
    if not size or size % width:
        raise UserError(
            f"{where} has {size:,} bytes, but holds tokens of {width} bytes each",
            f"write it as tokens.astype('{dtype}').tofile(path)",
        )
    array = np.memmap(path, dtype, "r")
    # The upper half of small numbers of four bytes, as other programs write them, is 0.
    if width == 2 and size % 4 == 0 and not array[1:_AT_ONCE:2].any() and array[0:_AT_ONCE:2].any():
        raise UserError(
            f"{where} holds tokens of 4 bytes (every second of two bytes is 0); the tokenizer's fit into 2",
            f"write it as np.fromfile(path, '<u4').astype('{dtype}').tofile(other)",
        )
    return array


def _last_documents(array: np.ndarray, fraction: float, end: int) -> int:
    """The first token of a document from which on at most `fraction` of the tokens remain."""
    earliest = int(len(array) * (1 - fraction))
    for start in range(earliest, len(array), _AT_ONCE):
        ends = np.flatnonzero(array[start : start + _AT_ONCE] == end)
        if ends.size:
            return start + int(ends[0]) + 1
    return len(array)


def _contents(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as part:
            while content := part.read(_AT_ONCE):
                yield content
