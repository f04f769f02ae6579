"""Documents from files: JSON lines (plain, gzip, zstd), text and parquet, one at a time."""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from vtune_jax.errors import UserError


class Reader:
    """Reads the documents of files; counts what it skips."""

    def __init__(self, *, text_field: str = "text", skip_bad: bool = False) -> None:
        """Nothing is opened yet.

        Args:
            text_field: of a JSON object or a parquet table that holds the text.
            skip_bad: counts documents that cannot be read in `skipped`, instead of raising.
        """
        self._text_field = text_field
        self._skip_bad = skip_bad
        self.skipped = 0

    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file.

        Raises:
            UserError: a document, or the whole file, that cannot be read, with file and line.
        """
        suffix = _suffix(path)
        try:
            yield from READERS[suffix](self, path)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{path} is damaged ({error})", "fetch or compress it again") from error

    def _bad(self, where: str, problem: str, fix: str) -> None:
        if not self._skip_bad:
            raise UserError(f"{where}: {problem}", f"{fix}, or pass --skip-bad to skip and count such documents")
        self.skipped += 1

    def _json_lines(self, path: Path) -> Iterator[str]:
        with _binary(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    text = self._json_text(line, f"{path}, line {number}")
                    if text is not None:
                        yield text

    def _json_text(self, line: bytes, where: str) -> str | None:
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            self._bad(where, f"not UTF-8 (byte {error.start + 1} of the line)", "convert the file to UTF-8")
            return None
        except json.JSONDecodeError as error:
            self._bad(where, f"broken JSON ({error.msg}, column {error.colno})", "mend the line")
            return None
        if not isinstance(record, dict) or self._text_field not in record:
            found = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            self._bad(where, f"no field '{self._text_field}'; found {found}", "set text_field to the right name")
            return None
        text = record[self._text_field]
        if not isinstance(text, str):
            self._bad(where, f"field '{self._text_field}' is no string but {text!r:.40}", "set text_field to a text")
            return None
        return text

    def _text(self, path: Path) -> Iterator[str]:
        with _binary(path) as file:
            content = file.read()
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError as error:
            self._bad(str(path), f"not UTF-8 (byte {error.start + 1})", "convert the file to UTF-8")

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            columns = file.schema_arrow.names
            if self._text_field not in columns:
                raise UserError(
                    f"{path}: no column '{self._text_field}'; found {', '.join(map(repr, columns))}",
                    "set text_field to the right name",
                )
            row = 0
            for batch in file.iter_batches(columns=[self._text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    if isinstance(value, str):
                        yield value
                    else:
                        problem = f"column '{self._text_field}' is no string but {value!r:.40}"
                        self._bad(f"{path}, row {row}", problem, "set text_field to a text column")
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is no readable parquet file ({reason})", "write it again") from error


READERS: dict[str, Callable[[Reader, Path], Iterator[str]]] = {
    ".jsonl": Reader._json_lines,
    ".jsonl.gz": Reader._json_lines,
    ".jsonl.zst": Reader._json_lines,
    ".txt": Reader._text,
    ".txt.gz": Reader._text,
    ".txt.zst": Reader._text,
    ".parquet": Reader._parquet,
}


def files_of(source: str, domain: str) -> list[Path]:
    """The files that a source names: a file, a folder (with all below it) or a glob; sorted.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    path = Path(source)
    supported = ", ".join(READERS)
    if path.is_file():
        if _suffix(path) not in READERS:
            raise UserError(f"domain '{domain}': {path} has an unknown format", f"use one of {supported}")
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in READERS)
    else:
        found = sorted(Path(match) for match in glob.glob(source, recursive=True) if _suffix(Path(match)) in READERS)
    if not found:
        what = "holds no file that can be read" if path.is_dir() else "does not exist"
        raise UserError(f"domain '{domain}': {source} {what}", f"give a file, folder or glob of {supported}")
    return found


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), path.suffix)


def _binary(path: Path) -> io.BufferedReader | IO[bytes]:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")
