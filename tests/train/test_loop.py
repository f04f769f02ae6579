import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vtune_jax.errors import UserError
from vtune_jax.train.checkpoint import Checkpoints, checksum
from vtune_jax.train.loop import Interrupted, LoopConfig

FILES = ("steps.jsonl", "updates.jsonl")


def assert_same_state(ours, theirs):
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right)


def assert_same_files(ours, theirs):
    for name in FILES:
        assert (ours / name).read_text() == (theirs / name).read_text()


def test_a_run_writes_a_row_for_each_step_and_each_update(tmp_path):
    state = tiny.trained(tmp_path)
    steps, updates = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in FILES)
    assert [row["step"] for row in steps] == list(range(1, tiny.STEPS + 1))
    assert steps[-1]["tokens"] == tiny.STEPS * tiny.BATCH * tiny.LENGTH
    assert [row["step"] for row in updates] == [5, 10, 15, 20]
    np.testing.assert_allclose(updates[-1]["weights"], state.mixture.weights, rtol=1e-6)
    assert sum(updates[-1]["tokens_read"]) == tiny.STEPS * tiny.BATCH * tiny.LENGTH
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_both_engines_train_the_same_model_on_the_same_rows(tmp_path):
    host, device = (tiny.trained(tmp_path / kind, kind) for kind in ("host", "device"))
    np.testing.assert_array_equal(host.mixture.cursor.row, device.mixture.cursor.row)
    np.testing.assert_array_equal(host.mixture.cursor.epoch, device.mixture.cursor.epoch)
    np.testing.assert_allclose(host.mixture.weights, device.mixture.weights, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-4), host.params, device.params)


class Stop(Exception):
    """Stands for a crash between two chunks."""


@pytest.mark.parametrize(("kind", "crash"), [("host", 3), ("host", 8), ("host", 12), ("host", 17), ("device", 12)])
def test_a_crashed_run_ends_as_an_unbroken_one_bit_for_bit(tmp_path, crash, kind):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = tiny.trained(whole, kind)
    done = 0

    def tick(steps, fields):
        nonlocal done
        done += steps
        if done >= crash:
            raise Stop

    with pytest.raises(Stop):
        tiny.trained(broken, kind, tick=tick)
    assert_same_state(tiny.trained(broken, kind), expected)
    assert_same_files(broken, whole)


def test_a_stop_signal_saves_and_the_run_goes_on_from_there(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = tiny.trained(whole)

    def tick(steps, fields):
        if fields and fields["tokens"] == 10 * tiny.BATCH * tiny.LENGTH:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at step") as stop:
        tiny.trained(broken, tick=tick)
    assert stop.value.signal_number == signal.SIGTERM
    assert 10 <= stop.value.step <= 12
    checkpoints = Checkpoints(broken / "checkpoints")
    assert checkpoints.restore(tiny.state(), {}).step == stop.value.step
    checkpoints.close()
    assert_same_state(tiny.trained(broken), expected)
    assert_same_files(broken, whole)


def test_a_stop_signal_in_the_last_step_is_heard_too(tmp_path):
    expected = tiny.trained(tmp_path / "whole")

    def tick(steps, fields):
        if fields and fields["tokens"] == tiny.STEPS * tiny.BATCH * tiny.LENGTH:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stop:
        tiny.trained(tmp_path / "broken", tick=tick)
    assert (stop.value.step, stop.value.signal_number) == (tiny.STEPS, signal.SIGINT)
    assert_same_state(tiny.trained(tmp_path / "broken"), expected)
    assert_same_files(tmp_path / "broken", tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path):
    expected = tiny.trained(tmp_path)
    ticks = []
    assert_same_state(tiny.trained(tmp_path, tick=lambda steps, fields: ticks.append(steps)), expected)
    assert ticks == [tiny.STEPS]


def damage(folder, step):
    files = [path for path in (folder / f"step_{step}" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = tiny.trained(whole)
    tiny.trained(broken)
    damage(broken / "checkpoints", tiny.STEPS)
    said = []
    assert_same_state(tiny.trained(broken, warn=said.append), expected)
    assert_same_files(broken, whole)
    assert len(said) == 1
    assert f"checkpoint of step {tiny.STEPS}" in said[0]
    assert "is damaged" in said[0]


def test_when_every_checkpoint_is_damaged_the_run_starts_again(tmp_path):
    expected = tiny.trained(tmp_path)
    for step in (18, 20):
        damage(tmp_path / "checkpoints", step)
    said = []
    assert_same_state(tiny.trained(tmp_path, warn=said.append), expected)
    assert len(said) == 2


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    tiny.trained(tmp_path)
    with pytest.raises(UserError, match="was made with other steps"):
        tiny.carry_out(tiny.run(tmp_path, steps=40), tiny.engine(steps=40))


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path):
    engine = tiny.engine()
    step = engine._train_step

    def poisoned(state, batch, constants):
        state, metrics = step.learn(state, batch, constants)
        return state, {**metrics, "loss": np.where(int(state.step) == 15, np.nan, metrics["loss"])}

    engine._train_step = dataclasses.replace(step, learn=poisoned)
    with pytest.raises(UserError, match=r"the loss is nan .* at step 15; the last good checkpoint is kept"):
        tiny.carry_out(tiny.run(tmp_path), engine)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(tiny.state(), {}).step == 12
    checkpoints.close()


@pytest.mark.parametrize("bad", [[np.nan, 0.5, 0.5], [1.2, -0.1, -0.1], [0.0, 0.0, 0.0]])
def test_weights_that_are_no_shares_stop_the_run_before_they_are_saved(tmp_path, bad):
    engine = tiny.engine()
    step = engine._train_step

    def broken(state, batch, constants):
        state = step.update(state, batch, constants)
        if int(state.step) == 10:
            state = state._replace(mixture=state.mixture._replace(weights=np.float32(bad)))
        return state

    engine._train_step = dataclasses.replace(step, update=broken)
    with pytest.raises(UserError, match="weights after step 10 are .* not shares of one"):
        tiny.carry_out(tiny.run(tmp_path), engine)
    assert [json.loads(line)["step"] for line in (tmp_path / "updates.jsonl").read_text().splitlines()] == [5]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    tiny.trained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_18", "step_20"]


def test_saving_waits_for_old_checkpoints_to_go(tmp_path, monkeypatch):
    remove, emptied = shutil.rmtree, threading.Event()

    def slowly(path, *arguments, **options):
        # As the system's own: first the files, then the folder, which must have stayed empty.
        for inside in Path(path).iterdir():
            remove(inside) if inside.is_dir() else inside.unlink()
        emptied.set()
        time.sleep(0.3)
        os.rmdir(path)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.arange(3.0)}, {})
    assert emptied.wait(30)
    checkpoints.save(3, {"a": np.arange(3.0)}, {})
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_the_checksum_sees_every_bit_and_every_place():
    state = {"a": np.arange(6, dtype=np.float32), "b": np.array([True, False]), "c": np.arange(3, dtype=np.uint8)}
    base = checksum(state).tolist()
    changed = [
        {**state, "a": np.nextafter(state["a"], np.float32(9))},
        {**state, "a": state["a"][::-1].copy()},
        {**state, "b": ~state["b"]},
        {**state, "c": state["c"] + np.uint8(1)},
    ]
    assert all(checksum(other).tolist() != base for other in changed)
    assert checksum({name: leaf.copy() for name, leaf in state.items()}).tolist() == base


@pytest.mark.parametrize("field", ["log_every", "checkpoint_every", "keep_checkpoints"])
def test_periods_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        LoopConfig(**{field: 0})


def test_a_full_disk_is_told_whatever_the_storage_layer_calls_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def full(step, args):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: No space left on device]")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match=r"cannot write a checkpoint .* \(the disk is full\)"):
        checkpoints.save(1, {"a": np.zeros(2)}, {})
    checkpoints.close()
