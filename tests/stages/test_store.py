"""Stages are done once for all who need them, whoever that is and however they end."""

import dataclasses
import json
import multiprocessing
import time

import pytest

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.machine.provenance import Provenance
from vtune_jax.stages.seal import flaw, read_seal
from vtune_jax.stages.store import Finished, Store, finished_at, is_locked, locked


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


def write(*names):
    """Work that leaves these files."""

    def work(inputs, folder):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)

    return work


DAMAGE = {
    "it is emptied": lambda path: path.write_text(""),
    "it is missing": lambda path: path.unlink(),
    "it has other content": lambda path: path.write_text("z" * path.stat().st_size),
}


@pytest.mark.parametrize("name", ["a.json", "deep/b", "done.json", "key.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_to_a_finished_stage_is_seen_and_told(tmp_path, name, damage):
    store, work = Store(tmp_path), write("a.json", "deep/b")
    stage = store.make("a", Inputs(), work, waits=nobody)
    damage(stage.folder / name)
    if name == "done.json" and not (stage.folder / name).exists():
        # It is not finished: the work goes on from what is there.
        assert store.make("a", Inputs(), work, waits=nobody) == stage
        return
    assert store.find("a", Inputs()) is None
    with pytest.raises(UserError, match=f"the finished stage {stage.folder} is damaged: {name}"):
        store.make("a", Inputs(), lambda inputs, folder: pytest.fail("it was worked on"), waits=nobody)
    with pytest.raises(UserError, match="is damaged"):
        finished_at(stage.folder)
    told = []
    assert store.make("a", Inputs(), work, waits=nobody, again=told.append) == stage == store.find("a", Inputs())
    assert len(told) == 1
    assert finished_at(stage.folder) == stage


def test_a_damaged_stage_is_made_again_from_nothing(tmp_path):
    store, found = Store(tmp_path), []
    stage = store.make("a", Inputs(), write("a", "b"), waits=nobody)
    (stage.folder / "b").write_text("")
    store.make("a", Inputs(), lambda _, folder: found.extend(folder.iterdir()), waits=nobody, again=lambda flaw: None)
    assert {path.name for path in found} == {".lock", "key.json"}


def test_a_large_file_is_checked_by_its_length_and_checkpoints_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("vtune_jax.stages.seal.MOST_HASHED", 300)
    store = Store(tmp_path)
    stage = store.make("a", Inputs(), write("small", "x" * 200, "checkpoints/state"), waits=nobody)
    assert set(read_seal(stage.folder).files) == {"key.json", "small", "x" * 200}
    monkeypatch.setattr("vtune_jax.stages.seal.MOST_HASHED", 10)
    other = store.make("a", Inputs(field=2), write("x" * 200), waits=nobody)
    (other.folder / ("x" * 200)).write_text("y" * 200)
    assert store.find("a", Inputs(field=2)) == other
    (other.folder / ("x" * 200)).write_text("y" * 199)
    assert flaw(other.folder, contents=False) == f"{'x' * 200} has 199 bytes, it had 200"


def test_a_stage_says_who_made_it(tmp_path):
    stage = Store(tmp_path).make("a", Inputs(), write("a"), waits=nobody)
    assert read_seal(stage.folder).made_by == Provenance.here()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"name": 3}', "null", '{"PATH": [1, 2, "abc"]}'])
def test_remembered_hashes_that_are_damaged_are_made_again(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("content")
    expected = Store(tmp_path / "other").hashed(path)
    (tmp_path / "hashes.json").write_text(content.replace("PATH", str(path)))
    assert Store(tmp_path).hashed(path) == expected
