"""Corpora to token files: in parts, by all cores, resumable, in memory that does not grow with the corpus.

1. *Scan.* Every part of every source is read once for a hash and a length per document.
2. *Choose.* The first of equal documents is kept; hashes also choose the held-out side. Hashes are compared in slices
   of their range, so that any number of documents takes the same memory.
3. *Tokenizer.* Trained on a mixture of bounded size, or given.
4. *Tokenise.* Every part is read again and written as tokens, one file per side.
5. *Join.* All domains' parts become one file per side, with checksums, or ArrayRecord shards. The manifest comes last.

What a step has finished is kept until the end: a killed preparation goes on where it was. A part's files depend on its
documents only, so the bytes are the same however many workers there are.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from vtune_jax.data.corpora.config import (
    CorpusConfig,
    DomainConfig,
    array_file,
)
from vtune_jax.data.corpora.parts import (
    HELDOUT,
    TRAIN,
    Advance,
    Job,
    Task,
    choose,
    documents,
    parts_of,
    scan,
    workers_for,
)
from vtune_jax.data.corpora.tokenizer import END_OF_TEXT, dtype_of, encode, load_tokenizer, train_tokenizer
from vtune_jax.data.tokens.array_record import RECORD_TOKENS, write_records
from vtune_jax.data.tokens.mapped import checksums
from vtune_jax.data.tokens.prepared import SCHEMA_VERSION
from vtune_jax.errors import UserError
from vtune_jax.machine.files import replacing, sha256, write_json, write_whole, written_whole
from vtune_jax.machine.work import WorkEngine

SIDES = ("train", "heldout")

_COPY_BYTES = 1 << 21


def prepare(
    config: CorpusConfig,
    folder: Path,
    *,
    prior: Callable[[np.ndarray], np.ndarray] | None = None,
    report: Callable[[str], None] = lambda message: None,
    advance: Advance = lambda title, done, total: None,
    engine: WorkEngine = "local",
    workers: int | None = None,
) -> None:
    """Reads, splits, tokenises and writes a corpus.

    Exact duplicates are dropped: each text is kept once, by the first domain that has it, and since sides are chosen
    by a hash of the text it can never be on both.

    Args:
        config: domains, base and tokenizer.
        folder: for `tokenizer.json`, `train.bin`, `heldout.bin` and `manifest.json`, written in this order.
        prior: from bytes per domain to the weights that the tokenizer's training text is mixed by; None takes all of
            it. The base domain is not part of it.
        report: told about skipped documents and duplicates.
        advance: told of progress.
        engine: who does the work.
        workers: processes; None: one per core, or this one alone if there is little to read.

    Raises:
        UserError: a source that cannot be read, or a side without documents.
    """
    domains = (*config.domains, config.base)
    parts = [part for domain in domains if not domain.is_tokens for part in parts_of(domain, config)]
    job = Job(folder / "parts", parts, engine, workers_for(parts) if workers is None else workers, advance)
    job.begin(config)
    (folder / "manifest.json").unlink(missing_ok=True)

    scans = job.run("reading", scan)
    kept = choose(job, config)
    counts = {domain.name: _counts(domain, job, scans, kept) for domain in domains if not domain.is_tokens}
    for domain in domains:
        _report(domain, counts.get(domain.name), report)

    tokenizer_file = folder / "tokenizer.json"
    if config.tokenizer.file:
        tokenizer = load_tokenizer(Path(config.tokenizer.file))
    else:
        sizes = np.array([counts[domain.name]["bytes"] for domain in config.domains], np.float64)
        weights = sizes / sizes.sum() if prior is None else prior(sizes)
        tokenizer = train_tokenizer(
            _mixed(job, config, sizes, weights, config.tokenizer.train_bytes), config.tokenizer.vocab_size
        )
    with replacing(tokenizer_file) as temporary:
        tokenizer.save(str(temporary))

    tokenised = job.run("tokenising", partial(_tokenise, str(tokenizer_file)))
    dtype = dtype_of(tokenizer.get_vocab_size())
    with ExitStack() as stack:
        joined = {side: stack.enter_context(_joined(folder / f"{side}.bin", dtype)) for side in SIDES}
        entries = _entries(domains, config, job, joined, counts, tokenised, tokenizer)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer_sha256": sha256(tokenizer_file),
        "vocab_size": tokenizer.get_vocab_size(),
        "end_of_text_id": tokenizer.token_to_id(END_OF_TEXT),
        "dtype": dtype.str,
        "files": {file.path.name: file.tokens for file in joined.values()},
        "domains": entries,
    }
    # Last: a folder with a manifest is a finished one.
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(job.folder)


def _counts(domain: DomainConfig, job: Job, scans: list[list[int]], kept: list[np.ndarray]) -> dict[str, int]:
    mine = [index for index, part in enumerate(job.parts) if part.domain is domain]
    train, heldout, duplicates, size = np.sum([kept[index] for index in mine], axis=0).tolist()
    skipped, filtered = (sum(scans[index][place] for index in mine) for place in range(2))
    named = {"train": train, "heldout": heldout, "bytes": size}
    return {**named, "duplicates": duplicates, "skipped": skipped, "filtered": filtered}


def _report(domain: DomainConfig, counts: dict[str, int] | None, report: Callable[[str], None]) -> None:
    if counts is None:
        return
    for name, what in (("skipped", "skipped"), ("duplicates", "duplicate"), ("filtered", "too short or too long")):
        if counts[name]:
            report(f"domain '{domain.name}': {counts[name]:,} {what} documents left out")
    for side in SIDES:
        if not counts[side]:
            what = "held-out documents" if side == "heldout" else "documents"
            raise UserError(
                f"domain '{domain.name}' ({domain.source}) has no {what}",
                "raise corpus.heldout_fraction or give the domain more documents"
                if counts["train"]
                else "give it a source with text",
            )


def _mixed(job: Job, config: CorpusConfig, sizes: np.ndarray, weights: np.ndarray, most: int) -> Iterator[str]:
    """Train documents in proportion to weights: as many bytes as the scarcest domain allows, and at most `most`."""
    shares = np.where(weights > 0, weights, np.nan)
    total = min(float(np.nanmin(sizes / shares)), most)
    for domain, weight in zip(config.domains, weights, strict=True):
        left = weight * total
        for index, part in enumerate(job.parts):
            if part.domain is not domain or left <= 0:
                continue
            for text in job.texts(index):
                if left <= 0:
                    break
                left -= len(text.encode())
                yield text


def _tokenise(tokenizer_file: str, task: Task) -> dict[str, dict[str, int]]:
    """A part's kept documents as tokens, one file per side."""
    tokenizer = load_tokenizer(Path(tokenizer_file))
    sides = np.fromfile(task.prefix + "sides", np.uint8)
    with written_whole(Path(f"{task.prefix}train")) as train, written_whole(Path(f"{task.prefix}heldout")) as heldout:
        counts = encode(documents(task.part), sides.tolist(), {TRAIN: train, HELDOUT: heldout}, tokenizer)
    return {side: counts[code] for side, code in zip(SIDES, (TRAIN, HELDOUT), strict=True)}


def _entries(
    domains: tuple[DomainConfig, ...],
    config: CorpusConfig,
    job: Job,
    joined: dict[str, "_Joined"],
    counts: dict[str, dict[str, int]],
    tokenised: list[dict[str, dict[str, int]]],
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """Writes every domain's tokens; returns what the manifest says of each."""
    entries = []
    for domain in domains:
        entry: dict[str, Any] = {
            "name": domain.name,
            "role": "base" if domain is config.base else "domain",
            "source": domain.source,
        }
        if domain.is_tokens:
            entry |= _borrowed(domain, config, joined["train"].path.parent, joined["train"].dtype, tokenizer)
        else:
            mine = [index for index, part in enumerate(job.parts) if part.domain is domain]
            entry |= {side: _join(job, config, joined[side], domain.name, side, mine, tokenised) for side in SIDES}
            entry |= {name: counts[domain.name][name] for name in ("duplicates", "skipped", "filtered")}
        entries.append(entry)
    return entries


class _Joined:
    """One side's tokens of all domains, one after another."""

    def __init__(self, path: Path, dtype: np.dtype, out: BinaryIO) -> None:
        self.path, self.dtype, self.tokens = path, dtype, 0
        self._out = out

    def append(self, files: list[Path]) -> dict[str, Any]:
        """Writes a domain's parts; returns where they are and their hash."""
        digest, first = hashlib.sha256(), self.tokens
        for content in _contents(files):
            digest.update(content)
            self._out.write(content)
            self.tokens += len(content) // self.dtype.itemsize
        return {"file": self.path.name, "first": first, "sha256": digest.hexdigest()}


@contextmanager
def _joined(path: Path, dtype: np.dtype) -> Iterator[_Joined]:
    """A side to be filled; its file and its checksums are there when the block ends."""
    with written_whole(path) as out:
        joined = _Joined(path, dtype, out)
        yield joined
    array = np.memmap(path, dtype, "r") if joined.tokens else np.zeros(0, dtype)
    write_whole(path.with_suffix(".crc32"), checksums(array).tobytes())


def _join(
    job: Job,
    config: CorpusConfig,
    joined: _Joined,
    name: str,
    side: str,
    parts: list[int],
    tokenised: list[dict[str, dict[str, int]]],
) -> dict[str, Any]:
    """The parts of one side of a domain, one after another."""
    totals = {key: sum(tokenised[index][side][key] for index in parts) for key in ("documents", "tokens", "bytes")}
    files = [job.file(index, side) for index in parts]
    if side == "train" and config.storage == "array_record":
        folder = joined.path.parent
        (folder / side).mkdir(parents=True, exist_ok=True)
        return {**totals, **_shards(folder, f"{side}/{name}", files, joined.dtype, config.shard_tokens)}
    return {**totals, **joined.append(files)}


def _shards(folder: Path, stem: str, files: list[Path], dtype: np.dtype, shard_tokens: int) -> dict[str, Any]:
    """ArrayRecord shards of about `shard_tokens` tokens, whole records each."""
    each = max(1, shard_tokens // RECORD_TOKENS) * RECORD_TOKENS
    shards: list[dict[str, Any]] = []

    def flush(tokens: np.ndarray) -> None:
        file = f"{stem}-{len(shards):05d}.array_record"
        with replacing(folder / file) as temporary:
            write_records(str(temporary), [tokens], dtype)
        shards.append({"file": file, "tokens": len(tokens)})

    held, digest = np.zeros(0, dtype), hashlib.sha256()
    for content in _contents(files):
        digest.update(content)
        held = np.concatenate([held, np.frombuffer(content, dtype)])
        while len(held) >= each:
            flush(held[:each])
            held = held[each:]
    if len(held):
        flush(held)
    return {"shards": shards, "record_tokens": RECORD_TOKENS, "sha256": digest.hexdigest()}


def _borrowed(
    domain: DomainConfig, config: CorpusConfig, folder: Path, dtype: np.dtype, tokenizer: Tokenizer
) -> dict[str, Any]:
    """A domain whose source is tokens: its files stay where they are, only their checksums are written."""
    end, vocabulary = tokenizer.token_to_id(END_OF_TEXT) or 0, tokenizer.get_vocab_size()
    given = {"train": domain.source, "heldout": domain.heldout or domain.source}
    found = {}
    for side, source in given.items():
        path = array_file(domain, source).absolute()
        array = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, dtype, "r")
        if array.ndim != 1 or array.dtype != dtype:
            raise UserError(
                f"domain '{domain.name}': {source} holds {array.dtype} of {array.ndim} dimensions, not {dtype} of one",
                f"save it as np.save(path, tokens.astype('{dtype}'))",
            )
        for start in range(0, len(array), _COPY_BYTES):
            largest = int(array[start : start + _COPY_BYTES].max())
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
        extent = {"first": first, "tokens": stop - first, "length": len(array)}
        found[side] = {"file": str(path), "checks": checks, **extent}
    return found


def _last_documents(array: np.ndarray, fraction: float, end: int) -> int:
    """Where the last `fraction` of the tokens begins, at the beginning of a document."""
    at = int(len(array) * (1 - fraction))
    for start in range(at, len(array), _COPY_BYTES):
        ends = np.flatnonzero(array[start : start + _COPY_BYTES] == end)
        if ends.size:
            return start + int(ends[0]) + 1
    return len(array)


def _contents(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        with file.open("rb") as part:
            while content := part.read(_COPY_BYTES):
                yield content
