"""The main job: corpus, base model, initial losses, target losses, arms, evaluation, results, report.

`Pipeline` only composes the stages, which are functions in the other files of this room. A method does its stage and
those it builds on; finished ones are looked up in the store.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vtune_jax.experiment.arms import Arm
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.machine.progress import Progress
from vtune_jax.machine.work import WorkEngine
from vtune_jax.report.page import write_page
from vtune_jax.report.picture import save_picture
from vtune_jax.report.results import Results
from vtune_jax.stages.base_model import ROLE, BaseModel, base_model
from vtune_jax.stages.collect import collect
from vtune_jax.stages.corpus import Corpus, open_corpus, prepare_corpus
from vtune_jax.stages.heldout_losses import HeldoutLosses, heldout_losses
from vtune_jax.stages.projection import Projection, project
from vtune_jax.stages.session import Session
from vtune_jax.stages.short_runs import FromBase, from_base
from vtune_jax.stages.store import Finished
from vtune_jax.stages.supplies import Context, supplied
from vtune_jax.stages.target_losses import TargetLosses, assert_possible, target_losses
from vtune_jax.stages.train_arm import TrainedArm, train_arm

Value = TypeVar("Value")


class Pipeline:
    """One configuration of one experiment in one run folder."""

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
        """Opens the run folder and writes the resolved config into it; nothing is computed yet. See `Session`."""
        self.config = config
        self.session = Session(
            config,
            folder,
            progress,
            store=store,
            work_engine=work_engine,
            allow_data_change=allow_data_change,
        )
        self._made: dict[Any, Any] = {}

    def prepare(self) -> Finished:
        """Corpora to token files."""
        return self._once("prepare", lambda: prepare_corpus(self.session))

    def corpus(self) -> Corpus:
        """The token files opened, as this experiment reads them."""
        return self._once("corpus", lambda: open_corpus(self.session, self.prepare()))

    def project(self) -> Projection:
        """What a run would read and cost; nothing is trained."""
        return project(self.config, self.corpus())

    def pretrain(self) -> BaseModel:
        """The base model."""
        return self._once("pretrain", self._pretrain)

    def initial(self) -> HeldoutLosses:
        """Held-out losses of the base model."""
        return self._once("initial", lambda: self._losses(self.pretrain().stage, ROLE))

    def targets(self) -> TargetLosses:
        """Target losses: from proxies, a table, or the config."""
        return self._once("targets", self._targets)

    def train(self, name: str) -> TrainedArm:
        """One arm, after what its method needs."""
        arm = next(arm for arm in self.config.arms if arm.name == name)
        return self._once(("arm", name), lambda: self._train(arm))

    def train_all(self) -> dict[str, TrainedArm]:
        """All arms by name."""
        return {arm.name: self.train(arm.name) for arm in self.config.arms}

    def evaluate(self) -> dict[str, HeldoutLosses]:
        """Held-out losses of every arm's final model, by the arm's name."""
        arms = self.train_all()
        return {
            name: self._once(("losses", name), lambda name=name: self._losses(arms[name].stage, f"arm {name}"))  # type: ignore[misc]
            for name in arms
        }

    def results(self) -> Results:
        """Everything that the report shows, written to `results.json`."""
        evaluation = self.evaluate()
        arms = self.train_all()
        targets = self.targets() if self.config.needs_targets else None
        results = collect(self.session, self.corpus(), self.initial(), targets, arms, evaluation)
        results.save(self.session.run_folder.results)
        return results

    def report(self) -> Results:
        """The results, with `report.html` and `report.png` beside them."""
        results = self.results()
        self.session.progress.stage("report", "results.json, report.html, report.png")
        write_report(results, self.session.run_folder.path)
        return results

    def _once(self, name: Any, make: Callable[[], Value]) -> Value:
        if name not in self._made:
            self._made[name] = make()
        value: Value = self._made[name]
        return value

    def _pretrain(self) -> BaseModel:
        # Rows are counted first, so that a corpus too small is refused before anything is trained; so are proxies that
        # the budget does not allow, and a table that cannot be read.
        corpus = self.corpus()
        if self.config.needs_targets:
            assert_possible(self.config, corpus.names)
        return base_model(self.session, corpus)

    def _targets(self) -> TargetLosses:
        # Also of arms that need none: whoever asks for targets hears of a bad table before the base model is trained.
        assert_possible(self.config, self.corpus().names)
        return target_losses(self.session, self.corpus(), self._from_base(), self.initial())

    def _from_base(self) -> FromBase:
        return from_base(self.session, self.corpus(), self.pretrain())

    def _losses(self, model: Finished, role: str) -> HeldoutLosses:
        return heldout_losses(self.session, self.corpus(), self.pretrain().trainer.recipe, model, role)

    def _train(self, arm: Arm) -> TrainedArm:
        corpus, start, initial = self.corpus(), self._from_base(), self.initial()
        targets = self.targets() if "targets" in arm.method.build().needs else None
        moving = supplied(Context(self.session, corpus, start), arm, initial, targets)
        return train_arm(self.session, start, moving, corpus.domains, arm.name, corpus.names)


def write_report(results: Results, folder: Path) -> None:
    """`report.html` and `report.png` of some results."""
    write_page(results, folder / "report.html")
    save_picture(results, folder / "report.png")
