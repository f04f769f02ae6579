"""Reading planned rows out of the stores: here, in threads or in processes."""

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
"""About how much of large memory maps may stay in the process; the rest stays in the system's page cache only."""
LARGE_BYTES = 512 << 20
"""Memory maps that are smaller than this together are left alone: to fault pages in again takes longer than reading."""

_ROWS_BETWEEN_LOOKS = 32  # of a large map: a row has been seen to map from 64 KB to 2 MB around it

Workers = Literal["threads", "processes"]


class Reader:
    """Gathers rows of several domains into one batch."""

    def __init__(self, stores: Sequence[RowStore]) -> None:
        self.stores = tuple(stores)
        sources = [getattr(store, "source", None) for store in self.stores]
        self._files = list({id(s.file): s.file for s in sources if isinstance(s, MappedTokens)}.values())
        self._releases = sum(file.array.nbytes for file in self._files) > LARGE_BYTES
        self._before = _mapped_bytes()
        for file in self._files if self._releases else ():
            file.read_sparsely()
        # Domains in one file are read by one gather, in the order that is wanted.
        alike = len({store.length for store in self.stores}) == len(self._files) == 1
        self._one = alike and all(
            isinstance(store, TokenRows) and isinstance(store.source, MappedTokens) for store in self.stores
        )
        self._first = np.array([source.start if isinstance(source, MappedTokens) else 0 for source in sources])
        self._rows = np.array([len(store) for store in self.stores])

    def read(self, domain: np.ndarray, row: np.ndarray) -> Rows:
        """Rows in the given order: any number of places, named arrays with that leading axis."""
        if not self._releases:
            return self._read(domain, row)
        parts = []
        for start in range(0, len(domain), _ROWS_BETWEEN_LOOKS):
            here = slice(start, start + _ROWS_BETWEEN_LOOKS)
            parts.append(self._read(domain[here], row[here]))
            if _mapped_bytes() - self._before > RESIDENT_BYTES:
                for file in self._files:
                    file.release()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, domain: np.ndarray, row: np.ndarray) -> Rows:
        if not self._one:
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
                # As one item a row is copied whole.
                item = np.dtype((np.void, rows[0].nbytes))
                out[name].view(item)[mine] = rows.view(item)
        return out


class Pool:
    """Workers that read while the caller computes; without any, reading happens when the result is asked for."""

    def __init__(self, reader: Reader, workers: int, kind: Workers) -> None:
        """Starts nothing until the first call.

        Args:
            reader: copied to each process, shared by threads.
            workers: how many; 0 reads in the calling thread.
            kind: threads, or processes for stores whose reading holds Python's lock. Processes answer through a pipe:
                no shared memory is left behind, and each ends by itself when its parent is killed.
        """
        self.workers = workers
        self._reader = reader
        self._executor: Executor | None = None
        self._held: Connection | None = None
        self._kind = kind
        if workers and kind == "threads":
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix="rows")
        elif workers:
            context = multiprocessing.get_context("spawn")
            here, self._held = context.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_begin, initargs=(reader, here)
            )

    def submit(self, domain: np.ndarray, row: np.ndarray) -> "Future[Rows] | _Now":
        """Starts reading."""
        if self._executor is None:
            return _Now(self._reader, domain, row)
        if self._kind == "threads":
            return self._executor.submit(self._reader.read, domain, row)
        return self._executor.submit(_read, domain, row)

    def close(self) -> None:
        """Drops what is not begun and lets the workers end."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if self._held is not None:
            self._held.close()


class _Now(NamedTuple):
    """What a future is where nobody else works: reading happens when it is asked for."""

    reader: Reader
    domain: np.ndarray
    row: np.ndarray

    def result(self) -> Rows:
        return self.reader.read(self.domain, self.row)

    def cancel(self) -> bool:
        return True


_here: Reader


def _begin(reader: Reader, held: Connection) -> None:
    """Runs first in each worker process."""
    global _here
    _here = reader
    threading.Thread(target=_end_when_let_go, args=(held,), daemon=True).start()


def _end_when_let_go(held: Connection) -> None:
    # The other end is closed by `close`, or by the system when the parent is killed, of which a worker that waits for
    # work would never hear. Nothing is lost by ending at once: workers only read.
    parent = multiprocessing.parent_process()
    wait([held] if parent is None else [held, parent.sentinel])
    os._exit(0)


def _read(domain: np.ndarray, row: np.ndarray) -> Rows:
    return _here.read(domain, row)


def _mapped_bytes() -> int:
    """Pages of files that are mapped in this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0
