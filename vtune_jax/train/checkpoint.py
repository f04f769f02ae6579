"""Checkpoints: the one module that knows orbax.

A checkpoint is one folder per step with two items: `state`, the train state, and `facts`, JSON with the format's
version, a checksum of the state and what the run was made of. Orbax writes it in the background and renames it into
place when it is whole.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree, UInt32

from vtune_jax.errors import UserError, disk_is_full
from vtune_jax.machine import hosts
from vtune_jax.machine.files import read_json, write_json

FORMAT = 2
SIZES = "sizes.json"
Facts = dict[str, Any]
T = TypeVar("T")


class Restored(NamedTuple, Generic[T]):
    """A checkpoint, read back."""

    step: int
    state: T
    changed: str  # what it was made of that has changed since, in words


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest few kept, the newest sound one restored."""

    def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] = lambda message: None) -> None:
        """Opens (and creates) a folder of checkpoints.

        Args:
            folder: where the steps' folders lie.
            keep: how many of the newest are kept.
            warn: told, in one line, of each checkpoint that cannot be used.
        """
        # Orbax logs what its threads raise, and raises it here too.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._folder = folder.absolute()
        self._warn = warn
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            step_prefix="step",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: PyTree, facts: Facts) -> None:
        """Starts writing; returns as soon as the state is copied, so that the next step may overwrite it."""
        self.wait()
        facts = {**facts, "format": FORMAT, "checksum": _hex(checksum(state))}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts))
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            # The storage layer wraps what the system said in errors of its own.
            if isinstance(error, OSError) or disk_is_full(error):
                raise _unwritable(self._folder, error) from error
            raise

    def restore(
        self, template: T, facts: Facts, *, may_differ: frozenset[str] = frozenset(), discard: bool = False
    ) -> Restored[T] | None:
        """The newest checkpoint that is whole.

        Args:
            template: a state of the same shapes, dtypes and placement.
            facts: what this run is made of; the checkpoint's must agree.
            may_differ: names of facts that need not; differences are returned.
            discard: removes checkpoints that cannot be read, whose steps will be trained and saved again. Whoever only
                reads must leave them: what failed may be the reading.

        Returns:
            its step and state, or None when there is no usable checkpoint.

        Raises:
            UserError: the checkpoint belongs to a run made of something else.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = self._read(step, template)
            if found is None:
                if discard:
                    # Left in place it would block the retrained step of the same number.
                    self._manager.delete(step)
                continue
            state, saved = found
            differing = {key: _differences(saved.get(key), value) for key, value in facts.items()}
            differing = {key: said for key, said in differing.items() if said}
            refused = [f"{key} ({said})" for key, said in differing.items() if key not in may_differ]
            if refused:
                raise UserError(
                    f"the checkpoint at {self._folder} was made with other {', '.join(refused)}",
                    "delete it to train again from the beginning",
                )
            return Restored(step, state, "; ".join(differing.values()))
        return None

    def _record_sizes(self) -> None:
        """Notes the length of every file of a checkpoint. A folder with a step's name is whole, as renaming comes last.

        Only while the manager rests: a note written into an old step that it is removing would keep it from going.

        A truncated file is so found by its length: its reader, which reads many files at once, would first fill the
        screen with the failures of the reads that it left pending.
        """
        if not hosts.leads():
            return
        for folder in self._folder.glob("step_[0-9]*"):
            record = folder / SIZES
            if folder.name.removeprefix("step_").isdigit() and not record.exists():
                write_json(record, _sizes(folder))

    def _unequal(self, step: int) -> str | None:
        folder = self._folder / f"step_{step}"
        try:
            noted, found = read_json(folder / SIZES), _sizes(folder)
        except (OSError, ValueError):
            # The process died between the checkpoint and its note: only the checksum can tell.
            return None
        for name, size in noted.items():
            if found.get(name) != size:
                return f"{name} has {found.get(name, 0)} bytes instead of {size}"
        return None

    def _read(self, step: int, template: T) -> tuple[T, Facts] | None:
        reason = self._unequal(step)
        if reason is None:
            found = self._restore(step, template)
            if not isinstance(found, str):
                return found
            reason = found
        self._warn(f"checkpoint of step {step} in {self._folder} is damaged ({reason}); trying the one before")
        return None

    def _restore(self, step: int, template: T) -> tuple[T, Facts] | str:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), facts=ocp.args.JsonRestore())
        try:
            read = self._manager.restore(step, args=items)
            facts = dict(read["facts"])
            sound = facts.get("format") == FORMAT and facts.get("checksum") == _hex(checksum(read["state"]))
        # Orbax and its storage layer raise many kinds of error for a damaged file; each means the same here.
        except Exception as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return (read["state"], facts) if sound else "its checksum does not match"

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            UserError: the disk was full or not writable.
        """
        try:
            self._manager.wait_until_finished()
            self._record_sizes()
        except Exception as error:
            # The storage layer wraps what the system said in errors of its own.
            if isinstance(error, OSError) or disk_is_full(error):
                raise _unwritable(self._folder, error) from error
            raise

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self.wait()
        self._manager.close()


def checksum(state: PyTree) -> UInt32[np.ndarray, " 2"]:
    """64 bits over every bit of a pytree, independent of how it is sharded.

    Each leaf's 32-bit words are multiplied by odd numbers that depend on their position and added modulo 2**32, twice.
    """
    # Leaf by leaf: a program for each shape compiles faster than one for each kind of state.
    sums = [_leaf_checksum(leaf, np.uint32(index)) for index, leaf in enumerate(jax.tree.leaves(state))]
    total: np.ndarray = np.array(jax.device_get(sums)).sum(axis=0, dtype=np.uint32)
    return total


@jax.jit
def _leaf_checksum(leaf: Array, index: UInt32[Array, ""]) -> UInt32[Array, " 2"]:
    words = _words(leaf).ravel()
    place = jax.lax.iota(jnp.uint32, words.size) + index * jnp.uint32(0x9E3779B1)
    sums = []
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (place * jnp.uint32(factor)) ^ (place >> 15)
        sums.append(((words ^ (words >> 7)) * (mixed | 1)).sum(dtype=jnp.uint32))
    return jnp.stack(sums)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = leaf.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _hex(words: UInt32[np.ndarray, " 2"]) -> str:
    return "".join(f"{word:08x}" for word in words)


def _sizes(folder: Path) -> dict[str, int]:
    # Without the note itself, and without a half-written note that a kill left.
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(SIZES))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _unwritable(folder: Path, error: Exception) -> UserError:
    full = disk_is_full(error)
    reason = "the disk is full" if full else getattr(error, "strerror", None) or error
    first = "free some space" if full else "see that the folder is there and may be written to"
    return UserError(
        f"cannot write a checkpoint to {folder} ({reason})",
        f"{first} and run the same command again; it goes on from the newest whole checkpoint",
    )


def _differences(was: Any, now: Any) -> str:
    """What differs, in words; empty if nothing does."""
    if was == now:
        return ""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return f"was {was}, is {now}"
    names = [name for name in {**now, **was} if was.get(name) != now.get(name)]
    return "; ".join(f"{name} was {was.get(name)}, is {now.get(name)}" for name in names)


def canonical(facts: Facts) -> Facts:
    """Facts as JSON gives them back, so that a saved and a fresh one compare equal."""
    again: Facts = json.loads(json.dumps(facts))
    return again
