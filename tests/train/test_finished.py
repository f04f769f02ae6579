"""What is left of a finished run: its parameters, once; and what the loop's listeners hear on the way."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny
from tests.train.test_loop import assert_same_state
from vtune_jax.errors import UserError
from vtune_jax.train.checkpoint import canonical
from vtune_jax.train.listeners import Listener, MetricsFiles, Shown
from vtune_jax.train.loop import final_params, train


def test_a_finished_run_keeps_its_parameters_alone_and_gives_them_back_without_training(tmp_path):
    expected = tiny.trained(tmp_path / "plain")
    run, rows = tiny.run(tmp_path / "run"), tmp_path / "run" / "steps.jsonl"
    params = final_params(run, tiny.engine(), tiny.state, listeners=[MetricsFiles(run.folder)])
    assert_same_state(params, expected.params)
    assert sorted(path.name for path in run.folder.iterdir()) == ["params", "steps.jsonl", "updates.jsonl"]
    assert [path.name for path in (run.folder / "params").iterdir()] == [f"step_{tiny.STEPS}"]
    written = rows.read_text()

    class Idle:
        """An engine that cannot make a step."""

        mesh = None

    ticks = []
    shown = Shown(lambda steps, fields: ticks.append(steps))
    again = final_params(run, Idle(), tiny.state, listeners=[MetricsFiles(run.folder), shown])
    assert_same_state(again, params)
    assert rows.read_text() == written
    assert ticks == [tiny.STEPS]

    other = dataclasses.replace(run, facts=canonical({**run.facts, "data": {"rows": [1, 2, 3]}}))
    with pytest.raises(UserError, match=r"made with other data \(rows was \[49, 87, 124\], is \[1, 2, 3\]"):
        final_params(other, Idle(), tiny.state)
    said = []
    allowed = dataclasses.replace(other, allow_data_change=True)
    taken = final_params(allowed, Idle(), tiny.state, listeners=[Shown(lambda steps, fields: None, said.append)])
    assert_same_state(taken, params)
    assert said[0].startswith("goes on from step 20 on other data: rows was")


class Heard(Listener):
    def __init__(self):
        self.events = []

    def started(self, step):
        self.events.append(("started", step))

    def stepped(self, rows):
        self.events += [("stepped", row["step"]) for row in rows]

    def updated(self, rows):
        self.events += [("updated", row["step"]) for row in rows]

    def saved(self, step):
        self.events.append(("saved", step))

    def finished(self, step):
        self.events.append(("finished", step))


def test_listeners_hear_of_every_step_update_and_checkpoint_in_order(tmp_path):
    heard = Heard()
    train(tiny.run(tmp_path, steps=12), tiny.engine(steps=12), tiny.state, listeners=[heard])
    steps = {step: [("stepped", step)] for step in range(1, 13)}
    steps[5].append(("updated", 5))
    steps[10].append(("updated", 10))
    steps[6].append(("saved", 6))
    steps[12] += [("saved", 12), ("finished", 12)]
    assert heard.events == [("started", 0), *(event for step in steps.values() for event in step)]
    train(tiny.run(tmp_path, steps=12), tiny.engine(steps=12), tiny.state, listeners=[again := Heard()])
    assert again.events == [("started", 12), ("finished", 12)]


def test_progress_is_shown_with_the_newest_weights(tmp_path):
    shown = []
    tiny.trained(tmp_path, tick=lambda steps, fields: shown.append({"steps": steps, **fields}))
    updates = [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()]
    assert shown[0] == {"steps": 0}
    assert sum(call["steps"] for call in shown) == tiny.STEPS
    assert shown[-1]["tokens"] == tiny.STEPS * tiny.BATCH * tiny.LENGTH
    # The last chunk ends with an update, which is shown from the next chunk on.
    np.testing.assert_allclose(shown[-1]["weights"], updates[-2]["weights"])
