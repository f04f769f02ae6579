"""What every stage of one run shares: the config, where results go, who listens, and what has been compiled."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.mesh import assert_devices
from vtune_jax.machine.progress import Progress
from vtune_jax.machine.work import WorkEngine
from vtune_jax.stages.run_folder import CONFIG, RunFolder, earlier_version
from vtune_jax.stages.store import Finished, Store
from vtune_jax.stages.trainer import Recipe, Trainer

Inputs = TypeVar("Inputs")


@dataclasses.dataclass(kw_only=True)
class Tools:
    """What the work of a stage uses beside its inputs. The result must not depend on it."""

    progress: Progress
    work_engine: WorkEngine = "local"
    _trainers: dict[Recipe, Trainer] = dataclasses.field(default_factory=dict)

    def trainer(self, recipe: Recipe) -> Trainer:
        """The trainer of a recipe, made once, so that the stages of a process share compiled programs."""
        if recipe not in self._trainers:
            self._trainers[recipe] = Trainer(recipe, warn=self.progress.note)
        return self._trainers[recipe]


Work = Callable[[Inputs, Path, Tools], None]
"""Fills the folder of a stage from its inputs."""


class Session:
    """One configuration of one experiment at work."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        progress: Progress,
        *,
        store: Path | None = None,
        work_engine: WorkEngine = "local",
        allow_data_change: bool = False,
    ) -> None:
        """Opens the run folder and the store; nothing is computed yet.

        Args:
            config: of the experiment.
            folder: of the run.
            progress: told what happens.
            store: folder of finished stages; None: `store` beside the run folder.
            work_engine: who prepares the corpora; the result is the same.
            allow_data_change: an arm on data that have changed does not begin anew, but goes on from this run's newest
                state of the same arm.

        Raises:
            UserError: a folder that cannot be used, or no device.
        """
        assert_devices()
        self.config = config
        self.progress = progress
        self.allow_data_change = allow_data_change
        self.store = Store(folder.parent / "store" if store is None else store)
        self.tools = Tools(progress=progress, work_engine=work_engine)
        if line := earlier_version(folder):
            progress.note(line)
        self.run_folder = RunFolder(folder, config, self.store)
        self.finished: dict[str, Finished] = {}
        """The stages that are finished, by role, in order."""
        self.working_on = ""
        """Role of the stage that is being worked on."""
        self.waits = False
        """Whether another process is working on it."""

    @property
    def command(self) -> str:
        """What runs this configuration again, in the same folders; paths are from where this process was started."""
        folder, store = self.run_folder.run, self.store.root
        words = ["vtune-jax", "run", str(self.run_folder.path / CONFIG)]
        if folder != Path("runs") / self.config.name:
            words += ["--run-folder", str(folder)]
        if store != folder.parent / "store":
            words += ["--store", str(store)]
        return shlex.join(words)

    def stage(
        self, role: str, name: str, inputs: Inputs, work: Work[Inputs], *, purpose: str, trains: bool = True
    ) -> Finished:
        """The finished stage of these inputs, found or made.

        Args:
            role: what it is to this run, for instance "arm static".
            name: beginning of its folder's name in the store.
            inputs: a frozen value of all that the result depends on.
            work: see `Store.make`.
            purpose: one line for the user.
            trains: whether the work trains a model; what does not is made again if its files are damaged.
        """
        self.progress.stage(role, purpose)
        folder, before = self.store.folder(name, inputs), self.run_folder.before(role)
        if before and before != folder.resolve() and before.exists():
            what = f"the inputs of '{role}' have changed since {before.name} was made"
            self.progress.note(f"{what} (sources, or this program)")
        self.run_folder.refer(role, folder)

        def make(inputs: Inputs, folder: Path) -> None:
            self.waits = False
            work(inputs, folder, self.tools)

        def wait() -> None:
            self.waits = True
            self.progress.note(f"another process is working on '{role}'; waiting for it")

        def again(flaw: str) -> None:
            self.progress.note(f"{folder} is damaged ({flaw}): it is made again")

        self.working_on, self.waits = role, False
        stage = self.store.make(name, inputs, make, waits=wait, again=None if trains else again)
        self.working_on = ""
        self.finished[role] = stage
        return stage

    def refer(self, role: str, stage: Finished) -> Finished:
        """Notes a stage that another run has made."""
        self.run_folder.refer(role, stage.folder)
        self.finished[role] = stage
        return stage
