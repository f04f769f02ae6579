"""Documents from files, one at a time: JSON lines and text (plain, gzip, zstd), parquet, Arrow, ArrayRecord.

A file of JSON lines or of parquet can be read in spans, so that several workers share a large file.
"""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from vtune_jax.errors import UserError

Span = tuple[int, int]
"""First and last (not included): bytes of a file of JSON lines, or row groups of a parquet file."""


class DocumentReader:
    """Reads the documents of files, and counts those it skips."""

    def __init__(self, *, text_field: str = "text", skip_bad: bool = False) -> None:
        """Opens nothing.

        Args:
            text_field: the field of a JSON object, or the column of a table, that holds the text.
            skip_bad: documents that cannot be read are counted in `skipped` instead of raising.
        """
        self._text_field = text_field
        self._skip_bad = skip_bad
        self.skipped = 0

    def read(self, path: Path, span: Span | None = None) -> Iterator[str]:
        """The documents of one file.

        Args:
            path: of the file.
            span: only this part of the file, from `spans`; None: all of it.

        Raises:
            UserError: a document, or the whole file, cannot be read; the message names file and line.
        """
        suffix = _suffix(path)
        try:
            yield from READERS[suffix](self, path) if span is None else _IN_PARTS[suffix][1](self, path, span)
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

    def _json_lines_within(self, path: Path, span: Span) -> Iterator[str]:
        first, last = span
        with path.open("rb") as file:
            if first:
                # A line belongs to the span in which it begins.
                file.seek(first - 1)
                file.readline()
            while (start := file.tell()) < last and (line := file.readline()):
                if line.strip():
                    text = self._json_text(line, f"{path}, the line at byte {start:,}")
                    if text is not None:
                        yield text

    def _text(self, path: Path) -> Iterator[str]:
        with _binary(path) as file:
            content = file.read()
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError as error:
            self._bad(str(path), f"not UTF-8 (byte {error.start + 1})", "convert the file to UTF-8")

    def _parquet(self, path: Path, span: Span | None = None) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            self._assert_column(path, file.schema_arrow.names)
            groups = list(range(*span) if span else range(file.num_row_groups))
            first_row = sum(file.metadata.row_group(group).num_rows for group in range(groups[0])) if groups else 0
            batches = file.iter_batches(batch_size=1024, row_groups=groups, columns=[self._text_field])
            yield from self._column(path, batches, first_row)
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is no readable parquet file ({reason})", "write it again") from error

    def _arrow(self, path: Path) -> Iterator[str]:
        """Arrow's stream form, which Hugging Face's datasets write, or its file form."""
        import pyarrow

        try:
            with pyarrow.memory_map(str(path)) as memory:
                try:
                    reader = pyarrow.ipc.open_stream(memory)
                    batches: Iterable[Any] = reader
                except pyarrow.ArrowInvalid:
                    reader = pyarrow.ipc.open_file(memory)
                    batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                self._assert_column(path, reader.schema.names)
                yield from self._column(path, (batch.select([self._text_field]) for batch in batches), 0)
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is no readable Arrow file ({reason})", "write it again") from error

    def _array_record(self, path: Path) -> Iterator[str]:
        """Records of UTF-8 text, or of JSON objects that have the text field."""
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(path))
            count = reader.num_records()
            for first in range(0, count, 256):
                for number, record in enumerate(reader.read(first, min(first + 256, count)), start=first + 1):
                    text = self._record_text(record, f"{path}, record {number:,}")
                    if text is not None:
                        yield text
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{path} is damaged ({error!s:.160})", "write it again") from error
        if not count:
            raise UserError(f"{path} holds no record; it is empty or cut off", "write it again")

    def _record_text(self, record: bytes, where: str) -> str | None:
        try:
            text = record.decode("utf-8")
        except UnicodeDecodeError as error:
            self._bad(where, f"neither text nor JSON (byte {error.start + 1})", "store documents as UTF-8 text")
            return None
        if text.startswith("{"):
            try:
                found = json.loads(text)
            except json.JSONDecodeError:
                return text
            if isinstance(found, dict):
                return self._json_text(record, where)
        return text

    def _assert_column(self, path: Path, columns: list[str]) -> None:
        if self._text_field not in columns:
            raise UserError(
                f"{path}: no column '{self._text_field}'; found {', '.join(map(repr, columns))}",
                "set text_field to the right name",
            )

    def _column(self, path: Path, batches: Iterable[Any], row: int) -> Iterator[str]:
        for batch in batches:
            for value in batch.column(0).to_pylist():
                row += 1
                if isinstance(value, str):
                    yield value
                else:
                    problem = f"column '{self._text_field}' is no string but {value!r:.40}"
                    self._bad(f"{path}, row {row}", problem, "set text_field to a text column")


READERS: dict[str, Callable[[DocumentReader, Path], Iterator[str]]] = {
    ".jsonl": DocumentReader._json_lines,
    ".jsonl.gz": DocumentReader._json_lines,
    ".jsonl.zst": DocumentReader._json_lines,
    ".txt": DocumentReader._text,
    ".txt.gz": DocumentReader._text,
    ".txt.zst": DocumentReader._text,
    ".parquet": DocumentReader._parquet,
    ".arrow": DocumentReader._arrow,
    ".array_record": DocumentReader._array_record,
    ".arrayrecord": DocumentReader._array_record,
}
SPAN_BYTES = 64 << 20
"""Files larger than this are read in parts of about this size, where their format allows it."""


def spans(path: Path, size: int = SPAN_BYTES) -> list[Span | None]:
    """Spans of about `size` bytes that cover a file; `[None]` if it is smaller or can be read as a whole only."""
    suffix = _suffix(path)
    if path.stat().st_size <= size or suffix not in _IN_PARTS:
        return [None]
    return list(_IN_PARTS[suffix][0](path, size))


def _byte_spans(path: Path, size: int) -> list[Span]:
    whole = path.stat().st_size
    return [(first, min(first + size, whole)) for first in range(0, whole, size)]


def _group_spans(path: Path, size: int) -> list[Span]:
    import pyarrow
    import pyarrow.parquet

    try:
        groups = pyarrow.parquet.ParquetFile(path).num_row_groups
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no readable parquet file ({reason})", "write it again") from error
    each = max(1, groups * size // path.stat().st_size)
    return [(first, min(first + each, groups)) for first in range(0, groups, each)]


_IN_PARTS: dict[
    str, tuple[Callable[[Path, int], list[Span]], Callable[[DocumentReader, Path, Span], Iterator[str]]]
] = {
    ".jsonl": (_byte_spans, DocumentReader._json_lines_within),
    ".parquet": (_group_spans, DocumentReader._parquet),
}


def files_of(source: str, domain: str) -> list[Path]:
    """The files that a source names, sorted: a file, all files below a folder, or those that match a glob.

    Raises:
        UserError: the source does not exist, or has no file of a known format.
    """
    path = Path(source)
    supported = ", ".join(READERS)
    if path.is_file():
        if _suffix(path) not in READERS:
            raise UserError(f"domain '{domain}': {path} has an unknown format", f"use one of {supported}")
        return [path]
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        found = _data_files(path)
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in READERS)
    else:
        found = sorted(Path(match) for match in glob.glob(source, recursive=True) if _suffix(Path(match)) in READERS)
    if not found:
        what = "holds no file that can be read" if path.is_dir() else "does not exist"
        raise UserError(f"domain '{domain}': {source} {what}", f"give a file, folder or glob of {supported}")
    return found


def _data_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face dataset saved to disk, without the caches that lie beside them."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    found = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise UserError(f"the dataset {folder} lacks its file {missing[0].name}", "save it to disk again")
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
