"""Compressed files, whole or not at all: one that is cut off is an error, never a shorter file."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What reading a damaged file raises."""
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark


class _Unzstd(io.RawIOBase):
    """All frames of a file, which has several if it was joined or written in parallel.

    The library's own reader takes a file that is cut off for one that ends.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._parts, self._rest = _frames(file), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    library = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, content = None, b""
    while content := content or file.read(1 << 14):
        frame = frame or library.decompressobj()
        yield frame.decompress(content)
        content = b""
        if frame.eof:
            content, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("it ends within a frame")


PACKED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".zst": lambda file: io.BufferedReader(_Unzstd(file)),
    ".zstd": lambda file: io.BufferedReader(_Unzstd(file)),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}
"""How the names of compressed files of text or JSON end, after the format's own ending."""


def packing_of(path: Path) -> str:
    """The ending of a compressed file's name, a key of `PACKED`; empty if it is not compressed."""
    return next((ending for ending in PACKED if path.name.lower().endswith(ending)), "")


@contextmanager
def binary(path: Path) -> Iterator[IO[bytes]]:
    """The file's content, uncompressed."""
    packing = packing_of(path)
    with path.open("rb") as file:
        yield PACKED[packing](file) if packing else file


def first_line(path: Path) -> bytes:
    """The first line that is not blank, without a byte order mark."""
    with binary(path) as file:
        line = next((line for line in file if line.strip()), b"")
    return line.removeprefix(MARK).lstrip()
