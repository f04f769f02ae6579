"""Configs as data: nested frozen dataclasses to and from TOML, with every mistake named in one line.

A config class is a frozen, keyword-only dataclass whose fields are bool, int, float, str, Literal, `tuple[T, ...]`,
another config, or a union of configs told apart by their `name: Literal[...]` field. It checks its own values in
`__post_init__` by raising ValueError. Reading a file runs nothing.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from vtune_jax.errors import UserError

T = TypeVar("T")


def load(cls: type[T], path: Path, overrides: Sequence[str] = (), *, defaults: Mapping[str, Any] | None = None) -> T:
    """Reads a config from a TOML file and applies overrides.

    Args:
        cls: the config class.
        path: of the file.
        overrides: `key.sub=value` each; the value is TOML, or else taken as a plain string. A key goes through arrays
            by index (`domains.0.source`) or by the entry's label or name (`domains.python.source`).
        defaults: values of top-level keys that the file may leave out.

    Raises:
        UserError: naming file, key, what was found and what was expected, and the nearest valid name.
    """
    table = {**(defaults or {}), **_read(path)}
    for override in overrides:
        _override(table, override)
    return _build(cls, table, "", str(path))


def dumps(config: Any) -> str:
    """The config as TOML that `load` reads back to an equal one, every field written out."""
    lines: list[str] = []
    _dump_table(as_plain(config), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def digest(config: Any, *fields: str) -> str:
    """SHA-256 of a config, or of some of its fields (dotted), stable over processes and Python versions."""
    plain = as_plain(config)
    chosen = {field: _dig(plain, field) for field in fields} if fields else plain
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def as_plain(config: Any) -> Any:
    """Nested dicts and lists of a config."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: as_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return [as_plain(entry) for entry in config] if isinstance(config, tuple) else config


def _dig(plain: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        plain = plain[part]
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


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"the override '{override}' is not KEY=VALUE", "write it like train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target: Any = table
    for depth, part in enumerate(parts[:-1]):
        target = _enter(target, part, override, ".".join(parts[:depth]))
    if isinstance(target, list):
        target[_index(target, parts[-1], override)] = value
    else:
        target[parts[-1]] = value


def _enter(target: Any, part: str, override: str, inside: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, part, override)]
    entry = target.setdefault(part, {})
    if not isinstance(entry, dict | list):
        where = f"{inside}.{part}" if inside else part
        raise UserError(f"the override '{override}' goes into '{where}', which is no table", "check the key")
    return entry


def _index(entries: list[Any], part: str, override: str) -> int:
    labels = [_label(entry) for entry in entries]
    if part in labels:
        return labels.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise UserError(f"the override '{override}' finds no entry '{part}'{_nearest(part, labels)}", "check the key")


def _label(entry: Any) -> str:
    return str(entry.get("label") or entry.get("name", "")) if isinstance(entry, dict) else ""


def _build(cls: Any, table: Any, where: str, file: str) -> Any:
    if not isinstance(table, dict):
        raise _wrong(file, where, table, "a table")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            raise UserError(
                f"{file}: unknown key '{_join(where, key)}'{_nearest(key, fields)}",
                f"use one of {', '.join(fields)}",
            )
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key), file) for key, value in table.items()}
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
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise _wrong(file, where, value, _KINDS[hint])
    return value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _member(members: tuple[Any, ...], value: Any, where: str, file: str) -> Any:
    """The class of a union whose `name` literal the table gives."""
    by_name = {typing.get_args(typing.get_type_hints(member)["name"])[0]: member for member in members}
    if not isinstance(value, dict):
        raise _wrong(file, where, value, "a table")
    name = value.get("name")
    if name not in by_name:
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
