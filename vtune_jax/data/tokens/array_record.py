"""ArrayRecord shards of tokens, and the protocol that these and memory-mapped files (`tokens.mapped`) follow."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vtune_jax.core.checks import MOST, assert_whole, assert_within, given
from vtune_jax.errors import UserError

RECORD_TOKENS = 1 << 15
"""Tokens per record of a shard."""


class TokenSource(Protocol):
    """A domain's tokens, which can be read in stretches."""

    name: str
    dtype: np.dtype

    def __len__(self) -> int:
        """Tokens."""
        ...

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop`.

        Raises:
            IndexError: tokens that do not exist.
            UserError: they are lost or damaged; the message names domain, file and offset.
        """
        ...


class RecordTokens:
    """Tokens in ArrayRecord shards, many to a record; paths may be anything that grain's reader opens.

    A record holds `record_tokens` tokens (the last one of a shard may hold fewer), so that a stretch of rows lies in a
    few neighbouring records, which one call reads. The format has checksums of its own.
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
        """Opens nothing: each worker opens a shard when it first reads it.

        Args:
            shards: paths, in order.
            tokens: in each shard.
            dtype: of the tokens.
            name: of the domain, for messages.
            record_tokens: tokens in each record.
            patience: seconds to wait for a shard that cannot be read.

        Raises:
            ValueError: no shards, not one number of tokens for each, numbers out of their range, a dtype that is not of
                whole numbers.
            TypeError: what are no paths, no whole numbers, no dtype.
        """
        if isinstance(shards, str | bytes) or not isinstance(shards, Sequence):
            raise TypeError(f"shards must be a sequence of paths, got {given(shards)}.")
        if not isinstance(tokens, Sequence | np.ndarray):
            raise TypeError(f"tokens must be a number for each shard, got {given(tokens)}.")
        if not shards or len(shards) != len(tokens):
            raise ValueError(f"shards and tokens must be as many, at least one, got {len(shards)} and {len(tokens)}.")
        for place, count in enumerate(tokens):
            assert_whole(0, **{f"tokens[{place}]": count})
        assert_whole(1, MOST, record_tokens=record_tokens)
        assert_within(patience=patience)
        self.shards, self.name, self.patience = [os.fspath(shard) for shard in shards], name, patience
        self.dtype = as_token_dtype(dtype)
        self._ends = np.cumsum(tokens)
        self._record_tokens = record_tokens
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_readers": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def slice(self, start: int, stop: int) -> np.ndarray:
        """See `TokenSource`."""
        assert_stretch(self, start, stop)
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
                records = self._reader(shard).read(first, last + 1)
                break
            # The reader raises RuntimeError or IndexError whatever is wrong with the file or its storage.
            except Exception as error:
                self._readers.pop(shard, None)
                # Waiting helps if a mount is away, not if the file is damaged. The reader raises IndexError both for a
                # missing file and for one that is too short for its index.
                without_records = isinstance(error, IndexError)
                damaged = "Corrupted" in str(error) or (without_records and os.path.exists(self.shards[shard]))
                if damaged or time.monotonic() - began > self.patience:
                    reason = "it is missing, cut off, or its index is damaged" if without_records else _short(error)
                    place = f"records {first:,} to {last:,} (tokens {start:,} to {stop:,})"
                    raise UserError(
                        f"the tokens of domain '{self.name}' are {'damaged' if damaged else 'lost'}: "
                        f"{self.shards[shard]}, {place}: {reason}",
                        "bring the shard back or prepare it again; the same command then goes on",
                    ) from error
                time.sleep(waited)
                waited = min(2 * waited, 2.0)
        skip, width, each = start - first * self._record_tokens, self.dtype.itemsize, self._record_tokens
        held = int(self._ends[shard]) - (int(self._ends[shard - 1]) if shard else 0)
        wanted = [min(each, held - record * each) * width for record in range(first, last + 1)]
        if (sizes := [len(record) for record in records]) != wanted:
            raise UserError(
                f"the tokens of domain '{self.name}' are damaged: {self.shards[shard]} has records {first:,} to "
                f"{last:,} of {given(sizes)} bytes, not of {given(wanted)}",
                "prepare the corpus again",
            )
        # numpy lets other threads work while it copies; joining the bytes would not.
        tokens = np.concatenate([np.frombuffer(record, self.dtype) for record in records])
        return tokens[skip : skip + stop - start]

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            from array_record.python.array_record_module import ArrayRecordReader

            # Without this option the reader starts a thread pool for each file.
            self._readers[shard] = ArrayRecordReader(self.shards[shard], "readahead_buffer_size:0")
        return self._readers[shard]


def assert_stretch(source: TokenSource, start: int, stop: int) -> None:
    """Refuses tokens that a source does not have.

    Raises:
        IndexError: naming them and the domain.
    """
    if not 0 <= start <= stop <= len(source):
        raise IndexError(f"tokens {start:,} to {stop:,} of domain '{source.name}' asked for; it has {len(source):,}.")


def as_token_dtype(dtype: Any) -> np.dtype:
    """The dtype of tokens.

    Raises:
        ValueError: one that is not of whole numbers.
        TypeError: what is no dtype.
    """
    try:
        found: np.dtype = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be that of the tokens, such as numpy.uint16, got {given(dtype)}.") from error
    if found.kind not in "iu":
        raise ValueError(f"dtype must be of whole numbers, got {found}.")
    return found


def write_records(
    path: str, tokens: Iterable[np.ndarray], dtype: np.dtype, *, record_tokens: int = RECORD_TOKENS
) -> int:
    """Writes one ArrayRecord shard of tokens, uncompressed; returns how many tokens there were."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    unwritten, total = np.zeros(0, dtype), 0
    for part in tokens:
        unwritten = np.concatenate([unwritten, part.astype(dtype, copy=False)])
        total += len(part)
        whole = len(unwritten) // record_tokens * record_tokens
        for start in range(0, whole, record_tokens):
            writer.write(unwritten[start : start + record_tokens].tobytes())
        unwritten = unwritten[whole:]
    if len(unwritten):
        writer.write(unwritten.tobytes())
    writer.close()
    return total


def _short(error: Exception) -> str:
    return json.dumps(str(error).splitlines()[0][:160] if str(error) else type(error).__name__)
