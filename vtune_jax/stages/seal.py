"""What marks a stage as finished: who made it, and checks by which damage to its files is seen."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from vtune_jax.machine.files import TEMPORARY, read_json, sha256, write_json
from vtune_jax.machine.json_values import from_json
from vtune_jax.machine.provenance import Provenance

LOCK, DONE = ".lock", "done.json"
NOT_NEEDED = "checkpoints"
"""Folder of a stage that nobody needs once the stage is finished."""
MOST_HASHED = 1 << 22
"""Bytes of the largest file whose content is checked each time. Parameters and tokens have checksums of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileCheck:
    """What a file must be."""

    length: int  # bytes
    sha256: str = ""  # of the content; empty for a file above `MOST_HASHED`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seal:
    """The content of `done.json`, which is written last."""

    digest: str  # of what the stage depends on
    made_by: Provenance  # of the process that finished it
    files: dict[str, FileCheck]  # by name within the stage's folder


def seal(folder: Path, digest: str) -> None:
    """Marks a stage as finished."""
    checks = {str(path.relative_to(folder)): _check(path) for path in _files(folder)}
    write_json(folder / DONE, Seal(digest=digest, made_by=Provenance.here(), files=checks))


def is_sealed(folder: Path) -> bool:
    """Whether the stage has been finished, whatever has become of it since."""
    return (folder / DONE).exists()


def read_seal(folder: Path) -> Seal:
    """The seal of a finished stage.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return from_json(Seal, read_json(folder / DONE))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{DONE} is no seal of a stage ({error!s:.80})") from error


def flaw(folder: Path, *, contents: bool = True) -> str:
    """What is wrong with the files of a finished stage, in a few words; empty if nothing is.

    Args:
        folder: of the stage.
        contents: whether contents are looked at, beside lengths.
    """
    try:
        found = read_seal(folder)
    except ValueError as error:
        return str(error)
    if not folder.name.endswith(f"-{found.digest}"):
        return f"{DONE} is another stage's"
    for name, check in found.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (length := path.stat().st_size) != check.length:
            return f"{name} has {length:,} bytes, it had {check.length:,}"
        if contents and check.sha256 and sha256(path) != check.sha256:
            return f"{name} has other content than it had"
    return ""


def _check(path: Path) -> FileCheck:
    length = path.stat().st_size
    return FileCheck(length=length, sha256=sha256(path) if length <= MOST_HASHED else "")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        first = path.relative_to(folder).parts[0]
        if path.is_file() and first not in (LOCK, DONE, NOT_NEEDED) and not path.name.endswith(TEMPORARY):
            yield path
