"""The run folder: stages cached by content hash, so that a second run starts where the first was killed."""

import errno
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vtune_jax.errors import UserError
from vtune_jax.machine.files import read_json, sha256, write_json, write_whole

STAGE_VERSION = 1
"""Part of every stage's key; raised when the meaning of a stage's files changes."""


class Stage(NamedTuple):
    """A finished stage: where its files lie, and the digest of everything they depend on."""

    folder: Path
    digest: str


class RunFolder:
    """One experiment's folder: `stages/NAME-DIGEST/` per stage, with the results beside them.

    A stage's digest covers the part of the config it reads and the digests of the stages it builds on. Changing a
    field therefore reruns only what depends on it, and changing it back finds the old result again.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Opens or creates the folder.

        Args:
            folder: of the run.
            name: of the experiment; a folder belongs to one experiment.

        Raises:
            UserError: the folder belongs to another experiment, holds something else, or is not writable.
        """
        self.path = folder
        self._hashes: dict[str, list[Any]] | None = None
        owner = folder / "experiment.json"
        if owner.exists():
            other = read_json(owner)["name"]
            if other != name:
                raise UserError(
                    f"the run folder {folder} belongs to the experiment '{other}', this config is '{name}'",
                    f'give another folder with --run-folder, or set name = "{other}" if it is the same experiment',
                )
            return
        if folder.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UserError(
                f"the folder {folder} is not empty and holds no run", "give another folder with --run-folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create the run folder {folder} ({error.strerror})", "give another with --run-folder"
            ) from error
        write_json(owner, {"name": name})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out; the lock dies with its process, however that ends.

        Raises:
            UserError: another process is running in this folder.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise UserError(
                    f"another process is running in {self.path}", "wait for it, or give another --run-folder"
                ) from error
            yield

    def hashed(self, path: Path) -> str:
        """The SHA-256 of a file's content, remembered as long as its length and time of change stay the same."""
        known_file = self.path / "hashes.json"
        if self._hashes is None:
            self._hashes = read_json(known_file) if known_file.exists() else {}
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        found = self._hashes.get(str(path.absolute()))
        if found is None or found[:2] != stamp:
            found = [*stamp, sha256(path)]
            self._hashes[str(path.absolute())] = found
            write_json(known_file, self._hashes)
        return found[2]

    def stage(self, name: str, key: dict[str, Any], work: Callable[[Path], None]) -> Stage:
        """Does the work unless it is done.

        Args:
            name: of the stage, part of its folder's name.
            key: JSON of all it depends on; written beside its files.
            work: fills the folder it is given. It may find files there from a run that was killed, and must then
                end with the same files as if it had not.
        """
        text = json.dumps({"version": STAGE_VERSION, "stage": name, **key}, sort_keys=True, indent=1)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = self.path / "stages" / f"{name}-{digest[:8]}"
        done = folder / "done.json"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "key.json", text + "\n")
            work(folder)
            write_json(done, {"digest": digest})
        return Stage(folder, digest)

    def is_done(self, name: str, key: dict[str, Any]) -> bool:
        """Whether `stage` would find its work done."""
        text = json.dumps({"version": STAGE_VERSION, "stage": name, **key}, sort_keys=True, indent=1)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return (self.path / "stages" / f"{name}-{digest}" / "done.json").exists()
