"""Several devices share the work, and several processes the reading; rows and losses are those of one.

Each start of Python and each compilation costs seconds, so one start makes several claims.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vtune_jax.train.heldout import make_evaluate

ROOT = Path(__file__).parents[2]
DEVICES = 4


def started(program, *words, devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    """The last line that a process printed, as JSON."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.strip().splitlines()[-1])


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


SPLIT = """
import json
import jax, numpy as np
from jax.sharding import Mesh
from tests import tiny
from tests.train.test_step import batch
from vtune_jax.machine.mesh import replicate
from vtune_jax.train.heldout import make_evaluate
from vtune_jax.train.step import make_train_step

def flops(program):
    return program.cost_analysis()["flops"]

found = []
for devices in (1, 2, 4):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",)) if devices > 1 else None
    evaluate = make_evaluate(tiny.model(), 1000, mesh)
    params = replicate(tiny.model().init(0), mesh)
    row = {"devices": devices}
    for rows in (64, 5):  # 64 divide by the devices; 3 * 5 do not
        heldout = replicate({"tokens": np.resize(tiny.heldout()["tokens"], (3, rows, tiny.LENGTH + 1))}, mesh)
        program = jax.jit(evaluate).lower(params, heldout).compile()
        sums = jax.device_get(program(params, heldout))
        row[str(rows)] = [flops(program), sums.nats.tolist(), sums.tokens.tolist(), sums.squares.tolist()]
    constants = replicate(tiny.constants()._replace(heldout={"tokens": np.resize(
        tiny.heldout()["tokens"], (3, 64, tiny.LENGTH + 1))}), mesh)
    step = make_train_step(tiny.model(), tiny.METHOD, evaluate)
    update = jax.jit(step.update).lower(replicate(tiny.state(), mesh), batch(), constants)
    row["update"] = [flops(update.compile())]
    found.append(row)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def split():
    return {row["devices"]: row for row in answer(started(SPLIT, devices=DEVICES))}


@pytest.mark.parametrize("devices", [2, 4])
def test_each_device_evaluates_its_share_of_the_heldout_rows(split, devices):
    for work in ("64", "update"):
        alone, shared = (split[count][work][0] for count in (1, devices))
        assert shared / alone == pytest.approx(1 / devices, rel=0.03)
    # 15 rows on 2 devices are 8 and 7, and one of padding; on 4 devices 4, 4, 4 and 3.
    padded = split[devices]["5"][0] / split[1]["5"][0]
    assert padded == pytest.approx(16 / 15 / devices, rel=0.03)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_sums_over_split_rows_are_those_of_one_device_and_padding_counts_nothing(split, devices):
    for rows in (64, 5):
        heldout = {"tokens": np.resize(tiny.heldout()["tokens"], (3, rows, tiny.LENGTH + 1))}
        here = jax.jit(make_evaluate(tiny.model(), 1000))(tiny.model().init(0), heldout)
        _, nats, tokens, squares = split[devices][str(rows)]
        assert tokens == here.tokens.tolist() == [rows * tiny.LENGTH] * 3
        np.testing.assert_allclose(nats, here.nats, rtol=1e-6)
        np.testing.assert_allclose(squares, here.squares, rtol=1e-6)


WORKER = """
import json, sys
from pathlib import Path
import jax
folder, count, index, port, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
import dataclasses
from tests import tiny
from vtune_jax.machine.mesh import data_mesh
assert jax.device_count() == 4
run = dataclasses.replace(tiny.run(folder), steps=steps)
state = tiny.carry_out(run, tiny.engine(mesh=data_mesh(tiny.BATCH)))
print(json.dumps(jax.device_get(state.mixture.cursor.order).tolist()), flush=True)
"""


def processes(folder, count, steps):
    """A run by so many processes with four devices together; the hash of the rows that they read."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [started(WORKER, folder, count, index, port, steps, devices=DEVICES // count) for index in range(count)]
    orders = [answer(process) for process in running]
    assert orders == orders[:1] * count
    return orders[0]


def test_one_two_and_four_processes_read_the_rows_of_one_device_and_take_over_from_each_other(tmp_path):
    alone = tiny.trained(tmp_path / "alone")
    # The first part by one process with four devices, the second by two processes, the rest by four.
    for count, steps in ((1, 7), (2, 13), (4, tiny.STEPS)):
        order = processes(tmp_path / "together", count, steps)
    assert order == alone.mixture.cursor.order.tolist()
    np.testing.assert_allclose(losses(tmp_path / "together"), losses(tmp_path / "alone"), rtol=1e-3)
