"""Corpora: which documents make up each domain. `data.prepare` makes token files of them."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vtune_jax.data.corpora import embedded
from vtune_jax.data.corpora.documents import files_of
from vtune_jax.data.corpora.tokenizer import TokenizerConfig
from vtune_jax.data.tokens.prepared import SCHEMA_VERSION
from vtune_jax.errors import UserError
from vtune_jax.machine.files import sha256

EMBEDDED = "embedded:"
TOKEN_ARRAYS = (".npy", ".bin")
"""Sources that are tokens already: used where they lie. A `.bin` holds raw ids of the tokenizer's width."""
Exhaustion = Literal["repeat", "cap", "drop", "stop"]
"""What happens when a domain has been read as often as allowed: nothing limits it; its share goes to the others after
`max_epochs`; the same after one epoch; the run ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """Where one domain's documents come from."""

    name: str
    source: str  # a file, folder or glob of documents, embedded:NAME, or a .npy or .bin of tokens
    heldout: str = ""  # its own held-out documents; empty: split off by a hash of each document's text
    text_field: str = "text"  # of JSON lines, parquet, Arrow and JSON records
    min_bytes: int = 0  # shorter documents are left out
    max_bytes: int = 0  # longer documents are left out; 0: none is too long
    exhaustion: Exhaustion = "repeat"  # "cap" and "drop" leave the domain's share to the others, "stop" ends the run
    max_epochs: float = 0.0  # after which it is exhausted; needed for "cap"; 1 for "drop" and, unless given, "stop"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name must be letters, digits, '_', '-' and '.', got '{self.name}'")
        if not self.source:
            raise ValueError("source must name a file, a folder, a glob or embedded:NAME, got ''")
        if self.min_bytes < 0 or self.max_bytes < 0:
            raise ValueError(f"min_bytes and max_bytes must not be negative, got {self.min_bytes}, {self.max_bytes}")
        if self.max_bytes and self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes must be at most max_bytes, got {self.min_bytes} and {self.max_bytes}")
        if self.heldout and self.is_tokens != self.heldout.endswith(TOKEN_ARRAYS):
            raise ValueError(f"heldout must be of the source's kind (documents or tokens), got '{self.heldout}'")
        if self.max_epochs < 0:
            raise ValueError(f"max_epochs must not be negative, got {self.max_epochs}")
        if self.exhaustion == "cap" and not self.max_epochs:
            raise ValueError('max_epochs must be positive for exhaustion = "cap", got 0')
        if self.exhaustion in ("repeat", "drop") and self.max_epochs:
            raise ValueError(f'max_epochs must be left out for exhaustion = "{self.exhaustion}", got {self.max_epochs}')

    @property
    def is_tokens(self) -> bool:
        """Whether the source is tokens already."""
        return self.source.endswith(TOKEN_ARRAYS)

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
    storage: Literal["files", "array_record"] = "files"  # of the training tokens; held-out ones are always files
    shard_tokens: int = 1 << 27  # tokens per ArrayRecord shard

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
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, got {self.shard_tokens}")
        arrays = [domain.name for domain in (*self.domains, self.base) if domain.is_tokens]
        if arrays and not self.tokenizer.file:
            raise ValueError(f"tokenizer.file must be given where a source is tokens already ({', '.join(arrays)})")


def corpus_fingerprint(config: CorpusConfig, hashed: Callable[[Path], str] = sha256) -> dict[str, Any]:
    """All that the prepared corpus depends on: the config, and the content of every source.

    Args:
        config: of the corpus.
        hashed: gives the hash of a file's content; one that remembers spares reading terabytes again.

    Raises:
        UserError: a source that does not exist.
    """
    domains = (*config.domains, config.base)
    return {
        "schema": SCHEMA_VERSION,
        "config": _without_limits(dataclasses.asdict(config)),
        "sources": {
            domain.name: [_content(domain, source, hashed) for source in sources(domain)] for domain in domains
        },
        "tokenizer": hashed(Path(config.tokenizer.file)) if config.tokenizer.file else "",
    }


def sources(domain: DomainConfig) -> list[str]:
    """Held-out documents, if it has its own, and the others."""
    return [source for source in (domain.source, domain.heldout) if source]


def _content(domain: DomainConfig, source: str, hashed: Callable[[Path], str]) -> Any:
    if source.startswith(EMBEDDED):
        return embedded.fingerprint(source.removeprefix(EMBEDDED))
    if domain.is_tokens:
        return [hashed(array_file(domain, source))]
    return [hashed(path) for path in files_of(source, domain.name)]


def array_file(domain: DomainConfig, source: str) -> Path:
    """The file of a source that is tokens.

    Raises:
        UserError: it does not exist.
    """
    path = Path(source)
    if not path.is_file():
        raise UserError(f"domain '{domain.name}': {source} does not exist", "give the path of a .npy or .bin file")
    return path


def _without_limits(plain: dict[str, Any]) -> dict[str, Any]:
    """How often a domain may be read changes no token."""
    for domain in (*plain["domains"], plain["base"]):
        del domain["exhaustion"], domain["max_epochs"]
    return plain
