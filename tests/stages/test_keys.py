"""Every field of an experiment counts in the key of a stage, or is marked at its definition as bookkeeping."""

import dataclasses
import json
import typing
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.experiment import write_experiment
from vtune_jax import settings
from vtune_jax.core.filters import NoFilter
from vtune_jax.data.corpora.config import CorpusConfig, DomainConfig
from vtune_jax.errors import UserError
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.store import Finished

ARMS = """arms=[
    {name="velocitune", floor=0.05}, {name="static"}, {name="doremi", proxy_share=0.5},
    {name="skillit", learn_graph=true}, {name="olmix"},
    {name="regmix"}, {name="static", label="strata", form="stratified", groups=["a", "b", "b"]},
    {name="static", label="even", form="unimax", max_epochs=0.2},
]""".replace("\n", " ")

SPECIAL = {
    "corpus.base": None,  # goes on inside
    "corpus.storage": "array_record",
    "corpus.heldout_fraction": 0.25,
    "mixture.weights": (0.2, 0.3, 0.5),
    "targets.losses": (1.0, 2.0, 1.5),
    "targets.fallback": (1.0, 2.0, 1.5),
    "model.width": 32,
    "model.heads": 4,
    "model.key_value_heads": 2,
    "model.name": None,  # there is one model
    "proxies.mixtures": 9,
    "arms.groups": ("a", "a", "b"),
    "arms.domain_weights": (1.0, 2.0, 1.0),
}
"""Values that pass the config's own checks where a simple change would not; None: not to be changed alone."""


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The digests of all stages of a config: only the corpus is prepared, nothing is trained."""
    folder = tmp_path_factory.mktemp("dry")
    path = write_experiment(folder)
    # Domains of different sizes, on which every form of a static mixture differs.
    for name, documents in (("digits", 30), ("mixed", 45)):
        lines = (folder / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:documents]))
    real = Pipeline(load(path), folder / "run", Progress(silent=True)).prepare()
    made = {
        "graph.json": np.eye(3).tolist(),
        "losses.json": {"heldout_loss": [5.0, 5.0, 5.0], "base_loss": 5.0},
        "mixture.json": {"mixture": [0.2, 0.3, 0.5]},
    }
    for name, value in made.items():
        (folder / name).write_text(json.dumps(value))

    def digests(config):
        pipeline = Pipeline(config, folder / "dry", Progress(silent=True), store=folder / "empty")
        found = {}

        def stage(role, name, inputs, work, *, purpose, trains=True):
            found[role] = pipeline.session.store.folder(name, inputs).name
            return Finished(real.folder if role == "corpus" else folder, found[role])

        pipeline.session.stage = stage
        monkey = pytest.MonkeyPatch()
        # No model is needed to tell what a stage depends on.
        monkey.setattr("vtune_jax.stages.session.Trainer", lambda recipe, **_: SimpleNamespace(recipe=recipe))
        monkey.setattr("vtune_jax.stages.target_losses.TargetLosses.load", lambda stage: fake_targets(stage))
        try:
            pipeline.train_all()
        finally:
            monkey.undo()
        return found

    def fake_targets(stage):
        class Fake:
            target = standard_error = np.ones(3)

        Fake.stage = stage
        return Fake()

    config = load(path, (ARMS, "proxies.mixtures=8"))
    return config, digests, digests(config)


def leaves(value, prefix=""):
    """Every field of a config: path of names, value, whether it is marked, and a function that replaces it."""
    for field in dataclasses.fields(value):
        name, held = f"{prefix}{field.name}", getattr(value, field.name)
        marked = bool(field.metadata.get("bookkeeping"))

        def put(new, *, field=field):
            return dataclasses.replace(value, **{field.name: new})

        yield name, held, marked, put, (type(value).__name__, field.name, field.type)
        if dataclasses.is_dataclass(held):
            yield from (
                (path, old, inner or marked, lambda new, put=put, deeper=deeper: put(deeper(new)), kind)
                for path, old, inner, deeper, kind in leaves(held, f"{name}.")
            )
        elif isinstance(held, tuple) and held and dataclasses.is_dataclass(held[0]):
            for place, entry in enumerate(held):
                for path, old, inner, deeper, kind in leaves(entry, f"{name}.{place}."):

                    def put_entry(new, *, place=place, deeper=deeper, put=put, held=held):
                        return put((*held[:place], deeper(new), *held[place + 1 :]))

                    yield path, old, inner or marked, put_entry, kind


def changed(path, value, hint):
    """Another value of the field, to be tried in this order."""
    for suffix, special in SPECIAL.items():
        head, _, last = suffix.rpartition(".")
        if path == suffix or (head == "arms" and path.startswith("arms.") and path.endswith(f".{last}")):
            return [] if special is None else [special]
    if typing.get_origin(hint) is typing.Literal:
        return [other for other in typing.get_args(hint) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2, value - 1]
    if isinstance(value, float):
        return [value * 0.5 + 0.01, value * 2 + 1.0, value * 0.9, 0.5]
    return []


def test_every_field_counts_in_a_stage_or_is_marked(dry):
    """A field of a class counts if a change of it in some place of the config changes the key of some stage."""
    config, digests, original = dry
    counted, idle, marks = set(), set(), set()
    for path, value, marked, put, field in leaves(config):
        if dataclasses.is_dataclass(value) or field in counted:
            continue
        for other in changed(path, value, field[2]):
            try:
                moved = other != value and digests(put(other)) != original
            except (ValueError, UserError):
                continue
            if marked:
                marks.add(field[1])
                assert not moved, f"{path} is marked as bookkeeping but counts"
            elif moved:
                counted.add(field)
                break
            elif other != value:
                idle.add(field)
    assert not idle - counted, "neither counted nor marked"
    assert len(counted) > 90
    assert {"keep_checkpoints", "checkpoint_every", "log_every", "workers"} <= marks


def test_a_proxy_counts_the_budget_by_which_its_limits_are_set(dry):
    config, digests, original = dry
    arms = tuple(dataclasses.replace(arm, proxy_share=arm.proxy_share / 2) for arm in config.arms)
    proxies = dataclasses.replace(config.proxies, reference_length=config.proxies.reference_length / 2)
    train = dataclasses.replace(config.train, steps=config.train.steps * 2)
    longer = digests(dataclasses.replace(config, arms=arms, proxies=proxies, train=train))
    assert longer["reference model"] == original["reference model"]
    assert longer["proxy of doremi"] != original["proxy of doremi"]


def test_marks_are_few_and_known():
    marked = {
        path
        for path, _, mark, _, _ in leaves(
            ExperimentConfig(
                name="x",
                corpus=CorpusConfig(
                    domains=tuple(DomainConfig(name=n, source=n) for n in "ab"), base=DomainConfig(name="c", source="c")
                ),
            )
        )
        if mark
    }
    assert marked == {
        "name",
        "arms.0.label",
        "arms.1.label",
        "data.workers",
        "data.worker_kind",
        "data.patience_seconds",
        "loop.log_every",
        "loop.checkpoint_every",
        "loop.keep_checkpoints",
        "pretrain.from_checkpoint",  # what counts is its content, in `CheckpointInputs`
    }
    assert settings.identity(NoFilter()) == {"name": "none"}
