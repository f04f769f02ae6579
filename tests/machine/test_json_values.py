import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vtune_jax.machine.files import read_json, write_json
from vtune_jax.machine.json_values import as_json, from_json

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


@dataclasses.dataclass(frozen=True)
class Row:
    step: int
    loss: list[float | None]


@dataclasses.dataclass(frozen=True)
class Tree:
    names: tuple[str, ...]
    rows: list[Row]
    by_name: dict[str, Row]
    best: Row | None = None
    note: str = ""


ROWS = st.builds(Row, st.integers(0, 2**63), st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)))


@settings(max_examples=50)
@given(
    st.builds(
        Tree,
        st.lists(st.text()).map(tuple),
        st.lists(ROWS, max_size=3),
        st.dictionaries(st.text(), ROWS, max_size=3),
        st.none() | ROWS,
        st.text(),
    )
)
def test_a_dataclass_comes_back_from_its_json(tree):
    assert from_json(Tree, json.loads(as_json(tree))) == tree


def test_a_dataclass_takes_defaults_for_missing_keys_and_leaves_out_unknown_ones():
    assert from_json(Tree, {"names": ["a"], "rows": [], "by_name": {}, "later": 1}) == Tree(("a",), [], {})


@pytest.mark.parametrize(
    ("value", "message"),
    [([], "stands where Tree belongs"), ({"names": [], "rows": [{"step": 1}], "by_name": {}}, "Row lacks 'loss'")],
)
def test_an_object_of_another_kind_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        from_json(Tree, value)
