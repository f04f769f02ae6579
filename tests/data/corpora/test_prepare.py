"""Preparing at size: parts, processes, Ray, resuming, and sources of every kind."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.data.corpora.test_corpus import documents, prepared, write
from vtune_jax.data.corpora import documents as readers
from vtune_jax.data.corpora import joining, parts, tokenizer
from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig
from vtune_jax.data.corpora.tokenizer import TokenizerConfig, load_tokenizer
from vtune_jax.data.tokens import prepared as tokens_prepared
from vtune_jax.data.tokens.array_record import RecordTokens
from vtune_jax.data.tokens.mapped import MappedTokens
from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.data.tokens.rows import BlockRows, TokenRows
from vtune_jax.errors import UserError


def two_domains(tmp_path, **changes):
    domains = tuple(
        DomainConfig(name=name, source=write(tmp_path / f"{name}.jsonl", documents(seed, 200)), **changes)
        for seed, name in enumerate(("a", "b"))
    )
    base = DomainConfig(name="base", source=write(tmp_path / "base.jsonl", documents(9)))
    return CorpusConfig(domains=domains, base=base, tokenizer=TokenizerConfig(vocab_size=300), heldout_fraction=0.2)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(readers, "SPAN_BYTES", 5000)
    monkeypatch.setattr(parts, "spans", lambda path: readers.spans(path, 5000))


def test_the_number_of_parts_and_workers_changes_no_byte(tmp_path, small_parts):
    config = two_domains(tmp_path)
    prepared(config, tmp_path / "one")
    made = [part for domain in config.domains for part in parts.parts_of(domain, config)]
    assert len(made) > 10
    prepared(config, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    readers_whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "spans", lambda path: [None])
        prepared(config, readers_whole)
    assert digests(tmp_path / "one") == digests(readers_whole)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_ray_prepares_the_same_bytes_with_two_workers(tmp_path, small_parts):
    # In a process of its own: Ray's threads outlive what they are used for.
    program = (
        "import sys; from pathlib import Path; import ray\n"
        "from tests.data.corpora import test_prepare as here\n"
        "ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)\n"
        "config = here.two_domains(Path(sys.argv[1]))\n"
        "here.parts.spans = lambda path: here.readers.spans(path, 5000)\n"
        "here.prepared(config, Path(sys.argv[1]) / 'ray', engine='ray')\n"
    )
    config = two_domains(tmp_path)
    prepared(config, tmp_path / "local")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, env=environment, check=True)
    assert digests(tmp_path / "local") == digests(tmp_path / "ray")


@pytest.mark.parametrize("title", ["reading", "tokenising"])
@pytest.mark.parametrize("after", [0, 5])
def test_a_killed_preparation_goes_on_where_it_was(tmp_path, small_parts, title, after):
    config = two_domains(tmp_path)
    prepared(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step, done, total):
        nonlocal after
        if step == title:
            after -= 1
            if after < 0:
                raise Killed

    folder = tmp_path / "broken"
    with pytest.raises(Killed):
        prepared(config, folder, advance=kill)
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts").glob(f"*.{title}.json")}
    assert before
    assert not (folder / "manifest.json").exists()
    told = []
    prepared(config, folder, advance=lambda step, done, total: told.append((step, done)))
    assert digests(folder) == digests(tmp_path / "whole")
    # Every part is told of in both steps, whoever did it.
    assert sum(done for step, done in told if step == "reading") == sum(
        part.bytes for domain in (*config.domains, config.base) for part in parts.parts_of(domain, config)
    )


def test_what_was_done_for_other_sources_is_thrown_away(tmp_path, small_parts):
    config = two_domains(tmp_path)
    with pytest.raises(ZeroDivisionError):
        prepared(config, tmp_path / "out", advance=lambda step, done, total: 1 // (step != "tokenising"))
    write(tmp_path / "a.jsonl", documents(5, 200))
    changed = prepared(config, tmp_path / "out")
    assert digests(changed.folder) == digests(prepared(config, tmp_path / "fresh").folder)


def test_hashes_compared_in_slices_find_the_same_duplicates(tmp_path, monkeypatch):
    config = two_domains(tmp_path)
    write(tmp_path / "b.jsonl", documents(1, 200) + documents(0, 50))
    once = prepared(config, tmp_path / "once").manifest
    monkeypatch.setattr(parts, "_HASHES_AT_ONCE", 37)
    assert prepared(config, tmp_path / "slices").manifest == once
    assert once.domains[1].duplicates == 50


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    # Buffers are made so small that a few hundred documents fill them.
    for module, buffer, size in (
        (tokenizer, "_BATCH_DOCUMENTS", 16),
        (joining, "_AT_ONCE", 1 << 16),
        (tokens_prepared, "_VERIFIED_AT_ONCE", 1 << 14),
    ):
        monkeypatch.setattr(module, buffer, size)
    text = documents(0, 1)[0] * 20

    def peak(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        config = two_domains(folder)
        # Documents that differ in their number only: the tokenizer stays as it is.
        write(folder / "a.jsonl", [f"{index} {text}" for index in range(count)])
        few = TokenizerConfig(vocab_size=300, train_bytes=10_000)
        config = CorpusConfig(domains=config.domains, base=config.base, tokenizer=few, heldout_fraction=0.2)
        tracemalloc.start()
        prepared(config, folder / "out", workers=1)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    small, large = peak(200), peak(600)
    # 400 documents of 4 kB are 1.6 MB more.
    assert large - small < 0.3e6


def test_every_format_gives_the_same_tokens(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    texts = documents(0, 200)
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    with (
        pyarrow.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=40)
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as out:
        out.write_table(table, max_chunksize=40)
    hugging = tmp_path / "hugging"
    hugging.mkdir()
    (hugging / "data-00000-of-00001.arrow").write_bytes((tmp_path / "stream.arrow").read_bytes())
    (hugging / "cache-1234.arrow").write_bytes((tmp_path / "stream.arrow").read_bytes())
    (hugging / "dataset_info.json").write_text("{}")
    (hugging / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    for name, records in (("plain", texts), ("json", [json.dumps({"text": text}) for text in texts])):
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:8")
        for record in records:
            writer.write(record.encode())
        writer.close()
    config = two_domains(tmp_path)
    expected = digests(prepared(config, tmp_path / "jsonl").folder)
    sources = ["a.parquet", "stream.arrow", "file.arrow", "hugging", "plain.array_record", "json.array_record"]
    for index, source in enumerate(sources):
        domains = (DomainConfig(name="a", source=str(tmp_path / source)), config.domains[1])
        other = CorpusConfig(domains=domains, base=config.base, tokenizer=config.tokenizer, heldout_fraction=0.2)
        found = digests(prepared(other, tmp_path / f"out{index}").folder)
        del found["manifest.json"]
        assert found == {name: value for name, value in expected.items() if name != "manifest.json"}, source


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_record_file_is_told(tmp_path, damage):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for text in documents(0):
        writer.write(text.encode())
    writer.close()
    content = bytearray(path.read_bytes())
    content[content.find(documents(0)[5].encode()) + 3] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a.array_record (is damaged|holds no record)"):
        list(readers.DocumentReader().read(path))


def test_documents_outside_the_bounds_are_left_out_and_counted(tmp_path):
    config = two_domains(tmp_path, min_bytes=10, max_bytes=300)
    write(tmp_path / "a.jsonl", [*documents(0, 200), "short", "long " * 100])
    messages = []
    manifest = prepared(config, tmp_path / "out", report=messages.append).manifest
    assert manifest.domains[0].filtered == 2
    assert "domain 'a': 2 too short or too long documents left out" in messages


def test_training_tokens_may_be_stored_in_shards(tmp_path):
    config = two_domains(tmp_path)
    files = prepared(config, tmp_path / "files")
    shards = prepared(
        CorpusConfig(**{**vars(config), "storage": "array_record", "shard_tokens": 1 << 15}), tmp_path / "shards"
    )
    for name in ("a", "b", "base"):
        one, other = files.domain(name), shards.domain(name)
        assert isinstance(one.train, MappedTokens)
        assert isinstance(other.train, RecordTokens)
        np.testing.assert_array_equal(one.train.slice(0, len(one.train)), other.train.slice(0, len(other.train)))
        rows = TokenRows(one.train, 32), BlockRows(other.train, 32, block=16)
        wanted = np.arange(len(rows[0]), dtype=np.uint32)[::-1]
        np.testing.assert_array_equal(*(store.read(wanted)["tokens"] for store in rows))
    path = next((shards.folder / "train").glob("a-*.array_record"))
    content = bytearray(path.read_bytes())
    content[content.find(shards.domain("a").train.slice(100, 150).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="domain 'a' are damaged: .*a-00000.array_record"):
        PreparedCorpus.open(shards.folder, verify=True)
    path.unlink()
    with pytest.raises(UserError, match="a-00000.array_record is missing"):
        PreparedCorpus.open(shards.folder)


def token_array(tmp_path, corpus, name="a", end=True):
    array = corpus.domain(name).train.array
    path = tmp_path / f"{name}-tokens.npy"
    np.save(path, array if end else np.where(array == corpus.end_of_text, 5, array).astype(array.dtype))
    return path


def borrowing(corpus, config, source, **options):
    domains = (DomainConfig(name="a", source=str(source), **options), config.domains[1])
    tokenizer = TokenizerConfig(file=str(corpus.folder / "tokenizer.json"))
    return CorpusConfig(domains=domains, base=config.base, tokenizer=tokenizer, heldout_fraction=0.2)


def test_tokens_that_exist_already_are_used_where_they_lie(tmp_path):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    path = token_array(tmp_path, corpus)
    out = prepared(borrowing(corpus, config, path), tmp_path / "two")
    whole, domain = np.load(path), out.domain("a")
    assert domain.train.file.path == path
    np.testing.assert_array_equal(np.concatenate([domain.train.array, domain.heldout.array]), whole)
    assert whole[len(domain.train) - 1] == corpus.end_of_text
    assert 0.1 < len(domain.heldout) / len(whole) <= 0.2
    raw = tmp_path / "raw.bin"
    whole.tofile(raw)
    again = prepared(borrowing(corpus, config, raw, heldout=str(path)), tmp_path / "three")
    np.testing.assert_array_equal(again.domain("a").train.array, whole)
    np.testing.assert_array_equal(again.domain("a").heldout.array, whole)
    # A change where the held-out side lies is found there and not in the train side.
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fresh = PreparedCorpus.open(out.folder).domain("a")
    with pytest.raises(UserError, match=r"domain 'a' are damaged: .*a-tokens.npy"):
        fresh.heldout.slice(0, len(fresh.heldout))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda array: array.astype("<u4").tobytes(), r'holds tokens of 4 bytes .* set dtype = "uint32"'),
        (lambda array: array.tobytes()[:-1], r"bytes, but holds tokens of 2 bytes each"),
        (lambda array: b"", r"has 0 bytes, but holds tokens of 2 bytes each"),
        (
            lambda array: np.array([20240520, 1, len(array), *[0] * 253], "<i4").tobytes() + array.tobytes(),
            r'header of llm.c, and holds uint16 after it. Fix: cut it off .* set dtype = "uint16"',
        ),
    ],
)
def test_raw_tokens_of_another_width_are_refused(tmp_path, content, message):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    path = tmp_path / "raw.bin"
    path.write_bytes(content(np.load(token_array(tmp_path, corpus))))
    with pytest.raises(UserError, match=message):
        prepared(borrowing(corpus, config, path), tmp_path / "two")


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64"])
def test_tokens_of_another_width_are_copied_in_the_corpus_own(tmp_path, dtype):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    whole = np.load(token_array(tmp_path, corpus))
    raw, array = tmp_path / "raw.bin", tmp_path / "wide.npy"
    whole.astype(dtype).tofile(raw)
    np.save(array, whole.astype(dtype))
    same = prepared(borrowing(corpus, config, token_array(tmp_path, corpus)), tmp_path / "same").domain("a")
    for number, source in enumerate((borrowing(corpus, config, raw, dtype=dtype), borrowing(corpus, config, array))):
        out = prepared(source, tmp_path / f"copy-{number}")
        PreparedCorpus.open(out.folder, verify=True)
        for ours, theirs in ((out.domain("a").train, same.train), (out.domain("a").heldout, same.heldout)):
            assert ours.array.dtype == whole.dtype
            np.testing.assert_array_equal(ours.array, theirs.array)
        entry = next(domain for domain in out.manifest.as_json()["domains"] if domain["name"] == "a")
        assert set(entry["train"]) == {"tokens", "file", "first", "sha256"}


@pytest.mark.parametrize(("code", "fix"), [(4, 'dtype = "int32"'), (5, 'dtype = "int64"'), (1, r"astype\('<u2'\)")])
def test_an_index_beside_raw_tokens_says_what_they_are(tmp_path, code, fix):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    path = tmp_path / "raw.bin"
    np.load(token_array(tmp_path, corpus)).tofile(path)
    (tmp_path / "raw.idx").write_bytes(b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([code]))
    with pytest.raises(UserError, match=f"by the index beside it, and is read as uint16. Fix: .*{fix}"):
        prepared(borrowing(corpus, config, path), tmp_path / "two")
    (tmp_path / "raw.idx").write_bytes(b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([8]))
    prepared(borrowing(corpus, config, path), tmp_path / "two")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_broken_array_file_is_named(tmp_path, content):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken.npy is no .npy file"):
        prepared(borrowing(corpus, config, path), tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array[:0], "holds no token"),
        (lambda array: array.astype(np.float32), "holds float32 of 1 dimensions, not whole numbers of one"),
        (lambda array: array.reshape(1, -1), "holds uint16 of 2 dimensions"),
        (lambda array: -array.astype(np.int16), "holds the token -.*the tokenizer has 300"),
        (lambda array: array + np.uint16(9000), "holds the token 9.*the tokenizer has 300"),
        (lambda array: np.full_like(array, 7), "has no end-of-text token 0 to split it at"),
    ],
)
def test_token_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    config = two_domains(tmp_path)
    corpus = prepared(config, tmp_path / "one")
    path = token_array(tmp_path, corpus)
    np.save(path, change(np.load(path)))
    with pytest.raises(UserError, match=message):
        prepared(borrowing(corpus, config, path), tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "x.npy"}, "tokenizer.file must be given"),
        ({"source": "x.npy", "heldout": "y.jsonl"}, "heldout must be of the source's kind"),
        ({"min_bytes": -1}, "must not be negative"),
        ({"source": "x.jsonl", "dtype": "uint32"}, "dtype must be left out where source is no .bin, got 'uint32'"),
        ({"min_bytes": 10, "max_bytes": 5}, "min_bytes must be at most max_bytes"),
        ({"exhaustion": "cap"}, 'max_epochs must be positive for exhaustion = "cap"'),
        ({"exhaustion": "drop", "max_epochs": 2.0}, "max_epochs must be left out"),
        ({"max_epochs": -1.0, "exhaustion": "stop"}, "max_epochs must not be negative"),
    ],
)
def test_contradictory_domains_are_refused(changes, message):
    other, base = DomainConfig(name="b", source="b"), DomainConfig(name="base", source="base")
    with pytest.raises(ValueError, match=message):
        CorpusConfig(domains=(DomainConfig(**{"name": "a", "source": "a", **changes}), other), base=base)


def test_how_often_a_domain_may_be_read_is_in_rows():
    def limit(**options):
        return DomainConfig(name="a", source="a", **options).limit(100)

    assert limit() is None
    assert limit(exhaustion="cap", max_epochs=2.5) == 250
    assert limit(exhaustion="drop") == 100
    assert limit(exhaustion="stop") == 100
    assert limit(exhaustion="stop", max_epochs=3.0) == 300


def test_the_tokenizer_is_trained_on_no_more_text_than_asked(tmp_path):
    config = two_domains(tmp_path)
    few = CorpusConfig(
        domains=config.domains,
        base=config.base,
        tokenizer=TokenizerConfig(vocab_size=400, train_bytes=2),
        heldout_fraction=0.2,
    )
    out = prepared(few, tmp_path / "out")
    vocabulary = load_tokenizer(out.folder / "tokenizer.json").get_vocab()
    full = load_tokenizer(prepared(config, tmp_path / "full").folder / "tokenizer.json").get_vocab()
    # One document of each domain was enough to stop.
    assert vocabulary != full
