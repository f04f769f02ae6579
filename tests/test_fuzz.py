"""No input of a user's ends in anything but a result or one line: configs, corpora, tokens, tokenizers, state files.

`VTUNE_FUZZ=20000 pytest tests/test_fuzz.py` looks longer: it is the number of examples of each test.
"""

import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.stages.experiment import write_experiment
from vtune_jax.cli import main as cli
from vtune_jax.data.corpora.config import DomainConfig
from vtune_jax.data.corpora.documents import DocumentReader
from vtune_jax.data.corpora.listing import files_of
from vtune_jax.data.corpora.token_files import sides_of
from vtune_jax.data.corpora.tokenizer import load_tokenizer, train_tokenizer, vocabulary_size
from vtune_jax.data.tokens.array_record import write_records
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.report.results import Results
from vtune_jax.settings import as_plain, dumps

EXAMPLES = int(os.environ.get("VTUNE_FUZZ", "25"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="VTUNE_FUZZ" not in os.environ,  # the suite looks at the same examples each time
    phases=[Phase.generate],  # what fails is found again by its edits; making it smaller takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def one_line(*words):
    """Lets a mistake of the user's pass that is told in one line, with these words."""
    try:
        yield
    except UserError as error:
        if "\n" in str(error) or not all(word in str(error) for word in words):
            pytest.fail(f"told badly: {error}")


EDIT = st.tuples(
    st.sampled_from(["set", "insert", "delete", "repeat", "cut"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=6)
    | st.sampled_from([b"\x00" * 8, b"\xff" * 8, b'"', b"}", b"[", b"\n", b"1e999", b"null"]),
)


def edited(content, edits):
    """Bytes after some damage."""
    for kind, place, piece in edits:
        at = int(place * len(content))
        if kind == "set":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + len(piece) :]
        elif kind == "repeat":
            content = content[:at] + content[at : at + 40] + content[at:]
        else:
            content = content[:at]
    return content


DAMAGED = st.lists(EDIT, min_size=1, max_size=4)
RECORDS = [
    {"text": "one text", "id": 1, "meta": {"a": [1, None]}},
    {"text": "ein zweiter \u00e4", "id": 2},
    {"text": None},
]


def healthy(folder):
    """A small file of each format."""
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    for name, content in (("a.jsonl", lines), ("a.json", json.dumps(RECORDS).encode()), ("a.txt", b"words\nand words")):
        (folder / name).write_bytes(content)
    import bz2
    import gzip
    import lzma

    import zstandard

    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    for ending, pack in {**packers, ".zst": zstandard.ZstdCompressor().compress}.items():
        (folder / f"a.jsonl{ending}").write_bytes(pack(lines * 3))
    table = pyarrow.table({"text": ["one", "two", None] * 5, "n": range(15)})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=4)
    for name, new in (("a.arrow", pyarrow.ipc.new_stream), ("b.arrow", pyarrow.ipc.new_file)):
        with pyarrow.OSFile(str(folder / name), "wb") as out, new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    write_records(str(folder / "a.array_record"), [np.frombuffer(lines[:40], np.uint8)], np.uint8)
    return sorted(folder.iterdir())


class Corpora(dict):
    def __repr__(self):
        return "corpora"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return Corpora((path.name, path.read_bytes()) for path in healthy(tmp_path_factory.mktemp("fuzz") / "healthy"))


NAMES = ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.parquet"]
NAMES += ["a.arrow", "b.arrow"]


@pytest.mark.parametrize("name", NAMES)
@given(edits=DAMAGED, skip=st.booleans())
@fuzz
def test_damaged_documents(corpora, tmp_path, name, edits, skip):
    path = tmp_path / name
    path.write_bytes(edited(corpora[name], edits))
    with one_line(name):
        for text in DocumentReader(skip_bad=skip).read(path):
            text.encode("utf-8")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "static", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(plain, where=()):
    """Where values stand in a config."""
    entries = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for key, value in entries:
        yield (*where, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*where, key))


@given(st.data())
@fuzz
def test_configs_with_values_of_any_kind(small, tmp_path, data):
    plain = json.loads(json.dumps(as_plain(load(small))))
    changes = {}
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(paths(plain))))
        changes[".".join(map(str, place))] = data.draw(VALUES)
    with one_line():
        found = load(small, values=changes)
        path = tmp_path / "again.toml"
        path.write_text(dumps(found), encoding="utf-8")
        assert load(path) == found


@given(edits=DAMAGED)
@fuzz
def test_configs_with_damaged_bytes(small, tmp_path, edits):
    path = tmp_path / "x.toml"
    path.write_bytes(edited(small.read_bytes(), edits))
    with one_line("x.toml"):
        load(path)


@given(
    st.lists(
        st.text(max_size=30) | st.from_regex(r"[a-z]{1,8}(\.[a-z0-9]{1,8}){0,3}=.{0,12}", fullmatch=True), max_size=3
    )
)
@fuzz
def test_overrides_of_any_text(small, overrides):
    with one_line():
        load(small, tuple(overrides))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = train_tokenizer(["some words and more words"] * 5, 270)
    path = tmp_path_factory.mktemp("fuzz") / "tokenizer.json"
    made.save(str(path))
    return path


@given(edits=DAMAGED)
@fuzz
def test_damaged_tokenizers(tokenizer, tmp_path, edits):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(edited(tokenizer.read_bytes(), edits))
    with one_line("tokenizer.json"):
        vocabulary_size(load_tokenizer(path))


@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
@given(edits=DAMAGED, dtype=st.sampled_from(["uint16", "int32", "float32", ">i8", "U2", "O"]))
@fuzz
def test_damaged_tokens(tmp_path, name, edits, dtype):
    tokens, path = np.array([3, 4, 0, 5, 6, 0] * 10), tmp_path / name
    if name == "a.npy":
        np.save(path, tokens.astype(dtype), allow_pickle=True)
    else:
        tokens.astype("uint16" if dtype == "O" else dtype).tofile(path)
    path.write_bytes(edited(path.read_bytes(), edits))
    with one_line(name):
        sides = sides_of(DomainConfig(name="d", source=str(path)), np.dtype("<u2"), 300, 0, 0.2)
        assert all(side.stop > side.first for side in sides.values())


@given(st.text(max_size=40))
@fuzz
def test_sources_of_any_text(source):
    with one_line("domain 'd'"):
        files_of(source, "d")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, small, with a store of its own."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_experiment(folder)
    options = [
        'arms=[{name="static"}]',
        "train.steps=5",
        "pretrain.steps=5",
        "--run-folder",
        str(folder / "run"),
        "--quiet",
    ]
    assert cli.invoke(["run", str(path), *options]) == 0
    return folder, path, options


STATE = ["experiment.json", "stages.json", "results.json", "config.toml", "hashes.json", "references", "done.json"]
STATE += ["key.json", "manifest.json", "losses.json", "start.json", "steps.jsonl", "updates.jsonl", "tokenizer.json"]


@pytest.mark.parametrize("name", STATE)
@given(edits=DAMAGED, choice=st.integers(0, 20), verb=st.sampled_from(["report", "prepare", "evaluate", "runs"]))
@settings(fuzz, max_examples=max(2, EXAMPLES // 8))
def test_damaged_state_files(finished, capsys, name, edits, choice, verb):
    folder, path, options = finished
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for part in ("run", "store"):
        shutil.copytree(folder / part, copy / part, symlinks=True)
    found = sorted(file for file in copy.rglob("*") if file.is_file() and name in (file.name, file.parent.name))
    target = found[choice % len(found)]
    target.write_bytes(edited(target.read_bytes(), edits))
    run = [*options[:3], "--run-folder", str(copy / "run")]
    words = {"report": ["report", str(copy / "run")], "runs": ["runs", str(copy), "--store", str(copy / "store")]}
    code = cli.invoke(words.get(verb, [verb, str(path), *run, "--quiet"]))
    said = capsys.readouterr()
    assert code == 0 or (code == 2 and said.err.count("\n") >= 1)
    if code == 2:
        assert said.err.splitlines()[-1].startswith("vtune-jax: ")


@given(edits=DAMAGED)
@fuzz
def test_damaged_results(finished, tmp_path, edits):
    path = tmp_path / "results.json"
    path.write_bytes(edited(next((finished[0] / "run").glob("*/results.json")).read_bytes(), edits))
    with one_line("results.json"):
        Results.load(path)
