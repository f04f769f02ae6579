"""Everything that a grid varies is data: cells are trained side by side, by one program, as each alone."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.train.test_step import batch
from vtune_jax.data.mixture.on_device import build_table
from vtune_jax.rules import Static, Velocitune
from vtune_jax.train.cells import compile_cells, stack, start_cells
from vtune_jax.train.numbers import run_numbers
from vtune_jax.train.state import start

INTERVALS = 3
GRID = tuple(itertools.product((3, 11), (1e-2, 3e-3), (0.5, 4.0), (0.02, 0.1)))  # seeds, rates, step sizes, floors


def cell(seed, rate, step_size, floor):
    method = Velocitune(step_size=step_size, floor=floor)
    optimizer = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=rate)
    numbers = run_numbers(steps=20, interval=tiny.INTERVAL, optimizer=optimizer, method=method, seed=seed)
    return method, numbers


@pytest.fixture(scope="module")
def table():
    return build_table(tiny.stores())


@pytest.fixture(scope="module")
def together(table):
    """The final states of sixteen cells, what they measured, and how often the program was compiled."""
    program = compile_cells(tiny.step_of(), tiny.spec(), tiny.LENGTH)
    numbers = stack([cell(*values)[1] for values in GRID])
    states = start_cells(tiny.params(), tiny.METHOD, tiny.targets(), numbers)
    constants = tiny.constants()._replace(numbers=numbers)
    states, found = program(states, table, constants, steps=tiny.INTERVAL, intervals=INTERVALS)
    return jax.device_get((states, found)), program._cache_size()


def test_sixteen_cells_train_side_by_side_as_each_alone_with_one_compilation(together, table):
    (states, found), compiled = together
    assert compiled == 1
    alone = tiny.scan_of()
    before = alone._cache_size()
    for index, values in enumerate(GRID):
        method, numbers = cell(*values)
        constants = tiny.constants()._replace(numbers=numbers)
        state = start(tiny.params(), method, tiny.targets())
        state, measured = alone(state, table, constants, steps=tiny.INTERVAL, intervals=INTERVALS)
        of_cell = jax.tree.map(lambda column, index=index: column[index], (states, found))
        # The rows read are the same exactly.
        np.testing.assert_array_equal(of_cell[0].mixture.cursor.order, state.mixture.cursor.order)
        np.testing.assert_array_equal(of_cell[1].boundaries.cursor.order, measured.boundaries.cursor.order)
        assert of_cell[0].step == state.step == tiny.INTERVAL * INTERVALS
        for ours, theirs in (
            (of_cell[1].metrics["loss"], measured.metrics["loss"]),
            (of_cell[1].boundaries.weights, measured.boundaries.weights),
            (of_cell[0].mixture.weights, state.mixture.weights),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        # Adam divides a gradient near zero by its own size, rounding included.
        for ours, theirs in zip(jax.tree.leaves(of_cell[0].params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # All sixteen by one program as well, and they are sixteen different runs.
    assert alone._cache_size() <= before + 1
    assert len({tuple(weights) for weights in states.mixture.weights.tolist()}) == len(GRID)


def test_each_number_does_in_a_cell_what_it_is_for(together):
    (states, found), _ = together
    weights, rates = np.asarray(states.mixture.weights), np.asarray(found.metrics["learning_rate"])
    for index, (_, rate, _, floor) in enumerate(GRID):
        assert weights[index].min() >= floor - 1e-6
        # The first of twenty steps is the warm-up, so that it has the whole rate.
        np.testing.assert_allclose(rates[index, 0, 0], rate, rtol=1e-6)
    by_step_size = {
        size: [w for w, values in zip(weights, GRID, strict=True) if values[2] == size] for size in (0.5, 4)
    }
    moved = {size: np.abs(np.stack(w) - tiny.targets().prior).sum() for size, w in by_step_size.items()}
    assert moved[4] > 2 * moved[0.5]


def test_changing_any_number_compiles_nothing_anew():
    step = jax.jit(tiny.step_of())
    changes = [
        {},
        {"seed": 99},
        {"interval": 7},
        {"interval": 7, "phase": 3, "lag": 2},
        {"method": Velocitune(step_size=0.1, floor=0.2, min_gap=0.01)},
        *(
            {"optimizer": dataclasses.replace(tiny.OPTIMIZER, **{field: 0.5})}
            for field in (
                "peak_learning_rate",
                "warmup_fraction",
                "final_fraction",
                "weight_decay",
                "beta1",
                "beta2",
                "clip_norm",
            )
        ),
    ]
    results = set()
    for steps, change in itertools.product((20, 40), changes):
        state = tiny.state(change.get("method", tiny.METHOD))
        for count in range(2):
            state, _ = step(state, batch(count), tiny.constants(steps, **change))
        results.add(float(jnp.abs(state.params["embedding"]).sum()))
    assert step._cache_size() == 1
    # Six numbers of the optimiser and the horizon show in two steps; the others only later.
    assert len(results) > 7


@pytest.mark.parametrize(("phase", "lag"), [(0, 0), (2, 0), (4, 3)])
def test_updates_follow_steps_that_are_a_phase_away_from_whole_intervals(phase, lag):
    step, state = tiny.jitted(), tiny.state()
    constants = tiny.constants(phase=phase, lag=lag)
    updates, in_force, quota = [], [], state.mixture.quota.tolist()
    for done in range(1, 16):
        entries = int(state.mixture.history.entries)
        state, _ = step(state, batch(done), constants)
        if int(state.mixture.history.entries) > entries:
            updates.append(done)
        if state.mixture.quota.tolist() != quota:
            quota = state.mixture.quota.tolist()
            in_force.append(done)
    assert updates == [done for done in range(1, 16) if (done - phase) % tiny.INTERVAL == 0]
    assert in_force == [done + lag for done in updates if done + lag < 16]


def test_the_engines_stop_where_weights_are_updated_and_where_they_come_into_force():
    def stops(engine):
        step, found = 0, []
        while step < 15:
            found.append(step := engine.next_stop(step))
        return found

    assert stops(tiny.engine("device")) == stops(tiny.engine()) == [5, 10, 15]
    assert stops(tiny.engine(numbers={"lag": 2})) == [2, 5, 7, 10, 12, 15]
    assert stops(tiny.engine("device", numbers={"phase": 2, "lag": 1})) == [2, 3, 7, 8, 12, 13, 17]
    with pytest.raises(ValueError, match="phase must be 0 for the host engine, got 2"):
        tiny.engine(numbers={"phase": 2})


def test_segments_join_to_one(table):
    program = partial(tiny.scan_of(), steps=tiny.INTERVAL)
    once, found = program(tiny.state(), table, tiny.constants(), intervals=INTERVALS)
    state, parts = tiny.state(), []
    for _ in range(INTERVALS):
        state, part = program(state, table, tiny.constants())
        parts.append(part.metrics["loss"])
    np.testing.assert_array_equal(once.mixture.cursor.order, state.mixture.cursor.order)
    np.testing.assert_allclose(found.metrics["loss"], np.concatenate(parts), rtol=1e-5)
    np.testing.assert_allclose(once.mixture.weights, state.mixture.weights, rtol=1e-5)


def test_numbers_of_another_method_are_refused_while_tracing():
    with pytest.raises(ValueError, match=r"numbers.method must hold \[\] for this method, got \['floor', "):
        jax.eval_shape(tiny.step_of(Static()), tiny.state(Static()), batch(), tiny.constants(method=tiny.METHOD))
