import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.report.made import made_results
from tests.stages.experiment import write_experiment
from vtune_jax.cli import experiment
from vtune_jax.cli import main as cli
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.run_folder import configuration
from vtune_jax.train.optimizer import OptimizerConfig

ROOT = Path(__file__).parents[2]
SAME = ("results.json",)


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "vtune_jax", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, **options
    )


def test_help_answers_at_once_without_jax():
    program = (
        "import sys; from vtune_jax.cli.main import parser; parser(); "
        "print({'jax', 'numpy', 'rich'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "set()"
    fastest = min(_seconds("--help") for _ in range(5))
    assert fastest < 0.5


def _seconds(*arguments):
    start = time.perf_counter()
    assert command(*arguments).returncode == 0
    return time.perf_counter() - start


@pytest.mark.parametrize("verb", [*experiment.STAGES, "fit", "runs", "doctor"])
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as left:
        cli.invoke([verb, "--help"])
    assert left.value.code == 0
    assert f"example: vtune-jax {verb}" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path):
    path = write_experiment(tmp_path)
    said = command("run", path, "train.stepz=3", "--run-folder", tmp_path / "run")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "unknown key 'train.stepz'; did you mean 'steps'?" in said.stderr
    assert not (tmp_path / "run").exists()


def test_a_broken_line_is_named_and_can_be_skipped(tmp_path):
    path = write_experiment(tmp_path)
    with (tmp_path / "digits.jsonl").open("a") as file:
        file.write("{broken\n")
    said = command("prepare", path, "--run-folder", tmp_path / "run")
    assert said.returncode == 2
    assert "digits.jsonl, line 61: broken JSON" in said.stderr
    said = command("prepare", path, "--run-folder", tmp_path / "run", "--skip-bad")
    assert said.returncode == 0
    assert "domain 'digits': 1 skipped documents left out" in said.stderr


def test_options_reach_the_pipeline(monkeypatch, tmp_path):
    class Seen(Exception):
        pass

    def pipeline(config, folder, progress, **options):
        raise Seen(config.corpus.skip_bad, options)

    monkeypatch.setattr("vtune_jax.stages.pipeline.Pipeline", pipeline)
    path, options = (
        write_experiment(tmp_path),
        ("--engine", "ray", "--allow-data-change", "--skip-bad", "--quiet", "--store", "s"),
    )
    for given, expected in (
        ((), (False, {"store": None, "work_engine": "local", "allow_data_change": False})),
        (options, (True, {"store": Path("s"), "work_engine": "ray", "allow_data_change": True})),
    ):
        with pytest.raises(Seen) as seen:
            cli.invoke(["prepare", str(path), *given])
        assert seen.value.args == expected


def test_a_full_disk_says_what_is_safe(monkeypatch, tmp_path, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "tokens.bin")

    monkeypatch.setattr("vtune_jax.stages.corpus.prepare", full)
    path = write_experiment(tmp_path)
    assert cli.invoke(["prepare", str(path), "--run-folder", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "the disk is full (tokens.bin)" in said
    assert "checkpoint are safe" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: permission denied. Fix: see that it"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), "runs/x: read-only file system. Fix: see that it"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/x"), "runs/x: no such file or directory"),
    ],
)
def test_what_the_system_says_of_a_file_is_one_line(monkeypatch, tmp_path, capsys, error, said):
    def refused(*arguments, **options):
        # Libraries wrap what the system says.
        raise RuntimeError("could not write") from error

    monkeypatch.setattr("vtune_jax.stages.corpus.prepare", refused)
    path = write_experiment(tmp_path)
    assert cli.invoke(["prepare", str(path), "--run-folder", str(tmp_path / "run"), "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_an_error_of_the_program_is_no_mistake_of_the_users(monkeypatch, tmp_path):
    def wrong(*arguments, **options):
        raise ValueError("a bug")

    monkeypatch.setattr("vtune_jax.stages.corpus.prepare", wrong)
    path = write_experiment(tmp_path)
    with pytest.raises(ValueError, match="a bug"):
        cli.invoke(["prepare", str(path), "--run-folder", str(tmp_path / "run"), "--quiet"])


@pytest.mark.parametrize("verb", ["prepare", "fit", "doctor"])
def test_a_device_that_cannot_be_started_is_told(tmp_path, verb):
    words = {"prepare": [write_experiment(tmp_path)], "fit": ["points.csv"], "doctor": []}[verb]
    said = command(verb, *words, env={**os.environ, "JAX_PLATFORMS": "nonsense"})
    assert said.returncode == (1 if verb == "doctor" else 2)
    assert "Traceback" not in said.stderr
    assert "unset JAX_PLATFORMS" in said.stdout + said.stderr
    assert not (tmp_path / "run").exists()


def test_a_terminal_that_knows_ascii_alone_gets_the_nearest_letters(tmp_path):
    made_results(arms=("velocitune", "n\u00e4her", "static")).save(tmp_path / "results.json")
    said = command("report", tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"})
    assert said.returncode == 0, said.stderr
    assert "n?her" in said.stdout
    assert "- static" in said.stdout


def test_who_waits_for_another_process_says_that_it_goes_on(tmp_path):
    path = write_experiment(tmp_path)
    pipeline = Pipeline(load(path), tmp_path / "run", Progress(silent=True))

    class Stop(Exception):
        pass

    def work(inputs, folder, tools):
        raise Stop

    with pytest.raises(Stop):
        pipeline.session.stage("arm static", "arm", OptimizerConfig(), work, purpose="")
    assert "'arm static' goes on from what it has saved" in experiment.kept(pipeline)
    pipeline.session.waits = True
    assert "another process goes on with 'arm static'" in experiment.kept(pipeline)


def test_a_run_that_skipped_bad_documents_is_reported_with_the_same_words(tmp_path, capsys):
    path = write_experiment(tmp_path)
    folder = tmp_path / "run" / configuration(load(path, ("corpus.skip_bad=true",)))
    assert cli.invoke(["report", str(path), "--skip-bad", "--run-folder", str(tmp_path / "run")]) == 2
    assert f"{folder} holds no results" in capsys.readouterr().err
    assert cli.invoke(["report", str(tmp_path), "--skip-bad"]) == 2
    assert "corpus.skip_bad=true changes nothing in a folder of results" in capsys.readouterr().err


def test_the_plan_is_printed_and_nothing_is_trained(tmp_path, capsys):
    path = write_experiment(tmp_path)
    assert cli.invoke(["plan", str(path), "--run-folder", str(tmp_path / "run"), "--quiet"]) == 0
    said = capsys.readouterr().out
    for word in (
        "digits",
        "epochs",
        "parameters",
        "floating-point operations",
        "held-out evaluations",
        "rough duration",
    ):
        assert word in said
    assert [entry.parent.name.rpartition("-")[0] for entry in (tmp_path / "store").glob("*/key.json")] == ["corpus"]


def finish(path, folder):
    """Runs to the end; returns what must not depend on interruptions."""
    said = command("run", path, "--run-folder", folder, "--quiet")
    assert said.returncode == 0, said.stderr
    files = sorted(
        file
        for pattern in ("steps.jsonl", "updates.jsonl", "targets.json", "losses.json", "*.bin")
        for file in (folder.parent / "store").rglob(pattern)
    )
    return {str(file.relative_to(folder.parent)): file.read_bytes() for file in files}


def kill_and_finish(path, folder, moments):
    """Kills the run after each of these numbers of seconds, then lets it end."""
    for seconds in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "vtune_jax", "run", str(path), "--run-folder", str(folder), "--quiet"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return finish(path, folder)


def test_a_run_killed_at_two_moments_ends_as_an_unbroken_one(tmp_path):
    path = write_experiment(tmp_path)
    start = time.perf_counter()
    whole = finish(path, tmp_path / "whole" / "run")
    lasted = time.perf_counter() - start
    assert {name.rpartition("/")[2] for name in whole} >= {"steps.jsonl", "losses.json", "train.bin"}
    assert kill_and_finish(path, tmp_path / "broken" / "run", [0.4 * lasted, 0.5 * lasted]) == whole


@pytest.mark.slow
def test_the_quick_start_killed_at_ten_random_moments_ends_as_an_unbroken_one(tmp_path):
    path = ROOT / "configs" / "quickstart.toml"
    whole = finish(path, tmp_path / "whole" / "run")
    rng = random.Random(0)
    moments = [rng.uniform(5, 60) for _ in range(10)]
    print("killed after", [round(seconds, 1) for seconds in moments])
    assert kill_and_finish(path, tmp_path / "broken" / "run", moments) == whole


def test_a_stop_signal_ends_with_its_code_and_the_run_goes_on(tmp_path):
    path = write_experiment(tmp_path)
    arguments = [sys.executable, "-m", "vtune_jax", "run", str(path), "train.steps=4000", "--run-folder"]
    arguments += [str(tmp_path / "run"), "targets.losses=[1.0, 2.0, 1.5]", "loop.log_every=1"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics, deadline = [], time.monotonic() + 120
    while not metrics and time.monotonic() < deadline:
        time.sleep(0.1)
        metrics = [file for file in (tmp_path / "store").rglob("arm-*/steps.jsonl") if file.stat().st_size]
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the state is saved; finished and kept in" in said
    assert "corpus, base model, losses of base model, targets" in said
    assert "'arm velocitune' goes on from what it has saved. The same command goes on from there" in said


def test_a_checkpoint_folder_that_cannot_be_written_is_one_line(tmp_path):
    if os.geteuid() == 0:
        folder = Path("/proc/no-run")
    else:
        folder = tmp_path / "locked" / "run"
        folder.parent.mkdir(mode=0o500)
    said = command("prepare", write_experiment(tmp_path), "--run-folder", folder)
    assert said.returncode == 2
    assert "cannot create the run folder" in said.stderr


def test_overrides_may_follow_options(tmp_path):
    path = write_experiment(tmp_path)
    said = command("prepare", path, "--run-folder", tmp_path / "run", "corpus.heldout_fractoin=0.3")
    assert said.returncode == 2
    assert "heldout_fraction" in said.stderr
