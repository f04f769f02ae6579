"""Sources that are tokens already: `.npy`, and `.bin` of raw ids. What does not fit the tokenizer is refused.

Files whose ids have the corpus' own width stay where they are and only get checksums; others are copied in that width.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtune_jax.data.corpora.config import DomainConfig, array_file
from vtune_jax.data.tokens.manifest import SIDES, Side
from vtune_jax.errors import UserError

_AT_ONCE = 1 << 21  # tokens looked at
_INDEX = b"MMIDIDX\x00\x00"  # how an index of Megatron begins
_INDEX_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_HEADERS = {20240520: "uint16", 20240801: "uint32"}
"""First number of the header of 256 that llm.c and its followers write, and what comes after it."""


class Stretch(NamedTuple):
    """One side of a domain: a part of a file of tokens."""

    path: Path  # absolute
    array: np.ndarray  # of the whole file, mapped, with the ids as they are stored
    first: int
    stop: int

    def tokens(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The ids of this side in another width, piece by piece."""
        for start in range(self.first, self.stop, _AT_ONCE):
            yield self.array[start : min(start + _AT_ONCE, self.stop)].astype(dtype)


def sides_of(
    domain: DomainConfig, dtype: np.dtype, vocabulary: int, end: int, heldout_fraction: float
) -> dict[Side, Stretch]:
    """Both sides of a domain: its own held-out file, or else its last documents.

    Args:
        domain: whose source is tokens.
        dtype: of the corpus, and of a `.bin` that has no `dtype` of its own.
        vocabulary: number of ids that the tokenizer has.
        end: the end-of-text token, at which the source is split.
        heldout_fraction: of the tokens, at most.

    Raises:
        UserError: a file that is missing, damaged, of another width, not of this tokenizer, or not to be split.
    """
    sources: dict[Side, str] = {"train": domain.source, "heldout": domain.heldout or domain.source}
    found: dict[Side, Stretch] = {}
    for side in SIDES:
        path = array_file(domain, sources[side]).absolute()
        array = _opened(domain, path, dtype)
        _assert_ids(domain, path, array, vocabulary)
        first, stop = 0, len(array)
        if not domain.heldout:
            cut = _last_documents(array, heldout_fraction, end)
            if not 0 < cut < len(array):
                raise UserError(
                    f"domain '{domain.name}' ({sources[side]}) has no end-of-text token {end} to split it at",
                    "give the domain its own heldout tokens",
                )
            first, stop = (0, cut) if side == "train" else (cut, len(array))
        found[side] = Stretch(path, array, first, stop)
    return found


def _opened(domain: DomainConfig, path: Path, dtype: np.dtype) -> np.ndarray:
    """The ids of a file, mapped; a file whose bytes mean something else is refused."""
    where = f"domain '{domain.name}': {path}"
    if path.suffix.lower() == ".npy":
        try:
            array: np.ndarray = np.load(path, mmap_mode="r")
        # A damaged header is read as Python, which fails in many ways.
        except Exception as error:
            raise UserError(f"{where} is no .npy file ({error!s:.80})", "save it with np.save") from error
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UserError(
                f"{where} holds {array.dtype} of {array.ndim} dimensions, not whole numbers of one",
                f"save it as np.save(path, tokens.ravel().astype('{dtype}'))",
            )
        if not len(array):
            raise UserError(f"{where} holds no token", "give a file of tokens")
        return array
    stored = np.dtype(domain.dtype).newbyteorder("<") if domain.dtype else dtype
    _assert_raw(where, path, stored)
    return np.memmap(path, stored, "r")


def _assert_raw(where: str, path: Path, dtype: np.dtype) -> None:
    """Refuses a `.bin` that by all evidence holds something else than ids of this type."""
    size, width = path.stat().st_size, dtype.itemsize
    with path.open("rb") as file:
        head = file.read(1024)
    magic = struct.unpack("<i", head[:4])[0] if len(head) == 1024 else 0
    if magic in _HEADERS:
        raise UserError(
            f"{where} begins with the header of llm.c, and holds {_HEADERS[magic]} after it",
            f'cut it off (tail -c +1025 FILE > OTHER) and set dtype = "{_HEADERS[magic]}" for the domain',
        )
    indexed = _type_by_index(path)
    if indexed is not None and indexed.newbyteorder("=") != dtype.newbyteorder("="):
        fix = f'set dtype = "{indexed.name}" for the domain'
        if indexed.name not in ("uint16", "uint32", "int32", "int64"):
            fix = f"write it as np.fromfile(path, '{indexed.str}').astype('{dtype.str}').tofile(other)"
        raise UserError(f"{where} holds {indexed.name} by the index beside it, and is read as {dtype.name}", fix)
    if not size or size % width:
        raise UserError(
            f"{where} has {size:,} bytes, but holds tokens of {width} bytes each",
            "set dtype to what it was written as, or write it again",
        )
    # The upper half of small numbers of four bytes, as other programs write them, is 0.
    if width == 2 and size % 4 == 0:
        array = np.memmap(path, dtype, "r")
        if not array[1:_AT_ONCE:2].any() and array[0:_AT_ONCE:2].any():
            raise UserError(
                f"{where} holds tokens of 4 bytes (every second of two bytes is 0); it is read as {dtype.name}",
                'set dtype = "uint32" for the domain',
            )


def _type_by_index(path: Path) -> np.dtype | None:
    """What an index of Megatron beside the file says that it holds."""
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None
    with index.open("rb") as file:
        head = file.read(len(_INDEX) + 9)
    if not head.startswith(_INDEX) or len(head) < len(_INDEX) + 9:
        return None
    code = _INDEX_TYPES.get(head[-1])
    return None if code is None else np.dtype(code)


def _assert_ids(domain: DomainConfig, path: Path, array: np.ndarray, vocabulary: int) -> None:
    """Refuses ids that the tokenizer does not have."""
    for start in range(0, len(array), _AT_ONCE):
        piece = array[start : start + _AT_ONCE]
        for worst in (int(piece.max()), int(piece.min())):
            if not 0 <= worst < vocabulary:
                narrow = worst >= 2**16 and array.dtype.itemsize > 2 and path.suffix.lower() != ".npy"
                raise UserError(
                    f"domain '{domain.name}': {path} holds the token {worst}, the tokenizer has {vocabulary}",
                    "give the tokenizer that the tokens were made with as corpus.tokenizer.file"
                    + (', or set dtype = "uint16" if they have two bytes each' if narrow else ""),
                )


def _last_documents(array: np.ndarray, fraction: float, end: int) -> int:
    """The first token of a document from which on at most `fraction` of the tokens remain."""
    earliest = int(len(array) * (1 - fraction))
    for start in range(earliest, len(array), _AT_ONCE):
        ends = np.flatnonzero(array[start : start + _AT_ONCE] == end)
        if ends.size:
            return start + int(ends[0]) + 1
    return len(array)
