"""The store: finished stages, found by all that they depend on, for every run and every cell of a grid."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.stages.seal import LOCK, flaw, is_sealed, seal

STAGE_VERSION = 4
"""Part of every stage's key; raised when the meaning of a stage's files changes."""

KEY = "key.json"

Inputs = TypeVar("Inputs")


class Finished(NamedTuple):
    """A finished stage: where its files lie, and the digest of everything that they depend on."""

    folder: Path
    digest: str

    def identity(self) -> str:
        """What a stage that is built on this one counts of it."""
        return self.digest


class Store:
    """A folder of stages, `NAME-DIGEST/` each.

    A stage's inputs are one frozen value, and nothing else reaches its work, so that whatever changes the result counts
    in the digest. Changing a config field therefore reruns what depends on it, and changing it back finds the old
    result. A stage that is worked on is locked; another process that wants it waits, and uses it.
    """

    def __init__(self, root: Path) -> None:
        """Opens a store; its folder is made when the first stage is.

        Args:
            root: its folder.
        """
        self.root = root
        self._hashes: dict[str, list[Any]] | None = None

    def folder(self, name: str, inputs: Any) -> Path:
        """Where the stage of these inputs lies, finished or not."""
        return self.root / f"{name}-{_digest(_key(name, inputs))}"

    def find(self, name: str, inputs: Any) -> Finished | None:
        """The stage of these inputs if it is finished and whole."""
        digest = _digest(_key(name, inputs))
        folder = self.root / f"{name}-{digest}"
        return Finished(folder, digest) if is_sealed(folder) and not flaw(folder) else None

    def make(
        self,
        name: str,
        inputs: Inputs,
        work: Callable[[Inputs, Path], None],
        *,
        waits: Callable[[], None],
        again: Callable[[str], None] | None = None,
    ) -> Finished:
        """The finished stage, worked on here unless it is done or another process does it.

        Args:
            name: of the stage, the beginning of its folder's name.
            inputs: a frozen value of all that the result depends on; see `settings.identity`.
            work: called with the inputs and the stage's folder, which it fills. It may find files there of a process
                that was killed, and must then end with the same files as if it had not been.
            waits: called once if another process is working on the stage.
            again: told of damage to the finished stage, which is then made again; None: damage is an error.

        Raises:
            UserError: the store's folder cannot be written to; the stage is finished and damaged.
        """
        if found := self.find(name, inputs):
            return found
        key = _key(name, inputs)
        folder, digest = self.root / f"{name}-{_digest(key)}", _digest(key)
        with locked(folder, waits):
            if is_sealed(folder) and (what := flaw(folder)):
                if again is None:
                    raise damaged(folder, what)
                again(what)
                _empty(folder)
            if not is_sealed(folder):
                (folder / KEY).write_text(key + "\n", encoding="utf-8")
                work(inputs, folder)
                seal(folder, digest)
        return Finished(folder, digest)

    def hashed(self, path: Path) -> str:
        """The SHA-256 of a file's content, remembered as long as its length and time of change stay the same."""
        memory = self.root / "hashes.json"
        if self._hashes is None:
            self._hashes = _remembered(memory)
        stat, name = path.stat(), str(path.absolute())
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._hashes.get(name)
        if known is None or known[:2] != stamp:
            with path.open("rb") as file:
                known = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
            self._hashes[name] = known
            make_folder(self.root)
            write_json(memory, self._hashes)
        return str(known[2])


def damaged(folder: Path, what: str) -> UserError:
    """The error of a finished stage whose files are not what they were; see `seal.flaw`."""
    return UserError(
        f"the finished stage {folder} is damaged: {what}",
        "put the file back, or delete that folder, and with it what the stage has trained, and run again",
    )


def finished_at(folder: Path) -> Finished:
    """The finished stage in a folder.

    Raises:
        UserError: it is damaged.
    """
    if what := flaw(folder):
        raise damaged(folder, what)
    return Finished(folder, folder.name.rpartition("-")[2])


def _empty(folder: Path) -> None:
    """Removes everything in a stage's folder but its lock."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {folder} ({error.strerror})", "give others with --run-folder and --store"
        ) from error


@contextmanager
def locked(folder: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Holds a folder's lock, which is let go when the process ends, however it ends.

    Args:
        folder: is made if it does not exist.
        waits: called once if another process holds the lock.
    """
    while True:
        make_folder(folder)
        with (folder / LOCK).open("a") as file:
            if not _try_lock(file.fileno()):
                waits()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock may have removed the folder, and this file with it.
            if _is(folder / LOCK, file.fileno()):
                yield
                return


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with (folder / LOCK).open("a") as file:
            return not _try_lock(file.fileno())
    except OSError:
        return False


@contextmanager
def unless_locked(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock if no process does; tells whether it is held."""
    try:
        with (folder / LOCK).open("a") as file:
            yield _try_lock(file.fileno())
    except FileNotFoundError:
        yield False


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _remembered(memory: Path) -> dict[str, list[Any]]:
    """Hashes of files by path; nothing where the file is damaged, since it only saves work."""
    try:
        found = read_json(memory)
    except (OSError, ValueError):
        return {}
    return (
        {name: known for name, known in found.items() if isinstance(known, list) and len(known) == 3}
        if isinstance(found, dict)
        else {}
    )


def _key(name: str, inputs: Any) -> str:
    return json.dumps({"version": STAGE_VERSION, "stage": name, **settings.identity(inputs)}, sort_keys=True, indent=1)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]
