"""Memory-mapped files of tokens: a whole file, a domain's section of it, and checks for lost or damaged bytes."""

import contextlib
import mmap
import os
import time
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np

from vtune_jax.core.checks import assert_whole, assert_within, given
from vtune_jax.data.tokens.array_record import as_token_dtype, assert_stretch
from vtune_jax.errors import UserError, told_by_the_system

CHECK_BYTES = 1 << 16
"""Bytes of a token file behind each of its checksums: no more than one page fault maps, so a check causes no further
fault."""

_NPY = b"\x93NUMPY"  # what every .npy file begins with

_LOOK_EVERY_S = 0.05  # seconds between two looks at whether the file is still there


class TokenMap:
    """A memory-mapped file of tokens; each stretch is compared with its checksum before it is read the first time."""

    def __init__(
        self, path: Path, dtype: np.dtype, *, checks: np.ndarray | None = None, patience: float = 30.0
    ) -> None:
        """Maps the file.

        Args:
            path: of raw tokens (`.bin`) or of a one-dimensional `.npy`.
            dtype: of the tokens, for raw ones.
            checks: CRC-32 of each `CHECK_BYTES` of its tokens; None: nothing is compared.
            patience: seconds to wait for a file that has vanished, with a network mount for instance, to come back.

        Raises:
            UserError: the file is missing, empty, cut off, or holds anything but whole numbers in one axis.
            ValueError: a dtype that is not of whole numbers, checks of another number, a negative patience.
            TypeError: what is no path, no dtype.
        """
        assert_within(patience=patience)
        self.path, self.patience = as_path(path), patience
        self.array = _mapped(self.path, as_token_dtype(dtype))
        self.dtype = self.array.dtype
        self.sections: list[tuple[int, str]] = []
        self._size = self.path.stat().st_size
        needed = -(-self.array.nbytes // CHECK_BYTES)
        if checks is not None and np.shape(checks) != (needed,):
            raise ValueError(f"checks must hold {needed} numbers for {self.path}, got shape {np.shape(checks)}.")
        self._looked = 0.0
        self._checks = checks
        self._sound = np.zeros(0 if checks is None else len(checks), bool)
        self._unseen = 0 if checks is None else len(checks)

    def __reduce__(self) -> Any:
        # Pickling the memory map itself would copy the whole file.
        return _reopened, (self.path, self.dtype, self._checks, self.patience, self.sections)

    def windows(self, start: np.ndarray, width: int) -> np.ndarray:
        """Stretches of `width` tokens from each `start` (int64) on, [starts, width].

        Raises:
            UserError: the tokens are lost or damaged.
        """
        self.assert_there(start)
        self.check(start, width)
        return windows(self.array, start, width)

    def assert_there(self, start: np.ndarray) -> None:
        """Waits for a file that has vanished or shrunk to come back.

        Reading a map past the end of its file would kill the process. The file is looked at twenty times a second at
        most.

        Args:
            start: tokens about to be read, for the message.

        Raises:
            UserError: it did not come back within `patience` seconds.
        """
        began = time.monotonic()
        if began - self._looked < _LOOK_EVERY_S:
            return
        waited = 0.05
        while (have := _size(self.path)) < self._size:
            if time.monotonic() - began > self.patience:
                lost = "has vanished" if have < 0 else f"has shrunk from {self._size:,} to {have:,} bytes"
                raise UserError(
                    f"the tokens of domain {self._domains(start)} are lost: {self.path} {lost}",
                    "bring the file back and run the same command again; it goes on from the saved state",
                )
            time.sleep(waited)
            waited = min(2 * waited, 2.0)
        self._looked = time.monotonic()

    def check(self, start: np.ndarray, tokens: int | np.ndarray) -> None:
        """Compares what is about to be read with its checksums, unless an earlier call has done so.

        Args:
            start: first tokens of the stretches, int64.
            tokens: how many in each stretch.

        Raises:
            UserError: a checksum differs; the message names domain, file and offset.
        """
        if not self._unseen:
            return
        width = self.dtype.itemsize
        first, last = start * width // CHECK_BYTES, ((start + tokens) * width - 1) // CHECK_BYTES
        for ahead in range(int((last - first).max(initial=-1)) + 1):
            place = np.minimum(first + ahead, last)
            fresh = ~self._sound[place]
            if fresh.any():
                self._compare(np.unique(place[fresh]), start[fresh])

    def _compare(self, places: np.ndarray, start: np.ndarray) -> None:
        assert self._checks is not None
        per_check = CHECK_BYTES // self.dtype.itemsize
        for place in places.tolist():
            stretch = self.array[place * per_check : (place + 1) * per_check]
            if zlib.crc32(stretch.view(np.uint8).data) != self._checks[place]:
                inside = start[(start < (place + 1) * per_check) & (start >= (place - 1) * per_check)]
                raise UserError(
                    f"the tokens of domain {self._domains(inside if inside.size else start)} are damaged: {self.path}, "
                    f"bytes {place * CHECK_BYTES:,} to {place * CHECK_BYTES + stretch.nbytes:,} of its tokens differ "
                    "from their checksum",
                    "prepare the corpus again, or restore the file; the same command then goes on",
                )
        self._sound[places] = True
        self._unseen = int((~self._sound).sum())

    def _domains(self, start: np.ndarray) -> str:
        firsts = [first for first, _ in self.sections]
        found: np.ndarray = np.unique(np.searchsorted(firsts, start, side="right") - 1) if firsts else np.zeros(0, int)
        return ", ".join(repr(self.sections[index][1]) for index in found)

    def release(self) -> None:
        """Unmaps the pages read so far from the process; they stay in the system's page cache."""
        self._advise("MADV_DONTNEED")

    def read_sparsely(self) -> None:
        """Asks the system to map some 200 KB around what is read instead of a huge page of 2 MiB."""
        self._advise("MADV_NOHUGEPAGE")

    def _advise(self, name: str) -> None:
        memory, advice = getattr(self.array, "_mmap", None), getattr(mmap, name, None)
        if memory is not None and advice is not None:
            # The system may refuse; the advice changes the memory used, not what is read.
            with contextlib.suppress(OSError):
                memory.madvise(advice)


class MappedTokens:
    """One domain's tokens: a section of a file."""

    def __init__(self, file: TokenMap, *, name: str, first: int = 0, count: int | None = None) -> None:
        """Copies nothing.

        Args:
            file: may hold the sections of many domains.
            name: of the domain, for messages.
            first: token of the file at which the section begins.
            count: tokens in the section; None: all from `first` on.

        Raises:
            ValueError: a section that is not within the file.
            TypeError: what is no `TokenMap`, no whole number.
        """
        if not isinstance(file, TokenMap):
            raise TypeError(f"file must be a TokenMap, got {given(file)}; MappedTokens.open opens a path.")
        assert_whole(0, len(file.array), first=first)
        self.file, self.name, self.start = file, name, first
        self.count = len(file.array) - first if count is None else count
        assert_whole(0, len(file.array) - first, count=self.count)
        self.dtype = file.dtype
        if (first, name) not in file.sections:
            file.sections = sorted([*file.sections, (first, name)])

    @classmethod
    def open(cls, path: Path, dtype: np.dtype, *, name: str, **options: Any) -> Self:
        """A whole file as one domain; options and errors are those of `TokenMap`."""
        return cls(TokenMap(path, dtype, **options), name=name)

    @property
    def array(self) -> np.ndarray:
        """The tokens, unchecked."""
        return self.file.array[self.start : self.start + self.count]

    def __len__(self) -> int:
        return self.count

    def slice(self, start: int, stop: int) -> np.ndarray:
        """See `TokenSource`."""
        assert_stretch(self, start, stop)
        first = np.array([self.start + start])
        self.file.assert_there(first)
        self.file.check(first, stop - start)
        return np.array(self.array[start:stop])

    def windows(self, start: np.ndarray, width: int) -> np.ndarray:
        """Stretches of `width` tokens from each `start` on, [starts, width]."""
        return self.file.windows(start + self.start, width)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The tokens of a file, mapped.

    Raises:
        UserError: see `TokenMap`.
    """
    npy = path.suffix.lower() == ".npy"
    fix = "write the tokens again, whole numbers in one axis" if npy else "write the file again, or correct its dtype"
    try:
        with path.open("rb") as file:
            begins = file.read(len(_NPY))
        if npy and begins not in (_NPY, b""):
            raise UserError(f"{path} is no .npy file", fix)
        array: np.ndarray = np.load(path, mmap_mode="r") if npy else np.memmap(path, dtype, "r")
    except UserError:
        raise
    except OSError as error:
        raise told_by_the_system(error) or UserError(f"{path} cannot be read ({_short(error)})", fix) from error
    except Exception as error:
        # Whatever a broken header leads to: ValueError, EOFError, errors of Python's own parser.
        size = path.stat().st_size
        if size and not npy:
            problem = f"{path} has {size:,} bytes, no multiple of the {dtype.itemsize} bytes of a token ({dtype})"
        else:
            problem = f"{path} is damaged ({_short(error)})" if size else f"{path} is empty"
        raise UserError(problem, fix) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{path} holds {given(array)}, not tokens", fix)
    return array


def as_path(path: Any) -> Path:
    """A path from a path or a text.

    Raises:
        TypeError: what is neither.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path, got {given(path)}.")
    return Path(path)


def windows(tokens: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """Stretches of an array, which may overlap, [starts, width].

    Each stretch is one item of an array whose stride is one token, so numpy copies it whole: a quarter faster than
    indexing along an axis, and one call serves all domains of a file.
    """
    size = tokens.dtype.itemsize
    items = np.ndarray((max(0, len(tokens) - width + 1),), np.dtype((np.void, width * size)), tokens, strides=(size,))
    stretches: np.ndarray = items[start].view(tokens.dtype).reshape(len(start), width)
    return stretches


def checksums(tokens: np.ndarray) -> np.ndarray:
    """CRC-32 of each `CHECK_BYTES` of an array of tokens."""
    each = CHECK_BYTES // tokens.dtype.itemsize
    parts = (tokens[start : start + each] for start in range(0, len(tokens), each))
    return np.array([zlib.crc32(part.view(np.uint8).data) for part in parts], np.uint32)


def _reopened(
    path: Path, dtype: np.dtype, checks: np.ndarray | None, patience: float, sections: list[tuple[int, str]]
) -> TokenMap:
    opened = TokenMap(path, dtype, checks=checks, patience=patience)
    opened.sections = sections
    return opened


def _short(error: BaseException) -> str:
    return f"{str(error).splitlines()[0].rstrip('.') if str(error) else type(error).__name__:.100}"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
