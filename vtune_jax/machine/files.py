"""Files that are written whole or not at all, JSON, and hashes of files."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file beside `path`, which takes its place when the block ends without an error.

    A process killed inside the block leaves `path` as it was, and the temporary file `NAME.tmp`, which the next
    writer of `path` overwrites. After an error the temporary file is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes the file `path` when the block ends without an error."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8."""
    with written_whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes `as_json(value)` whole or not at all, indented for people."""
    write_whole(path, as_json(value, indent=True))


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return orjson.loads(path.read_bytes())


def as_json(value: Any, *, indent: bool = False) -> bytes:
    """JSON in UTF-8 that ends with a newline; `orjson.loads` gives back the same values.

    Dataclasses become objects, tuples and arrays (numpy's and JAX's) become lists. NaN and infinities, which JSON
    lacks, become null.

    Args:
        value: keys must be strings, integers must fit into 64 bits.
        indent: by two spaces a level; otherwise all is on one line.

    Raises:
        TypeError: the value has no form in JSON.
    """
    return orjson.dumps(value, default=_plain, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2 * indent)


def _plain(value: Any) -> Any:
    # orjson could write numpy arrays itself, but float32 in the fewest digits that tell float32 values apart: 0.1, and
    # not the 0.10000000149011612 that it is. Whoever reads a float64 would get another number.
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):  # a NamedTuple
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal; empty if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
