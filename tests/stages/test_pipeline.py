import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.stages.experiment import write_experiment
from vtune_jax.errors import UserError
from vtune_jax.experiment import config
from vtune_jax.machine.files import read_json
from vtune_jax.machine.progress import Progress
from vtune_jax.report.results import Results
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.projection import make_plan


def pipeline(path, folder, *overrides):
    return Pipeline(config.load(path, overrides), folder, Progress(silent=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment carried out once; tests copy what they change."""
    folder = tmp_path_factory.mktemp("experiment")
    path = write_experiment(folder)
    pipeline(path, folder / "run").report()
    return path, folder / "run"


def stages(folder):
    return {entry.name: (entry / "done.json").stat().st_mtime_ns for entry in (folder / "stages").iterdir()}


def copied(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"


def test_the_main_job_ends_with_results_a_page_and_a_picture(finished):
    folder = finished[1]
    results = Results.load(folder / "results.json")
    assert results.domains == ("letters", "digits", "mixed")
    assert list(results.arms) == ["velocitune", "static"]
    velocitune, static = results.arms.values()
    assert [row.step for row in velocitune.updates] == [0, 5, 10, 15, 20, 25, 30]
    for row in static.updates:
        np.testing.assert_allclose(row.weights, static.updates[0].weights, rtol=1e-6)
    assert velocitune.updates[-1].weights != velocitune.updates[0].weights
    assert np.all(np.array(static.final.heldout_loss) < np.array(results.targets.initial))
    assert (folder / "report.html").stat().st_size > 1e6
    assert (folder / "report.png").exists()
    tokens = 30 * 4 * 16
    assert all(sum(arm.updates[-1].tokens_read) == tokens for arm in results.arms.values())


def test_remaining_fractions_come_from_initial_and_target(finished):
    results = Results.load(finished[1] / "results.json")
    targets, final = results.targets, results.arms["static"].final
    initial, target = np.array(targets.initial), np.array(targets.target)
    expected = (np.array(final.heldout_loss) - target) / (initial - target)
    usable = initial - target >= 0.01
    np.testing.assert_allclose(np.array(final.remaining)[usable], expected[usable], rtol=1e-4)


def test_a_second_run_computes_nothing(finished):
    path, folder = finished
    before = stages(folder)
    pipeline(path, folder).report()
    assert stages(folder) == before


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("arms.velocitune.step_size=0.5", {"train-velocitune", "evaluate"}),
        ("targets.level=0.5", {"targets", "train-velocitune", "evaluate"}),
        ("train.steps=40", {"targets", "train-velocitune", "train-static", "evaluate"}),
        ('mixture.allocation="multinomial"', {"targets", "train-velocitune", "train-static", "evaluate"}),
    ],
)
def test_a_changed_field_reruns_only_what_depends_on_it(finished, tmp_path, override, rerun):
    path, folder = copied(finished, tmp_path)
    before = stages(folder)
    pipeline(path, folder, override).report()
    new = {name.rpartition("-")[0] for name in stages(folder).keys() - before.keys()}
    assert new == rerun
    assert {name: time for name, time in stages(folder).items() if name in before} == before


def test_the_tokenizer_is_trained_on_the_prior_unless_it_is_given(finished, tmp_path):
    path, folder = finished
    default = pipeline(path, folder).prepare
    only_digits = "mixture.weights=[0.0, 1.0, 0.0]"
    moved = pipeline(path, tmp_path / "moved", only_digits).prepare
    learned = {
        stage: any("ab" in word for word in Tokenizer.from_file(str(stage.folder / "tokenizer.json")).get_vocab())
        for stage in (default, moved)
    }
    assert learned == {default: True, moved: False}
    given = f'corpus.tokenizer.file="{default.folder / "tokenizer.json"}"'
    digests = {pipeline(path, tmp_path / "given", given, *more).prepare.digest for more in ((), (only_digits,))}
    assert len(digests) == 1


def test_the_resolved_config_runs_by_itself_and_finds_everything_done(finished):
    path, folder = finished
    before = stages(folder)
    again = config.load(folder / "config.toml", ("name=small",))
    assert again == config.load(path)
    Pipeline(again, folder, Progress(silent=True)).report()
    assert stages(folder) == before


def test_a_base_model_is_taken_from_an_earlier_run(finished, tmp_path):
    path, folder = finished
    override = f'pretrain.from_run="{folder}"'
    other = pipeline(path, tmp_path / "run", override)
    assert other.pretrain.folder.is_relative_to(folder)
    for change, message in (
        ("model.hidden=32", "has another shape"),
        ("corpus.tokenizer.vocab_size=290", "another tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            _ = pipeline(path, tmp_path / change, override, change).pretrain
    with pytest.raises(UserError, match="holds no finished base model"):
        _ = pipeline(path, tmp_path / "none", f'pretrain.from_run="{tmp_path}"').pretrain


def test_own_target_losses_need_no_proxies(finished, tmp_path):
    path, folder = copied(finished, tmp_path)
    made = pipeline(path, folder, "targets.losses=[1.0, 2.0, 1.5]")
    facts = read_json(made.targets.folder / "targets.json")
    assert facts["target"] == [1.0, 2.0, 1.5]
    assert facts["proxy_tokens"] == 0
    assert not list(made.targets.folder.glob("proxy-*"))
    assert made.report().targets.verdict == ["given"] * 3


def test_both_engines_reach_the_same_result(finished, tmp_path):
    path, folder = copied(finished, tmp_path)
    results = Results.load(folder / "results.json")
    device = pipeline(path, folder, "data.engine=device", "targets.losses=[1.0, 2.0, 1.5]")
    host = pipeline(path, folder, "targets.losses=[1.0, 2.0, 1.5]")
    ours, theirs = device.report().arms["static"], host.report().arms["static"]
    assert ours.updates[-1].tokens_read == theirs.updates[-1].tokens_read
    np.testing.assert_allclose(ours.final.heldout_loss, theirs.final.heldout_loss, rtol=2e-3)
    assert results.domains == device.prepared.names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.heldout_rows=100000",), r"domain '\w+' has \d+ held-out rows of 16 tokens, data.heldout_rows asks for"),
        (("data.sequence=100000",), "sequence length 100000 is longer than domain"),
        (("corpus.domains.digits.source=nowhere.jsonl",), "domain 'digits': nowhere.jsonl does not exist"),
        (("targets.budget=0.1",), "targets.budget allows only 3.0 optimiser steps"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(finished, tmp_path, overrides, message):
    made = pipeline(finished[0], tmp_path / "run", *overrides)
    with pytest.raises(UserError, match=message):
        make_plan(made)
    with pytest.raises(UserError, match=message):
        made.report()
    assert not list((tmp_path / "run" / "stages").glob("train-*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.weights=[0.5, 0.6, -0.1]", "weights must not be negative"),
        ("mixture.weights=[0.5, 0.5, 0.5]", "weights must sum to 1, .* with sum 1.5"),
        ("mixture.weights=[0.5, 0.5]", r"mixture.weights must name one number per domain \(3\), got 2"),
        ("targets.losses=[1.0]", r"targets.losses must name one number per domain"),
        ("targets.budget=0.0", "budget must lie in"),
        ("targets.evaluations=3", "evaluations must be at least 8"),
        ('targets.when_unusable="given"', "fallback must name one loss per domain"),
        ("targets.fallback=[1.0]", "targets.fallback must name one number per domain \\(3\\), got 1"),
        ("targets.subsample=1.5", "subsample must lie in"),
        ("mixture.interval=0", "interval must be at least 1"),
        ("mixture.power=-1.0", "power must not be negative"),
        ("train.steps=0", "steps must be at least 1"),
        ("pretrain.steps=0", "steps must be at least 1"),
        ("data.batch=0", "batch must be at least 1"),
        ("seed=-1", "seed must lie in"),
        ("arms=[]", "arms must hold at least one method"),
        ("arms.static.label=velocitune", "arms must have different labels"),
        ("arms.velocitune.floor=0.4", "arms.velocitune: floor must be at most 1/3 for 3 domains, got 0.4"),
        ('arms=[{name="skillit", graph=[[1, 0], [0, 1]]}]', "arms.skillit: graph must have 3 rows, one per domain"),
        ("corpus.domains.mixed.name=digits", "different names, got 'digits' twice"),
    ],
)
def test_impossible_configs_are_refused_with_the_field(finished, override, message):
    with pytest.raises(UserError, match=message):
        config.load(finished[0], (override,))


def test_the_plan_counts_rows_epochs_steps_and_evaluations(finished, tmp_path):
    path, folder = copied(finished, tmp_path)
    made = pipeline(path, folder)
    plan = make_plan(made)
    assert plan.steps == {"pretrain": 20, "proxies": 48, "velocitune": 30, "static": 30}
    # Every fifth step of each run, eight places along the proxy, and three models on two sets of rows.
    assert plan.evaluations == 4 + 6 + 6 + 8 + 6
    read = sum(domain.rows_read for domain in plan.domains)
    np.testing.assert_allclose(read, 30 * 4)
    first = plan.domains[0]
    np.testing.assert_allclose(first.epochs(2), 2 / (1 + first.weight) * first.rows_read / first.rows)
    np.testing.assert_allclose([domain.weight for domain in plan.domains], made.prior)


def test_a_uniform_and_a_given_prior(finished, tmp_path):
    path, folder = copied(finished, tmp_path)
    np.testing.assert_allclose(pipeline(path, folder, "mixture.power=0.0").prior, [1 / 3] * 3)
    np.testing.assert_allclose(pipeline(path, folder, "mixture.weights=[0.2, 0.3, 0.5]").prior, [0.2, 0.3, 0.5])


def test_targets_hold_points_law_and_verdicts(finished):
    folder = next((finished[1] / "stages").glob("targets-*"))
    facts = json.loads((folder / "targets.json").read_text())
    # Budget 60 steps, of which eight evaluations cost 12; a proxy is first looked at after an eighth of its length.
    assert facts["points"]["tokens"] == [64 * step for step in (7, 9, 12, 16, 21, 28, 36, 48)]
    assert facts["proxy_cost"] == 2.0
    assert facts["target_tokens"] == 30 * 64
    assert len(facts["points"]["loss"]) == len(facts["points"]["run"]) == 8
    assert len(facts["verdict"]) == len(facts["law"]["E"]) == 3
