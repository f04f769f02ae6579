import bz2
import gzip
import json
import lzma

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from vtune_jax.data.corpora.documents import DocumentReader, spans
from vtune_jax.errors import UserError

TEXTS = ["first text", "zweiter Text ä", "third\ntext"]
LINES = "".join(json.dumps({"text": text, "id": index}) + "\n" for index, text in enumerate(TEXTS)).encode()


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("A.JSONL", bytes),
        ("a.ndjson", bytes),
        ("a.jsonlines", bytes),
        ("a.json", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("A.JSON.GZ", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("a.ndjson.ZSTD", zstandard.ZstdCompressor().compress),
        ("a.json.xz", lzma.compress),
        ("a.jsonl.bz2", bz2.compress),
    ],
)
def test_json_lines_are_read_plain_and_packed(tmp_path, name, pack):
    assert list(DocumentReader().read(written(tmp_path, name, pack(LINES)))) == TEXTS


def test_a_text_file_is_one_document(tmp_path):
    assert list(DocumentReader().read(written(tmp_path, "a.txt", "ä\nb".encode()))) == ["ä\nb"]


def test_parquet_is_read_by_its_text_column(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS, "n": [1, 2, 3]}), path, row_group_size=2)
    assert list(DocumentReader(text_field="body").read(path)) == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES + b'{"text": \n', r"a.jsonl, line 4: broken JSON"),
        (LINES + b'{"body": "x"}\n', r"a.jsonl, line 4: no field 'text'; found 'body'"),
        (LINES + b"[1]\n", r"line 4: no field 'text'; found a list"),
        (LINES + b'{"text": 7}\n', r"line 4: field 'text' is no string but 7"),
        (LINES + b'{"text": "a\\ud800"}\n', r"line 4: character 2 of the text is half of a pair \(a lone surrogate\)"),
        (LINES + b'{"x": ' + 10**5 * b"[" + 10**5 * b"]" + b"}\n", r"line 4: JSON that is nested too deeply"),
        (
            LINES + b'{"text": [{"role": "user", "content": "x"}]}\n',
            r"is no string but .*turn = .\{role\}: \{content\}",
        ),
        (LINES + b'{"text": ["a", "b"]}\n', r"is no string but \['a', 'b'\].*join the parts of each document"),
        (LINES + b'{"text": "\xff"}\n', r"line 4: not UTF-8 \(byte 11 of the line\)"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, content, message):
    path = written(tmp_path, "a.jsonl", content)
    with pytest.raises(UserError, match=message):
        list(DocumentReader().read(path))
    patient = DocumentReader(skip_bad=True)
    assert list(patient.read(path)) == TEXTS
    assert patient.skipped == 1


@pytest.mark.parametrize("size", [1, 40, 10**9])
def test_large_files_of_lines_are_read_in_spans_whatever_their_name(tmp_path, size):
    path = written(tmp_path, "a.NDJSON", LINES)
    parts = spans(path, size)
    assert (len(parts) > 1) == (size < 100)
    assert [text for span in parts for text in DocumentReader().read(path, span)] == TEXTS


def test_frames_one_after_another_are_all_read(tmp_path):
    frame = zstandard.ZstdCompressor().compress(LINES)
    assert list(DocumentReader().read(written(tmp_path, "a.jsonl.zst", 3 * frame))) == 3 * TEXTS
    assert list(DocumentReader().read(written(tmp_path, "b.jsonl.gz", 2 * gzip.compress(LINES)))) == 2 * TEXTS


def test_byte_order_marks_are_no_part_of_the_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert list(DocumentReader().read(written(tmp_path, "a.jsonl", mark + LINES + mark + LINES))) == 2 * TEXTS
    assert list(DocumentReader().read(written(tmp_path, "a.txt", mark + b"x"))) == ["x"]
    assert list(DocumentReader().read(written(tmp_path, "a.json", mark + LINES))) == TEXTS


def test_an_array_of_objects_is_read_entry_by_entry(tmp_path):
    path = written(tmp_path, "a.json", json.dumps([{"text": text} for text in TEXTS], indent=1).encode())
    assert list(DocumentReader().read(path)) == TEXTS
    with pytest.raises(UserError, match=r"a.json, entry 2: no field 'text'; found 'body'"):
        list(DocumentReader().read(written(tmp_path, "a.json", b'[{"text": "x"},\n{"body": "y"}]')))
    with pytest.raises(UserError, match=r"a.json: broken JSON"):
        list(DocumentReader().read(written(tmp_path, "a.json", b'[{"text": "x"},\n')))


def test_numbers_beside_the_text_may_be_of_any_length(tmp_path):
    line = b'{"text": "x", "n": ' + 5000 * b"9" + b"}\n"
    assert list(DocumentReader().read(written(tmp_path, "a.jsonl", line))) == ["x"]


def test_a_dotted_field_goes_into_objects_and_an_exact_name_wins(tmp_path):
    lines = b'{"doc": {"text": "x"}}\n{"doc.text": "y", "doc": {"text": "z"}}\n{"doc": {"text": null}}\n'
    path = written(tmp_path, "a.jsonl", lines)
    assert list(DocumentReader(text_field="doc.text").read(path)) == ["x", "y"]
    with pytest.raises(UserError, match="no field 'doc.body'; found 'doc'"):
        list(DocumentReader(text_field="doc.body").read(path))
    table = pyarrow.table({"doc": [{"text": text, "n": 1} for text in TEXTS], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert list(DocumentReader(text_field="doc.text").read(tmp_path / "a.parquet")) == TEXTS
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    assert list(DocumentReader(text_field="doc.text").read(tmp_path / "a.arrow")) == TEXTS


def test_bytes_in_tables_are_text_and_missing_values_no_documents(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["ä".encode(), None, b"x"]}), path)
    assert list(DocumentReader().read(path)) == ["ä", "x"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"x", b"\xff"]}), path)
    with pytest.raises(UserError, match=r"row 2: not UTF-8 \(byte 1 of the text\)"):
        list(DocumentReader().read(path))
    assert list(DocumentReader().read(written(tmp_path, "b.jsonl", b'{"text": null}\n' + LINES))) == TEXTS


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl cannot be read"):
        list(DocumentReader().read(tmp_path / "gone.jsonl"))


def test_text_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.txt: not UTF-8 \(byte 3\)"):
        list(DocumentReader().read(written(tmp_path, "a.txt", b"ab\xff")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9]),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.zst", b"no zstd at all"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(LINES)[:-3]),
        ("a.jsonl.zst", 2 * zstandard.ZstdCompressor().compress(LINES) + b"x"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-9]),
        ("a.jsonl.bz2", bz2.compress(LINES)[:-9]),
    ],
)
def test_a_damaged_archive_is_named(tmp_path, name, content):
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        list(DocumentReader().read(path))


def test_a_damaged_parquet_file_and_a_missing_column_are_named(tmp_path):
    with pytest.raises(UserError, match="is no readable parquet file"):
        list(DocumentReader().read(written(tmp_path, "a.parquet", b"PAR1 nonsense PAR1")))
    path = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), path)
    with pytest.raises(UserError, match="no column 'text'; found 'body'"):
        list(DocumentReader().read(path))


def column_of_bytes(values):
    """A column of strings whose bytes nobody has looked at."""
    plain = pyarrow.array(values, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(plain), plain.buffers())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [lambda column: column, lambda column: column.dictionary_encode()], ids=["", "coded"])
def test_a_text_that_is_no_utf8_in_a_table_is_one_bad_document(tmp_path, name, kind):
    table = pyarrow.table({"text": kind(column_of_bytes([b"good", b"ba\xffd", None, b"fine"]))})
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"{name}, row 2: not UTF-8 \(byte 3 of the text\)"):
        list(DocumentReader().read(path))
    reader = DocumentReader(skip_bad=True)
    assert list(reader.read(path)) == ["good", "fine"]
    assert reader.skipped == 1


def test_an_arrow_file_that_lies_about_where_its_texts_are_is_damaged(tmp_path):
    column = pyarrow.array(["one", "two", "three"])
    wrong = np.array([0, 3, 99, 11], np.int32).tobytes()
    lying = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, pyarrow.py_buffer(wrong), column.buffers()[2]])
    path = tmp_path / "a.arrow"
    with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, pyarrow.schema({"text": "string"})) as to:
        to.write_batch(pyarrow.record_batch({"text": lying}))
    with pytest.raises(UserError, match=r"a.arrow is no readable Arrow file"):
        list(DocumentReader().read(path))
