"""Documents from files, one at a time: JSON lines and text (plain or compressed), parquet, Arrow, ArrayRecord.

A file of JSON lines or of parquet can be read in spans, so that several workers share a large file.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vtune_jax.data.corpora.compressed import DAMAGED, MARK, binary, first_line, packing_of
from vtune_jax.data.corpora.texts import example_turn, joined_turns
from vtune_jax.errors import UserError

Span = tuple[int, int]
"""First and last (not included): bytes of a file of JSON lines, or row groups of a parquet file."""


class DocumentReader:
    """Reads the documents of files, and counts those it skips."""

    def __init__(self, *, text_field: str = "text", turn: str = "", skip_bad: bool = False) -> None:
        """Opens nothing.

        Args:
            text_field: the field of a JSON object, or the column of a table, that holds the text; `a.b` is the field b
                of the object a, if no field has that name itself.
            turn: how each message of a list of messages becomes text, see `texts.joined_turns`; empty: lists are bad.
            skip_bad: documents that cannot be read are counted in `skipped` instead of raising.
        """
        self._text_field, self._turn = text_field, turn
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
        kind = format_of(path)
        if kind is None:
            raise UserError(f"{path} has an unknown format", f"use one of {', '.join(FORMATS)}")
        try:
            yield from FORMATS[kind](self, path) if span is None else _IN_PARTS[kind][1](self, path, span)
        except DAMAGED as error:
            raise UserError(f"{path} is damaged ({error})", "fetch or compress it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})", "make the file readable") from error

    def _bad(self, where: str, problem: str, fix: str) -> None:
        if not self._skip_bad:
            raise UserError(f"{where}: {problem}", f"{fix}, or pass --skip-bad to skip and count such documents")
        self.skipped += 1

    def _json_lines(self, path: Path) -> Iterator[str]:
        with binary(path) as file:
            for number, line in enumerate(file, start=1):
                text = self._json_text(line, f"{path}, line {number}")
                if text is not None:
                    yield text

    def _json(self, path: Path) -> Iterator[str]:
        """Lines of objects, or one array of objects, which is held in memory."""
        if not first_line(path).startswith(b"["):
            yield from self._json_lines(path)
            return
        with binary(path) as file:
            content = file.read()
        records = self._parsed(content, str(path))
        for number, record in enumerate(records if isinstance(records, list) else [], start=1):
            text = self._text_of(record, f"{path}, entry {number}")
            if text is not None:
                yield text

    def _json_text(self, line: bytes, where: str) -> str | None:
        if not line.strip():
            return None
        record = self._parsed(line, where)
        return None if record is _NOTHING else self._text_of(record, where)

    def _parsed(self, content: bytes, where: str) -> Any:
        """The value, or `_NOTHING` after a word on what is wrong."""
        try:
            # A file of Windows begins with a mark, and so does each part of several that were joined.
            return _parse(content.removeprefix(MARK).decode("utf-8"))
        except UnicodeDecodeError as error:
            self._bad(where, f"not UTF-8 (byte {error.start + 1} of the line)", "convert the file to UTF-8")
        except json.JSONDecodeError as error:
            self._bad(where, f"broken JSON ({error.msg}, column {error.colno})", "mend the line")
        except RecursionError:
            self._bad(where, "JSON that is nested too deeply to be read", "keep the text alone")
        return _NOTHING

    def _text_of(self, record: Any, where: str) -> str | None:
        value = _field(record, self._text_field)
        if value is _NOTHING:
            found = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a {type(record).__name__}"
            self._bad(where, f"no field '{self._text_field}'; found {found:.400}", "set text_field to the right name")
            return None
        return self._checked(value, where, "field")

    def _checked(self, value: Any, where: str, what: str) -> str | None:
        """The value if it is text that UTF-8 can hold; None, which is no document, stays None."""
        if value is None:
            return None
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                self._bad(where, f"not UTF-8 (byte {error.start + 1} of the text)", "convert it to UTF-8")
                return None
        if isinstance(value, list) and self._turn:
            try:
                value = joined_turns(value, self._turn)
            except KeyError as error:
                self._bad(
                    where, f"a message has no field {error}", f"set turn to fields that all have; it is {self._turn!r}"
                )
                return None
            except TypeError as error:
                self._bad(where, str(error), "leave turn out for lists of texts, and join them beforehand")
                return None
        if not isinstance(value, str):
            fix = "set text_field to a text"
            if isinstance(value, list):
                fix = "join the parts of each document into one text beforehand"
                if value and isinstance(value[0], dict):
                    fix = f'say how a turn becomes text, as turn = "{example_turn(value[0])}"'
            self._bad(where, f"{what} '{self._text_field}' is no string but {value!r:.40}", fix)
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"character {error.start + 1} of the text is half of a pair (a lone surrogate)"
            self._bad(where, problem, "mend the program that wrote it")
            return None
        return value

    def _json_lines_within(self, path: Path, span: Span) -> Iterator[str]:
        first, last = span
        with path.open("rb") as file:
            if first:
                # A line belongs to the span in which it begins.
                file.seek(first - 1)
                file.readline()
            while (start := file.tell()) < last and (line := file.readline()):
                text = self._json_text(line, f"{path}, the line at byte {start:,}")
                if text is not None:
                    yield text

    def _text(self, path: Path) -> Iterator[str]:
        with binary(path) as file:
            content = file.read()
        try:
            yield content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._bad(str(path), f"not UTF-8 (byte {error.start + 1})", "convert the file to UTF-8")

    def _parquet(self, path: Path, span: Span | None = None) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            groups = list(range(*span) if span else range(file.num_row_groups))
            first_row = sum(file.metadata.row_group(group).num_rows for group in range(groups[0])) if groups else 0
            column = self._column_of(path, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1024, row_groups=groups, columns=[column])
            yield from self._column(path, batches, first_row)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # also of names of columns
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
                column = self._column_of(path, reader.schema.names)
                yield from self._column(path, (batch.select([column]) for batch in batches), 0)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # also of names of columns
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
                found = _parse(text)
            except (ValueError, RecursionError):
                return text
            if isinstance(found, dict):
                return self._text_of(found, where)
        return text

    def _column_of(self, path: Path, columns: list[str]) -> str:
        """The column that has the text, or the object that does."""
        names = (self._text_field, self._text_field.partition(".")[0])
        column = next((name for name in names if name in columns), None)
        if column is None:
            raise UserError(
                f"{path}: no column '{self._text_field}'; found {', '.join(map(repr, columns)):.400}",
                "set text_field to the right name",
            )
        return column

    def _column(self, path: Path, batches: Iterable[Any], row: int) -> Iterator[str]:
        for batch in batches:
            name = batch.schema.names[0]
            for value in _values(batch.column(0), f"{path}, rows {row + 1} to {row + len(batch)}"):
                row += 1
                text = self._row_text({name: value}, f"{path}, row {row}")
                if text is not None:
                    yield text

    def _row_text(self, record: dict[str, Any], where: str) -> str | None:
        value = _field(record, self._text_field)
        # An object that is missing as a whole has no text either.
        return self._checked(None if value is _NOTHING else value, where, "column")


_NOTHING: Any = object()


def _values(column: Any, where: str) -> list[Any]:
    """The values of a column, texts as bytes: one that is no UTF-8 must not keep the others from being read.

    Arrow itself believes whatever a file says of where its values lie.
    """
    import pyarrow

    def plain(texts: Any) -> Any:
        for kind, as_bytes in ((pyarrow.string(), pyarrow.binary()), (pyarrow.large_string(), pyarrow.large_binary())):
            if texts.type == kind:
                texts = texts.cast(as_bytes)
        texts.validate(full=True)
        return texts

    if pyarrow.types.is_dictionary(column.type):
        column = pyarrow.DictionaryArray.from_arrays(column.indices, plain(column.dictionary)).dictionary_decode()
    column = plain(column)
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: a text is not UTF-8 ({error.reason})", "store texts as UTF-8") from error
    return values


def _parse(text: str) -> Any:
    """JSON, with integers of any length: Python refuses to read more than 4,300 digits."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def _field(record: Any, name: str) -> Any:
    """The field of that name; else, of `a.b`, the field b of the object a; `_NOTHING` if there is neither."""
    if not isinstance(record, dict):
        return _NOTHING
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    return _field(record[first], rest) if dot and first in record else _NOTHING


FORMATS: dict[str, Callable[[DocumentReader, Path], Iterator[str]]] = {
    ".jsonl": DocumentReader._json_lines,
    ".ndjson": DocumentReader._json_lines,
    ".jsonlines": DocumentReader._json_lines,
    ".json": DocumentReader._json,
    ".txt": DocumentReader._text,
    ".parquet": DocumentReader._parquet,
    ".parq": DocumentReader._parquet,
    ".arrow": DocumentReader._arrow,
    ".array_record": DocumentReader._array_record,
    ".arrayrecord": DocumentReader._array_record,
}
"""How the names of documents' files end, in small or capital letters."""
_PACKABLE = (".jsonl", ".ndjson", ".jsonlines", ".json", ".txt")
SPAN_BYTES = 64 << 20
"""Files larger than this are read in parts of about this size, where their format allows it."""


def spans(path: Path, size: int = SPAN_BYTES) -> list[Span | None]:
    """Spans of about `size` bytes that cover a file; `[None]` if it is smaller or can be read as a whole only."""
    kind = format_of(path)
    if path.stat().st_size <= size or kind not in _IN_PARTS or packing_of(path):
        return [None]
    return list(_IN_PARTS[kind][0](path, size))


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
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), (_byte_spans, DocumentReader._json_lines_within)),
    **dict.fromkeys((".parquet", ".parq"), (_group_spans, DocumentReader._parquet)),
}


def format_of(path: Path) -> str | None:
    """The format of a file by its name, a key of `FORMATS`; None if it is unknown."""
    packing = packing_of(path)
    name = path.name.lower().removesuffix(packing)
    kind = next((kind for kind in FORMATS if name.endswith(kind)), None)
    return kind if not packing or kind in _PACKABLE else None


def holds_lines(path: Path) -> bool:
    """Whether a `.json` holds documents, not settings: lines of whole objects, or an array of objects."""
    try:
        line = first_line(path)
        return line.startswith(b"[") or isinstance(_parse(line.decode("utf-8")), dict)
    except (*DAMAGED, ValueError, RecursionError):
        return False
