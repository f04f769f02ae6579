"""Which files a source names: the one place that lists folders and patterns, and says what it passes over.

Names that begin with '.' or '_' are no data, as in Spark, Arrow and Hugging Face's datasets, unless they are asked for.
"""

import fnmatch
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vtune_jax.data.corpora.compressed import PACKED
from vtune_jax.data.corpora.documents import FORMATS, format_of, holds_lines
from vtune_jax.errors import UserError
from vtune_jax.machine.files import user_path

LFS_POINTER, LONGEST_POINTER = b"version https://git-lfs", 1024  # how a pointer begins; bytes that it has at most
_SUPPORTED = f"{', '.join(FORMATS)}; text and JSON also with {', '.join(PACKED)}"


class Listing(NamedTuple):
    """The files of a source."""

    files: list[Path]  # sorted, each once even if links give it several names
    passed_over: list[Path]  # files below a folder whose format is unknown; hidden ones are not told


def files_of(source: str, domain: str) -> Listing:
    """The files that a source names: a file, all files below a folder, or what a glob finds, folders included.

    A dataset that Hugging Face's library saved to disk is read by its own list of files. Links are followed.

    Raises:
        UserError: the source does not exist, is unreadable, or has no file of a known format; it is a dataset of
            several splits; a link leads nowhere; a file is a pointer of Git LFS.
    """
    path = user_path(source)
    where = f"domain '{domain}': "
    try:
        if path.is_dir():
            found = list(_below(path, where, set()))
        elif os.path.lexists(path):
            _assert_file(path, where)
            if format_of(path) is None:
                raise UserError(f"{where}{path} has an unknown format", f"use one of {_SUPPORTED}")
            found = [path]
        else:
            found = []
            for match in map(Path, glob.glob(str(path), recursive=True)):
                if not _hidden(match, path):
                    found += _below(match, where, set()) if match.is_dir() else [match]
    except OSError as error:
        raise UserError(f"{where}{source} cannot be read ({error.strerror})", "give a readable source") from error
    files, passed_over, seen = [], [], set()
    for file in sorted(set(found)):
        if file == path or _is_data(file):
            _assert_file(file, where)
            if (real := file.resolve()) not in seen:
                seen.add(real)
                files.append(file)
        elif os.path.isfile(file):
            passed_over.append(file)
    if not files:
        what = "holds no file that can be read" if path.is_dir() or passed_over else "does not exist"
        fix = f"give a file, folder or glob of {_SUPPORTED}"
        if what == "does not exist" and "[" in source:
            what, fix = "finds no file ([...] in a pattern is one of the characters within)", "write [[] for a bracket"
        raise UserError(f"{where}{source} {what}", fix)
    return Listing(files, passed_over)


def _below(folder: Path, where: str, above: set[Path]) -> Iterator[Path]:
    """All files below a folder that are not hidden, or those that a saved dataset names."""
    real = folder.resolve()
    if real in above:
        return  # a link back to a folder that is being listed
    saved = _saved_dataset(folder, where)
    if saved is not None:
        yield from saved
        return
    for entry in folder.iterdir():
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            yield from _below(entry, where, above | {real})
        else:
            yield entry


def _is_data(file: Path) -> bool:
    """Whether a file that was found, not named, is one of documents: `.json` is by content, others by name."""
    kind = format_of(file)
    return kind is not None and (kind != ".json" or not file.is_file() or holds_lines(file))


def _assert_file(path: Path, where: str) -> None:
    if not path.exists():
        raise UserError(f"{where}{path} is a link that leads nowhere", "mend or remove the link")
    if not path.is_file():
        raise UserError(f"{where}{path} is no file but a pipe, socket or device", "write its content to a file")
    if path.stat().st_size > LONGEST_POINTER:
        return
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{where}{path} is a pointer of Git LFS, not the file itself", "run `git lfs pull`")


def _hidden(match: Path, pattern: Path) -> bool:
    """Whether a glob went through a hidden name that it does not ask for."""
    asked = [part for part in pattern.parts if part.startswith((".", "_"))]
    parts = (part for part in match.parts if part.startswith((".", "_")) and part not in (".", ".."))
    return any(not any(fnmatch.fnmatchcase(part, name) for name in asked) for part in parts)


def _saved_dataset(folder: Path, where: str) -> list[Path] | None:
    """The files of a Hugging Face dataset saved to disk, without the caches beside them; None if it is none."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json", where, "splits", str)
        if len(splits) == 1:
            return _saved_dataset(folder / splits[0], where)
        names = ", ".join(map(str, splits))
        raise UserError(f"{where}{folder} is a dataset of several splits ({names})", f"name one: {folder / splits[0]}")
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    found = [folder / entry.get("filename", "") for entry in _json(folder / "state.json", where, "_data_files", dict)]
    for file in found:
        if file.parent != folder or not file.is_file():
            raise UserError(f"{where}the dataset {folder} lacks its file {file.name}", "save it to disk again")
    return found


def _json(path: Path, where: str, key: str, kind: type) -> list[Any]:
    """A list in a saved dataset's own files."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
        if found and isinstance(found, list) and all(isinstance(entry, kind) for entry in found):
            return found
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{where}{path} is damaged: it lists no {key}", "save the dataset to disk again")
