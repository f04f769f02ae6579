"""Values to JSON and back: arrays and numbers exactly, dataclasses as objects."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

T = TypeVar("T")


def as_json(value: Any, *, indent: bool = False) -> bytes:
    """JSON in UTF-8 that ends with a newline; `orjson.loads` gives back the same values.

    Dataclasses become objects, tuples and arrays (numpy's and JAX's) become lists. NaN and infinities, which JSON
    lacks, become null.

    Args:
        value: keys must be strings, integers must fit into 64 bits.
        indent: by two spaces a level; otherwise all is on one line.

    Raises:
        TypeError: the value has no form in JSON.
    """
    return orjson.dumps(value, default=_plain, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2 * indent)


def _plain(value: Any) -> Any:
    # orjson could write numpy arrays itself, but float32 in the fewest digits that tell float32 values apart: 0.1, and
    # not the 0.10000000149011612 that it is. Whoever reads a float64 would get another number.
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):  # a NamedTuple
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def from_json(cls: type[T], value: Any) -> T:
    """A dataclass from the JSON object that `as_json` makes of it.

    Fields may be dataclasses, `X | None`, and lists, tuples and dicts of them. Keys that the class has no field for are
    left out, so that files may grow. Numbers and strings are taken as they are.

    Raises:
        ValueError: a field without a default is missing, or something else stands where an object belongs.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:40]} stands where {cls.__name__} belongs")
    found = {}
    for name, (hint, required) in _fields(typing.cast(Any, cls)).items():
        if name in value:
            found[name] = _typed(hint, value[name])
        elif required:
            raise ValueError(f"{cls.__name__} lacks '{name}'")
    return cls(**found)


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it has no default."""
    hints, missing = typing.get_type_hints(cls), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
    }


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type[Any], hint), value)
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is types.UnionType and value is not None:
        return _typed(inner[0], value)
    if kind is list or kind is tuple:
        return kind(value) if _is_plain(inner[0]) else kind(_typed(inner[0], entry) for entry in value)
    if kind is dict:
        return {key: _typed(inner[1], entry) for key, entry in value.items()}
    return value


def _is_plain(hint: Any) -> bool:
    """Whether values of this type are taken as they are, which spares a call for each number of a list."""
    return not (dataclasses.is_dataclass(hint) or typing.get_args(hint))
