import concurrent.futures
import pickle
import time

import numpy as np
import pytest

from vtune_jax.data.tokens.array_record import RecordTokens, write_records
from vtune_jax.data.tokens.mapped import CHECK_BYTES, MappedTokens, checksums
from vtune_jax.data.tokens.packing import PackedRows, best_fit, pieces
from vtune_jax.data.tokens.rows import BlockRows, RowStore, TokenRows
from vtune_jax.errors import UserError

LENGTH = 16


def tokens(count=5000, seed=0):
    return np.random.default_rng(seed).integers(1, 60_000, count).astype(np.uint16)


def every_row(store):
    return np.arange(len(store), dtype=np.uint32)


def mapped(tmp_path, array, **options):
    path = tmp_path / "tokens.bin"
    array.tofile(path)
    return MappedTokens.open(path, array.dtype, name="manuals", checks=checksums(array), **options)


def shards(tmp_path, array, cuts=(1700, 3100), record_tokens=128, **options):
    parts = np.split(array, cuts)
    paths = [str(tmp_path / f"{index}.array_record") for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        assert write_records(path, iter(np.array_split(part, 7)), array.dtype, record_tokens=record_tokens) == len(part)
    counts = [len(part) for part in parts]
    return RecordTokens(paths, counts, array.dtype, name="manuals", record_tokens=record_tokens, **options)


def test_files_and_shards_hold_the_same_tokens(tmp_path):
    array = tokens()
    for source in (mapped(tmp_path, array), shards(tmp_path, array)):
        assert len(source) == len(array)
        for start, stop in ((0, 5000), (0, 1), (127, 129), (1690, 1710), (1700, 3101), (4999, 5000)):
            np.testing.assert_array_equal(source.slice(start, stop), array[start:stop])


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_rows_in_blocks_are_the_rows_of_the_file(tmp_path, block):
    array = tokens()
    plain, blocks = TokenRows(array, LENGTH), BlockRows(shards(tmp_path, array), LENGTH, block=block)
    assert len(plain) == len(blocks)
    rows = np.random.default_rng(1).permutation(len(plain)).astype(np.uint32)
    np.testing.assert_array_equal(plain.read(rows)["tokens"], blocks.read(rows)["tokens"])
    assert len(blocks.first(0.25)) == round(0.25 * len(plain))
    assert isinstance(blocks, RowStore)
    assert isinstance(plain, RowStore)


class Counted:
    """Tokens that take so many seconds to read, and the places asked for."""

    name, dtype = "manuals", np.dtype(np.uint16)

    def __init__(self, seconds):
        self.read, self.seconds = [], seconds

    def __len__(self):
        return 5000

    def slice(self, start, stop):
        self.read.append(start)
        time.sleep(self.seconds)
        return np.arange(start, stop, dtype=np.uint16)


def test_nothing_is_read_ahead_of_a_source_that_answers_at_once(monkeypatch):
    store = BlockRows(Counted(0), LENGTH, block=10, keep=4)
    monkeypatch.setattr("vtune_jax.data.tokens.rows._QUICK_S", 1.0)
    store.read(np.array([1], np.uint32))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        store.expect([5, 2], pool)
    assert store.source.read == [0]


def test_expected_blocks_are_read_ahead_once():
    source = Counted(0.01)
    store = BlockRows(source, LENGTH, block=10, keep=4)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        store.expect([5, 2, 9, 1], pool)
    assert sorted(source.read) == [2 * 160, 5 * 160, 9 * 160]
    np.testing.assert_array_equal(store.read(np.array([51], np.uint32))["tokens"][0], np.arange(51 * 16, 52 * 16 + 1))
    assert len(source.read) == 3
    store.read(np.array([11, 21, 31, 41], np.uint32))
    assert len(source.read) == 6


def test_stores_travel_to_other_processes_without_their_tokens(tmp_path):
    array = tokens()
    for source in (mapped(tmp_path, array), shards(tmp_path, array)):
        store = TokenRows(source, LENGTH) if isinstance(source, MappedTokens) else BlockRows(source, LENGTH, block=8)
        before = store.read(every_row(store))["tokens"]
        sent = pickle.dumps(store)
        assert len(sent) < 2000
        np.testing.assert_array_equal(pickle.loads(sent).read(every_row(store))["tokens"], before)


@pytest.mark.parametrize("width", [2, 4])
def test_a_changed_byte_is_found_when_its_stretch_is_read_and_names_domain_file_and_offset(tmp_path, width):
    array = tokens(3 * CHECK_BYTES // width).astype(f"<u{width}")
    source = mapped(tmp_path, array)
    path = source.file.path
    content = bytearray(path.read_bytes())
    content[CHECK_BYTES + 1234] ^= 1
    path.write_bytes(content)
    store = TokenRows(MappedTokens.open(path, array.dtype, name="manuals", checks=checksums(array)), LENGTH)
    assert store.read(np.array([0, 3], np.uint32))["tokens"].shape == (2, LENGTH + 1)
    per_row = LENGTH * width
    message = rf"'manuals' are damaged: .*tokens.bin, bytes {CHECK_BYTES:,} to {2 * CHECK_BYTES:,} of its"
    # The last row of the first stretch ends in the second.
    for row in (CHECK_BYTES // per_row - 1, (CHECK_BYTES + 5000) // per_row):
        with pytest.raises(UserError, match=message):
            store.read(np.array([row], np.uint32))
    store.read(np.array([2 * CHECK_BYTES // per_row + 1], np.uint32))


def test_each_stretch_is_compared_once(tmp_path, monkeypatch):
    source = mapped(tmp_path, tokens(3 * CHECK_BYTES))
    store, compared = TokenRows(source, LENGTH), []
    inner = source.file._compare
    monkeypatch.setattr(source.file, "_compare", lambda places, start: (compared.extend(places), inner(places, start)))
    for _ in range(3):
        store.read(every_row(store))
    assert sorted(compared) == list(range(6))


def test_a_file_that_vanishes_is_waited_for_and_then_told(tmp_path, monkeypatch):
    source = mapped(tmp_path, tokens(), patience=0.3).file
    store = TokenRows(MappedTokens(source, name="manuals"), LENGTH)
    store.read(every_row(store))
    hidden = source.path.with_name("away")
    source.path.rename(hidden)
    monkeypatch.setattr("vtune_jax.data.tokens.mapped._LOOK_EVERY_S", 0.0)
    with pytest.raises(UserError, match=r"the tokens of domain 'manuals' are lost: .*tokens.bin has vanished"):
        store.read(every_row(store))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        source.patience = 20.0
        reading = pool.submit(store.read, every_row(store))
        concurrent.futures.wait([reading], timeout=0.2)
        assert not reading.done()
        hidden.rename(source.path)
        assert reading.result(10)["tokens"].shape[0] == len(store)
    with source.path.open("r+b") as file:
        file.truncate(100)
    source.patience = 0.1
    with pytest.raises(UserError, match="has shrunk from 10,000 to 100 bytes"):
        store.read(every_row(store))


def test_damaged_and_lost_shards_are_told_with_their_records(tmp_path):
    source = shards(tmp_path, tokens(), patience=0.2)
    path = tmp_path / "1.array_record"
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[sound.find(tokens()[1840:1900].tobytes())] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"'manuals' are damaged: .*1.array_record, records 0 to 10 .*hash mismatch"):
        shards_again(source).slice(1700, 3100)
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(
        UserError, match=r"damaged: .*1.array_record, records 0 to 10 \(tokens 0 to 1,400\): it is missing, cut off"
    ):
        shards_again(source).slice(1700, 3100)
    path.unlink()
    with pytest.raises(UserError, match=r"lost: .*1.array_record"):
        shards_again(source).slice(1700, 3100)
    shards_again(source).slice(0, 1700)


def shards_again(source):
    return pickle.loads(pickle.dumps(source))


END = 0


def documents(seed=0, count=300):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, int(size)).astype(np.uint16) for size in rng.lognormal(2.2, 1.0, count).astype(int)]


def joined(texts):
    return np.concatenate([np.append(text, END).astype(np.uint16) for text in texts])


def test_packed_rows_predict_every_token_of_every_document_exactly_once():
    texts = documents()
    store = PackedRows(joined(texts), LENGTH, end=END)
    rows = store.read(every_row(store))
    seen = []
    for inputs, labels, segments, positions in zip(
        *(rows[name] for name in ("inputs", "labels", "segments", "positions")), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            np.testing.assert_array_equal(positions[mine], np.arange(mine.sum()))
            # Within a segment the next input is the label before it.
            np.testing.assert_array_equal(inputs[mine][1:], labels[mine][:-1])
            seen.append((int(inputs[mine][0]), labels[mine].tolist()))
    expected = []
    for text in texts:
        whole = [END, *text.tolist(), END]
        expected += [
            (whole[start], whole[start + 1 : start + 1 + LENGTH]) for start in range(0, len(whole) - 1, LENGTH)
        ]
    assert sorted(seen) == sorted(expected)
    assert store.predicted == len(joined(texts)) == int((rows["segments"] > 0).sum())


def test_padding_has_segment_zero_and_segments_are_whole_stretches():
    store = PackedRows(joined(documents(3)), LENGTH, end=END)
    segments = store.read(every_row(store))["segments"]
    assert (np.diff(segments, axis=1) <= 1).all()
    for row in segments:
        filled = row[row > 0]
        assert (np.diff(filled) >= 0).all()
        assert (row[: len(filled)] > 0).all()


def test_a_document_without_its_end_and_one_longer_than_rows_are_packed_whole():
    array = np.concatenate([joined([np.full(40, 7, np.uint16)]), np.full(5, 9, np.uint16)])
    start, size = pieces(array, LENGTH, END)
    assert start.tolist() == [0, 16, 32, 41]
    assert size.tolist() == [16, 16, 9, 5]


def naive_best_fit(sizes, capacity):
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [(room, index) for index, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(capacity - size)
    return len(rooms)


@pytest.mark.parametrize("seed", range(8))
def test_packing_uses_as_few_rows_as_best_fit_decreasing_one_by_one(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 80))
    sizes = rng.integers(1, capacity + 1, 400)
    row, rows = best_fit(sizes, capacity)
    used = np.bincount(row, sizes, rows)
    assert used.max() <= capacity
    assert used.min() > 0
    assert rows == naive_best_fit(sizes.tolist(), capacity)


def test_a_share_of_packed_rows_is_a_fair_sample_of_documents():
    texts = documents(1, 3000)
    store = PackedRows(joined(texts), 64, end=END)
    half = store.first(0.5)
    assert len(half) == round(len(store) / 2)
    # Rows in the order they were made would begin with all the full-length pieces.
    np.testing.assert_allclose(half.predicted / store.predicted, 0.5, atol=0.02)
    segments = [
        rows["segments"].max(axis=1).mean() for rows in (half.read(every_row(half)), store.read(every_row(store)))
    ]
    np.testing.assert_allclose(segments[0], segments[1], rtol=0.1)
    np.testing.assert_array_equal(half.read(every_row(half))["labels"], store.read(every_row(half))["labels"])


def test_packing_fills_nearly_every_place_and_takes_seconds_for_millions():
    rng = np.random.default_rng(0)
    array = rng.integers(1, 1000, 2_000_000).astype(np.uint16)
    array[np.unique(rng.lognormal(5.5, 1.2, 8000).astype(int).cumsum() % len(array))] = END
    store = PackedRows(array, 512, end=END)
    assert store.fill > 0.99


def test_nothing_to_pack_is_refused():
    with pytest.raises(UserError, match="domain 'empty' has no tokens to pack"):
        PackedRows(np.zeros(0, np.uint16), LENGTH, end=END, name="empty")


def test_rows_predict_every_token_but_the_first_exactly_once():
    store = TokenRows(np.arange(30), 4)
    rows = store.read(np.arange(len(store), dtype=np.uint32))["tokens"]
    assert len(store) == 7
    np.testing.assert_array_equal(rows[:, 1:].ravel(), np.arange(1, 29))
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])


def test_a_share_of_the_rows_is_their_beginning():
    store = TokenRows(np.arange(41), 4).first(0.5)
    assert len(store) == 5
    with pytest.raises(IndexError, match="row 5 of domain 'domain' asked for; it has 5"):
        store.read(np.array([5], np.uint32))


def test_a_domain_shorter_than_one_row_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"sequence length 8 is longer than domain 'tiny' \(8 tokens\)"):
        TokenRows(np.arange(8), 8, name="tiny")
