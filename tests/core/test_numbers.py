"""Numbers of a config: their ranges, and taking them out and in."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.numbers import assert_fields, is_off, number, numbers_of, structure_of, with_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = number(2.0, positive=True)
    window: int = number(3, low=1)

    def __post_init__(self):
        assert_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    kind: Literal["a", "b", "c"] = "a"
    free: float = 0.5
    share: float = number(0.25, high=1.0)
    below: float = number(-1.0, low=-math.inf)
    extra: float = number(0.0, off=0.0)
    ceiling: float = number(1.0, high=1.0, off=1.0)
    on_host: float = number(4.0, static=True)
    times: int = number(2)
    inner: Inner = Inner()

    def __post_init__(self):
        assert_fields(self)


def test_numbers_are_the_floats_that_are_switched_on_and_not_static():
    assert numbers_of(Outer()) == {"free": 0.5, "share": 0.25, "below": -1.0, "inner": {"rate": 2.0}}
    switched_on = numbers_of(Outer(extra=0.5, ceiling=0.75))
    assert {name: float(switched_on[name]) for name in ("extra", "ceiling")} == {"extra": 0.5, "ceiling": 0.75}
    assert {leaf.dtype for leaf in jax.tree.leaves(switched_on)} == {jnp.dtype("float32")}


def test_equal_structure_is_what_differs_in_numbers_alone():
    other = Outer(free=3.0, share=0.5, below=2.0, inner=Inner(rate=1.0))
    assert structure_of(other) == structure_of(Outer())
    assert hash(structure_of(other)) == hash(structure_of(Outer()))
    assert jax.tree.structure(numbers_of(other)) == jax.tree.structure(numbers_of(Outer()))
    for different in (
        Outer(kind="b"),
        Outer(extra=0.1),
        Outer(ceiling=0.5),
        Outer(on_host=5.0),
        Outer(times=3),
        Outer(inner=Inner(window=4)),
    ):
        assert structure_of(different) != structure_of(Outer())


def test_other_numbers_take_the_place_of_the_old_ones_and_leave_the_config_alone():
    config = Outer(share=0.5)
    changed = with_numbers(config, {"share": 0.75, "inner": {"rate": 8.0}})
    assert changed == Outer(share=0.75, inner=Inner(rate=8.0))
    assert config == Outer(share=0.5)
    assert with_numbers(config, numbers_of(config)) == config
    # Not validated again.
    assert with_numbers(config, {"share": 7.0}).share == 7.0
    with pytest.raises(ValueError, match=r"numbers must be named like fields of Outer, got \['shares'\]"):
        with_numbers(config, {"shares": 0.5})


def test_numbers_can_be_traced():
    def product(numbers):
        config = with_numbers(Outer(), numbers)
        assert not is_off(config.share)
        return config.share * config.inner.rate

    np.testing.assert_allclose(jax.jit(product)({"share": 0.5, "inner": {"rate": 3.0}}), 1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Outer(share=1.5), r"share must lie in \[0, 1\], got 1.5"),
        (lambda: Outer(share=math.nan), r"share must lie in \[0, 1\], got nan"),
        (lambda: Outer(times=-1), "times must not be negative, got -1"),
        (lambda: Inner(window=0), "window must be at least 1, got 0"),
        (lambda: Inner(rate=0.0), "rate must be positive, got 0.0"),
        (lambda: Outer(kind="d"), "kind must be a, b or c, got 'd'"),
    ],
)
def test_a_field_outside_its_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
