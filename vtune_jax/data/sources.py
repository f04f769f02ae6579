"""Where a domain's tokens lie: memory-mapped files and ArrayRecord shards, both checked before they are believed."""

import json
import mmap
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vtune_jax.errors import UserError

CHECK_BYTES = 1 << 16
"""Bytes of a token file behind each of its checksums. A page fault maps as many, so checking touches no more."""

RECORD_TOKENS = 1 << 15
"""Tokens per record of a shard."""


class TokenSource(Protocol):
    """A sequence of tokens that can be read in stretches."""

    name: str
    dtype: np.dtype

    def __len__(self) -> int:
        """Tokens."""
        ...

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop`.

        Raises:
            UserError: they are lost or damaged; names domain, file and offset.
        """
        ...


class MappedTokens:
    """A file of tokens, memory-mapped, each stretch compared with its checksum when it is first touched."""

    def __init__(
        self,
        path: Path,
        dtype: np.dtype,
        *,
        name: str,
        checks: np.ndarray | None = None,
        first: int = 0,
        count: int | None = None,
        patience: float = 30.0,
    ) -> None:
        """Maps the file.

        Args:
            path: of raw tokens (`.bin`) or of a one-dimensional `.npy`.
            dtype: of the tokens, for raw ones.
            name: of the domain, for messages.
            checks: CRC-32 of each `CHECK_BYTES` of all its tokens; None trusts the file.
            first: of the file's tokens that belongs to this source.
            count: how many do; None: all from `first` on.
            patience: seconds to wait for a file that has vanished (a network mount, for instance) to come back.
        """
        self.path, self.name, self.patience = path, name, patience
        array = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, dtype, "r")
        self._all, self._first = array, first
        self.array, self.dtype = array[first : None if count is None else first + count], array.dtype
        self._size = path.stat().st_size
        self._checks = checks
        self._sound = np.zeros(0 if checks is None else len(checks), bool)
        self._unseen = 0 if checks is None else len(checks)

    def __reduce__(self) -> Any:
        # A memory map would be pickled as all of its content.
        options = {"name": self.name, "checks": self._checks, "patience": self.patience}
        extent = {"first": self._first, "count": len(self.array)}
        return _reopened, (self.path, self.dtype, {**options, **extent})

    def __len__(self) -> int:
        return len(self.array)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """See `TokenSource`."""
        self.assert_there()
        self.check(np.array([start]), stop - start)
        return np.array(self.array[start:stop])

    def assert_there(self) -> None:
        """Waits for a file that has vanished or shrunk, then gives up.

        Reading a map past the end of its file would kill the process.

        Raises:
            UserError: it did not come back in time.
        """
        waited, began = 0.05, time.monotonic()
        while (have := _size(self.path)) < self._size:
            if time.monotonic() - began > self.patience:
                lost = "has vanished" if have < 0 else f"has shrunk from {self._size:,} to {have:,} bytes"
                raise UserError(
                    f"the tokens of domain '{self.name}' are lost: {self.path} {lost}",
                    "bring the file back and run the same command again; it goes on from the saved state",
                )
            time.sleep(waited)
            waited = min(2 * waited, 2.0)

    def check(self, start: np.ndarray, tokens: int | np.ndarray) -> None:
        """Compares the stretches about to be read with their checksums, each once.

        Args:
            start: first tokens of the stretches.
            tokens: in each.

        Raises:
            UserError: one differs; names domain, file and offset.
        """
        if not self._unseen:
            return
        width = self.dtype.itemsize
        start = (start.astype(np.int64) + self._first) * width
        first, last = start // CHECK_BYTES, (start + np.asarray(tokens) * width - 1) // CHECK_BYTES
        for ahead in range(int((last - first).max(initial=-1)) + 1):
            place = np.minimum(first + ahead, last)
            fresh = place[~self._sound[place]]
            if fresh.size:
                self._compare(np.unique(fresh))

    def _compare(self, places: np.ndarray) -> None:
        assert self._checks is not None
        per_check = CHECK_BYTES // self.dtype.itemsize
        for place in places.tolist():
            held = self._all[place * per_check : (place + 1) * per_check]
            if zlib.crc32(held.view(np.uint8).data) != self._checks[place]:
                raise UserError(
                    f"the tokens of domain '{self.name}' are damaged: {self.path}, bytes {place * CHECK_BYTES:,} to "
                    f"{place * CHECK_BYTES + held.nbytes:,} differ from their checksum",
                    "prepare the corpus again, or restore the file; the same command then goes on",
                )
        self._sound[places] = True
        self._unseen -= len(places)

    def release(self) -> None:
        """Lets the pages read so far go from the process; they stay in the system's page cache."""
        memory = getattr(self._all, "_mmap", None)
        if memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            memory.madvise(mmap.MADV_DONTNEED)


class RecordTokens:
    """Tokens in ArrayRecord shards, many to a record; paths may be anything that grain's reader opens.

    A record holds `record_tokens` tokens (the last of a shard fewer), so that a stretch of rows is a few neighbouring
    records, read in one call. The format has checksums of its own.
    """

    def __init__(
        self,
        shards: Sequence[str],
        tokens: Sequence[int],
        dtype: np.dtype,
        *,
        name: str,
        record_tokens: int = RECORD_TOKENS,
        patience: float = 30.0,
    ) -> None:
        """Opens nothing yet: readers are opened when needed, in each worker.

        Args:
            shards: paths, in order.
            tokens: in each shard.
            dtype: of the tokens.
            name: of the domain, for messages.
            record_tokens: in each record.
            patience: seconds to wait for a shard that cannot be read.
        """
        self.shards, self.name, self.dtype, self.patience = list(shards), name, np.dtype(dtype), patience
        self._ends = np.cumsum(tokens)
        self._record_tokens = record_tokens
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_readers": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def slice(self, start: int, stop: int) -> np.ndarray:
        """See `TokenSource`."""
        parts = []
        while start < stop:
            shard = int(np.searchsorted(self._ends, start, side="right"))
            base = int(self._ends[shard - 1]) if shard else 0
            end = min(stop, int(self._ends[shard]))
            parts.append(self._from_shard(shard, start - base, end - base))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _from_shard(self, shard: int, start: int, stop: int) -> np.ndarray:
        first, last = start // self._record_tokens, (stop - 1) // self._record_tokens
        began, waited = time.monotonic(), 0.05
        while True:
            try:
                held = b"".join(self._reader(shard).read(first, last + 1))
                break
            # The reader raises RuntimeError and IndexError for whatever is wrong with the file or its storage.
            except Exception as error:
                self._readers.pop(shard, None)
                # Damage does not pass; a mount that is away may come back. A file that is not there, or too short for
                # its index, has no records, says the reader.
                unread = isinstance(error, IndexError)
                damaged = "Corrupted" in str(error) or (unread and os.path.exists(self.shards[shard]))
                if damaged or time.monotonic() - began > self.patience:
                    reason = "it is missing, cut off, or its index is damaged" if unread else _short(error)
                    place = f"records {first:,} to {last:,} (tokens {start:,} to {stop:,})"
                    raise UserError(
                        f"the tokens of domain '{self.name}' are {'damaged' if damaged else 'lost'}: "
                        f"{self.shards[shard]}, {place}: {reason}",
                        "bring the shard back or prepare it again; the same command then goes on",
                    ) from error
                time.sleep(waited)
                waited = min(2 * waited, 2.0)
        tokens = np.frombuffer(held, self.dtype)
        skip = start - first * self._record_tokens
        if len(tokens) < skip + stop - start:
            raise UserError(
                f"the tokens of domain '{self.name}' are cut off: {self.shards[shard]} ends within record {last}",
                "prepare the corpus again",
            )
        return tokens[skip : skip + stop - start]

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            from array_record.python.array_record_module import ArrayRecordReader

            # Without the option the reader starts a thread pool of its own for each file.
            self._readers[shard] = ArrayRecordReader(self.shards[shard], "readahead_buffer_size:0")
        return self._readers[shard]


def write_records(
    path: str, tokens: Iterable[np.ndarray], dtype: np.dtype, *, record_tokens: int = RECORD_TOKENS
) -> int:
    """Writes one ArrayRecord shard of tokens, uncompressed; returns how many tokens there were."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    held, total = np.zeros(0, dtype), 0
    for part in tokens:
        held = np.concatenate([held, part.astype(dtype, copy=False)])
        total += len(part)
        whole = len(held) // record_tokens * record_tokens
        for start in range(0, whole, record_tokens):
            writer.write(held[start : start + record_tokens].tobytes())
        held = held[whole:]
    if len(held):
        writer.write(held.tobytes())
    writer.close()
    return total


def checksums(tokens: np.ndarray) -> np.ndarray:
    """CRC-32 of each `CHECK_BYTES` of an array of tokens."""
    each = CHECK_BYTES // tokens.dtype.itemsize
    parts = (tokens[start : start + each] for start in range(0, len(tokens), each))
    return np.array([zlib.crc32(part.view(np.uint8).data) for part in parts], np.uint32)


def _reopened(path: Path, dtype: np.dtype, options: dict[str, Any]) -> MappedTokens:
    return MappedTokens(path, dtype, **options)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _short(error: Exception) -> str:
    return json.dumps(str(error).splitlines()[0][:160] if str(error) else type(error).__name__)
