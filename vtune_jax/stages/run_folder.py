"""A run folder: what people look at. Each configuration has a folder in it, with its results and its stages' places."""

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.files import read_json, write_json, write_whole
from vtune_jax.stages.store import DONE, Finished, Store, is_locked, make_folder

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
        self.run, self.path, self._store = path, path / configuration(config), store
        _claim(path, config.name)
        make_folder(self.path)
        write_whole(self.path / CONFIG, settings.dumps(config))
        _lead_to(path / LATEST, self.path.name)
        self._stages: dict[str, str] = read_stages(self.path)

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
        place = os.path.relpath(folder, self.path)
        if self._stages.get(role) == place:
            return
        self._stages[role] = place
        write_json(self.path / STAGES, self._stages)
        references = self._store.root / REFERENCES
        make_folder(references)
        name = settings.digest(str(self.path.absolute()))[:16]
        write_json(references / f"{name}.json", {"run": os.path.relpath(self.path, self._store.root)})

    def earlier(self, role: str) -> Iterator[Path]:
        """The folders of the stage of this role in this run's other configurations."""
        for other in configurations(self.run):
            if other != self.path and (place := read_stages(other).get(role)):
                yield (other / place).resolve()


def configuration(config: ExperimentConfig) -> str:
    """The name of a configuration's folder: eight digits of all that its results depend on."""
    return settings.digest(config)[:8]


def configurations(run: Path) -> list[Path]:
    """The folders of a run's configurations, oldest first."""
    found = [file.parent for file in run.glob(f"*/{CONFIG}") if not file.parent.is_symlink()]
    return sorted(found, key=lambda folder: (folder / CONFIG).stat().st_mtime_ns)


def newest_configuration(run: Path) -> Path | None:
    """The configuration that was opened last."""
    found = configurations(run)
    return found[-1] if found else None


def read_stages(folder: Path) -> dict[str, str]:
    """The stages that a configuration refers to: role to place, relative to the configuration's folder."""
    file = folder / STAGES
    return dict(read_json(file)) if file.exists() else {}


def referenced_stage(run: Path, role: str) -> Finished | None:
    """The finished stage of a role in the newest configuration of a run that has one."""
    for folder in reversed(configurations(run)):
        place = read_stages(folder).get(role)
        if place and (folder / place / DONE).exists():
            return Finished((folder / place).resolve(), read_json(folder / place / DONE)["digest"])
    return None


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
    state: str  # "done", "running" or "unfinished"
    bytes: int
    changed: datetime.datetime  # when a file of it was last written
    runs: tuple[Path, ...]  # folders of the configurations that refer to it


def stage_entries(store: Path) -> list[StageEntry]:
    """All stages of a store with size, age, state, and who refers to them."""
    users: dict[Path, list[Path]] = {}
    for folder in referring(store):
        for place in read_stages(folder).values():
            users.setdefault((folder / place).resolve(), []).append(folder)
    entries = []
    for key in sorted(store.glob("*-*/key.json")):
        folder = key.parent
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        state = "done" if (folder / DONE).exists() else "running" if is_locked(folder) else "unfinished"
        changed = datetime.datetime.fromtimestamp(max(file.st_mtime for file in files))
        size = sum(file.st_size for file in files)
        entries.append(StageEntry(folder, state, size, changed, tuple(users.get(folder.resolve(), ()))))
    return entries


def referring(store: Path) -> list[Path]:
    """The configurations' folders that have referred to stages of this store and still exist."""
    places = [read_json(file)["run"] for file in sorted((store / REFERENCES).glob("*.json"))]
    return [folder for place in places if (folder := (store / place).resolve()).is_dir()]


def _claim(run: Path, name: str) -> None:
    owner = run / OWNER
    if owner.exists():
        other = read_json(owner)["name"]
        if other != name:
            raise UserError(
                f"the run folder {run} belongs to the experiment '{other}', this config is '{name}'",
                f'give another folder with --run-folder, or set name = "{other}" if it is the same experiment',
            )
        return
    if run.exists() and any(run.iterdir()):
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
