"""Hyper-parameters as fields of a config: their ranges, and which of them a compiled program may take as data.

A config is a frozen dataclass. Its numbers are the float fields that are used as numbers only: `numbers_of` takes them
out, `with_numbers` puts others in their place, traced ones included. What is left is its structure. Two configs of
equal structure share one compiled program and can be mapped over together.
"""

import copy
import dataclasses
import functools
import math
import typing
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp

from vtune_jax.core.checks import assert_types, assert_within, given, hints_of, is_traced

Config = TypeVar("Config")


class Range(NamedTuple):
    """What `number` says of a field."""

    low: float = -math.inf
    high: float = math.inf
    positive: bool = False
    off: float | None = None
    static: bool = False


LONGEST_MEMORY = 2**16
"""The most past values of each domain that a state may hold: it lies beside the model, and is saved with it."""


def number(
    default: float | int,
    *,
    low: float | int = 0.0,
    high: float | int = math.inf,
    positive: bool = False,
    off: float | None = None,
    static: bool = False,
) -> Any:
    """A dataclass field that holds a number within a range; `assert_fields` checks it.

    Args:
        default: of the field.
        low: smallest value allowed; 0 by default.
        high: largest value allowed; none by default.
        positive: refuses zero and everything below it.
        off: the value at which the feature is switched off. At this value the number is part of the structure: programs
            with and without the feature differ.
        static: never taken as data, because Python needs it (a shape, a branch) or no compiled program reads it. Only
            float fields need this mark; fields of any other type are always static.
    """
    facts = Range(float(low), float(high), positive, off, static)
    return dataclasses.field(default=default, metadata={"range": facts})


def is_off(value: Any, off: float = 0.0) -> bool:
    """Whether a number equals `off`, as far as Python knows: False for traced values, whose feature is switched on."""
    return isinstance(value, int | float) and value == off


def assert_fields(config: Any) -> None:
    """Refuses values of another type than their field's, numbers outside its range and words not among a Literal's.

    Traced scalars have no known size while building and pass.

    Raises:
        ValueError: naming field and value.
        TypeError: likewise.
    """
    assert_types(config)
    for name, facts in _ranges(config.__class__).items():
        value = getattr(config, name)
        if facts.positive and not is_traced(value) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
        assert_within(facts.low, facts.high, **{name: value})
    for name, words in _words(config.__class__).items():
        if getattr(config, name) not in words:
            known = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
            raise ValueError(f"{name} must be {known}, got {given(getattr(config, name))}.")


def numbers_of(config: Any) -> dict[str, Any]:
    """The numbers of a config that a compiled program can take as data, by field, in float32.

    These are its float fields without those that are static or switched off. The numbers of a nested config stand in a
    dictionary of their own under its field's name, if it has any.
    """
    numbers: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if nested := numbers_of(value):
                numbers[field.name] = nested
        elif _is_data(config, field.name):
            numbers[field.name] = jnp.asarray(value, jnp.float32)
    return numbers


def structure_of(config: Any) -> Hashable:
    """Everything else: the class, all fields that are not data, and which features are switched on."""
    parts: list[tuple[str, Hashable]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            parts.append((field.name, structure_of(value)))
        else:
            parts.append((field.name, float if _is_data(config, field.name) else value))
    return type(config), tuple(parts)


def with_numbers(config: Config, numbers: Mapping[str, Any]) -> Config:
    """The same config with these numbers in their fields, traced or not, as `numbers_of` names them.

    They are not validated again. The result has no hash where a number is traced.

    Raises:
        ValueError: a name that is no field.
    """
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, config))}
    if unknown := set(numbers) - fields:
        raise ValueError(f"numbers must be named like fields of {type(config).__name__}, got {sorted(unknown)}.")
    changed = copy.copy(config)
    for name, value in numbers.items():
        nested = isinstance(value, Mapping)
        # A frozen dataclass takes no assignment; this is a copy of our own, which nobody has seen yet.
        object.__setattr__(changed, name, with_numbers(getattr(config, name), value) if nested else value)
    return changed


def _is_data(config: Any, name: str) -> bool:
    facts = _ranges(config.__class__).get(name, Range())
    is_float = hints_of(config.__class__).get(name) is float
    return is_float and not facts.static and (facts.off is None or not is_off(getattr(config, name), facts.off))


@functools.cache
def _ranges(cls: Any) -> dict[str, Range]:
    fields = dataclasses.fields(cls)
    return {field.name: field.metadata["range"] for field in fields if "range" in field.metadata}


@functools.cache
def _words(cls: Any) -> dict[str, tuple[str, ...]]:
    return {name: typing.get_args(hint) for name, hint in hints_of(cls).items() if typing.get_origin(hint) is Literal}
