"""Reading planned rows out of the stores: in the calling thread, in other threads or in processes.

A worker process imports this module and the stores' own, none of which needs jax or grain, so that it starts quickly.
"""

import mmap
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Literal, NamedTuple

import numpy as np

from vtune_jax.data.tokens.mapped import MappedTokens
from vtune_jax.data.tokens.rows import Rows, RowStore, TokenRows

RESIDENT_BYTES = 96 << 20
"""About how much of large memory maps may be mapped into the process; the rest stays in the system's page cache."""
LARGE_BYTES = 512 << 20
"""Memory maps that are together smaller than this are never released: mapping their pages again costs more time."""

_ROWS_BETWEEN_LOOKS = 32  # rows of a large map read between two looks at its size: each row maps 64 KB to 2 MB

Workers = Literal["threads", "processes"]
"""What reads ahead: threads share the stores, processes get a copy each."""


class RowReader:
    """Gathers rows of several domains into one batch."""

    def __init__(self, stores: Sequence[RowStore]) -> None:
        self.stores = tuple(stores)
        sources = [getattr(store, "source", None) for store in self.stores]
        mapped = [source.file for source in sources if isinstance(source, MappedTokens)]
        self._files = list({id(file): file for file in mapped}.values())
        self._releases = sum(file.array.nbytes for file in self._files) > LARGE_BYTES
        self._mapped_at_start = _mapped_bytes()
        for file in self._files if self._releases else ():
            file.read_sparsely()
        # If all domains are rows of one length in one file, one gather reads them in the order of the batch.
        alike = len({store.length for store in self.stores}) == len(self._files) == 1
        self.in_one_gather = alike and all(
            isinstance(store, TokenRows) and isinstance(store.source, MappedTokens) for store in self.stores
        )
        self._first = np.array([source.start if isinstance(source, MappedTokens) else 0 for source in sources])
        self._rows = np.array([len(store) for store in self.stores])

    def read(self, domain: np.ndarray, row: np.ndarray) -> Rows:
        """Rows in the order of the arguments, as named arrays [places, ...].

        Args:
            domain: index, [places].
            row: within its domain, [places].

        Raises:
            IndexError: a row that does not exist.
            UserError: the tokens of a domain are lost or damaged.
        """
        if not self._releases:
            return self._read(domain, row)
        parts = []
        for start in range(0, len(domain), _ROWS_BETWEEN_LOOKS):
            here = slice(start, start + _ROWS_BETWEEN_LOOKS)
            parts.append(self._read(domain[here], row[here]))
            if _mapped_bytes() - self._mapped_at_start > RESIDENT_BYTES:
                for file in self._files:
                    file.release()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, domain: np.ndarray, row: np.ndarray) -> Rows:
        if not self.in_one_gather:
            return self._by_domain(domain, row)
        if (row >= self._rows[domain]).any():
            raise IndexError(f"a row past the end was asked for; the domains have {self._rows.tolist()}.")
        length = self.stores[0].length
        return {"tokens": self._files[0].windows(self._first[domain] + row.astype(np.int64) * length, length + 1)}

    def _by_domain(self, domain: np.ndarray, row: np.ndarray) -> Rows:
        out: Rows = {}
        order = np.argsort(domain.astype(np.uint16) if len(self.stores) < 1 << 16 else domain, kind="stable")
        ends = np.bincount(domain, minlength=len(self.stores)).cumsum()
        for index, store in enumerate(self.stores):
            mine = order[ends[index - 1] if index else 0 : ends[index]]
            if not mine.size:
                continue
            part = store.read(row[mine])
            if mine.size == len(domain):
                return part
            for name, rows in part.items():
                if name not in out:
                    out[name] = np.empty((len(domain), *rows.shape[1:]), rows.dtype)
                # Seen as one item, a row is copied whole.
                item = np.dtype((np.void, rows[0].nbytes))
                out[name].view(item)[mine] = rows.view(item)
        return out


class _Unread(NamedTuple):
    """In place of a future where there are no workers: the rows are read when the result is asked for."""

    reader: RowReader
    domain: np.ndarray
    row: np.ndarray

    def result(self) -> Rows:
        return self.reader.read(self.domain, self.row)

    def cancel(self) -> bool:
        return True


class Pool:
    """Workers that read while the caller computes; without workers, rows are read when the result is asked for."""

    def __init__(self, reader: RowReader, workers: int, kind: Workers) -> None:
        """Starts nothing until the first call.

        Args:
            reader: copied to each process, shared by threads.
            workers: how many; 0: the calling thread reads.
            kind: threads, or processes for stores whose reading holds Python's lock. Processes answer through a pipe,
                so no shared memory is left behind, and each ends by itself when its parent is killed.
        """
        self.workers = workers
        self._reader = reader
        self._executor: Executor | None = None
        self._lifeline: Connection | None = None
        self._kind = kind
        if workers and kind == "threads":
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix="rows")
        elif workers:
            context = multiprocessing.get_context("spawn")
            receiver, self._lifeline = context.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_begin, initargs=(reader, receiver)
            )

    def submit(self, domain: np.ndarray, row: np.ndarray) -> Future[Rows] | _Unread:
        """Starts reading."""
        if self._executor is None:
            return _Unread(self._reader, domain, row)
        if self._kind == "threads":
            return self._executor.submit(self._reader.read, domain, row)
        return self._executor.submit(_read, domain, row)

    def close(self) -> None:
        """Drops reads that have not begun and ends the workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if self._lifeline is not None:
            self._lifeline.close()


_worker_reader: RowReader


def _begin(reader: RowReader, lifeline: Connection) -> None:
    """Runs first in each worker process."""
    global _worker_reader
    _worker_reader = reader
    threading.Thread(target=_end_with_lifeline, args=(lifeline,), daemon=True).start()


def _end_with_lifeline(lifeline: Connection) -> None:
    # The other end of the pipe is closed by `Pool.close`, or by the system when the parent is killed; a worker that
    # waits for work would not notice either. Workers only read, so ending at once loses nothing.
    parent = multiprocessing.parent_process()
    wait([lifeline] if parent is None else [lifeline, parent.sentinel])
    os._exit(0)


def _read(domain: np.ndarray, row: np.ndarray) -> Rows:
    return _worker_reader.read(domain, row)


def _mapped_bytes() -> int:
    """Bytes of files that are mapped into this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0
