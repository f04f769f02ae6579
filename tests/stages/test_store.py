import json
import multiprocessing

import pytest

from vtune_jax.errors import UserError
from vtune_jax.stages.store import RunFolder


def test_work_is_done_once_per_key(tmp_path):
    folder, done = RunFolder(tmp_path / "run", "x"), []
    first = folder.stage("a", {"field": 1}, lambda path: done.append(path))
    again = folder.stage("a", {"field": 1}, lambda path: done.append(path))
    other = folder.stage("a", {"field": 2}, lambda path: done.append(path))
    assert first == again
    assert done == [first.folder, other.folder]
    assert json.loads((first.folder / "key.json").read_text())["field"] == 1


def test_work_that_failed_is_done_again_in_the_same_folder(tmp_path):
    folder = RunFolder(tmp_path / "run", "x")

    def half(path):
        (path / "half").write_text("")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        folder.stage("a", {}, half)
    found = []
    folder.stage("a", {}, lambda path: found.extend(entry.name for entry in path.iterdir()))
    assert "half" in found


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    RunFolder(tmp_path / "run", "x")
    RunFolder(tmp_path / "run", "x")
    with pytest.raises(UserError, match="belongs to the experiment 'x', this config is 'y'"):
        RunFolder(tmp_path / "run", "y")


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunFolder(tmp_path, "x")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the run folder"):
        RunFolder(tmp_path / "file" / "run", "x")


def _hold(folder, held, release):
    with RunFolder(folder, "x").locked():
        held.set()
        release.wait(30)


def test_a_second_process_is_kept_out_and_the_lock_dies_with_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    folder = RunFolder(tmp_path / "run", "x")
    other = context.Process(target=_hold, args=(tmp_path / "run", held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(UserError, match="another process is running"), folder.locked():
        pass
    other.kill()
    other.join(30)
    with folder.locked():
        pass
