"""Files that are written whole or not at all, and hashes of files."""

import glob
import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vtune_jax.machine.json_values import as_json

TEMPORARY = ".tmp"
"""How the names of files end that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file beside `path`, which takes its place when the block ends without an error.

    A process killed inside the block leaves `path` as it was, and a temporary file, which the next process on the same
    machine that writes into the folder removes. Of two processes that write the same file at once, each writes it
    whole, and the last to end wins. After an error the temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}{TEMPORARY}")
    if path.parent not in _SWEPT:
        _SWEPT.add(path.parent)
        _sweep(path.parent)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


_SWEPT: set[Path] = set()
"""Folders that this process has looked through: they may hold many files, and are written to many times."""


def _sweep(folder: Path) -> None:
    """Removes the temporary files of this machine's processes that are no more."""
    for left in folder.glob(f"*.{glob.escape(platform.node())}-*{TEMPORARY}"):
        process = left.name.removesuffix(TEMPORARY).rpartition("-")[2]
        if process.isdigit() and not _lives(int(process)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def user_path(text: str) -> Path:
    """A path that a user has written, with `~` and `~NAME` for home folders: no shell sees what stands in a config."""
    path = Path(text)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # there is no such user, and cannot be
        return path


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return orjson.loads(path.read_bytes())


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal; empty if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
