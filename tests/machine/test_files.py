import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vtune_jax.errors import disk_is_full
from vtune_jax.machine.files import as_json, read_json, sha256, write_json, write_whole, written_whole
from vtune_jax.machine.json_lines import JsonLines

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def bits(value):
    """A value with each float as its bits, so that -0.0 is not 0.0 and 1.0 is not 1."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, list):
        return [bits(entry) for entry in value]
    return {key: bits(entry) for key, entry in value.items()} if isinstance(value, dict) else (type(value), value)


@settings(max_examples=50)
@given(VALUES)
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert bits(read_json(path)) == bits(value)
    # Any other program reads the same.
    assert bits(json.loads(path.read_text())) == bits(value)


def listed(array):
    """Nested lists of an array, with None for NaN and infinities."""
    if isinstance(array, list):
        return [listed(entry) for entry in array]
    return None if isinstance(array, float) and not math.isfinite(array) else array


@settings(max_examples=50)
@given(arrays(st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.uint64, np.bool_]), (2, 3)))
def test_arrays_are_written_with_their_exact_values_and_nan_as_null(array):
    for value in (array, array[:, 1], array.T, array[0, 0]):
        assert bits(json.loads(as_json(value))) == bits(listed(value.tolist()))
        assert bits(json.loads(as_json({"a": (value, 1)}))) == bits({"a": [listed(value.tolist()), 1]})


def test_float32_keeps_all_its_digits():
    # The float32 nearest to 0.1 is 13421773 / 2**27.
    for array in (np.float32([0.1]), jnp.float32([0.1])):
        assert json.loads(as_json(array)) == [13421773 / 2**27]


class Pair(NamedTuple):
    left: int
    right: float


@dataclasses.dataclass(frozen=True)
class Named:
    pair: Pair
    shape: tuple[int, ...]


def test_dataclasses_become_objects_and_tuples_lists():
    assert as_json(Named(Pair(1, math.nan), (2, 3))) == b'{"pair":[1,null],"shape":[2,3]}\n'


def test_what_json_cannot_say_is_refused():
    for value in ({1: 2}, {1, 2}, 2**64, Path("x")):
        with pytest.raises(TypeError):
            as_json(value)


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail():
        with written_whole(path) as out:
            out.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_writes(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    program = (
        "import os, sys; from pathlib import Path; from vtune_jax.machine.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as out:\n"
        "    out.write(b'half of it'); out.flush(); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 9
    assert path.read_bytes() == b"old"
    write_whole(path, "näw")
    assert path.read_bytes() == b"n\xc3\xa4w"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_as_one(tmp_path):
    (tmp_path / "file.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write_whole(tmp_path / "file", "x" * 100_000)
    assert disk_is_full(caught.value)
    assert not (tmp_path / "file").exists()


def test_the_hash_is_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "none") == ""


def test_json_lines_leave_out_a_line_cut_short_and_are_cut_back_to_a_step(tmp_path):
    file = JsonLines(tmp_path / "new" / "rows.jsonl")
    assert list(file.rows()) == []
    file.append([{"step": step, "loss": np.float32(0.1)} for step in (1, 2, 3)])
    whole = file.path.read_bytes()
    with file.path.open("ab") as out:
        out.write(b'{"step": 4, "lo')
    assert [row["step"] for row in file.rows()] == [1, 2, 3]
    file.cut(2)
    assert file.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    file.append([{"step": 3, "loss": np.float32(0.1)}])
    assert file.path.read_bytes() == whole


def test_json_lines_of_an_earlier_spelling_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 5, "learning_rate": 1e-05, "loss": null}\n')
    assert list(JsonLines(tmp_path / "rows.jsonl").rows()) == [{"step": 5, "learning_rate": 0.00001, "loss": None}]


def test_json_lines_without_a_path_write_nothing():
    file = JsonLines(None)
    file.append([{"step": 1}])
    file.cut(0)
    assert list(file.rows()) == []
