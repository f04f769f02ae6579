"""The main job as a chain of cached stages: prepare, pretrain, targets, train, evaluate, report.

Each property does its stage and, before it, every stage it builds on; finished ones are only looked up.
"""

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from vtune_jax import settings
from vtune_jax.core.targets import blank_targets
from vtune_jax.data.corpora.config import corpus_fingerprint
from vtune_jax.data.corpora.prepare import prepare
from vtune_jax.data.tokens.prepared import PreparedCorpus
from vtune_jax.data.tokens.streams import Streams, heldout_rows
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig, MethodConfig
from vtune_jax.machine.files import read_json, write_json, write_whole
from vtune_jax.machine.progress import Progress
from vtune_jax.machine.work import WorkEngine
from vtune_jax.report.page import write_page
from vtune_jax.report.picture import save_picture
from vtune_jax.report.results import Results
from vtune_jax.rules import Static, unimax_weights
from vtune_jax.stages.collect import collect, evaluate_arms
from vtune_jax.stages.store import RunFolder, Stage
from vtune_jax.stages.supplies import Given, given, reference_params
from vtune_jax.stages.target_losses import assert_possible, predict_targets
from vtune_jax.stages.trainer import Lab

_DATA = tuple(
    f"data.{name}"
    for name in ("sequence", "batch", "heldout_rows", "evaluate_rows_at_once", "engine", "packing", "block_rows")
)
"""What of `DataConfig` results depend on; the other fields are about speed and patience."""
_STATES = ("checkpoints", "params")
"""Where a run's state lies while it trains, and what is left of it at its end."""


class Pipeline:
    """One experiment in one run folder."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        progress: Progress,
        *,
        work_engine: WorkEngine = "local",
        allow_data_change: bool = False,
    ) -> None:
        """Opens the run folder and writes the resolved config into it; nothing is computed yet.

        Args:
            config: of the experiment.
            folder: of the run.
            progress: told what happens.
            work_engine: who prepares the corpora; the result is the same.
            allow_data_change: an arm that has not begun on these data goes on from its newest checkpoint on others.
        """
        self.allow_data_change = allow_data_change
        self.config = config
        self.progress = progress
        self.work_engine: WorkEngine = work_engine
        self.run_folder = RunFolder(folder, config.name)
        write_whole(folder / "config.toml", settings.dumps(config))

    @cached_property
    def prepare(self) -> Stage:
        """Corpora to token files."""
        self.progress.stage("prepare", "corpora to tokens")
        config, mixture = self.config.corpus, self.config.mixture
        key: dict[str, Any] = {"corpus": corpus_fingerprint(config, self.run_folder.hashed)}
        if not config.tokenizer.file:
            key["prior"] = [mixture.weights, mixture.power, mixture.unimax_epochs]
        return self.run_folder.stage("prepare", key, self._prepare)

    @cached_property
    def prepared(self) -> PreparedCorpus:
        """The token files, opened."""
        return PreparedCorpus.open(self.prepare.folder)

    @cached_property
    def streams(self) -> Streams:
        """Training and held-out rows of the domains, and how often they may be read."""
        streams, domains = self._streams(self.prepared.names), self.config.corpus.domains
        if all(domain.exhaustion == "repeat" for domain in domains):
            return streams
        limits = tuple(domain.limit(int(rows)) for domain, rows in zip(domains, streams.rows, strict=True))
        asked = self.config.train.steps * self.config.data.batch
        if None not in limits and (most := sum(filter(None, limits))) < asked:
            raise UserError(
                f"train.steps = {self.config.train.steps} reads {asked:,} rows, and the domains may give {most:,}",
                "train fewer steps, raise max_epochs, or let a domain repeat",
            )
        return dataclasses.replace(
            streams, limits=limits, stop=tuple(domain.exhaustion == "stop" for domain in domains)
        )

    @property
    def unlimited_streams(self) -> Streams:
        """The same rows; how often they may be read in the real run is not for short runs to keep."""
        return dataclasses.replace(self.streams, limits=(), stop=())

    @property
    def domain_tokens(self) -> np.ndarray:
        """Training tokens of each domain."""
        return np.array([len(self.prepared.domain(name).train) for name in self.prepared.names])

    @cached_property
    def base_streams(self) -> Streams:
        """Training and held-out rows of the base domain."""
        return self._streams((self.prepared.base_name,))

    @cached_property
    def prior(self) -> np.ndarray:
        """Reference weights, float64."""
        tokens = self.domain_tokens
        budget = self.config.train.steps * self.config.data.batch_tokens
        if epochs := self.config.mixture.unimax_epochs:
            unspent = unimax_weights(tokens, budget, epochs)[1]
            if unspent:
                self.progress.note(
                    f"UniMax: {unspent:,.0f} of {budget:,} tokens cannot be spent within {epochs:g} epochs; "
                    "every domain is read more often"
                )
        return self.config.mixture.prior(tokens, budget)

    @cached_property
    def lab(self) -> Lab:
        """The model and its compiled steps."""
        return Lab(
            self.config,
            self.prepared.vocab_size,
            self._model_facts(),
            allow_data_change=self.allow_data_change,
        )

    @cached_property
    def pretrain(self) -> Stage:
        """The base model: trained on the base domain, or taken from an earlier run."""
        # Rows are counted first, so that a corpus too small is refused before anything is trained; so are proxies that
        # the budget does not allow, and a table that cannot be read.
        _ = self.streams, self.base_streams, self.prior
        assert_possible(self.config, self.prepared.names)
        if self.config.pretrain.from_run:
            return self._base_of(Path(self.config.pretrain.from_run))
        self.progress.stage("pretrain", f"base model on '{self.prepared.base_name}'")
        key = self._key(("prepare",), "seed", "model", *_DATA, "pretrain", "loop", "mixture.interval")
        return self.run_folder.stage("pretrain", key, self._pretrain)

    @cached_property
    def base_params(self) -> PyTree:
        """The parameters that every proxy and arm starts from."""
        return self.lab.load_params(self.pretrain.folder)

    @cached_property
    def targets(self) -> Stage:
        """Initial losses, proxy runs and the fit through their ends: `targets.json`."""
        base = self.pretrain
        self.progress.stage("targets", "initial losses, proxy runs, fit")
        key = {
            "base": base.digest,
            **self._key(("prepare",), "seed", "model", *_DATA, "mixture", "targets", "train", "loop"),
        }
        if table := self.config.targets.table:
            key["table"] = self.run_folder.hashed(Path(table))
        return self.run_folder.stage("targets", key, lambda folder: predict_targets(self, folder))

    def train(self, arm: MethodConfig) -> Stage:
        """Continual pre-training under one method, after what the method needs first."""
        _ = self.targets
        label = arm.label or arm.name
        start = given(self, arm, label)
        key = self.run_key() | start.stages | {"base": self.pretrain.digest, "method": settings.digest(arm)}
        if self.streams.limits:
            key["limits"] = [self.streams.limits, self.streams.stop]
        self.progress.stage("train", f"arm '{label}'")
        return self.run_folder.stage(f"train-{label}", key, lambda folder: self._train(folder, start, label))

    def run_key(self, *fields: str) -> dict[str, Any]:
        """What every run on the domains depends on beside its base model, and some more fields of the config."""
        return self._key(("prepare",), "seed", "model", *_DATA, "mixture", "train", "loop", *fields)

    @cached_property
    def arms(self) -> dict[str, Stage]:
        """All arms, by label."""
        stages = [self.train(arm) for arm in self.config.arms]
        return dict(zip(self.config.arm_labels, stages, strict=True))

    @cached_property
    def evaluate(self) -> Stage:
        """Every arm's final model on every domain and on the base domain: `evaluation.json`."""
        arms = self.arms
        key = {"arms": {label: stage.digest for label, stage in arms.items()}, "targets": self.targets.digest}
        self.progress.stage("evaluate", "final models")
        return self.run_folder.stage("evaluate", key, lambda folder: evaluate_arms(self, folder))

    def report(self) -> Results:
        """The results as one file and one page, `results.json`, `report.html` and `report.png` in the run folder."""
        _ = self.evaluate
        self.progress.stage("report", "results.json, report.html, report.png")
        results = collect(self)
        results.save(self.run_folder.path / "results.json")
        write_page(results, self.run_folder.path / "report.html")
        save_picture(results, self.run_folder.path / "report.png")
        return results

    def _key(self, stages: tuple[str, ...], *fields: str) -> dict[str, Any]:
        upstream = {name: getattr(self, name).digest for name in stages}
        return {**upstream, "config": settings.digest(self.config, *fields)}

    def _streams(self, names: tuple[str, ...]) -> Streams:
        data = self.config.data
        domains = [self.prepared.domain(name, patience=data.patience_seconds) for name in names]
        end = self.prepared.end_of_text
        stores = tuple(data.rows_of(domain.train, end) for domain in domains)
        heldout = [heldout_rows(data.rows_of(d.heldout, end), data.heldout_rows, d.name) for d in domains]
        stacked = {name: np.stack([rows[name] for rows in heldout]) for name in heldout[0]}
        return Streams(stores=stores, heldout=stacked)

    def _prepare(self, folder: Path) -> None:
        with ExitStack() as stack:
            bars: dict[str, Callable[[int, int], None]] = {}

            def advance(title: str, done: int, total: int) -> None:
                if title not in bars:
                    bars[title] = stack.enter_context(self.progress.megabytes(title, total))
                bars[title](done, total)

            prepare(
                self.config.corpus,
                folder,
                prior=self.config.mixture.prior,
                report=self.progress.note,
                advance=advance,
                engine=self.work_engine,
            )

    def _pretrain(self, folder: Path) -> None:
        pretrain = self.config.pretrain
        with self.progress.bar("pretrain", pretrain.steps) as tick:
            self.lab.train(
                folder,
                self.base_streams,
                self.lab.model.init(self.config.seed),
                blank_targets(np.ones(1)),
                method_config=Static(),
                optimizer=pretrain.optimizer,
                steps=pretrain.steps,
                seed=self.config.seed,
                tick=tick,
                warn=self.progress.note,
            )
        write_json(folder / "model.json", self._model_facts())

    def _train(self, folder: Path, start: Given, label: str) -> None:
        train = self.config.train
        if self.allow_data_change and not any((folder / kept).exists() for kept in _STATES):
            self._take_over(folder, label)
        write_json(folder / "start.json", {**start.facts, "mixture": start.mixture.tolist()})
        with self.progress.bar(label, train.steps, names=self.prepared.names) as tick:
            self.lab.train(
                folder,
                self.streams,
                self.base_params,
                start.targets,
                method_config=start.method,
                optimizer=train.optimizer,
                steps=train.steps,
                seed=self.config.seed,
                tick=tick,
                warn=self.progress.note,
                reference=reference_params(self, start.reference),
            )

    def _take_over(self, folder: Path, label: str) -> None:
        """Copies the newest state of this arm on other data, metrics included."""
        found = (path for kept in _STATES for path in folder.parent.glob(f"train-{label}-*/{kept}"))
        others = [path for path in found if path.parent != folder]
        if others:
            newest = max(others, key=lambda path: path.stat().st_mtime_ns).parent
            for kept in _STATES:
                if (newest / kept).exists():
                    shutil.copytree(newest / kept, folder / kept)
            for name in ("steps.jsonl", "updates.jsonl"):
                if (newest / name).exists():
                    shutil.copyfile(newest / name, folder / name)

    def _model_facts(self) -> dict[str, str]:
        return {"model": settings.digest(self.config, "model"), "tokenizer": self.prepared.tokenizer_sha256}

    def _base_of(self, run: Path) -> Stage:
        found = sorted((run / "stages").glob("pretrain-*/done.json"), key=lambda path: path.stat().st_mtime_ns)
        if not found:
            raise UserError(
                f'pretrain.from_run = "{run}" holds no finished base model',
                "name the folder of a run whose `pretrain` stage is done",
            )
        folder = found[-1].parent
        facts, ours = read_json(folder / "model.json"), self._model_facts()
        if facts["model"] != ours["model"]:
            raise UserError(f"the base model of {run} has another shape", f"copy [model] from {run / 'config.toml'}")
        if facts["tokenizer"] != ours["tokenizer"]:
            raise UserError(
                f"the base model of {run} was trained with another tokenizer",
                f"set corpus.tokenizer.file to the tokenizer.json in {run / 'stages'}",
            )
        return Stage(folder, read_json(found[-1])["digest"])
