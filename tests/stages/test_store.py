"""Stages are done once for all who need them, whoever that is and however they end."""

import dataclasses
import json
import multiprocessing
import time

import pytest

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.stages.store import Finished, Store, is_locked, locked


@dataclasses.dataclass(frozen=True)
class Inputs:
    field: int = 1
    words: tuple[str, ...] = ("a",)
    speed: int = dataclasses.field(default=1, metadata={"bookkeeping": True})


def nobody():
    pytest.fail("there was nobody to wait for")


def test_work_is_done_once_per_inputs(tmp_path):
    store, done = Store(tmp_path), []
    work = lambda inputs, folder: done.append((inputs.field, folder))  # noqa: E731
    first = store.make("a", Inputs(), work, waits=nobody)
    assert store.make("a", Inputs(), work, waits=nobody) == first == store.find("a", Inputs())
    assert store.make("a", Inputs(speed=7), work, waits=nobody) == first
    other = store.make("a", Inputs(field=2), work, waits=nobody)
    assert done == [(1, first.folder), (2, other.folder)]
    assert json.loads((first.folder / "key.json").read_text())["field"] == 1


def test_a_stage_counts_all_that_its_upstream_stages_count(tmp_path):
    store = Store(tmp_path)

    @dataclasses.dataclass(frozen=True)
    class Built:
        on: Finished

    folders = []
    for field in (1, 2, 1):
        lower = store.make("lower", Inputs(field=field), lambda inputs, folder: None, waits=nobody)
        folders.append(store.make("upper", Built(lower), lambda inputs, folder: None, waits=nobody).folder)
    assert folders[0] == folders[2] != folders[1]


def test_inputs_without_an_identity_are_refused():
    with pytest.raises(TypeError, match="a object has no identity"):
        settings.digest((object(),))


def test_work_that_failed_is_done_again_in_the_same_folder(tmp_path):
    store = Store(tmp_path)

    def half(inputs, folder):
        (folder / "half").write_text("")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.make("a", Inputs(), half, waits=nobody)
    assert store.find("a", Inputs()) is None
    found = []
    store.make("a", Inputs(), lambda inputs, folder: found.extend(e.name for e in folder.iterdir()), waits=nobody)
    assert "half" in found


def test_a_store_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder"):
        Store(tmp_path / "file" / "store").make("a", Inputs(), lambda inputs, folder: None, waits=nobody)


def _work_slowly(root, started, release):
    def work(inputs, folder):
        started.set()
        release.wait(30)
        (folder / "answer").write_text("42")

    Store(root).make("a", Inputs(), work, waits=lambda: None)


def test_of_two_processes_one_works_and_the_other_waits_and_uses_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    other = context.Process(target=_work_slowly, args=(tmp_path, started, release))
    other.start()
    assert started.wait(60)
    folder = Store(tmp_path).folder("a", Inputs())
    assert is_locked(folder)
    waited = []

    def waits():
        waited.append(time.monotonic())
        release.set()

    found = Store(tmp_path).make("a", Inputs(), lambda inputs, folder: pytest.fail("it was done twice"), waits=waits)
    other.join(30)
    assert len(waited) == 1
    assert (found.folder / "answer").read_text() == "42"
    assert not is_locked(folder)


def test_the_lock_of_a_killed_process_is_free_and_its_work_is_taken_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    other = context.Process(target=_work_slowly, args=(tmp_path, started, release))
    other.start()
    assert started.wait(60)
    other.kill()
    other.join(30)
    done = []
    Store(tmp_path).make("a", Inputs(), lambda inputs, folder: done.append(folder), waits=nobody)
    assert done


def test_a_folder_removed_by_the_lock_s_holder_is_made_again(tmp_path):
    import shutil

    folder = tmp_path / "a-1"
    with locked(folder, nobody):
        shutil.rmtree(folder)
    with locked(folder, nobody):
        assert folder.is_dir()
        assert is_locked(folder)
