"""The files of a prepared folder: the tokens of all parts joined, and checksums of files that stay where they are."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig
from vtune_jax.data.corpora.parts import Job
from vtune_jax.data.corpora.token_files import sides_of
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
from vtune_jax.machine.files import replacing, write_whole, written_whole

SideCounts = dict[str, dict[str, int]]
"""The fields of `TokenCounts` of a part, by side."""

_AT_ONCE = 1 << 21  # bytes copied


class JoinedFile:
    """One side's tokens of all domains, one domain after another, in one file; see `joined_file`."""

    def __init__(self, path: Path, dtype: np.dtype, out: BinaryIO) -> None:
        self.path, self.dtype, self.tokens = path, dtype, 0
        self._out = out

    def append(self, contents: Iterable[bytes]) -> tuple[int, str]:
        """Writes a domain's tokens; returns the token at which they begin, and their hash."""
        digest, first = hashlib.sha256(), self.tokens
        for content in contents:
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
                entries[domain.name] = _given(domain, config, folder, joined, tokenizer)
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
    first, digest = out.append(_contents(files))
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


def _given(
    domain: DomainConfig, config: CorpusConfig, folder: Path, joined: dict[Side, JoinedFile], tokenizer: Tokenizer
) -> dict[Side, SideEntry]:
    """A domain whose source is tokens: borrowed where it lies, or copied if its ids have another width."""
    end, vocabulary = end_of_text(tokenizer, config.tokenizer.end_of_text), vocabulary_size(tokenizer)
    dtype, entries = dtype_of(vocabulary), dict[Side, SideEntry]()
    for side, stretch in sides_of(domain, dtype, vocabulary, end, config.heldout_fraction).items():
        tokens = stretch.stop - stretch.first
        if stretch.array.dtype == dtype:
            checks = f"{domain.name}.{side}.crc32"
            write_whole(folder / checks, checksums(stretch.array).tobytes())
            entries[side] = BorrowedEntry(
                file=str(stretch.path), checks=checks, first=stretch.first, tokens=tokens, length=len(stretch.array)
            )
        else:
            first, digest = joined[side].append(piece.tobytes() for piece in stretch.tokens(dtype))
            entries[side] = SectionEntry(tokens=tokens, file=joined[side].path.name, first=first, sha256=digest)
    return entries


def _contents(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as part:
            while content := part.read(_AT_ONCE):
                yield content
