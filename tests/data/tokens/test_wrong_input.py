"""Rows say what they were given; files of tokens that are odd, empty or broken are told in one line."""

import json
import shutil

import numpy as np
import pytest

from tests.data.corpora.test_corpus import prepared
from tests.data.corpora.test_prepare import two_domains
from vtune_jax.data.tokens.array_record import RecordTokens, write_records
from vtune_jax.data.tokens.mapped import CHECK_BYTES, MappedTokens, TokenMap, checksums
from vtune_jax.data.tokens.packing import PackedRows
from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.data.tokens.rows import BlockRows, TokenRows, as_stores
from vtune_jax.errors import UserError

U16 = np.dtype(np.uint16)
TOKENS = np.arange(200, dtype=np.uint16)


class Source:
    """Tokens that are read from nowhere."""

    name, dtype = "nowhere", U16

    def __len__(self):
        return 200

    def slice(self, start, stop):
        return TOKENS[start:stop]


@pytest.mark.parametrize("make", [lambda t, n: TokenRows(t, n), lambda t, n: PackedRows(t, n, end=0)])
@pytest.mark.parametrize(
    ("tokens", "length", "message"),
    [
        (np.zeros((50, 4), np.uint16), 8, r"tokens must be whole numbers in one axis, got an array of shape \(50, 4\)"),
        (np.zeros(50), 8, "tokens must be whole numbers in one axis, got .* dtype float64"),
        (np.zeros(50, bool), 8, "tokens must be whole numbers in one axis, got .* dtype bool"),
        (TOKENS[::2], 8, "tokens must lie one after another in memory, got a strided array"),
        (TOKENS.tolist(), 8, r"tokens must be a numpy array or MappedTokens, got \[0, 1"),
        (bytes(50), 8, "tokens must be a numpy array or MappedTokens, got b'"),
        (None, 8, "tokens must be a numpy array or MappedTokens, got None"),
        (Source(), 8, "tokens must be a numpy array or MappedTokens, got a Source; BlockRows reads records"),
        (TOKENS, 0, "length must be at least 1, got 0"),
        (TOKENS, 2.5, "length must be a whole number, got 2.5"),
        (TOKENS, None, "length must be a whole number, got None"),
    ],
)
def test_rows_are_made_of_whole_numbers_in_one_axis(make, tokens, length, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(tokens, length)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: TokenRows(TOKENS, 8, limit=0), "limit must be at least 1, got 0"),
        (lambda: TokenRows(TOKENS, 8, limit=-5), "limit must be at least 1, got -5"),
        (lambda: TokenRows(TOKENS, 8).first(2.0), r"share must lie in \[0, 1\], got 2.0"),
        (lambda: TokenRows(TOKENS, 8).first(np.nan), r"share must lie in \[0, 1\], got nan"),
        (lambda: BlockRows(TOKENS, 8, block=4), "source must be MappedTokens, RecordTokens or another source, got an"),
        (lambda: BlockRows(Source(), 8, block=0), "block must be at least 1, got 0"),
        (lambda: BlockRows(Source(), 8, block=4, keep=0), "keep must be at least 1, got 0"),
        (lambda: BlockRows(Source(), 8, block=4).first(-1), r"share must lie in \[0, 1\], got -1"),
        (lambda: PackedRows(TOKENS, 8, end=70_000), r"end must lie in \[0, 65535\], got 70000"),
        (lambda: PackedRows(TOKENS, 8, end="a"), "end must be a whole number, got 'a'"),
        (lambda: PackedRows(TOKENS, 8, end=0, share=2.0), r"share must lie in \[0, 1\], got 2.0"),
        (lambda: as_stores([]), "stores must hold at least one row store, got none"),
        (lambda: as_stores({"a": 1}), "stores must be a sequence of row stores, one per domain, got {'a': 1}"),
        (lambda: as_stores([TOKENS]), r"stores\[0\] must be a row store such as TokenRows, got an array"),
        (lambda: as_stores([TokenRows]), r"stores\[0\] must be a row store such as TokenRows, got the class"),
        (lambda: as_stores([TokenRows(TOKENS, 8), TokenRows(TOKENS, 5)]), r"rows of one length, got \[5, 8\]"),
        (lambda: RecordTokens("a", [1], U16, name="d"), "shards must be a sequence of paths, got 'a'"),
        (lambda: RecordTokens([], [], U16, name="d"), "shards and tokens must be as many, at least one, got 0 and 0"),
        (lambda: RecordTokens(["a"], [1, 2], U16, name="d"), "shards and tokens must be as many"),
        (lambda: RecordTokens(["a"], [-5], U16, name="d"), r"tokens\[0\] must not be negative, got -5"),
        (lambda: RecordTokens(["a"], 5, U16, name="d"), "tokens must be a number for each shard, got 5"),
        (lambda: RecordTokens(["a"], [5], float, name="d"), "dtype must be of whole numbers, got float64"),
        (lambda: RecordTokens(["a"], [5], "foo", name="d"), "dtype must be that of the tokens, .* got 'foo'"),
        (lambda: RecordTokens(["a"], [5], U16, name="d", record_tokens=0), "record_tokens must be at least 1, got 0"),
        (lambda: RecordTokens(["a"], [5], U16, name="d", patience=np.nan), "patience must not be negative, got nan"),
        (lambda: MappedTokens("tokens.bin", name="d"), "file must be a TokenMap, got 'tokens.bin'"),
        (lambda: MappedTokens.open(None, U16, name="d"), "path must be a path, got None"),
        (lambda: PreparedCorpus.open(5), "path must be a path, got 5"),
    ],
)
def test_options_of_rows_and_sources_are_refused_by_name(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


@pytest.mark.parametrize(
    "store",
    [TokenRows(TOKENS, 8), BlockRows(Source(), 8, block=4), PackedRows(TOKENS, 8, end=0)],
    ids=lambda store: type(store).__name__,
)
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.array([0, -1]), IndexError, "row -1 of domain '.*' asked for; it has 2"),
        (np.array([0, 99]), IndexError, "row 99 of domain '.*' asked for; it has 2"),
        (np.array([0.5]), TypeError, "rows must be a numpy array of whole numbers, 1-D, got an array .* float64"),
        (
            np.zeros((2, 2), int),
            TypeError,
            r"rows must be a numpy array of whole numbers, 1-D, .*\(2, 2\)",
        ),
        ([0, 1], TypeError, r"rows must be a numpy array of whole numbers, 1-D, got \[0, 1\]"),
    ],
)
def test_rows_that_do_not_exist_are_refused(store, rows, error, message):
    with pytest.raises(error, match=message):
        store.read(rows)


def written(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("odd.bin", b"abc", "odd.bin has 3 bytes, no multiple of the 2 bytes of a token"),
        ("empty.bin", b"", "empty.bin is empty"),
        ("empty.npy", b"", "empty.npy is empty"),
        ("junk.npy", b"junk" * 20, "junk.npy is no .npy file"),
        ("packed.npy", b"PK\x03\x04" + b"0" * 50, "packed.npy is no .npy file"),
        ("grid.npy", np.zeros((5, 5), np.uint16), r"grid.npy holds an array of shape \(5, 5\) .*, not tokens"),
        ("floats.npy", np.zeros(50), "floats.npy holds an array .* float64, not tokens"),
    ],
)
def test_files_that_hold_no_tokens_are_told_in_one_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as raised:
        MappedTokens.open(written(tmp_path / name, content), U16, name="manuals")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:200],
        lambda content: content[:40],
        lambda content: content[:10] + b"{([" + content[13:],
        lambda content: content[:6] + b"\xff\xff" + content[8:],
        lambda content: content.replace(b"200", b"9" * 3),
    ],
    ids=["tokens cut", "header cut", "header broken", "unknown version", "more tokens than there are"],
)
def test_a_damaged_array_file_is_told_in_one_line(tmp_path, damage):
    content = written(tmp_path / "whole.npy", TOKENS).read_bytes()
    with pytest.raises(UserError, match=r"cut.npy is damaged \(.*\). Fix: write the tokens again") as raised:
        MappedTokens.open(written(tmp_path / "cut.npy", damage(content)), U16, name="manuals")
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_told_by_the_system(tmp_path):
    with pytest.raises(UserError, match=r"nothing.bin: no such file or directory"):
        MappedTokens.open(tmp_path / "nothing.bin", U16, name="manuals")
    with pytest.raises(UserError, match="is a directory"):
        MappedTokens.open(str(tmp_path), U16, name="manuals")


def test_sections_and_stretches_lie_within_their_file(tmp_path):
    path = written(tmp_path / "tokens.bin", TOKENS.tobytes())
    file = TokenMap(path, U16)
    for options, message in (
        ({"first": -1}, r"first must lie in \[0, 200\], got -1"),
        ({"first": 201}, r"first must lie in \[0, 200\], got 201"),
        ({"first": 150, "count": 51}, r"count must lie in \[0, 50\], got 51"),
    ):
        with pytest.raises(ValueError, match=message):
            MappedTokens(file, name="manuals", **options)
    write_records(str(tmp_path / "shard"), [TOKENS], U16, record_tokens=32)
    for source in (
        MappedTokens(file, name="manuals"),
        RecordTokens([tmp_path / "shard"], [200], U16, name="manuals", record_tokens=32),
    ):
        for start, stop in ((-10, 5), (190, 201), (5, 2)):
            with pytest.raises(
                IndexError, match=rf"tokens {start} to {stop} of domain 'manuals' asked for; it has 200"
            ):
                source.slice(start, stop)
        np.testing.assert_array_equal(source.slice(190, 200), TOKENS[190:])
    with pytest.raises(ValueError, match=r"checks must hold 1 numbers for .*tokens.bin, got shape \(2,\)"):
        TokenMap(path, U16, checks=np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="patience must not be negative, got -1"):
        TokenMap(path, U16, patience=-1)


@pytest.mark.parametrize("content", [b"", b"junk" * 500], ids=["empty", "junk"])
def test_shards_that_are_no_records_are_told_at_once(tmp_path, content):
    path = written(tmp_path / "shard", content)
    with pytest.raises(UserError, match="the tokens of domain 'manuals' are damaged: .*shard, records 0 to 0"):
        RecordTokens([str(path)], [200], U16, name="manuals").slice(0, 10)


@pytest.mark.parametrize(("tokens", "record_tokens"), [(200, 50), (199, 32), (100, 100)])
def test_records_of_other_sizes_are_told_with_their_bytes(tmp_path, tokens, record_tokens):
    write_records(str(tmp_path / "shard"), [TOKENS], U16, record_tokens=32)
    source = RecordTokens([tmp_path / "shard"], [tokens], U16, name="manuals", record_tokens=record_tokens)
    with pytest.raises(UserError, match=r"'manuals' are damaged: .*shard has records \d to \d of \[.*\] bytes, not of"):
        source.slice(tokens - 60, tokens)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A prepared folder of two small domains; the tests damage copies of it."""
    folder = tmp_path_factory.mktemp("corpus")
    prepared(two_domains(folder), folder / "prepared")
    return folder / "prepared"


def changed(*path):
    """A change of a manifest: sets the value at a path."""
    *place, value = path

    def change(manifest):
        for step in place[:-1]:
            manifest = manifest[step]
        manifest[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("dtype", "junk"), "dtype must be that of the tokens"),
        (changed("dtype", "<f4"), "dtype must be of whole numbers"),
        (changed("files", None), "items"),
        (changed("files", "train.bin", "many"), "files.train.bin must be a whole number, got 'many'"),
        (changed("vocab_size", "300"), "vocab_size must be a whole number, got '300'"),
        (changed("domains", 5), ""),
        (changed("domains", []), "domains must have one of role 'base'"),
        (changed("domains", 0, "train", "tokens", -5), "tokens of 'a' must not be negative, got -5"),
        (changed("domains", 0, "train", "tokens", 10**9), "the end of 'a' in train.bin must lie in"),
        (changed("domains", 0, "train", "first", -1), "the beginning of 'a' in train.bin must lie in"),
        (changed("domains", 1, "heldout", "first", 1.5), "first must be a whole number, got 1.5"),
        (changed("domains", 0, "train", "file", "other.bin"), "the end of 'a' in other.bin"),
        (changed("domains", 0, "train", None), ""),
        (changed("domains", 0, "role", "main"), "domains must have one of role 'base', the others 'domain'"),
        (changed("domains", 2, "role", "domain"), "domains must have one of role 'base'"),
    ],
)
def test_a_damaged_manifest_is_told_in_one_line(tmp_path, corpus, change, message):
    folder = shutil.copytree(corpus, tmp_path / "copy")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=rf"manifest.json is damaged \(.*{message}.*\). Fix: delete that folder"
    ) as raised:
        PreparedCorpus.open(folder)
    assert "\n" not in str(raised.value)


def test_damaged_checks_and_a_lost_tokenizer_are_told_in_one_line(tmp_path, corpus):
    folder = shutil.copytree(corpus, tmp_path / "copy")
    whole = (folder / "train.crc32").read_bytes()
    for content, message in (
        (b"", "train.crc32 is damaged .checks must hold"),
        (whole + whole, "train.crc32 is damaged .checks must hold"),
        (None, "train.crc32 is missing"),
    ):
        (folder / "train.crc32").unlink() if content is None else (folder / "train.crc32").write_bytes(content)
        with pytest.raises(UserError, match=message):
            PreparedCorpus.open(str(folder)).domain("a")
    with pytest.raises(ValueError, match="name must be one of 'a', 'b', 'base', got 'c'"):
        PreparedCorpus.open(folder).domain("c")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        PreparedCorpus.open(folder)


def test_whole_files_are_read_as_ever(tmp_path, corpus):
    array = np.arange(CHECK_BYTES, dtype=np.uint16)
    for path in (written(tmp_path / "a.bin", array.tobytes()), written(tmp_path / "a.npy", array)):
        source = MappedTokens.open(str(path), "uint16", name="manuals", checks=checksums(array))
        np.testing.assert_array_equal(source.slice(0, len(array)), array)
    assert PreparedCorpus.open(str(corpus)).names == ("a", "b")
