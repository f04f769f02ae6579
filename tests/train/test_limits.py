"""Runs on limited, lost, changed and late data."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.train.test_loop import Stop, assert_same_files, assert_same_state
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.errors import UserError
from vtune_jax.train.checkpoint import Checkpoints, canonical
from vtune_jax.train.device_engine import DeviceEngine
from vtune_jax.train.host_engine import HostEngine


def limited_engine(kind, stop=False, limits=(None, 9, 9)):
    spec = dataclasses.replace(tiny.spec(), limits=limits, stop=(stop,) * tiny.DOMAINS)
    if kind == "device":
        return DeviceEngine(tiny.scan_of(of=spec), spec, tiny.stores(), tiny.constants())
    return HostEngine(tiny.jitted(), spec, tiny.stores(), tiny.constants())


def saved(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.restore(tiny.state(), {}).state
    checkpoints.close()
    return state


def saved_step(folder):
    return int(saved(folder).step)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_the_weight_of_an_exhausted_domain_goes_to_the_others_in_a_run(tmp_path, kind):
    state = tiny.carry_out(tiny.run(tmp_path), limited_engine(kind))
    updates = [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()]
    assert updates[-1]["tokens_read"][1:] == [9 * tiny.LENGTH] * 2
    assert sum(updates[-1]["tokens_read"]) == tiny.STEPS * tiny.BATCH * tiny.LENGTH
    np.testing.assert_allclose(updates[-1]["weights"], [1, 0, 0], atol=1e-6)
    assert int(state.step) == tiny.STEPS


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_domain_may_stop_the_run_which_then_ends_with_its_state_saved(tmp_path, kind):
    said = []
    state = tiny.carry_out(tiny.run(tmp_path), limited_engine(kind, stop=True), warn=said.append)
    assert 0 < int(state.step) < tiny.STEPS
    assert len(said) == 1
    assert f"the run ends after {int(state.step)} of 20 steps: 'd1'" in said[0]
    assert saved_step(tmp_path) == int(state.step)
    # Asked again, it ends at the same place.
    again = tiny.carry_out(tiny.run(tmp_path), limited_engine(kind, stop=True), warn=said.append)
    assert_same_state(again, state)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_run_whose_domains_with_weight_are_used_up_stops_with_its_state_saved(tmp_path, kind):
    engine = limited_engine(kind, limits=(8, 8, 8))
    with pytest.raises(UserError, match=r"step 7 of 20 has no batch: 'd2' cannot fill another batch .* no other"):
        tiny.carry_out(tiny.run(tmp_path), engine)
    assert saved_step(tmp_path) == 6


def test_tokens_that_are_lost_stop_the_run_with_its_state_saved_and_it_goes_on_when_they_are_back(tmp_path):
    class Away(TokenRows):
        reads = 0

        def read(self, rows):
            Away.reads += 1
            if Away.reads > 4:
                raise UserError("the tokens of domain 'd1' are lost", "bring the file back")
            return super().read(rows)

    expected = tiny.trained(tmp_path / "whole")
    stores = tuple(Away(store.tokens, tiny.LENGTH, name=store.name) for store in tiny.stores())

    def engine():
        return HostEngine(tiny.jitted(), tiny.spec(), stores, tiny.constants())

    with pytest.raises(UserError, match="the tokens of domain 'd1' are lost"):
        tiny.carry_out(tiny.run(tmp_path / "broken"), engine())
    assert saved_step(tmp_path / "broken") == tiny.INTERVAL
    Away.reads = -100
    assert_same_state(tiny.carry_out(tiny.run(tmp_path / "broken"), engine()), expected)
    assert_same_files(tmp_path / "broken", tmp_path / "whole")


def test_other_data_are_refused_by_what_differs_and_taken_over_if_asked(tmp_path):
    tiny.trained(tmp_path)
    other = dataclasses.replace(tiny.run(tmp_path), facts=canonical({"data": {"rows": [49, 87, 20]}, "steps": 24}))
    other = dataclasses.replace(other, steps=24)
    with pytest.raises(UserError, match=r"made with other data \(rows was \[49, 87, 124\], is \[49, 87, 20\]; batch"):
        tiny.carry_out(other, tiny.engine())
    with pytest.raises(UserError, match=r"made with other steps \(was 20, is 24\)"):
        tiny.carry_out(dataclasses.replace(other, allow_data_change=True), tiny.engine())
    said = []
    allowed = dataclasses.replace(other, allow_data_change=True, facts={"data": other.facts["data"]})
    shorter = TokenRows(tiny.stores()[2].tokens[: 20 * tiny.LENGTH + 1], tiny.LENGTH, name="d2")
    stores = (*tiny.stores()[:2], shorter)
    spec = dataclasses.replace(tiny.spec(), rows=tuple(map(len, stores)))
    before = saved(tmp_path).mixture.cursor
    assert int(before.row[2]) >= spec.rows[2]
    engine = HostEngine(tiny.jitted(), spec, stores, tiny.constants())
    state = tiny.carry_out(allowed, engine, warn=said.append)
    assert int(state.step) == 24
    # What lies past the end of the shorter domain is read from the next epoch on.
    assert state.mixture.cursor.epoch.tolist() == [*before.epoch[:2].tolist(), 1]
    assert "goes on from step 20 on other data: rows was" in said[0]


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("crash", [5, 6, 7, 12])
def test_a_run_with_lag_and_readers_ahead_resumes_to_the_bit(tmp_path, lag, crash):
    def run(folder, tick=lambda steps, fields: None):
        engine = tiny.engine(numbers={"lag": lag}, workers=2)
        # The step before the crash is the last that is saved.
        return tiny.carry_out(tiny.run(folder, checkpoint_every=crash - 1), engine, tick=tick)

    done = 0

    def stop(steps, fields):
        nonlocal done
        done += steps
        if done >= crash:
            raise Stop

    expected = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "broken", stop)
    assert_same_state(run(tmp_path / "broken"), expected)
    assert_same_files(tmp_path / "broken", tmp_path / "whole")


KILLED = """
import os, sys
from pathlib import Path
from tests import tiny
from vtune_jax.train.checkpoint import Checkpoints
folder, steps, tick_at, save_at = Path(sys.argv[1]), *map(int, sys.argv[2:])
done = 0

def tick(steps, fields):
    global done
    done += steps
    if tick_at <= done:
        os.kill(os.getpid(), 9)

save = Checkpoints.save

def dying(self, step, state, facts):
    # Saving goes on in the background: its files are being written now.
    save(self, step, state, facts)
    if step == save_at:
        os.kill(os.getpid(), 9)

Checkpoints.save = dying
tiny.carry_out(tiny.run(folder, steps=steps), tiny.engine(steps=steps), tick=tick)
"""


def test_the_order_goes_on_exactly_after_a_kill_anywhere(tmp_path):
    steps, never, root = 90, 10**9, Path(__file__).parents[2]

    def run(folder):
        return tiny.carry_out(tiny.run(folder, steps=steps), tiny.engine(steps=steps))

    expected = run(tmp_path / "whole")
    updates = [json.loads(line) for line in (tmp_path / "whole" / "updates.jsonl").read_text().splitlines()]
    # Between the last update of the first epoch and the first of the second lies the epoch's change.
    after_change = next(row["step"] for row in updates if max(row["epochs"]) >= 1)
    assert after_change < steps
    moments = {
        "within an interval": (8, never),
        "at an epoch's change": (after_change - 2, never),
        "while a checkpoint is written": (never, 18),
    }
    for where, (tick_at, save_at) in moments.items():
        folder = tmp_path / where
        words = [str(word) for word in (folder, steps, tick_at, save_at)]
        killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=root)
        assert killed.returncode == -9
        assert_same_state(run(folder), expected)
        assert_same_files(folder, tmp_path / "whole")
