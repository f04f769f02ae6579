"""A run folder: what people look at. Each configuration has a folder in it, with its results and its stages' places."""

import datetime
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.files import TEMPORARY, read_json, write_json, write_whole
from vtune_jax.stages.seal import flaw, is_sealed
from vtune_jax.stages.store import Finished, Store, finished_at, is_locked, locked, make_folder

OWNER, CONFIG, STAGES, RESULTS, LATEST = "experiment.json", "config.toml", "stages.json", "results.json", "latest"
REFERENCES = "references"


class RunFolder:
    """`RUN/CONFIGURATION/`: the resolved config, results, report, and `stages.json` with the stages' places.

    Two configurations of an experiment, two seeds for instance, have two folders, named by what their results depend
    on. `RUN/latest` leads to the one opened last.
    """

    def __init__(self, path: Path, config: ExperimentConfig, store: Store) -> None:
        """Opens or makes the folder of this configuration.

        Args:
            path: of the run; a run belongs to one experiment.
            config: whose results are kept here.
            store: of the stages.

        Raises:
            UserError: the folder belongs to another experiment, holds something else, or cannot be made.
        """
        self.run, self.path = path, path / configuration(config)
        _claim(path, config.name)
        make_folder(self.path)
        with locked(self.path, lambda: None):
            # The config that a process is working by stays as that process has written it.
            if not ((self.path / CONFIG).exists() and self._is_worked_on()):
                write_whole(self.path / CONFIG, settings.dumps(config))
        _lead_to(path / LATEST, self.path.name)
        self._before = read_stages(self.path)
        if self._before:
            # Run folders are moved and copied: the store learns at each opening where this one lies.
            self._note_in(store.root)

    def _is_worked_on(self) -> bool:
        """Whether a process is at work on a stage of this configuration."""
        return any(is_locked(self.path / place) for place in read_stages(self.path).values())

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.path / RESULTS

    def refer(self, role: str, folder: Path) -> None:
        """Notes that this configuration needs a stage, so that pruning leaves it alone.

        Args:
            role: what the stage is to this run, for instance "base model" or "arm static".
            folder: of the stage, in the store or in another run's.
        """
        # Two processes may work on one configuration: each adds to what the other has noted.
        with locked(self.path, lambda: None):
            noted = {**read_stages(self.path), role: relative(folder, self.path)}
            self._note_in(folder.parent)
            write_json(self.path / STAGES, noted)

    def _note_in(self, store: Path) -> None:
        """Tells a store that this configuration refers to stages of it."""
        make_folder(store / REFERENCES)
        name = settings.digest(str(self.path.resolve()))[:16]
        write_json(store / REFERENCES / f"{name}.json", {"run": relative(self.path, store)})

    def before(self, role: str) -> Path | None:
        """The stage of this role when the folder was opened; another than now if sources have changed since."""
        place = self._before.get(role)
        return (self.path / place).resolve() if place else None

    def earlier(self, role: str) -> Iterator[Path]:
        """The folders of the stage of this role in this run's other configurations, and in this one when opened."""
        for other in configurations(self.run):
            place = self._before.get(role) if other == self.path else read_stages(other).get(role)
            if place:
                yield (other / place).resolve()


def relative(path: Path, folder: Path) -> str:
    """The way from a folder to a path, links resolved: a way up through a link leads elsewhere."""
    return os.path.relpath(path.resolve(), folder.resolve())


def configuration(config: ExperimentConfig) -> str:
    """The name of a configuration's folder: eight digits of all that its results depend on, arms' labels included."""
    return settings.digest((settings.identity(config), config.arm_labels))[:8]


def configurations(run: Path) -> list[Path]:
    """The folders of a run's configurations, oldest first."""
    found = [file.parent for file in run.glob(f"*/{CONFIG}") if not file.parent.is_symlink()]
    return sorted(found, key=lambda folder: (folder / CONFIG).stat().st_mtime_ns)


def with_results(run: Path) -> list[Path]:
    """The folders of a run's configurations that have results, in the order in which these were written."""
    found = [folder for folder in configurations(run) if (folder / RESULTS).exists()]
    return sorted(found, key=lambda folder: (folder / RESULTS).stat().st_mtime_ns)


def read_stages(folder: Path) -> dict[str, str]:
    """The stages that a configuration refers to: role to place, relative to the configuration's folder."""
    file = folder / STAGES
    if not file.exists():
        return {}
    return _read_texts(file, "delete it; `vtune-jax run` on the same config writes it again")


def referenced_stages(run: Path, role: str) -> dict[str, Finished]:
    """The finished stages of a role, by the configuration that refers to each: of a run, or of one configuration."""
    found = {}
    for folder in [run] if (run / CONFIG).exists() else configurations(run):
        place = read_stages(folder).get(role)
        if place and is_sealed(folder / place):
            found[folder.name] = finished_at((folder / place).resolve())
    return found


def earlier_version(run: Path) -> str:
    """One line about a run folder that an earlier version made, or nothing."""
    if not (run / "stages").is_dir():
        return ""
    return (
        f"{run / 'stages'} and the results beside it were made by an earlier version: they are left as they are and "
        "not used; delete them when you need them no more"
    )


class StageEntry(NamedTuple):
    """A stage in the store."""

    folder: Path
    state: str  # "done", "damaged", "running" or "unfinished"
    bytes: int
    changed: datetime.datetime  # when a file of it was last written
    runs: tuple[Path, ...]  # folders of the configurations that refer to it


def stage_entries(store: Path) -> list[StageEntry]:
    """All stages of a store with size, age, state, and who refers to them."""
    users, entries = stage_users(store), []
    for key in sorted(store.glob("*-*/key.json")):
        folder = key.parent
        files = list(_stats(folder))
        changed = datetime.datetime.fromtimestamp(max((file.st_mtime for file in files), default=0.0))
        size = sum(file.st_size for file in files)
        entries.append(StageEntry(folder, _state(folder), size, changed, tuple(users.get(folder.resolve(), ()))))
    return entries


def _state(folder: Path) -> str:
    if is_sealed(folder):
        return "damaged" if flaw(folder, contents=False) else "done"
    return "running" if is_locked(folder) else "unfinished"


def stage_users(store: Path) -> dict[Path, list[Path]]:
    """The configurations' folders that refer to each stage, by the stage's folder."""
    users: dict[Path, list[Path]] = {}
    for folder in referring(store):
        for place in read_stages(folder).values():
            users.setdefault((folder / place).resolve(), []).append(folder)
    return users


def referring(store: Path) -> list[Path]:
    """The configurations' folders that may refer to stages of this store: those noted in it, and those beside it."""
    root = store.resolve()
    fix = "delete it; opening the run that it stood for writes it again"
    files = sorted((store / REFERENCES).glob("*.json"))
    noted = [root / _read_texts(file, fix, "run")["run"] for file in files]
    runs = {owner.parent for beside in (store.absolute().parent, root.parent) for owner in beside.glob(f"*/{OWNER}")}
    found = {folder.resolve() for folder in (*noted, *(each for run in runs for each in configurations(run)))}
    return sorted(folder for folder in found if folder.is_dir())


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of the files below a folder, in which a run may be at work: what vanishes meanwhile is passed over."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.stat(os.path.join(place, name))


def _read_texts(file: Path, fix: str, *keys: str) -> dict[str, str]:
    """A file of texts by name, in which these names must stand.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = read_json(file)
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or not all(isinstance(text, str) for text in found.values())
        or not {*keys} <= {*found}
    ):
        raise UserError(f"{file} is damaged", fix)
    return found


def _claim(run: Path, name: str) -> None:
    owner = run / OWNER
    if owner.exists():
        fix = f'give another folder with --run-folder; if the run is this one, write {{"name": "{name}"}} into the file'
        other = _read_texts(owner, fix, "name")["name"]
        if other != name:
            raise UserError(
                f"the run folder {run} belongs to the experiment '{other}', this config is '{name}'",
                f'give another folder with --run-folder, or set name = "{other}" if it is the same experiment',
            )
        return
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is no folder", "give another with --run-folder")
    # A temporary file is of a process that is just making the folder, or was killed while it did.
    if run.exists() and any(not entry.name.endswith(TEMPORARY) for entry in run.iterdir()):
        raise UserError(f"the folder {run} is not empty and holds no run", "give another folder with --run-folder")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the run folder {run} ({error.strerror})", "give another with --run-folder"
        ) from error
    write_json(owner, {"name": name})


def _lead_to(link: Path, name: str) -> None:
    """Points a symbolic link at a folder beside it, at once for whoever reads it."""
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    os.replace(fresh, link)
