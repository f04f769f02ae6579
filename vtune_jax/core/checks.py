"""What public functions say of their arguments: what was given and what is wanted, in one sentence.

Loads no jax, as reading processes import it. Traced values have no known size while a program is built: of these only
the shape is looked at.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from typing import Any, Literal, Union

import numpy as np

MOST = 2**31 - 1
"""The largest number of steps, rows or sizes: what 32-bit integers on an accelerator can count."""

MOST_EXACT = 2**53
"""The largest count that a 64-bit float holds exactly, with all below it."""

SUM_SLACK = 1e-3
"""How far shares may sum from one: what half precision and printed tables leave."""

FAR = 2**16


def assert_within(low: int | float = 0.0, high: int | float = math.inf, **values: Any) -> None:
    """Refuses numbers outside [low, high], NaN included.

    Traced values (hyper-parameters under `jit`, `vmap` or `grad`) pass if they are scalars.

    Raises:
        ValueError: naming argument and value.
        TypeError: what is no number.
    """
    for name, value in values.items():
        if not _is_number(value):
            raise TypeError(f"{name} must be a number, got {given(value)}.")
        if not is_traced(value):
            _assert_range(low, high, name, value)


def assert_whole(low: int = 0, high: int | float = math.inf, **values: Any) -> None:
    """Refuses what is not a whole number in [low, high]; 2.0 is not one.

    Raises:
        ValueError: naming argument and value.
        TypeError: what is no whole number.
    """
    for name, value in values.items():
        if not _is_whole(value):
            raise TypeError(f"{name} must be a whole number, got {given(value)}.")
        _assert_range(low, high, name, value)


def as_numbers(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Numbers in float64 from anything that numpy reads: a list, an array, a tensor on the CPU.

    Args:
        name: of the argument.
        values: what was given.
        shape: that they must have; None: any.

    Raises:
        ValueError: another shape.
        TypeError: what are no numbers, and traced arrays.
    """
    reason = ""
    try:
        array = np.asarray(values)
        # bfloat16 and its like are kinds of "V" to numpy, and have no fields.
        if array.dtype.kind in "iuf" or (array.dtype.kind == "V" and array.dtype.names is None):
            array = array.astype(np.float64)
            if shape is None or array.shape == shape:
                return array
            if len(shape) == 1:
                wanted = f"{shape[0]} numbers, one per domain"
            else:
                wanted = f"numbers of shape {shape}" if shape else "one number"
            raise ValueError(f"{name} must hold {wanted}, got shape {array.shape}.")
    except (TypeError, ValueError, RuntimeError) as error:
        if str(error).startswith(f"{name} must"):
            raise
        reason = "" if is_traced(values) or isinstance(values, list | tuple | dict) else f" ({error!s:.80})"
    raise TypeError(f"{name} must be numbers, got {given(values)}{reason}.")


def as_counts(name: str, values: Any) -> np.ndarray:
    """Positive finite numbers, one per domain, in float64.

    Raises:
        ValueError: other numbers, or none.
        TypeError: what are no numbers.
    """
    counts = as_numbers(name, values)
    if counts.ndim != 1 or not counts.size:
        raise ValueError(f"{name} must hold one number per domain, got shape {counts.shape}.")
    if not ((counts > 0) & (counts < math.inf)).all():
        raise ValueError(f"{name} must be positive in every domain, got {given(counts.tolist())}.")
    return counts


def as_shares(name: str, values: Any) -> np.ndarray:
    """Shares, one per domain, in float64; they sum to one up to `SUM_SLACK`.

    Raises:
        ValueError: what are no shares.
        TypeError: what are no numbers.
    """
    shares = as_numbers(name, values)
    if shares.ndim != 1 or not ((shares >= 0).all() and abs(shares.sum() - 1.0) <= SUM_SLACK):
        total = f" with sum {shares.sum():.6g}" if shares.ndim == 1 else ""
        raise ValueError(
            f"{name} must be shares that are not negative and sum to 1, got {given(shares.tolist())}{total}."
        )
    return shares


def assert_types(config: Any) -> None:
    """Refuses values of a dataclass's fields that are not what the fields' types say.

    Looks at bool, int, float, str, Literal, `tuple[T, ...]`, dataclasses, None and choices of these; a field of any
    other type holds anything. A float field may hold a traced scalar, a tuple must be a tuple.

    Raises:
        TypeError: naming field and value.
    """
    hints = hints_of(config.__class__)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            raise TypeError(f"{field.name} must be {_words(hints[field.name])}, got {given(value)}.")


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a class's fields."""
    return typing.get_type_hints(cls)


def given(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    if is_traced(value):
        return f"a traced array of shape {value.shape}"
    if isinstance(value, np.generic):
        return repr(value.item())
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | list | tuple | dict):
        words = repr(value)
        return words if len(words) <= 100 else f"{words[:90]}... ({type(value).__name__})"
    return f"a {type(value).__name__}"


def is_traced(value: Any) -> bool:
    """Whether a value is known only when a program runs."""
    # Without jax nothing can be traced, and a process that only reads does not load it for this.
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _assert_range(low: int | float, high: int | float, name: str, value: Any) -> None:
    if low <= value <= high:
        return
    value = value.item() if hasattr(value, "item") else value
    # Of a wide range only the end that was passed is of use.
    if high == math.inf or (value < low and high >= FAR):
        raise ValueError(f"{name} must {'not be negative' if low == 0 else f'be at least {low:g}'}, got {value}.")
    raise ValueError(f"{name} must lie in [{low:g}, {high:.10g}], got {value}.")


def _is_whole(value: Any) -> bool:
    """Python's whole numbers, and arrays without axes that hold one and are not traced; no bools."""
    if isinstance(value, int | np.integer):
        return not isinstance(value, bool)
    return hasattr(value, "dtype") and _is_number(value) and not is_traced(value) and value.dtype.kind in "iu"


def _is_number(value: Any) -> bool:
    """Python's numbers, and arrays without axes, traced ones included; no bools."""
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    if isinstance(value, type):
        return False
    dtype = getattr(value, "dtype", None)
    return dtype is not None and getattr(value, "shape", None) == () and np.dtype(dtype).kind in "iufV"


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return isinstance(value, bool | np.bool_) or is_traced(value)
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return _is_number(value)
    if hint is str:
        return isinstance(value, str)
    if origin is Literal:
        # Which words are known is said by `numbers.assert_fields`.
        return isinstance(value, tuple({type(part) for part in parts}))
    if origin is tuple and parts[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(entry, parts[0]) for entry in value)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is type(None):
        return value is None
    return isinstance(value, hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else True


_PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}


def _words(hint: Any) -> str:
    """What a field of this type holds."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a tuple, each entry {_words(parts[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, parts))
    return f"a {getattr(hint, '__name__', hint)}"
