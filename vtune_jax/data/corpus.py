"""Corpora: which documents make up each domain, and how they become token files."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from vtune_jax.data import embedded
from vtune_jax.data.readers import Reader, files_of
from vtune_jax.data.tokens import (
    END_OF_TEXT,
    TokenizerConfig,
    dtype_of,
    load_tokenizer,
    sha256,
    train_tokenizer,
    write_manifest,
    write_tokens,
)
from vtune_jax.errors import UserError

SCHEMA_VERSION = 1
SIDES = ("train", "heldout")
_EMBEDDED = "embedded:"
Exhaustion = Literal["repeat", "cap", "drop", "stop"]
"""What happens when a domain has been read as often as allowed: nothing limits it; its share goes to the others after
`max_epochs`; the same after one epoch; the run ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """Where one domain's documents come from."""

    name: str
    source: str  # a file, folder or glob, or embedded:NAME
    heldout: str = ""  # its own held-out documents; empty: split off by a hash of each document's text
    text_field: str = "text"  # of JSON lines and parquet
    exhaustion: Exhaustion = "repeat"  # "cap" and "drop" leave the domain's share to the others, "stop" ends the run
    max_epochs: float = 0.0  # after which it is exhausted; needed for "cap"; 1 for "drop" and, unless given, "stop"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name must be letters, digits, '_', '-' and '.', got '{self.name}'")
        if not self.source:
            raise ValueError("source must name a file, a folder, a glob or embedded:NAME, got ''")
        if self.max_epochs < 0:
            raise ValueError(f"max_epochs must not be negative, got {self.max_epochs}")
        if self.exhaustion == "cap" and not self.max_epochs:
            raise ValueError('max_epochs must be positive for exhaustion = "cap", got 0')
        if self.exhaustion in ("repeat", "drop") and self.max_epochs:
            raise ValueError(f'max_epochs must be left out for exhaustion = "{self.exhaustion}", got {self.max_epochs}')

    def limit(self, rows: int) -> int | None:
        """Most rows ever read of a domain with so many rows; None: no limit."""
        return None if self.exhaustion == "repeat" else max(1, round((self.max_epochs or 1.0) * rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The domains to be mixed, and the base domain that the base model is trained on."""

    domains: tuple[DomainConfig, ...]
    base: DomainConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    heldout_fraction: float = 0.06  # of the documents
    skip_bad: bool = False  # skip and count documents that cannot be read

    def __post_init__(self) -> None:
        if len(self.domains) < 2:
            raise ValueError(
                f"domains must be at least two, since weights choose between them, got {len(self.domains)}"
            )
        names = [domain.name for domain in (*self.domains, self.base)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"domains must have different names, got {', '.join(map(repr, doubled))} twice")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction must lie in (0, 1), got {self.heldout_fraction}")


def corpus_fingerprint(config: CorpusConfig) -> dict[str, Any]:
    """All that the prepared corpus depends on: the config, and the content of every source.

    Raises:
        UserError: a source that does not exist.
    """
    domains = (*config.domains, config.base)
    return {
        "schema": SCHEMA_VERSION,
        "config": _without_limits(dataclasses.asdict(config)),
        "sources": {domain.name: [_content(domain, source) for source in _sources(domain)] for domain in domains},
        "tokenizer": sha256(Path(config.tokenizer.file)) if config.tokenizer.file else "",
    }


def prepare(
    config: CorpusConfig,
    folder: Path,
    *,
    prior: Callable[[np.ndarray], np.ndarray] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> None:
    """Reads, splits, tokenises and writes a corpus.

    Exact duplicates are dropped: each text is kept once, by the first domain that has it, and since sides are chosen
    by a hash of the text it can never be on both. Memory holds one hash per document, not the documents.

    Args:
        config: domains, base and tokenizer.
        folder: for `train/NAME.bin`, `heldout/NAME.bin`, `tokenizer.json` and `manifest.json`, written in this order.
        prior: from bytes per domain to the weights that the tokenizer's training text is mixed by; None takes all of
            it. The base domain is not part of it.
        report: told about skipped documents and duplicates.

    Raises:
        UserError: a source that cannot be read, or a side without documents.
    """
    for stale in ("manifest.json", "documents"):
        path = folder / stale
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    split = _Split(config.heldout_fraction)
    texts = folder / "documents"
    texts.mkdir(parents=True)
    domains = (*config.domains, config.base)
    counts = {domain.name: _collect(domain, config, texts, split, report) for domain in domains}

    if config.tokenizer.file:
        tokenizer = load_tokenizer(Path(config.tokenizer.file))
    else:
        sizes = np.array([counts[domain.name]["bytes"] for domain in config.domains], np.float64)
        weights = sizes / sizes.sum() if prior is None else prior(sizes)
        mixed = _mixed(texts, [domain.name for domain in config.domains], sizes, weights)
        tokenizer = train_tokenizer(mixed, config.tokenizer.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))

    entries = []
    for domain in domains:
        files = {
            side: dataclasses.asdict(
                write_tokens(folder, f"{side}/{domain.name}.bin", _stored(texts, domain.name, side), tokenizer)
            )
            for side in SIDES
        }
        entries.append(
            {
                "name": domain.name,
                "role": "base" if domain is config.base else "domain",
                "source": domain.source,
                **files,
                "duplicates": counts[domain.name]["duplicates"],
                "skipped": counts[domain.name]["skipped"],
            }
        )
    shutil.rmtree(texts)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tokenizer_sha256": sha256(folder / "tokenizer.json"),
        "vocab_size": tokenizer.get_vocab_size(),
        "end_of_text_id": tokenizer.token_to_id(END_OF_TEXT),
        "dtype": dtype_of(tokenizer.get_vocab_size()).str,
        "domains": entries,
    }
    write_manifest(folder, manifest)


class _Split:
    """Chooses a document's side by the hash of its text, and remembers which texts were seen."""

    def __init__(self, heldout_fraction: float) -> None:
        self._heldout_fraction = heldout_fraction
        self._seen: set[bytes] = set()

    def side(self, text: str) -> str | None:
        """`train` or `heldout`; None for a text seen before."""
        digest = self.new(text)
        if digest is None:
            return None
        return "heldout" if int.from_bytes(digest[:8], "big") < self._heldout_fraction * 2**64 else "train"

    def new(self, text: str) -> bytes | None:
        """The hash of a text not seen before."""
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest in self._seen:
            return None
        self._seen.add(digest)
        return digest


def _collect(
    domain: DomainConfig, config: CorpusConfig, folder: Path, split: _Split, report: Callable[[str], None]
) -> dict[str, int]:
    """Writes a domain's documents to one file per side; returns counts."""
    reader = Reader(text_field=domain.text_field, skip_bad=config.skip_bad)
    counts = dict.fromkeys(("duplicates", "skipped", "bytes", *SIDES), 0)
    with _store(folder, domain.name, "train") as train, _store(folder, domain.name, "heldout") as heldout:
        files = {"train": train, "heldout": heldout}

        def keep(text: str, side: str | None) -> None:
            if side is None:
                counts["duplicates"] += 1
                return
            files[side].write(json.dumps(text) + "\n")
            counts[side] += 1
            counts["bytes"] += len(text.encode()) if side == "train" else 0

        # Given held-out documents go first, so that a train document of the same text is the one dropped.
        for text in _documents(domain.heldout, domain, reader) if domain.heldout else ():
            keep(text, "heldout" if split.new(text) else None)
        for text in _documents(domain.source, domain, reader):
            if domain.heldout:
                keep(text, "train" if split.new(text) else None)
            else:
                keep(text, split.side(text))
    counts["skipped"] = reader.skipped
    for name in ("skipped", "duplicates"):
        if counts[name]:
            report(f"domain '{domain.name}': {counts[name]:,} {name} documents left out")
    for side in SIDES:
        if not counts[side]:
            what = "held-out documents" if side == "heldout" else "documents"
            raise UserError(
                f"domain '{domain.name}' ({domain.source}) has no {what}",
                "raise corpus.heldout_fraction or give the domain more documents"
                if counts["train"]
                else "give it a source with text",
            )
    return counts


def _documents(source: str, domain: DomainConfig, reader: Reader) -> Iterator[str]:
    if source.startswith(_EMBEDDED):
        texts: Iterator[str] = iter(embedded.read(source.removeprefix(_EMBEDDED)))
    else:
        texts = (text for path in files_of(source, domain.name) for text in reader.read(path))
    return (text for text in texts if text.strip())


def _sources(domain: DomainConfig) -> list[str]:
    return [source for source in (domain.source, domain.heldout) if source]


def _content(domain: DomainConfig, source: str) -> Any:
    if source.startswith(_EMBEDDED):
        return embedded.fingerprint(source.removeprefix(_EMBEDDED))
    return [sha256(path) for path in files_of(source, domain.name)]


def _store(folder: Path, name: str, side: str) -> IO[str]:
    return (folder / f"{name}.{side}.jsonl").open("w", encoding="utf-8")


def _stored(folder: Path, name: str, side: str) -> Iterator[str]:
    with (folder / f"{name}.{side}.jsonl").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _mixed(folder: Path, names: list[str], sizes: np.ndarray, weights: np.ndarray) -> Iterator[str]:
    """Train documents in proportion to weights: as many bytes as the scarcest domain allows."""
    shares = np.where(weights > 0, weights, np.nan)
    total = np.nanmin(sizes / shares)
    for name, weight in zip(names, weights, strict=True):
        left = weight * total
        for text in _stored(folder, name, "train"):
            if left <= 0:
                break
            left -= len(text.encode())
            yield text


def _without_limits(plain: dict[str, Any]) -> dict[str, Any]:
    """How often a domain may be read changes no token."""
    for domain in (*plain["domains"], plain["base"]):
        del domain["exhaustion"], domain["max_epochs"]
    return plain
