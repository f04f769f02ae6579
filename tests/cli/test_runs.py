"""Runs and stages are listed, told apart by what differs, and pruned only where nothing refers to them."""

import json
import os
import shutil

import pytest

from tests.stages.experiment import write_experiment
from vtune_jax.cli import main as cli
from vtune_jax.cli.runs import differences, flat, size
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages import run_folder
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.store import Store, locked


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """Two configurations of one run, prepared, and a stage that a removed run has left."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in (("ours", ()), ("ours", ("seed=2",)), ("gone", ("corpus.heldout_fraction=0.3",))):
        options = ["--run-folder", str(folder / name), "--quiet"]
        assert cli.invoke(["prepare", str(small), *overrides, *options]) == 0
    shutil.rmtree(folder / "gone")
    return folder


def test_two_seeds_share_a_corpus_and_are_listed_by_what_differs(runs, capsys):
    assert cli.invoke(["runs", str(runs)]) == 0
    said = capsys.readouterr().out
    ours = [line for line in said.splitlines() if line.startswith("ours")]
    assert len(ours) == 2
    assert [line.rstrip().endswith("seed=2") for line in ours] == [False, True]
    stages = {line.split()[0]: line for line in said.splitlines() if line.startswith("corpus-")}
    assert len(stages) == 2
    assert sorted(line.split()[-1] for line in stages.values()) == ["0", "2"]
    assert all(" done " in line for line in stages.values())


def test_pruning_says_what_it_would_do_and_then_removes_only_what_nobody_refers_to(runs, tmp_path, capsys):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder, symlinks=True)
    before = {entry.name for entry in (folder / "store").glob("corpus-*")}
    assert cli.invoke(["runs", str(folder), "--prune"]) == 0
    said = capsys.readouterr().out
    assert said.count("would remove") == 1
    assert "--yes removes them" in said
    assert {entry.name for entry in (folder / "store").glob("corpus-*")} == before
    assert cli.invoke(["runs", str(folder), "--prune", "--yes"]) == 0
    left = [entry for entry in (folder / "store").glob("corpus-*")]
    assert len(left) == 1
    referred = json.loads((folder / "ours" / "latest" / "stages.json").read_text())["corpus"]
    assert (folder / "ours" / "latest" / referred).resolve() == left[0].resolve()


@pytest.mark.parametrize("change", ["renamed run", "moved store behind a link", "lost note"])
def test_a_run_keeps_its_stages_wherever_it_lies(runs, tmp_path, capsys, change):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder, symlinks=True)
    if change == "renamed run":
        (folder / "ours").rename(folder / "mine")
    elif change == "moved store behind a link":
        (tmp_path / "large" / "disk").mkdir(parents=True)
        (folder / "store").rename(tmp_path / "large" / "disk" / "store")
        (folder / "store").symlink_to(tmp_path / "large" / "disk" / "store")
    else:
        shutil.rmtree(folder / "store" / "references")
    assert cli.invoke(["runs", str(folder), "--prune", "--yes"]) == 0
    assert capsys.readouterr().out.count("removed") == 1
    assert len(list((folder / "store").glob("corpus-*"))) == 1


def test_a_run_that_was_moved_away_is_known_again_once_it_is_opened(small, tmp_path, capsys):
    options = [str(small), "--quiet", "--store", str(tmp_path / "store")]
    assert cli.invoke(["prepare", *options, "--run-folder", str(tmp_path / "a" / "run")]) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    assert cli.invoke(["prepare", *options, "--run-folder", str(tmp_path / "b" / "run")]) == 0
    assert cli.invoke(["runs", str(tmp_path / "b"), "--store", str(tmp_path / "store"), "--prune", "--yes"]) == 0
    assert "0 stages that no run refers to" in capsys.readouterr().out
    assert len(list((tmp_path / "store").glob("corpus-*"))) == 1


def test_a_stage_that_somebody_works_on_is_left_and_not_counted(runs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder, symlinks=True)
    monkeypatch.setattr(run_folder, "is_locked", lambda stage: False)  # as it was when the stages were listed
    idle = next(entry.folder for entry in run_folder.stage_entries(folder / "store") if not entry.runs)
    with locked(idle, lambda: None):
        assert cli.invoke(["runs", str(folder), "--prune", "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"left {idle}: it is in use" in said
    assert "0 stages that no run refers to" in said
    assert idle.exists()


def test_a_run_or_a_wrong_store_is_told_from_a_folder_of_runs(runs, tmp_path, capsys):
    assert cli.invoke(["runs", str(runs / "ours")]) == 2
    assert f"is a run. Fix: give the folder that holds your runs: {runs}" in capsys.readouterr().err
    assert cli.invoke(["runs", str(runs), "--store", str(tmp_path / "typo")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_file_is_no_run_folder_and_a_half_made_one_is_taken(small, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.invoke(["prepare", str(small), "--run-folder", str(tmp_path / "file"), "--quiet"]) == 2
    assert "file is no folder. Fix: give another with --run-folder" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json.host-1.tmp").write_text("")
    assert cli.invoke(["prepare", str(small), "--run-folder", str(tmp_path / "run"), "--quiet"]) == 0


def test_a_folder_of_the_earlier_version_is_told_in_one_line_and_left_as_it_is(small, tmp_path, capsys):
    old = tmp_path / "run" / "stages" / "prepare-12345678"
    old.mkdir(parents=True)
    (tmp_path / "run" / "experiment.json").write_text('{"name": "small"}')
    (tmp_path / "run" / "results.json").write_text("{}")
    (old / "done.json").write_text("{}")
    assert cli.invoke(["prepare", str(small), "--run-folder", str(tmp_path / "run"), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("made by an earlier version: they are left as they are and not used") == 1
    assert (old / "done.json").exists()
    assert (tmp_path / "run" / "results.json").read_text() == "{}"


def test_a_finished_run_is_reported_without_corpora_or_stages_elsewhere_and_read_only(small, store, tmp_path, capsys):
    path = write_experiment(tmp_path)
    folder = tmp_path / "here" / "run"
    targets = "targets.losses=[1.0, 2.0, 1.5]"
    assert cli.invoke(["run", str(path), targets, "--run-folder", str(folder), "--quiet"]) == 0
    table = capsys.readouterr().out
    there = tmp_path / "there"
    shutil.copytree(folder, there, symlinks=True)
    shutil.rmtree(tmp_path / "here")
    for corpus in tmp_path.glob("*.jsonl"):
        corpus.unlink()
    for place, _, files in os.walk(there):
        for file in files:
            os.chmod(os.path.join(place, file), 0o400)
    assert cli.invoke(["report", str(there), "--to", str(tmp_path / "pages")]) == 0
    said = capsys.readouterr().out
    assert "letters" in said
    assert said.splitlines()[-1].startswith("report: ")
    verdict = next(line for line in table.splitlines() if "ended below" in line)
    assert verdict in said
    assert (tmp_path / "pages" / "report.html").stat().st_size > 1e6
    assert cli.invoke(["report", str(path), targets, "--run-folder", str(there), "--to", str(tmp_path / "pages")]) == 0
    capsys.readouterr()
    # A configuration that was opened later and has no results hides none.
    (there / "00000000").mkdir()
    (there / "00000000" / "config.toml").write_text("")
    assert cli.invoke(["report", str(there), "--to", str(tmp_path / "pages")]) == 0
    assert verdict in capsys.readouterr().out
    assert cli.invoke(["report", str(there), "seed=2"]) == 2
    assert "seed=2 changes nothing in a folder of results" in capsys.readouterr().err


def test_a_run_without_results_says_how_to_make_them(small, tmp_path, capsys):
    assert cli.invoke(["report", str(small), "--run-folder", str(tmp_path)]) == 2
    assert "holds no results. Fix: run `vtune-jax run CONFIG` to make them" in capsys.readouterr().err


def test_no_folder_of_runs_is_a_mistake_in_one_line(tmp_path, capsys):
    assert cli.invoke(["runs", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.invoke(["runs", str(tmp_path), "--yes"]) == 2
    assert "--yes without --prune" in capsys.readouterr().err


def test_what_a_configuration_lacks_is_told_too(tmp_path):
    for place, (name, text) in enumerate((("first", 'arms=[{name="a"}, {name="b"}]'), ("second", 'arms=[{name="a"}]'))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(text)
        os.utime(tmp_path / name / "config.toml", (place, place))
    assert differences(tmp_path, tmp_path / "second") == "without arms.b.name"


def test_two_processes_of_one_configuration_keep_each_others_stages(small, tmp_path):
    loaded, store = load(small), Store(tmp_path / "store")
    one, other = (run_folder.RunFolder(tmp_path / "run", loaded, store) for _ in range(2))
    one.refer("corpus", tmp_path / "store" / "corpus-1")
    other.refer("base model", tmp_path / "store" / "pretrain-2")
    assert set(run_folder.read_stages(one.path)) == {"corpus", "base model"}


def test_files_that_vanish_while_stages_are_listed_are_passed_over(runs, monkeypatch):
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: ((at, dirs, [*names, "gone"]) for at, dirs, names in walk(top)))
    assert all(entry.bytes > 0 for entry in run_folder.stage_entries(runs / "store"))


def test_sizes_and_nested_tables_are_read_easily():
    assert [size(number) for number in (12, 1_500, 2_340_000, 5 * 10**9)] == ["12 B", "1.5 kB", "2.3 MB", "5.0 GB"]
    table = {"seed": 1, "train": {"steps": 2}, "arms": [{"name": "static", "floor": 0.1}], "shares": [1, 2]}
    assert flat(table) == {
        "seed": 1,
        "train.steps": 2,
        "arms.static.name": "static",
        "arms.static.floor": 0.1,
        "shares": [1, 2],
    }


def test_the_config_of_a_run_at_work_is_left_alone(small, store, tmp_path):
    def opened(*overrides):
        return Pipeline(load(small, overrides), tmp_path / "run", Progress(silent=True), store=store)

    working = opened("loop.log_every=7")
    stage = working.prepare()
    resolved = working.session.run_folder.path / "config.toml"
    with locked(stage.folder, lambda: None):
        opened("loop.log_every=3")
        assert "log_every = 7" in resolved.read_text()
    opened("loop.log_every=3")
    assert "log_every = 3" in resolved.read_text()
