"""What arms are given before they train is really made, once, and what cannot be given is refused."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.experiment import write_experiment
from vtune_jax import rules, settings
from vtune_jax.core.filters import LocalLevel
from vtune_jax.errors import UserError
from vtune_jax.experiment.arms import Arm
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.train_arm import TrainedArm

ARMS = """arms=[
    {name="doremi", label="online"},
    {name="doremi", label="proxied", proxy_share=0.5, smoothing=0.01},
    {name="skillit", learn_graph=true},
    {name="static", form="uniform"},
    {name="group_dro", acts_on="loss", step_size=1.0},
]""".replace("\n", " ")


@pytest.fixture(scope="module")
def made(tmp_path_factory, small, store):
    folder = tmp_path_factory.mktemp("runs")
    pipeline = Pipeline(load(small, (ARMS,)), folder / "run", Progress(silent=True), store=store)
    return pipeline, pipeline.report()


def stage_of(pipeline, role):
    folder = pipeline.session.run_folder.path
    return folder / json.loads((folder / "stages.json").read_text())[role]


def test_every_arm_has_results(made):
    _, results = made
    assert list(results.arms) == ["online", "proxied", "skillit", "static", "group_dro"]
    for arm in results.arms.values():
        assert np.isfinite(arm.final.heldout_loss).all()
        np.testing.assert_allclose(np.array([row.weights for row in arm.updates]).sum(axis=1), 1, rtol=1e-5)


def test_a_reference_model_is_trained_once_at_the_prior_and_differs_from_the_base(made):
    pipeline, _ = made
    reference = TrainedArm(SimpleNamespace(folder=stage_of(pipeline, "reference model")))
    assert reference.steps[-1]["step"] == 15  # half of the run's 30
    weights = [row["weights"] for row in reference.updates]
    np.testing.assert_allclose(weights, np.tile(pipeline.corpus().prior, (3, 1)), rtol=1e-5)
    base = pipeline.pretrain()
    ours, theirs = (
        base.trainer.load_params(folder) for folder in (base.stage.folder, stage_of(pipeline, "reference model"))
    )
    assert not np.array_equal(ours["embedding"], theirs["embedding"])


def test_a_proxys_mean_weights_become_the_constant_mixture(made):
    pipeline, results = made
    proxy = stage_of(pipeline, "proxy of proxied")
    path = np.array([json.loads(line)["weights"] for line in (proxy / "updates.jsonl").read_text().splitlines()])
    assert len(path) == 3
    assert not np.allclose(path, pipeline.corpus().prior)
    weights = np.array([row.weights for row in results.arms["proxied"].updates])
    np.testing.assert_allclose(weights, np.tile(path.mean(axis=0), (len(weights), 1)), rtol=1e-5)


def test_a_proxy_is_sampled_at_the_prior_whatever_its_weights(made):
    pipeline, _ = made
    rows = [
        json.loads(line) for line in (stage_of(pipeline, "proxy of proxied") / "updates.jsonl").read_text().splitlines()
    ]
    read = np.array(rows[-1]["tokens_read"], float)
    np.testing.assert_allclose(read / read.sum(), pipeline.corpus().prior, atol=0.05)


def test_a_skill_graph_is_the_relative_fall_of_each_loss_after_training_on_one_domain(made):
    pipeline, _ = made
    folder = stage_of(pipeline, "skill graph")
    graph = np.array(json.loads((folder / "graph.json").read_text()))
    before = pipeline.initial().domains
    after = np.array([json.loads((folder / f"on-{row}" / "losses.json").read_text()) for row in range(3)])
    np.testing.assert_allclose(graph, (before - after) / before, rtol=1e-6)
    assert not list(folder.glob("on-*/checkpoints"))


def test_a_static_arm_with_a_mixture_of_its_own_starts_from_it(made):
    _, results = made
    for row in results.arms["static"].updates:
        np.testing.assert_allclose(row.weights, [1 / 3] * 3, rtol=1e-5)


def test_a_second_run_finds_all_of_it_done(made, tmp_path):
    pipeline, _ = made
    store = pipeline.session.store.root
    before = {path: path.stat().st_mtime_ns for path in store.rglob("done.json")}
    again = load(pipeline.session.run_folder.path / "config.toml")
    Pipeline(again, tmp_path / "run", Progress(silent=True), store=store).report()
    assert {path: path.stat().st_mtime_ns for path in store.rglob("done.json")} == before


def test_graphs_filters_and_constraints_go_through_a_file_and_back(tmp_path):
    arms = (
        'arms=[{name="skillit", graph=[[1, 0.5, 0], [0, 1, 0], [0, 0.25, 1]], masked=[1], largest_change=0.5}, '
        '{name="velocitune", ceiling=0.8, filter={name="local_level", drift=0.02}, gate=1.0}]'
    )
    config = load(write_experiment(tmp_path), (arms, "arms.velocitune.filter.inflation=2.0"))
    assert config.arms[0].method.graph == ((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.25, 1.0))
    assert config.arms[1].method.filter == LocalLevel(drift=0.02, inflation=2.0)
    again = tmp_path / "again.toml"
    again.write_text(settings.dumps(config))
    assert load(again) == config


def test_too_little_text_for_the_repeats_asked_for_is_told_before_the_arm_trains(made):
    pipeline, _ = made
    path, store = pipeline.session.run_folder.path / "config.toml", pipeline.session.store.root
    few = load(path, ("arms=[{name='velocitune', max_repeats=0.001}]",))
    with pytest.raises(UserError, match=r"arm 'velocitune': max_repeats must be at least .* for the budget, got 0.001"):
        Pipeline(few, pipeline.session.run_folder.run, Progress(silent=True), store=store).report()


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            '{name="aioli"}',
            "arms.aioli: its first round takes 4 intervals of 5 steps; train.steps = 15 gives 3 intervals",
        ),
        ('{name="aioli", proxy_share=0.5}', "its proxy of 15 steps gives 3 intervals"),
        ('{name="skillit", graph=[[1,0,0],[0,1,0],[0,0,1]], learn_graph=true}', "graph must not be given where"),
        (
            '{name="skillit", graph_domains=["digits", "letters", "mixed"]}',
            r"graph_domains must be the corpus' domains in their order \['letters', 'digits', 'mixed'\]",
        ),
        ('{name="static", form="stratified", groups=["a", "b"]}', r"one group per domain \(3\), got 2"),
        ('{name="static", groups=["a", "b", "b"]}', 'groups must be given for the form "stratified" and no other'),
        ('{name="doge", targets=[3]}', r"targets must name domains in \[0, 3\), got \[3\]"),
        ('{name="velocitune", proxy_share=1.5}', r"proxy_share must lie in \[0, 1\], got 1.5"),
        ('{name="velocitune", floor=0.3, ceiling=0.2}', "floor must not lie above ceiling = 0.2, got 0.3"),
        ('{name="velocitune", ceiling=0.2}', "ceiling must be at least 1/3 for 3 domains, got 0.2"),
        ('{name="velocitune", filter={name="median", window=0}}', "window must be at least 1, got 0"),
        ('{name="velocitune", filter={name="kalman"}}', "use one of 'none', 'ema', 'median', 'local_level'"),
        ('{name="velocitune", step_size=-1.0}', "step_size must not be negative, got -1.0"),
    ],
)
def test_an_arm_whose_needs_the_experiment_does_not_provide_is_refused(tmp_path, arm, message):
    steps = "train.steps=30" if "proxy_share=0.5" in arm else "train.steps=15"
    with pytest.raises(UserError, match=message):
        load(write_experiment(tmp_path), (steps, f"arms=[{arm}]"))


def test_a_method_with_an_unknown_need_is_refused_as_an_arm(small):
    class Clairvoyant(rules.Static):
        def method(self):
            return super().method()._replace(needs=frozenset({"oracle"}))

    with pytest.raises(ValueError, match=r"arms.static: the method needs \['oracle'\], but what can be supplied is"):
        dataclasses.replace(load(small), arms=(Arm(method=Clairvoyant()),))


OFFLINE = """arms=[
    {name="regmix", draws=2000},
    {name="mixing_laws"},
    {name="olmix", repeats=1000.0, divergence_penalty=1.0},
]""".replace("\n", " ")


@pytest.fixture(scope="module")
def proposed(tmp_path_factory, small, store):
    config = load(small, (OFFLINE, "proxies.mixtures=8", "proxies.length=0.2"))
    pipeline = Pipeline(config, tmp_path_factory.mktemp("runs") / "run", Progress(silent=True), store=store)
    return pipeline, pipeline.report()


def test_offline_methods_share_runs_at_different_mixtures(proposed):
    pipeline, _ = proposed
    folder = stage_of(pipeline, "random mixtures")
    runs = json.loads((folder / "runs.json").read_text())
    assert np.array(runs["mixtures"]).shape == np.array(runs["losses"]).shape == (8, 3)
    np.testing.assert_allclose(runs["mixtures"][0], pipeline.corpus().prior)
    assert len({tuple(row) for row in runs["mixtures"]}) == 8
    # Two mixtures may come to the same rows in so few batches.
    assert len({tuple(row) for row in runs["losses"]}) >= 6
    # A run that trained on one domain more than another did so with its loss.
    mixtures, losses = np.array(runs["mixtures"]), np.array(runs["losses"])
    assert losses[mixtures[:, 1].argmax(), 1] < losses[mixtures[:, 1].argmin(), 1]


@pytest.mark.parametrize("label", ["regmix", "mixing_laws", "olmix"])
def test_an_offline_arm_trains_at_the_mixture_that_its_method_proposes(proposed, label):
    pipeline, results = proposed
    facts = json.loads((stage_of(pipeline, f"mixture of {label}") / "mixture.json").read_text())
    np.testing.assert_allclose(np.sum(facts["mixture"]), 1, rtol=1e-9)
    for row in results.arms[label].updates:
        np.testing.assert_allclose(row.weights, facts["mixture"], rtol=1e-4, atol=1e-6)
    assert facts["predicted_loss"]["mixture"] <= facts["predicted_loss"]["prior"] + 1e-3
    assert facts["held_out_error"] < 0.5


def test_a_strong_penalty_keeps_olmix_nearer_to_the_prior_than_the_laws_alone(proposed):
    pipeline, results = proposed
    away = {
        label: np.abs(np.array(results.arms[label].updates[-1].weights) - pipeline.corpus().prior).max()
        for label in ("olmix", "mixing_laws")
    }
    assert away["olmix"] < away["mixing_laws"]


def test_offline_arms_without_runs_are_refused_with_the_fix(tmp_path):
    with pytest.raises(UserError, match="arms.olmix: it needs runs at random mixtures; set proxies.mixtures to at le"):
        load(write_experiment(tmp_path), ('arms=[{name="olmix"}]',))
    with pytest.raises(UserError, match=r"domain_weights must name one number per domain \(3\), got 2"):
        load(write_experiment(tmp_path), ('arms=[{name="olmix", domain_weights=[1.0, 2.0]}]', "proxies.mixtures=8"))
    with pytest.raises(UserError, match="acts_on and proxy_share must be left alone"):
        load(write_experiment(tmp_path), ('arms=[{name="olmix", proxy_share=0.5}]', "proxies.mixtures=8"))
