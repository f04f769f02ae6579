"""Corpora to token files: in parts, by all cores, resumable, in memory that does not grow with the corpus.

1. *Scan.* Every part of every source is read once for a hash and a length per document.
2. *Choose.* Of equal documents the first is kept; hashes also choose the held-out side. Hashes are compared in slices
   of their range, so that memory does not grow with the number of documents.
3. *Tokenizer.* Trained on a mixture of bounded size, or loaded.
4. *Tokenise.* Every part is read again and written as tokens, one file per side.
5. *Join* (`corpora.joining`). The parts of all domains become one file per side, with checksums, or ArrayRecord shards.
   The manifest is written last.

What a step has finished is kept until the end, so a killed preparation goes on where it was. A part's files depend on
its documents only, so the bytes are the same however many workers there are.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vtune_jax.data.corpora.config import EMBEDDED, CorpusConfig, DomainConfig, sources
from vtune_jax.data.corpora.joining import SideCounts, write_tokens
from vtune_jax.data.corpora.listing import files_of
from vtune_jax.data.corpora.parts import (
    HELDOUT,
    TRAIN,
    Advance,
    Job,
    Task,
    choose,
    documents_of,
    parts_of,
    scan,
    workers_for,
)
from vtune_jax.data.corpora.tokenizer import (
    MOST_LOST,
    dtype_of,
    encode,
    end_of_text,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from vtune_jax.data.tokens.manifest import DomainEntry, Manifest
from vtune_jax.errors import UserError
from vtune_jax.machine.files import replacing, sha256, user_path, written_whole
from vtune_jax.machine.work import WorkEngine


class DocumentCounts(NamedTuple):
    """What became of a domain's documents."""

    train: int  # kept
    heldout: int  # kept
    bytes: int  # of kept training text
    duplicates: int  # left out
    skipped: int  # could not be read
    filtered: int  # too short or too long


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

    Of documents with equal text only the first is kept, in the order of the domains, each domain's own held-out
    documents before its others. Sides are chosen by a hash of the text, so no text is on both.

    Args:
        config: domains, base and tokenizer.
        folder: for `tokenizer.json`, `train.bin`, `heldout.bin` and `manifest.json`, written in this order.
        prior: from bytes per domain to the weights by which the tokenizer's training text is mixed; None: in proportion
            to bytes. The base domain is not part of that text.
        report: told about skipped documents, duplicates, and files of no known format.
        advance: told of progress.
        engine: who does the work.
        workers: processes; None: one per core, or the calling process alone if there is little to read.

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
        if domain.name in counts:
            _report(domain, counts[domain.name], report)

    tokenizer_file = folder / "tokenizer.json"
    if config.tokenizer.file:
        tokenizer = load_tokenizer(user_path(config.tokenizer.file), config.tokenizer.end_of_text)
    else:
        sizes = np.array([counts[domain.name].bytes for domain in config.domains], np.float64)
        weights = sizes / sizes.sum() if prior is None else prior(sizes)
        texts = _mixed(job, config, sizes, weights, config.tokenizer.train_bytes)
        tokenizer = train_tokenizer(texts, config.tokenizer.vocab_size)
    with replacing(tokenizer_file) as temporary:
        tokenizer.save(str(temporary))

    tokenised = job.run("tokenising", partial(_tokenise, str(tokenizer_file), config.tokenizer.end_of_text))
    for domain in domains:
        _report_losses(domain, [tokenised[index] for index, part in enumerate(parts) if part.domain is domain], report)
    files, sides = write_tokens(job, config, folder, tokenised, tokenizer)
    Manifest(
        tokenizer_sha256=sha256(tokenizer_file),
        vocab_size=vocabulary_size(tokenizer),
        end_of_text_id=end_of_text(tokenizer, config.tokenizer.end_of_text),
        dtype=dtype_of(vocabulary_size(tokenizer)).str,
        files=files,
        domains=tuple(
            DomainEntry(
                name=domain.name,
                role="base" if domain is config.base else "domain",
                source=domain.source,
                train=sides[domain.name]["train"],
                heldout=sides[domain.name]["heldout"],
                **_left_out(counts.get(domain.name)),
            )
            for domain in domains
        ),
    ).save(folder)
    shutil.rmtree(job.folder)


def _counts(domain: DomainConfig, job: Job, scans: list[list[int]], kept: list[np.ndarray]) -> DocumentCounts:
    mine = [index for index, part in enumerate(job.parts) if part.domain is domain]
    train, heldout, duplicates, size = np.sum([kept[index] for index in mine], axis=0).tolist()
    skipped, filtered = (sum(scans[index][place] for index in mine) for place in range(2))
    return DocumentCounts(train, heldout, size, duplicates, skipped, filtered)


def _left_out(counts: DocumentCounts | None) -> dict[str, int]:
    if counts is None:
        return {}
    return {"duplicates": counts.duplicates, "skipped": counts.skipped, "filtered": counts.filtered}


def _report(domain: DomainConfig, counts: DocumentCounts, report: Callable[[str], None]) -> None:
    for source in sources(domain):
        passed = [] if source.startswith(EMBEDDED) else files_of(source, domain.name).passed_over
        if passed:
            names = ", ".join(path.name for path in passed[:3]) + (", ..." if len(passed) > 3 else "")
            report(f"domain '{domain.name}': {len(passed):,} files in {source} are of no known format: {names}")
    for number, what in (
        (counts.skipped, "skipped"),
        (counts.duplicates, "duplicate"),
        (counts.filtered, "too short or too long"),
    ):
        if number:
            report(f"domain '{domain.name}': {number:,} {what} documents left out")
    if not domain.heldout and counts.train + counts.heldout == 1:
        raise UserError(
            f"domain '{domain.name}' ({domain.source}) is one document, which cannot be both trained on and held out",
            "cut it with cut_bytes (a .txt file is one document), or give the domain its own heldout",
        )
    for number, what, source in (
        (counts.train, "documents", domain.source),
        (counts.heldout, "held-out documents", domain.heldout or domain.source),
    ):
        if not number:
            why, fix = _why_none(counts)
            raise UserError(f"domain '{domain.name}' ({source}) has no {what}{why}", fix)


def _why_none(counts: DocumentCounts) -> tuple[str, str]:
    """Why a side of a domain is empty, and what to do: by what was left out."""
    if counts.duplicates:
        why = "each is equal to a held-out one of its own, or to one of a domain before it"
        return f": {why}", "give it other documents, or leave the domain out"
    if counts.filtered:
        return ": all are too short or too long", "lower min_bytes, or raise max_bytes"
    if counts.skipped:
        return ": none could be read", "leave --skip-bad out to see why"
    return ": its files hold nothing but white space", "give it a source with text"


def _mixed(job: Job, config: CorpusConfig, sizes: np.ndarray, weights: np.ndarray, most: int) -> Iterator[str]:
    """Training documents in proportion to weights: as many bytes as the scarcest domain allows, and at most `most`."""
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


def _tokenise(tokenizer_file: str, end: str, task: Task) -> SideCounts:
    """A part's kept documents as tokens, one file per side."""
    tokenizer = load_tokenizer(Path(tokenizer_file), end)
    sides = np.fromfile(task.prefix + "sides", np.uint8)
    with written_whole(Path(f"{task.prefix}train")) as train, written_whole(Path(f"{task.prefix}heldout")) as heldout:
        outs: dict[int, BinaryIO] = {TRAIN: train, HELDOUT: heldout}
        counts = encode(documents_of(task.part), sides.tolist(), outs, tokenizer, end_of_text(tokenizer, end))
    return {"train": counts[TRAIN]._asdict(), "heldout": counts[HELDOUT]._asdict()}


def _report_losses(domain: DomainConfig, tokenised: list[SideCounts], report: Callable[[str], None]) -> None:
    """Says what a tokenizer cannot say of a domain's text, and refuses one that loses much of it."""
    characters, lost, unknown, tokens, documents = (
        sum(side[key] for part in tokenised for side in part.values())
        for key in ("characters", "lost", "unknown", "tokens", "documents")
    )
    for number, whole, what in (
        (lost, characters, "characters have no token and are dropped"),
        (unknown, tokens - documents, "tokens are the unknown token"),
    ):
        if number:
            said = f"domain '{domain.name}': {number / whole:.2%} of its {what}"
            if number > MOST_LOST * whole:
                raise UserError(said, f"use a tokenizer that knows its text; at most {MOST_LOST:.0%} is allowed")
            report(said)
