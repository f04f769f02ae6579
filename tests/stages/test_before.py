"""What arms are given before they train is really made, once, and what cannot be given is refused."""

import json

import numpy as np
import pytest

from tests.stages.experiment import write_experiment
from vtune_jax import settings
from vtune_jax.config import load
from vtune_jax.core.filters import LocalLevel
from vtune_jax.core.types import LossSums
from vtune_jax.errors import UserError
from vtune_jax.progress import Progress
from vtune_jax.stages.pipeline import Pipeline

ARMS = """arms=[
    {name="doremi", label="online"},
    {name="doremi", label="proxied", proxy_share=0.5, smoothing=0.01},
    {name="skillit", learn_graph=true},
    {name="static", form="uniform"},
    {name="group_dro", acts_on="loss", step_size=1.0},
]""".replace("\n", " ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    pipeline = Pipeline(load(write_experiment(folder), (ARMS,)), folder / "run", Progress(silent=True))
    return pipeline, pipeline.report()


def stage_of(pipeline, name):
    return next((pipeline.run_folder.path / "stages").glob(f"{name}-*"))


def test_every_arm_has_results(made):
    _, results = made
    assert list(results.arms) == ["online", "proxied", "skillit", "static", "group_dro"]
    for arm in results.arms.values():
        assert np.isfinite(arm.final["heldout_loss"]).all()
        np.testing.assert_allclose(np.array([row["weights"] for row in arm.updates]).sum(axis=1), 1, rtol=1e-5)


def test_a_reference_model_is_trained_once_at_the_prior_and_differs_from_the_base(made):
    pipeline, _ = made
    folders = list((pipeline.run_folder.path / "stages").glob("reference-*"))
    assert len(folders) == 1
    steps = [json.loads(line)["step"] for line in (folders[0] / "steps.jsonl").read_text().splitlines()]
    assert steps[-1] == 15  # half of the run's 30
    weights = [json.loads(line)["weights"] for line in (folders[0] / "updates.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(weights, np.tile(pipeline.prior, (3, 1)), rtol=1e-5)


def test_a_proxys_mean_weights_become_the_constant_mixture(made):
    pipeline, results = made
    proxy = stage_of(pipeline, "proxy-proxied")
    path = np.array([json.loads(line)["weights"] for line in (proxy / "updates.jsonl").read_text().splitlines()])
    assert len(path) == 3
    assert not np.allclose(path, pipeline.prior)
    weights = np.array([row["weights"] for row in results.arms["proxied"].updates])
    np.testing.assert_allclose(weights, np.tile(path.mean(axis=0), (len(weights), 1)), rtol=1e-5)


def test_a_proxy_is_sampled_at_the_prior_whatever_its_weights(made):
    pipeline, _ = made
    rows = [
        json.loads(line) for line in (stage_of(pipeline, "proxy-proxied") / "updates.jsonl").read_text().splitlines()
    ]
    read = np.array(rows[-1]["tokens_read"], float)
    np.testing.assert_allclose(read / read.sum(), pipeline.prior, atol=0.05)


def test_a_skill_graph_is_the_relative_fall_of_each_loss_after_training_on_one_domain(made):
    pipeline, _ = made
    folder = stage_of(pipeline, "graph")
    graph = np.array(json.loads((folder / "graph.json").read_text()))
    sums: LossSums = pipeline.lab.heldout_sums(pipeline.base_params, pipeline.streams.heldout)
    before = np.asarray(sums.nats, np.float64) / np.asarray(sums.tokens)
    after = np.array([json.loads((folder / f"on-{row}" / "losses.json").read_text()) for row in range(3)])
    np.testing.assert_allclose(graph, (before - after) / before, rtol=1e-6)
    assert not list(folder.glob("on-*/checkpoints"))


def test_a_static_arm_with_a_mixture_of_its_own_starts_from_it(made):
    _, results = made
    for row in results.arms["static"].updates:
        np.testing.assert_allclose(row["weights"], [1 / 3] * 3, rtol=1e-5)


def test_a_second_run_finds_all_of_it_done(made):
    pipeline, _ = made
    folder = pipeline.run_folder.path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    again = Pipeline(load(folder / "config.toml"), folder, Progress(silent=True))
    again.report()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")} == before


def test_graphs_filters_and_constraints_go_through_a_file_and_back(tmp_path):
    arms = (
        'arms=[{name="skillit", graph=[[1, 0.5, 0], [0, 1, 0], [0, 0.25, 1]], masked=[1], largest_change=0.5}, '
        '{name="velocitune", ceiling=0.8, filter={name="local_level", drift=0.02}, gate=1.0}]'
    )
    config = load(write_experiment(tmp_path), (arms, "arms.velocitune.filter.inflation=2.0"))
    assert config.arms[0].graph == ((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.25, 1.0))
    assert config.arms[1].filter == LocalLevel(drift=0.02, inflation=2.0)
    again = tmp_path / "again.toml"
    again.write_text(settings.dumps(config))
    assert load(again) == config


def test_too_little_text_for_the_repeats_asked_for_is_told_before_the_arm_trains(made):
    pipeline, _ = made
    path = pipeline.run_folder.path / "config.toml"
    few = load(path, ("arms=[{name='velocitune', max_repeats=0.001}]",))
    with pytest.raises(UserError, match=r"arm 'velocitune': max_repeats must be at least .* for the budget, got 0.001"):
        Pipeline(few, pipeline.run_folder.path, Progress(silent=True)).report()


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ('{name="aioli"}', "arms.aioli: its first round takes 4 intervals of 5 steps, train.steps has 3"),
        ('{name="aioli", proxy_share=0.5}', "its proxy has 3"),
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
