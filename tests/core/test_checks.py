"""What a check says, and that it lets pass what it should."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vtune_jax.core.checks import as_numbers, as_shares, assert_types, assert_whole, assert_within, given
from vtune_jax.core.history import empty_history, remembering
from vtune_jax.core.simplex import to_quota
from vtune_jax.core.targets import blank_targets, make_targets


@dataclasses.dataclass(frozen=True)
class Config:
    share: float = 0.5
    steps: int = 3
    on: bool = True
    word: Literal["a", "b"] = "a"
    text: str = ""
    limits: tuple[int | None, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()
    inner: "Config | None" = None


@pytest.mark.parametrize(
    "fields",
    [
        {"share": 1},
        {"share": np.float32(0.5)},
        {"share": jnp.float32(0.5)},
        {"steps": np.int64(3)},
        {"on": np.bool_(True)},
        {"limits": (None, 3)},
        {"rows": ((1.0, 2), ())},
        {"inner": Config()},
    ],
)
def test_values_of_a_fields_type_pass(fields):
    assert_types(Config(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": "1"}, "share must be a number, got '1'."),
        ({"share": True}, "share must be a number, got True."),
        ({"share": np.ones(2)}, "share must be a number, got an array of shape (2,) and dtype float64."),
        ({"steps": 3.0}, "steps must be a whole number, got 3.0."),
        ({"steps": None}, "steps must be a whole number, got None."),
        ({"on": "no"}, "on must be True or False, got 'no'."),
        ({"word": ["a"]}, "word must be 'a' or 'b', got ['a']."),
        ({"text": b"a"}, "text must be a text, got b'a'."),
        ({"limits": [1]}, "limits must be a tuple, each entry a whole number or None, got [1]."),
        ({"rows": (1.0,)}, "rows must be a tuple, each entry a tuple, each entry a number, got (1.0,)."),
        ({"inner": Config}, "inner must be a Config or None, got the class Config."),
    ],
)
def test_values_of_another_type_are_refused_by_field(fields, message):
    with pytest.raises(TypeError) as raised:
        assert_types(Config(**fields))
    assert str(raised.value) == message


def test_traced_scalars_pass_and_traced_vectors_do_not():
    jax.vmap(lambda value: assert_within(0.0, 1.0, share=value))(jnp.full(3, 7.0))
    with pytest.raises(TypeError, match=r"share must be a number, got a traced array of shape \(3,\)"):
        jax.jit(lambda value: assert_within(share=value))(jnp.ones(3))
    with pytest.raises(TypeError, match="steps must be a whole number, got a traced array"):
        jax.jit(lambda value: assert_whole(steps=value))(1)


@pytest.mark.parametrize("value", [-0.1, math.nan, np.float32(2.0), jnp.float32(2.0), 2])
def test_numbers_outside_their_range_are_refused_whatever_holds_them(value):
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got "):
        assert_within(0.0, 1.0, share=value)


@pytest.mark.parametrize(
    "values", [[1, 2.5], (1, np.float32(2.5)), np.array([1, 2.5], ml_dtypes.bfloat16), jnp.array([1, 2.5])]
)
def test_numbers_are_read_from_whatever_numpy_reads(values):
    found = as_numbers("losses", values, (2,))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1, 2.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("ab", "losses must be numbers, got 'ab'."),
        (b"ab", "losses must be numbers, got b'ab'."),
        (None, "losses must be numbers, got None."),
        ([True, False], "losses must be numbers, got [True, False]."),
        ([[1], [2, 3]], "losses must be numbers, got [[1], [2, 3]]."),
        ({"a": 1}, "losses must be numbers, got {'a': 1}."),
        ([1j, 2], "losses must be numbers, got [1j, 2]."),
        (int, "losses must be numbers, got the class int."),
    ],
)
def test_what_are_no_numbers_is_refused_in_its_own_words(values, message):
    with pytest.raises(TypeError) as raised:
        as_numbers("losses", values)
    assert str(raised.value) == message


@pytest.mark.parametrize("values", [[3, 5], [0.5, -0.5, 1.0], [math.nan, 1.0], [[0.5, 0.5]], [], 1.0])
def test_what_are_no_shares_is_refused(values):
    with pytest.raises(ValueError, match="prior must be shares that are not negative and sum to 1, got"):
        as_shares("prior", values)


def test_long_values_are_shown_by_their_beginning():
    assert given(list(range(1000))).startswith("[0, 1, 2,")
    assert len(given(list(range(1000)))) < 110


THREE = np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: make_targets(THREE[:2], THREE, THREE, THREE), "initial must hold 3 numbers, one per domain"),
        (lambda: make_targets("abc", THREE, THREE, THREE), "initial must be numbers, got 'abc'"),
        (
            lambda: make_targets(THREE, THREE, THREE, -THREE),
            "prior must be one finite number per domain",
        ),
        (lambda: make_targets(THREE, THREE, THREE, THREE, {"sizes": [1, 2]}), "sizes must hold 3 numbers"),
        (lambda: make_targets(THREE, THREE, THREE, THREE, {"sizes": [1, 2, 0]}), "sizes must be positive and finite"),
        (lambda: make_targets(THREE, THREE, THREE, THREE, {"budget": [1, 2]}), "budget must hold one number"),
        (lambda: make_targets(THREE, THREE, THREE, THREE, {"graph": np.eye(2)}), r"graph must hold numbers of shape"),
        (lambda: make_targets(THREE, THREE, THREE, THREE, [1]), "constants must be numbers by name"),
        (lambda: blank_targets([]), "prior must be one finite number per domain"),
        (lambda: empty_history(0), "domains must be at least 1, got 0"),
        (lambda: empty_history(2, 1.5), "window must be a whole number, got 1.5"),
        (lambda: remembering("heldouts"), "evidence must be 'heldout' or 'train', got 'heldouts'"),
        (lambda: to_quota([0.5, 0.5]), r"weights must be an array of floats, got \[0.5, 0.5\]"),
        (lambda: to_quota(jnp.array([1, 0])), "weights must be an array of floats, got an array"),
        (lambda: to_quota(jnp.ones((2, 2))), "weights must hold one share per domain"),
        (lambda: to_quota(jnp.array([np.nan, 1.0])), "weights must be finite shares, none negative"),
        (lambda: to_quota(jnp.zeros(2)), "weights must be finite shares, none negative"),
    ],
)
def test_constants_histories_and_quotas_say_what_they_want(act, message, without_annotations):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
