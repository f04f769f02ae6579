import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.machine.files import read_json, write_json
from vtune_jax.machine.progress import Progress
from vtune_jax.report.results import Results
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.run_folder import read_stages
from vtune_jax.stages.seal import seal


def pipeline(path, folder, *overrides, **options):
    return Pipeline(load(path, overrides), folder, Progress(silent=True), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small, store):
    """An experiment carried out once: the config's path, and the pipeline with its results."""
    made = pipeline(small, tmp_path_factory.mktemp("runs") / "run", store=store)
    return small, made, made.report()


def finished_stages(store):
    return {done.parent.name: done.stat().st_mtime_ns for done in store.glob("*/done.json")}


def own_stages(made):
    """When each stage of a run was finished: in the common store other tests' are in the making."""
    run = made.session.run_folder.path
    folders = {(run / place).resolve() for place in read_stages(run).values()}
    return {folder: (folder / "done.json").stat().st_mtime_ns for folder in folders}


def test_the_main_job_ends_with_results_a_page_and_a_picture(finished):
    folder = finished[1].session.run_folder.path
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
    assert (folder.parent / "latest").resolve() == folder.resolve()
    tokens = 30 * 4 * 16
    assert all(sum(arm.updates[-1].tokens_read) == tokens for arm in results.arms.values())


def test_remaining_fractions_come_from_initial_and_target(finished):
    results = finished[2]
    targets, final = results.targets, results.arms["static"].final
    initial, target = np.array(targets.initial), np.array(targets.target)
    expected = (np.array(final.heldout_loss) - target) / (initial - target)
    usable = initial - target >= 0.01
    np.testing.assert_allclose(np.array(final.remaining)[usable], expected[usable], rtol=1e-4)


def test_a_second_run_computes_nothing(finished, tmp_path):
    path, made, _ = finished
    before = own_stages(made)
    other = pipeline(path, tmp_path / "elsewhere", store=made.session.store.root)
    other.report()
    assert own_stages(other) == before


def copied(made, store, without=" "):
    """The stages of a run alone: in the common store others may be in the making."""
    run = made.session.run_folder.path
    for place in read_stages(run).values():
        folder = (run / place).resolve()
        if not folder.name.startswith(without):
            shutil.copytree(folder, store / folder.name, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("arms.velocitune.step_size=0.5", {"arm-velocitune", "losses"}),
        ("targets.level=0.5", {"targets", "arm-velocitune", "losses"}),
        ("train.steps=40", {"targets", "arm-velocitune", "arm-static", "losses"}),
        ('mixture.allocation="multinomial"', {"targets", "arm-velocitune", "arm-static", "losses"}),
        ("loop.keep_checkpoints=3", set()),
        ("arms.static.label=control", set()),
    ],
)
def test_a_changed_field_reruns_only_what_depends_on_it(finished, tmp_path, override, rerun):
    path, made, _ = finished
    copied(made, tmp_path / "store")
    before = finished_stages(tmp_path / "store")
    pipeline(path, tmp_path / "run", override).report()
    after = finished_stages(tmp_path / "store")
    assert {name.rpartition("-")[0] for name in after.keys() - before.keys()} == rerun
    assert {name: time for name, time in after.items() if name in before} == before


def test_another_configuration_has_results_of_its_own(finished, tmp_path):
    path, made, _ = finished
    store = made.session.store.root
    runs = [pipeline(path, tmp_path / "run", *more, store=store) for more in ((), ("targets.level=0.8",))]
    files = []
    for run in runs:
        run.report()
        files.append(run.session.run_folder.results)
    assert files[0] != files[1]
    assert Results.load(files[0]).targets.level == 0.9
    assert Results.load(files[1]).targets.level == 0.8
    assert (tmp_path / "run" / "latest").resolve() == files[1].parent.resolve()


def test_arms_that_need_no_targets_train_no_proxies(finished, tmp_path):
    path, made, results = finished
    copied(made, tmp_path / "store", without="targets-")
    alone = pipeline(path, tmp_path / "run", 'arms=[{name="static"}]')
    found = alone.report()
    assert not list((tmp_path / "store").glob("targets-*"))
    assert found.targets.verdict == ["not needed"] * 3
    assert found.targets.target == [None] * 3
    assert found.targets.initial == results.targets.initial
    assert found.arms["static"].final.heldout_loss == results.arms["static"].final.heldout_loss
    assert "static ended at" in (tmp_path / "run" / "latest" / "report.html").read_text()


def test_the_tokenizer_is_trained_on_the_prior_unless_it_is_given(finished, tmp_path):
    path, made, _ = finished
    default = made.prepare()
    only_digits = "mixture.weights=[0.0, 1.0, 0.0]"
    moved = pipeline(path, tmp_path / "moved", only_digits).prepare()
    learned = {
        stage: any("ab" in word for word in Tokenizer.from_file(str(stage.folder / "tokenizer.json")).get_vocab())
        for stage in (default, moved)
    }
    assert learned == {default: True, moved: False}
    given = f'corpus.tokenizer.file="{default.folder / "tokenizer.json"}"'
    digests = {pipeline(path, tmp_path / "given", given, *more).prepare().digest for more in ((), (only_digits,))}
    assert len(digests) == 1


def test_the_resolved_config_runs_by_itself_and_finds_everything_done(finished, tmp_path):
    path, made, _ = finished
    before = own_stages(made)
    again = load(made.session.run_folder.path / "config.toml")
    assert again == load(path)
    other = Pipeline(again, tmp_path / "run", Progress(silent=True), store=made.session.store.root)
    other.report()
    assert own_stages(other) == before


def test_a_base_model_is_taken_from_an_earlier_run(finished, tmp_path):
    path, made, _ = finished
    folder = made.session.run_folder.run
    override = f'pretrain.from_run="{folder}"'
    other = pipeline(path, tmp_path / "run", override, store=made.session.store.root)
    assert other.pretrain().stage == made.pretrain().stage
    for change, message in (
        ("model.hidden=32", "has another shape"),
        ("corpus.tokenizer.vocab_size=290", "another tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline(path, tmp_path / change, override, change).pretrain()
    with pytest.raises(UserError, match="holds no finished base model"):
        pipeline(path, tmp_path / "none", f'pretrain.from_run="{tmp_path}"').pretrain()


def test_of_several_base_models_of_a_run_one_must_be_named(finished, tmp_path):
    path, made, _ = finished
    base, run = made.pretrain().stage, tmp_path / "two"
    other = tmp_path / "base-model-0123"
    other.mkdir()
    seal(other, "0123")
    for name, stage in (("first", base.folder), ("second", other)):
        (run / name).mkdir(parents=True)
        (run / name / "config.toml").write_text("")
        write_json(run / name / "stages.json", {"base model": str(stage)})
    with pytest.raises(UserError, match="holds different base models, in first, second"):
        pipeline(path, tmp_path / "run", f'pretrain.from_run="{run}"').pretrain()
    named = pipeline(path, tmp_path / "run", f'pretrain.from_run="{run / "first"}"', store=made.session.store.root)
    assert named.pretrain().stage == base


def test_own_target_losses_need_no_proxies(finished, tmp_path):
    path, before, _ = finished
    made = pipeline(path, tmp_path / "run", "targets.losses=[1.0, 2.0, 1.5]", store=before.session.store.root)
    folder = made.targets().stage.folder
    facts = read_json(folder / "targets.json")
    assert facts["target"] == [1.0, 2.0, 1.5]
    assert facts["proxy_tokens"] == 0
    assert not list(folder.glob("round-*"))
    assert made.report().targets.verdict == ["given"] * 3


def test_both_engines_reach_the_same_result(finished, tmp_path):
    path, before, results = finished
    store = before.session.store.root
    device = pipeline(path, tmp_path / "run", "data.engine=device", "targets.losses=[1.0, 2.0, 1.5]", store=store)
    host = pipeline(path, tmp_path / "run", "targets.losses=[1.0, 2.0, 1.5]", store=store)
    ours, theirs = device.report().arms["static"], host.report().arms["static"]
    assert ours.updates[-1].tokens_read == theirs.updates[-1].tokens_read
    np.testing.assert_allclose(ours.final.heldout_loss, theirs.final.heldout_loss, rtol=2e-3)
    assert results.domains == device.corpus().names


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
        made.project()
    with pytest.raises(UserError, match=message):
        made.report()
    assert not list((tmp_path / "store").glob("base-model-*"))


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
        load(finished[0], (override,))


def test_the_plan_counts_rows_epochs_steps_and_evaluations(finished, tmp_path):
    path, before, _ = finished
    made = pipeline(path, tmp_path / "run", store=before.session.store.root)
    plan = made.project()
    assert plan.steps == {"pretrain": 20, "proxies": 48, "arm velocitune": 30, "arm static": 30}
    # Every fifth step of each run, eight places along the proxy, and three models on two sets of rows.
    assert plan.evaluations == 4 + 6 + 6 + 8 + 6
    read = sum(domain.rows_read for domain in plan.domains)
    np.testing.assert_allclose(read, 30 * 4)
    first = plan.domains[0]
    np.testing.assert_allclose(first.epochs(2), 2 / (1 + first.weight) * first.rows_read / first.rows)
    np.testing.assert_allclose([domain.weight for domain in plan.domains], made.corpus().prior)


def test_a_uniform_and_a_given_prior(finished, tmp_path):
    for override, expected in (
        ("mixture.power=0.0", [1 / 3] * 3),
        ("mixture.weights=[0.2, 0.3, 0.5]", [0.2, 0.3, 0.5]),
    ):
        np.testing.assert_allclose(pipeline(finished[0], tmp_path / "run", override).corpus().prior, expected)


def test_targets_hold_points_law_and_verdicts(finished):
    facts = json.loads((finished[1].targets().stage.folder / "targets.json").read_text())
    # Budget 60 steps, of which eight evaluations cost 12; a proxy is first looked at after an eighth of its length.
    assert facts["points"]["tokens"] == [64 * step for step in (7, 9, 12, 16, 21, 28, 36, 48)]
    assert facts["proxy_cost"] == 2.0
    assert facts["target_tokens"] == 30 * 64
    assert len(facts["points"]["loss"]) == len(facts["points"]["run"]) == 8
    assert len(facts["verdict"]) == len(facts["law"]["E"]) == 3


def test_documents_that_were_moved_are_the_same_corpus(finished, tmp_path):
    path, made, _ = finished
    moved = tmp_path / "elsewhere"
    shutil.copytree(path.parent, moved)
    text = (moved / path.name).read_text().replace(str(path.parent), str(moved))
    (moved / path.name).write_text(text)
    there = pipeline(moved / path.name, tmp_path / "run", store=made.session.store.root)
    assert there.prepare() == made.prepare()


def test_arms_whose_labels_are_exchanged_have_results_of_their_own(finished, tmp_path):
    path, made, _ = finished
    store = made.session.store.root
    arms = 'arms=[{{name="static", label="{}"}}, {{name="static", form="uniform", label="{}"}}]'
    folders = [
        pipeline(path, tmp_path / "run", arms.format(*labels), store=store).session.run_folder.path
        for labels in (("a", "b"), ("b", "a"))
    ]
    assert folders[0] != folders[1]


def test_an_arm_may_be_called_like_a_part_of_the_job(finished, tmp_path):
    path, made, _ = finished
    arms = 'arms=[{name="velocitune", label="pretrain"}, {name="static", label="proxies"}]'
    plan = pipeline(path, tmp_path / "run", arms, store=made.session.store.root).project()
    assert plan.steps == {"pretrain": 20, "proxies": 48, "arm pretrain": 30, "arm proxies": 30}


def test_a_bad_table_is_told_before_the_base_model_even_where_no_arm_needs_targets(finished, tmp_path):
    override = ('arms=[{name="static"}]', f'targets.table="{tmp_path}/none.csv"')
    with pytest.raises(UserError, match=r"none.csv"):
        pipeline(finished[0], tmp_path / "run", *override).targets()
    assert not list((tmp_path / "store").glob("base-model-*"))


def test_results_say_what_runs_them_again_and_who_made_each_stage(finished, tmp_path):
    path, made, results = finished
    command = shlex.split(results.run.command)
    assert command[:3] == ["vtune-jax", "run", str(made.session.run_folder.path / "config.toml")]
    assert command[3:] == ["--run-folder", str(made.session.run_folder.run), "--store", str(made.session.store.root)]
    roles = {"corpus", "base model", "losses of base model", "targets", "arm velocitune", "arm static"}
    assert roles <= {*results.run.made_by}
    # Another program made the base model: whoever collects says so.
    copied(made, tmp_path / "store")
    done = next((tmp_path / "store").glob("base-model-*/done.json"))
    content = read_json(done)
    content["made_by"]["versions"]["jax"] = "0.1"
    write_json(done, content)
    found = pipeline(path, tmp_path / "run").results().run
    assert found.made_by["base model"].versions["jax"] == "0.1"
    assert found.made_by["arm static"] == results.run.made_by["arm static"]
    assert shlex.split(found.command)[3:] == ["--run-folder", str(tmp_path / "run")]


@pytest.mark.parametrize(("stage", "trains"), [("losses", False), ("corpus", False), ("arm-static", True)])
def test_a_damaged_stage_is_made_again_if_it_costs_no_training_and_else_told(finished, tmp_path, stage, trains):
    path, made, results = finished
    copied(made, tmp_path / "store")
    damaged = next((tmp_path / "store").glob(f"{stage}-*"))
    files = [file for file in damaged.glob("*.json*") if file.name != "done.json"]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_text("")
    again = pipeline(path, tmp_path / "run")
    if trains:
        with pytest.raises(UserError, match=f"{damaged} is damaged: {largest.name} has 0 bytes"):
            again.report()
    else:
        assert again.report().arms == results.arms


@pytest.mark.parametrize(
    ("file", "content"),
    [("experiment.json", ""), ("experiment.json", "[]"), ("experiment.json", '{"name": 3}'), ("experiment.json", "{}")]
    + [("latest/stages.json", content) for content in ("", "{", "[1]", '{"corpus": 1}')],
)
def test_a_damaged_file_of_a_run_folder_is_named(finished, tmp_path, file, content):
    path, made, _ = finished
    store = made.session.store.root
    pipeline(path, tmp_path / "run", store=store)
    (tmp_path / "run" / file).write_text(content)
    name = Path(file).name
    with pytest.raises(UserError, match=f"{name} is damaged"):
        pipeline(path, tmp_path / "run", store=store).prepare()
