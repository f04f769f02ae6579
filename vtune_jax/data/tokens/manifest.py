"""What a prepared folder holds: `manifest.json` as typed values.

The order of fields is the order of the keys in the file.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, write_json

SCHEMA_VERSION = 2
"""Of the prepared folder: a folder with another number has to be prepared again."""

Side = Literal["train", "heldout"]
SIDES: tuple[Side, Side] = ("train", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SectionEntry:
    """One side of a domain as a section of a file that all domains share."""

    documents: int | None = None  # None: the source was tokens already
    tokens: int
    bytes: int | None = None  # of text
    file: str  # within the folder
    first: int  # token of the file
    sha256: str  # of the section


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One ArrayRecord shard."""

    file: str  # within the folder
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardsEntry:
    """One side of a domain as ArrayRecord shards."""

    documents: int
    tokens: int
    bytes: int  # of text
    shards: tuple[ShardEntry, ...]
    record_tokens: int  # tokens per record
    sha256: str  # of all tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class BorrowedEntry:
    """One side of a domain as a stretch of the user's own file of tokens, which stays where it is."""

    file: str  # absolute path
    checks: str  # file of its checksums, within the folder
    first: int  # token of the file
    tokens: int
    length: int  # tokens in the whole file


SideEntry = SectionEntry | ShardsEntry | BorrowedEntry


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainEntry:
    """One domain. The counts of documents are None for a domain whose source was tokens already."""

    name: str
    role: Literal["domain", "base"]
    source: str  # as configured
    train: SideEntry
    heldout: SideEntry
    duplicates: int | None = None  # documents left out because an equal one was kept
    skipped: int | None = None  # documents that could not be read
    filtered: int | None = None  # documents shorter or longer than the config allows

    @property
    def sides(self) -> dict[Side, SideEntry]:
        """Both sides by name."""
        return {"train": self.train, "heldout": self.heldout}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds and what it was made with."""

    schema_version: int = SCHEMA_VERSION
    tokenizer_sha256: str
    vocab_size: int
    end_of_text_id: int
    dtype: str  # of the tokens, as numpy writes it
    files: dict[str, int]  # tokens in each file that domains share, by name within the folder
    domains: tuple[DomainEntry, ...]  # in the order of the config, the base domain last

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the manifest of a folder.

        Raises:
            UserError: there is none, it is damaged, or another version wrote it.
        """
        path, fix = folder / "manifest.json", "delete that folder and prepare again"
        if not path.is_file():
            raise UserError(f"{folder} holds no prepared corpus", "run `vtune-jax prepare` first")
        try:
            plain = read_json(path)
            if plain["schema_version"] != SCHEMA_VERSION:
                raise UserError(f"{folder} was prepared by another version", fix)
            return cls(**{**plain, "domains": tuple(map(_domain, plain["domains"]))})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!s:.80})", fix) from error

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, whole or not at all: a folder with a manifest is a finished one."""
        write_json(folder / "manifest.json", self.as_json())

    def as_json(self) -> dict[str, Any]:
        """As dictionaries, lists, texts and numbers, without the counts that are None."""
        plain = dataclasses.asdict(self)
        plain["domains"] = [
            {name: value for name, value in domain.items() if value is not None} for domain in plain["domains"]
        ]
        for domain in plain["domains"]:
            for side in SIDES:
                domain[side] = {name: value for name, value in domain[side].items() if value is not None}
                if "shards" in domain[side]:
                    domain[side]["shards"] = list(domain[side]["shards"])
        return plain


def _domain(plain: dict[str, Any]) -> DomainEntry:
    return DomainEntry(**{**plain, "train": _side(plain["train"]), "heldout": _side(plain["heldout"])})


def _side(plain: dict[str, Any]) -> SideEntry:
    if "shards" in plain:
        return ShardsEntry(**{**plain, "shards": tuple(ShardEntry(**shard) for shard in plain["shards"])})
    return BorrowedEntry(**plain) if "length" in plain else SectionEntry(**plain)
