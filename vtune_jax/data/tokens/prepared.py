"""A prepared corpus: a folder of token files with its manifest, opened."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from vtune_jax.data.tokens.array_record import RecordTokens
from vtune_jax.data.tokens.mapped import MappedTokens, TokenMap
from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, sha256

SCHEMA_VERSION = 2
"""Of the prepared folder."""


_VERIFIED_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True)
class PreparedDomain:
    """One domain's tokens, memory-mapped."""

    name: str
    train: MappedTokens | RecordTokens
    heldout: MappedTokens | RecordTokens


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """A folder of token files with its manifest."""

    folder: Path
    manifest: dict[str, Any]
    _maps: dict[Path, TokenMap] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "PreparedCorpus":
        """Opens what `prepare` wrote.

        Args:
            folder: with `manifest.json`.
            verify: also compares the hash of every token file, which reads all of them.

        Raises:
            UserError: the manifest is missing, or its files or the tokenizer are not those it names.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no prepared corpus", "run `vtune-jax prepare` first")
        manifest = read_json(path)
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{folder} was prepared by another version", "delete that folder and prepare again")
        fix = "delete that folder and prepare again"
        if sha256(folder / "tokenizer.json") != manifest["tokenizer_sha256"]:
            raise UserError(f"the tokenizer in {folder} is not the one its tokens were made with", fix)
        corpus = cls(folder, manifest)
        corpus._assert_files(fix)
        if verify:
            for domain in manifest["domains"]:
                corpus._verify(domain, fix)
        return corpus

    def _assert_files(self, fix: str) -> None:
        """Whether every file of the manifest is there and as long as it says."""
        width = np.dtype(self.manifest["dtype"]).itemsize
        sizes = {self.folder / name: tokens * width for name, tokens in self.manifest["files"].items()}
        entries = [domain[side] for domain in self.manifest["domains"] for side in ("train", "heldout")]
        for entry in entries:
            for shard in entry.get("shards", []):
                if not (path := self.folder / shard["file"]).is_file():
                    raise UserError(f"{path} is missing", fix)
            if "length" in entry:
                path = self.folder / entry["file"]
                # A file of the user's own may have a header before its tokens.
                sizes[path] = max(entry["length"] * width, _size(path) if path.suffix == ".npy" else 0)
        for path, size in sizes.items():
            if _size(path) != size:
                raise UserError(f"{path} has {_size(path)} bytes, the manifest says {size}", fix)

    def _verify(self, domain: dict[str, Any], fix: str) -> None:
        """Compares every token with its checksum and every hash with the manifest's."""
        prepared = self.domain(domain["name"], patience=0)
        for side, source in (("train", prepared.train), ("heldout", prepared.heldout)):
            digest = hashlib.sha256()
            for start in range(0, len(source), _VERIFIED_AT_ONCE):
                digest.update(source.slice(start, min(start + _VERIFIED_AT_ONCE, len(source))).tobytes())
            if digest.hexdigest() != domain[side].get("sha256", digest.hexdigest()):
                raise UserError(f"the {side} tokens of '{domain['name']}' in {self.folder} have another hash", fix)

    @property
    def names(self) -> tuple[str, ...]:
        """The domains, in the order of every array."""
        return tuple(domain["name"] for domain in self.manifest["domains"] if domain["role"] == "domain")

    @property
    def base_name(self) -> str:
        """The base domain."""
        return next(domain["name"] for domain in self.manifest["domains"] if domain["role"] == "base")

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.manifest["vocab_size"]

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer's file."""
        return self.manifest["tokenizer_sha256"]

    @property
    def end_of_text(self) -> int:
        """The token after each document."""
        return self.manifest["end_of_text_id"]

    def domain(self, name: str, *, patience: float = 30.0) -> PreparedDomain:
        """The tokens of one domain.

        Args:
            name: of the domain.
            patience: seconds to wait for files that vanish while they are read.
        """
        entry = next(domain for domain in self.manifest["domains"] if domain["name"] == name)
        parts = (self._source(name, entry[side], patience) for side in ("train", "heldout"))
        return PreparedDomain(name, *parts)

    def _source(self, name: str, entry: dict[str, Any], patience: float) -> MappedTokens | RecordTokens:
        dtype = np.dtype(self.manifest["dtype"])
        if "shards" in entry:
            paths = [str(self.folder / shard["file"]) for shard in entry["shards"]]
            counts = [shard["tokens"] for shard in entry["shards"]]
            record = entry["record_tokens"]
            return RecordTokens(paths, counts, dtype, name=name, record_tokens=record, patience=patience)
        # A file of the user's own is named by its whole path, and may hold both sides.
        path = self.folder / entry["file"]
        if path not in self._maps:
            checks = np.fromfile(self.folder / entry.get("checks", Path(entry["file"]).with_suffix(".crc32")), "<u4")
            self._maps[path] = TokenMap(path, dtype, checks=checks, patience=patience)
        self._maps[path].patience = patience
        return MappedTokens(self._maps[path], name=name, first=entry["first"], count=entry["tokens"])


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
