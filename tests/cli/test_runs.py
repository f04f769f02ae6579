"""Runs and stages are listed, told apart by what differs, and pruned only where nothing refers to them."""

import json
import os
import shutil

import pytest

from tests.stages.experiment import write_experiment
from vtune_jax.cli import main as cli
from vtune_jax.cli.runs import flat, size


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


def test_a_run_without_results_says_how_to_make_them(small, tmp_path, capsys):
    assert cli.invoke(["report", str(small), "--run-folder", str(tmp_path)]) == 2
    assert "holds no results. Fix: run `vtune-jax run CONFIG` to make them" in capsys.readouterr().err


def test_no_folder_of_runs_is_a_mistake_in_one_line(tmp_path, capsys):
    assert cli.invoke(["runs", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.invoke(["runs", str(tmp_path), "--yes"]) == 2
    assert "--yes without --prune" in capsys.readouterr().err


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
