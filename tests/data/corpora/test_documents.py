import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from vtune_jax.data.corpora.documents import DocumentReader, files_of
from vtune_jax.errors import UserError

TEXTS = ["first text", "zweiter Text ä", "third\ntext"]
LINES = "".join(json.dumps({"text": text, "id": index}) + "\n" for index, text in enumerate(TEXTS)).encode()


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.ZstdCompressor().compress)],
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


def test_text_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.txt: not UTF-8 \(byte 3\)"):
        list(DocumentReader().read(written(tmp_path, "a.txt", b"ab\xff")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9]),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.zst", b"no zstd at all"),
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


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path):
    (tmp_path / "sub").mkdir()
    first, second = written(tmp_path, "b.txt", b"x"), written(tmp_path / "sub", "a.jsonl", b"")
    written(tmp_path, "c.pdf", b"x")
    assert files_of(str(first), "d") == [first]
    assert files_of(str(tmp_path), "d") == [first, second]
    assert files_of(str(tmp_path / "**" / "*.jsonl"), "d") == [second]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jsonl", "domain 'd': .*nothing.jsonl does not exist"),
        ("c.pdf", "c.pdf has an unknown format"),
        ("empty", "holds no file that can be read"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_with_the_formats(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    written(tmp_path, "c.pdf", b"x")
    with pytest.raises(UserError, match=message) as refused:
        files_of(str(tmp_path / name), "d")
    assert ".jsonl.zst" in refused.value.fix
