"""Configs as data: nested frozen dataclasses to and from TOML, with every mistake named in one line.

A config class is a frozen, keyword-only dataclass whose fields are bool, int, float, str, Literal, `tuple[T, ...]`,
another config, or a choice of configs told apart by their `name: Literal[...]` field. It checks its own values in
`__post_init__` by raising ValueError. Reading a file runs nothing.

Three marks stand at a field's definition: `bookkeeping` (results do not depend on it), `choice` (which configs it may
hold, where their list is made elsewhere) and, in a choice, `flat` (its keys stand in the parent's table).
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vtune_jax.errors import UserError

T = TypeVar("T")


def bookkeeping(default: T) -> T:
    """A field that results do not depend on: speed, patience, how often something is recorded or kept.

    It is left out of `identity`, so that changing it reruns nothing.
    """
    return dataclasses.field(default=default, metadata={"bookkeeping": True})


def choice(members: Callable[[], Sequence[type]], default: Any = dataclasses.MISSING, *, flat: bool = False) -> Any:
    """A field that holds one of several config classes, told apart by `name`.

    Args:
        members: gives the classes; called when a file is read.
        default: the value of a file that says nothing; a table without a `name` is one of the default's class.
        flat: the chosen config's keys stand in the parent's own table.
    """
    return dataclasses.field(default=default, metadata={"members": members, "flat": flat})


def load(
    cls: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Reads a config from a TOML file and applies overrides.

    Args:
        cls: the config class.
        path: of the file.
        overrides: `key.sub=value` each; the value is TOML, or else taken as a plain string. A key goes through arrays
            by index (`domains.0.source`) or by the entry's label or name (`domains.python.source`), dots in it
            included.
        values: overrides as Python values by dotted key.
        defaults: values of top-level keys that the file may leave out.

    Raises:
        UserError: naming file, key, what was found and what was expected, and the nearest valid name.
    """
    table = {**(defaults or {}), **_read(path)}
    for override in overrides:
        _override(table, *_parsed(override), override)
    for key, value in (values or {}).items():
        _override(table, key.split("."), value, f"{key}={value}")
    config: T = _build(cls, table, "", str(path))
    return config


def dumps(config: Any) -> str:
    """The config as TOML that `load` reads back to an equal one, every field written out."""
    lines: list[str] = []
    _dump_table(as_plain(config), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def digest(value: Any) -> str:
    """SHA-256 of a value's `identity`, stable over processes and Python versions."""
    return hashlib.sha256(json.dumps(identity(value), sort_keys=True).encode()).hexdigest()


def identity(value: Any) -> Any:
    """What results depend on in a config or another frozen value, as JSON: fields marked `bookkeeping` are left out.

    A value that is no dataclass may say what it is by a method `identity()`.

    Raises:
        TypeError: a value that has no identity.
    """
    if hasattr(value, "identity"):
        return value.identity()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if not field.metadata.get("bookkeeping")]
        return {field.name: identity(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple | list):
        return [identity(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: identity(entry) for key, entry in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} has no identity: {value!r}")


def as_plain(config: Any) -> Any:
    """Nested dicts and lists of a config, as its file has them."""
    if not (dataclasses.is_dataclass(config) and not isinstance(config, type)):
        return [as_plain(entry) for entry in config] if isinstance(config, tuple) else config
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = as_plain(getattr(config, field.name))
        plain |= value if field.metadata.get("flat") else {field.name: value}
    return plain


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(other) for other in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(near)}" if near else ""
        raise UserError(f"there is no config file {path}{there}", "give the path of a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}", "mend that line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error


def _parsed(override: str) -> tuple[list[str], Any]:
    """Key and value of `key.sub=value`; a value that is no TOML is a string."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"the override '{override}' is not KEY=VALUE", "write it like train.steps=100")
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return parts, text
    if len(found) > 1:
        raise UserError(f"the override of {key.strip()} has a second line, {text.splitlines()[1]!r}", "pass each alone")
    return parts, found["value"]


def _override(table: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    target: Any = table
    depth = 0
    while True:
        key: Any = parts[depth]
        if isinstance(target, list):
            key, depth = _index(target, parts, depth, override)
        if depth == len(parts) - 1:
            target[key] = value
            return
        entry = target[key] if isinstance(target, list) else target.setdefault(key, {})
        depth += 1
        if not isinstance(entry, dict | list):
            where = ".".join(parts[:depth])
            raise UserError(f"the override '{override}' goes into '{where}', which is no table", "check the key")
        target = entry


def _index(entries: list[Any], parts: Sequence[str], depth: int, override: str) -> tuple[int, int]:
    """Which entry the key names from this part on, by label, name or index, and the last part that names it."""
    labels = [_label(entry) for entry in entries]
    for end in range(len(parts), depth, -1):
        if (named := ".".join(parts[depth:end])) in labels:
            return labels.index(named), end - 1
    part = parts[depth]
    if part.isdecimal() and int(part) < len(entries):
        return int(part), depth
    raise UserError(f"the override '{override}' finds no entry '{part}'{_nearest(part, labels)}", "check the key")


def _label(entry: Any) -> str:
    return str(entry.get("label") or entry.get("name", "")) if isinstance(entry, dict) else ""


def _build(cls: Any, table: Any, where: str, file: str, others: Sequence[str] = ()) -> Any:
    """A config of this class; `others` are keys of the same table that the caller reads."""
    if not isinstance(table, dict):
        raise _wrong(file, where, table, "a table")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    flat = next((field for field in fields.values() if field.metadata.get("flat")), None)
    if flat:
        # Every key that is not the parent's own belongs to the flat field.
        own = {key: value for key, value in table.items() if key in fields and key != flat.name}
        table = {**own, flat.name: {key: value for key, value in table.items() if key not in own}}
    for key in table:
        if key not in fields:
            known = [*fields, *others]
            raise UserError(
                f"{file}: unknown key '{_join(where, key)}'{_nearest(key, known)}", f"use one of {', '.join(known)}"
            )
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if members := fields[key].metadata.get("members"):
            inside = where if fields[key] is flat else _join(where, key)
            chosen = _member(tuple(members()), value, inside, file, fields[key].default)
            beside = [name for name in fields if name != key] if fields[key] is flat else []
            values[key] = _build(chosen, value, inside, file, beside)
        else:
            values[key] = _convert(hints[key], value, _join(where, key), file)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{file}: '{_join(where, name)}' is missing", f"add {name} = ...")
    try:
        return cls(**values)
    except ValueError as error:
        at = f" [{where}]" if where else ""
        raise UserError(f"{file}:{at} {str(error).rstrip('.')}", "change that value") from error


def _convert(hint: Any, value: Any, where: str, file: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(file, where, value, "an array")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, entry, f"{where}.{index}", file) for index, entry in enumerate(value))
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            near = _nearest(str(value), map(str, allowed))
            raise UserError(f"{file}: '{where}' is {value!r}{near}", f"use one of {', '.join(map(repr, allowed))}")
        return value
    if origin in (Union, types.UnionType):
        return _build(_member(typing.get_args(hint), value, where, file), value, where, file)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, file)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{file}: '{where}' is a number of {len(str(abs(value)))} digits", "give one below 2**63")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(file, where, value, _KINDS[hint])
    # Nothing compares with NaN, and a config that holds one, or an infinity, could not be written for the next reader.
    if type(value) is float and not abs(value) <= _MOST_FLOAT:
        fix = f"give a number of at most {_MOST_FLOAT:.2g} (single precision), or leave the field out"
        raise UserError(f"{file}: '{where}' is {value}", fix)
    if type(value) is str and not _is_text(value):
        raise UserError(f"{file}: '{where}' holds half of a pair of characters (a lone surrogate)", "give other text")
    return value


_MOST_FLOAT = 3.4028234e38


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _member(members: tuple[Any, ...], value: Any, where: str, file: str, default: Any = dataclasses.MISSING) -> Any:
    """The class whose `name` literal the table gives; without a name, the default's."""
    by_name = {typing.get_args(typing.get_type_hints(member)["name"])[0]: member for member in members}
    if not isinstance(value, dict):
        raise _wrong(file, where, value, "a table")
    if "name" not in value and default is not dataclasses.MISSING:
        return type(default)
    name = value.get("name")
    if not isinstance(name, str) or name not in by_name:
        found = f"'{where}.name' is {name!r}" if "name" in value else f"'{where}.name' is missing"
        near = _nearest(str(name), by_name)
        raise UserError(f"{file}: {found}{near}", f"use one of {', '.join(map(repr, by_name))}")
    return by_name[name]


def _wrong(file: str, where: str, value: Any, expected: str) -> UserError:
    return UserError(f"{file}: '{where}' is {value!r}, a {type(value).__name__}", f"give {expected}")


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _dump_table(table: Mapping[str, Any], where: str, lines: list[str]) -> None:
    nested = {key: value for key, value in table.items() if _is_nested(value)}
    for key, value in table.items():
        if key not in nested:
            lines.append(f"{key} = {_toml(value)}")
    for key, value in nested.items():
        name = _join(where, key)
        for entry in value if isinstance(value, list) else [value]:
            lines.extend(["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"])
            _dump_table(entry, name, lines)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON and TOML write booleans, finite numbers and (escaped) strings alike; TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
