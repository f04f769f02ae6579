"""A prepared corpus opened: the tokens of each domain, after a look at whether all files are those of the manifest."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Self

import numpy as np

from vtune_jax.core.checks import assert_types, assert_whole, given
from vtune_jax.data.tokens.array_record import RecordTokens, as_token_dtype
from vtune_jax.data.tokens.manifest import BorrowedEntry, DomainEntry, Manifest, ShardsEntry, SideEntry
from vtune_jax.data.tokens.mapped import MappedTokens, TokenMap, as_path
from vtune_jax.errors import UserError
from vtune_jax.machine.files import sha256

_VERIFIED_AT_ONCE = 1 << 20  # tokens
_FIX = "delete that folder and prepare again"


@dataclasses.dataclass(frozen=True)
class PreparedDomain:
    """One domain's tokens; nothing is read before it is needed."""

    name: str
    train: MappedTokens | RecordTokens
    heldout: MappedTokens | RecordTokens


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """A folder of token files with its manifest."""

    folder: Path
    manifest: Manifest
    _maps: dict[Path, TokenMap] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Opens a folder that `corpora.prepare.prepare` wrote.

        Args:
            folder: with `manifest.json`.
            verify: also compares the hash of every token file, which reads all of them.

        Raises:
            UserError: the manifest is missing or damaged, or its files or the tokenizer are not those it names.
            TypeError: what is no path.
        """
        folder = as_path(folder)
        corpus = cls(folder, Manifest.load(folder))
        _assert_sound(folder / "manifest.json", corpus.manifest)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer.json'} is missing", _FIX)
        if sha256(folder / "tokenizer.json") != corpus.tokenizer_sha256:
            raise UserError(f"the tokenizer in {folder} is not the one its tokens were made with", _FIX)
        corpus._assert_files()
        if verify:
            for entry in corpus.manifest.domains:
                corpus._verify(entry)
        return corpus

    def _assert_files(self) -> None:
        """Whether every file of the manifest is there and has the size that follows from it."""
        width = np.dtype(self.manifest.dtype).itemsize
        sizes = {self.folder / name: tokens * width for name, tokens in self.manifest.files.items()}
        for side in (side for domain in self.manifest.domains for side in domain.sides.values()):
            if isinstance(side, ShardsEntry):
                for shard in side.shards:
                    if not (path := self.folder / shard.file).is_file():
                        raise UserError(f"{path} is missing", _FIX)
            elif isinstance(side, BorrowedEntry):
                path = self.folder / side.file
                # A .npy file has a header before its tokens, so it may be longer.
                sizes[path] = max(side.length * width, _size(path) if path.suffix.lower() == ".npy" else 0)
        for path, size in sizes.items():
            if _size(path) != size:
                raise UserError(f"{path} has {_size(path)} bytes, the manifest says {size}", _FIX)

    def _verify(self, entry: DomainEntry) -> None:
        """Compares every token of a domain with its checksum, and each side's hash with the manifest's."""
        prepared = self.domain(entry.name, patience=0)
        for (name, side), source in zip(entry.sides.items(), (prepared.train, prepared.heldout), strict=True):
            digest = hashlib.sha256()
            for start in range(0, len(source), _VERIFIED_AT_ONCE):
                digest.update(source.slice(start, min(start + _VERIFIED_AT_ONCE, len(source))).tobytes())
            if not isinstance(side, BorrowedEntry) and digest.hexdigest() != side.sha256:
                raise UserError(f"the {name} tokens of '{entry.name}' in {self.folder} have another hash", _FIX)

    @property
    def names(self) -> tuple[str, ...]:
        """The domains, in the order of every array."""
        return tuple(domain.name for domain in self.manifest.domains if domain.role == "domain")

    @property
    def base_name(self) -> str:
        """The base domain."""
        return next(domain.name for domain in self.manifest.domains if domain.role == "base")

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.manifest.vocab_size

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer's file."""
        return self.manifest.tokenizer_sha256

    @property
    def end_of_text(self) -> int:
        """The token after each document."""
        return self.manifest.end_of_text_id

    def domain(self, name: str, *, patience: float = 30.0) -> PreparedDomain:
        """The tokens of one domain.

        Args:
            name: of the domain.
            patience: seconds to wait for files that vanish while they are read.

        Raises:
            ValueError: there is no domain of this name.
            UserError: its files are damaged.
        """
        entry = next((domain for domain in self.manifest.domains if domain.name == name), None)
        if entry is None:
            known = ", ".join(repr(domain.name) for domain in self.manifest.domains)
            raise ValueError(f"name must be one of {known}, got {given(name)}.")
        return PreparedDomain(name, *(self._source(name, side, patience) for side in entry.sides.values()))

    def _source(self, name: str, side: SideEntry, patience: float) -> MappedTokens | RecordTokens:
        dtype = np.dtype(self.manifest.dtype)
        if isinstance(side, ShardsEntry):
            return RecordTokens(
                [str(self.folder / shard.file) for shard in side.shards],
                [shard.tokens for shard in side.shards],
                dtype,
                name=name,
                record_tokens=side.record_tokens,
                patience=patience,
            )
        # The path of a borrowed file is absolute, so the folder has no effect; both sides may lie in one file.
        path = self.folder / side.file
        if path not in self._maps:
            checks = side.checks if isinstance(side, BorrowedEntry) else Path(side.file).with_suffix(".crc32")
            self._maps[path] = self._map(path, self.folder / checks, dtype, patience)
        self._maps[path].patience = patience
        return MappedTokens(self._maps[path], name=name, first=side.first, count=side.tokens)

    def _map(self, path: Path, checks: Path, dtype: np.dtype, patience: float) -> TokenMap:
        if not checks.is_file():
            raise UserError(f"{checks} is missing", _FIX)
        try:
            return TokenMap(path, dtype, checks=np.fromfile(checks, "<u4"), patience=patience)
        except ValueError as error:
            raise UserError(f"{checks} is damaged ({str(error).rstrip('.')})", _FIX) from error


def _assert_sound(path: Path, manifest: Manifest) -> None:
    """Refuses a manifest whose values are not what its fields say: its reader looks at their names only.

    Raises:
        UserError: naming the first that is wrong.
    """
    try:
        assert_types(manifest)
        as_token_dtype(manifest.dtype)
        for name, tokens in manifest.files.items():
            assert_whole(0, **{f"files.{name}": tokens})
        for domain in manifest.domains:
            assert_types(domain)
            for side in domain.sides.values():
                assert_types(side)
                parts = side.shards if isinstance(side, ShardsEntry) else (side,)
                for part in parts:
                    assert_types(part)
                    assert_whole(0, **{f"tokens of '{domain.name}'": part.tokens})
                if not isinstance(side, ShardsEntry):
                    whole = side.length if isinstance(side, BorrowedEntry) else manifest.files.get(side.file, 0)
                    assert_whole(0, whole, **{f"the end of '{domain.name}' in {side.file}": side.first + side.tokens})
                    assert_whole(0, whole, **{f"the beginning of '{domain.name}' in {side.file}": side.first})
        roles = [domain.role for domain in manifest.domains]
        if roles.count("base") != 1 or set(roles) != {"base", "domain"}:
            raise ValueError(f"domains must have one of role 'base', the others 'domain', got {roles}.")
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({str(error).rstrip('.')})", _FIX) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
