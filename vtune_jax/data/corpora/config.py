"""Which documents make up each domain; `corpora.prepare` makes token files of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vtune_jax.core.names import assert_name
from vtune_jax.data.corpora import embedded
from vtune_jax.data.corpora.documents import format_of
from vtune_jax.data.corpora.listing import files_of
from vtune_jax.data.corpora.texts import assert_turn
from vtune_jax.data.corpora.tokenizer import TokenizerConfig
from vtune_jax.data.tokens.manifest import SCHEMA_VERSION
from vtune_jax.errors import UserError
from vtune_jax.machine.files import sha256, user_path

EMBEDDED = "embedded:"
READERS_VERSION = 2
"""Raised when the same files give other documents; corpora are then prepared again."""
TOKEN_ARRAYS = (".npy", ".bin")
"""How the names of sources end that are tokens already, see `corpora.token_files`."""
Exhaustion = Literal["repeat", "cap", "drop", "stop"]
"""What happens to a domain that has been read as often as allowed, see `DomainConfig`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """Where one domain's documents come from, which of them are kept, and how often they may be read."""

    name: str  # at most 64 letters, digits, '_', '-' and '.'; it stands in tables and file names
    source: str  # a file, folder or glob of documents, embedded:NAME, or a .npy or .bin of tokens
    heldout: str = ""  # held-out documents or tokens, as source; empty: corpus.heldout_fraction of source is split off
    text_field: str = "text"  # the field or column that holds the text, in JSON lines, parquet, Arrow and JSON records
    dtype: Literal["", "uint16", "uint32", "int32", "int64"] = ""  # of a .bin; empty: the smallest for the tokenizer
    turn: str = ""  # how each turn of a list of messages becomes text, as "{role}: {content}"; empty: lists are no text
    cut_bytes: int = 0  # documents with more bytes are cut, at blank lines if they can be; 0: none is
    min_bytes: int = 0  # documents with fewer bytes of text are left out; 0: none is too short
    max_bytes: int = 0  # documents with more bytes of text are left out; 0: none is too long
    # Once the domain has been read max_epochs times. "repeat": nothing, there is no limit; "cap": the others take its
    # share; "drop": as "cap" with max_epochs = 1; "stop": the run ends, its state saved.
    exhaustion: Exhaustion = "repeat"
    max_epochs: float = 0.0  # times that its rows may be read; "cap" needs it; 0: once under "drop" and "stop"

    def __post_init__(self) -> None:
        assert_name(name=self.name)
        if not self.source:
            raise ValueError("source must name a file, a folder, a glob or embedded:NAME, got ''")
        if self.min_bytes < 0 or self.max_bytes < 0:
            raise ValueError(f"min_bytes and max_bytes must not be negative, got {self.min_bytes}, {self.max_bytes}")
        if self.cut_bytes and not self.cut_bytes >= 16:
            raise ValueError(f"cut_bytes must be at least 16, or 0 for no cutting, got {self.cut_bytes}")
        if self.turn:
            assert_turn(self.turn)
        if self.max_bytes and self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes must be at most max_bytes, got {self.min_bytes} and {self.max_bytes}")
        if self.heldout and self.is_tokens != self.heldout.lower().endswith(TOKEN_ARRAYS):
            raise ValueError(f"heldout must be of the source's kind (documents or tokens), got '{self.heldout}'")
        if self.dtype and not self.source.lower().endswith(".bin"):
            raise ValueError(f"dtype must be left out where source is no .bin, got '{self.dtype}'")
        if self.max_epochs < 0:
            raise ValueError(f"max_epochs must not be negative, got {self.max_epochs}")
        if self.exhaustion == "cap" and not self.max_epochs:
            raise ValueError('max_epochs must be positive for exhaustion = "cap", got 0')
        if self.exhaustion in ("repeat", "drop") and self.max_epochs:
            raise ValueError(f'max_epochs must be left out for exhaustion = "{self.exhaustion}", got {self.max_epochs}')

    @property
    def is_tokens(self) -> bool:
        """Whether the source is a file of tokens, not of documents."""
        return self.source.lower().endswith(TOKEN_ARRAYS)

    def limit(self, rows: int) -> int | None:
        """Most rows ever read of the domain if an epoch has `rows` rows; None: no limit."""
        return None if self.exhaustion == "repeat" else max(1, round((self.max_epochs or 1.0) * rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The domains to be mixed, and the base domain that the base model is trained on."""

    domains: tuple[DomainConfig, ...]  # what the weights choose between; at least two
    base: DomainConfig  # what the base model is trained on before; it has no weight
    tokenizer: TokenizerConfig = TokenizerConfig()
    heldout_fraction: float = 0.06  # share of each domain's documents (of tokens: its end) that is never trained on
    skip_bad: bool = False  # True: documents that cannot be read are skipped and counted; False: they are an error
    storage: Literal["files", "array_record"] = "files"  # of training tokens: memory-mapped, or ArrayRecord shards
    shard_tokens: int = 1 << 27  # tokens per ArrayRecord shard, rounded down to whole records of 2**15 tokens

    def __post_init__(self) -> None:
        if len(self.domains) < 2:
            raise ValueError(
                f"domains must be at least two, since weights choose between them, got {len(self.domains)}"
            )
        if self.base.exhaustion != "repeat":
            raise ValueError("base.exhaustion must be left out: the base domain is read as often as pre-training needs")
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

    Where documents lie is no part of it. Token files are used where they lie, so their paths are.

    Args:
        config: of the corpus.
        hashed: from a file to the hash of its content; a function with a cache saves reading terabytes again.

    Raises:
        UserError: a source or a tokenizer that does not exist.
    """
    domains = (*config.domains, config.base)
    return {
        "schema": SCHEMA_VERSION,
        "readers": READERS_VERSION,
        "config": _what_counts(config),
        "sources": {
            domain.name: [_content(domain, source, hashed) for source in sources(domain)] for domain in domains
        },
        "tokenizer": hashed(_tokenizer_file(config)) if config.tokenizer.file else "",
    }


def sources(domain: DomainConfig) -> list[str]:
    """A domain's source, and its held-out source if it has one."""
    return [source for source in (domain.source, domain.heldout) if source]


def _content(domain: DomainConfig, source: str, hashed: Callable[[Path], str]) -> Any:
    if source.startswith(EMBEDDED):
        return embedded.fingerprint(source.removeprefix(EMBEDDED))
    if domain.is_tokens:
        return [hashed(array_file(domain, source))]
    # The ending of a name says how the file is read.
    return [[format_of(path), hashed(path)] for path in files_of(source, domain.name).files]


def array_file(domain: DomainConfig, source: str) -> Path:
    """The file of a source that is tokens.

    Raises:
        UserError: it does not exist.
    """
    path = user_path(source)
    if not path.is_file():
        raise UserError(f"domain '{domain.name}': {source} does not exist", "give the path of a .npy or .bin file")
    return path


def _tokenizer_file(config: CorpusConfig) -> Path:
    path = user_path(config.tokenizer.file)
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}", "give the path of a tokenizer.json as corpus.tokenizer.file")
    return path


def _what_counts(config: CorpusConfig) -> dict[str, Any]:
    """The config without how often domains may be read, which changes no token, and without places of documents."""
    plain = dataclasses.asdict(config)
    for domain in (*plain["domains"], plain["base"]):
        del domain["exhaustion"], domain["max_epochs"]
        if not domain["source"].lower().endswith(TOKEN_ARRAYS):
            del domain["source"], domain["heldout"]
    del plain["tokenizer"]["file"]
    return plain
