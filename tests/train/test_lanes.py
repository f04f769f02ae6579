"""Short runs side by side: the same as alone, resumable, and packed without gaps."""

import functools
import os
import signal

import jax
import numpy as np
import pytest

from tests import tiny
from vtune_jax.core.simplex import to_quota
from vtune_jax.rules import Static
from vtune_jax.train.heldout import make_evaluate, mean_loss
from vtune_jax.train.lanes import LaneEngine, Lanes, ShortRun, packed
from vtune_jax.train.listeners import Shown
from vtune_jax.train.loop import Interrupted, LoopConfig, Run, train

EVALUATE = jax.jit(make_evaluate(tiny.model(), 9))


def heldout_loss(params):
    return mean_loss(jax.device_get(EVALUATE(params, tiny.heldout())))


class Killed(Exception):
    pass


def trained(folder, lanes, *, stop=None, every=100, asked=False):
    done = 0

    def tick(steps, fields):
        nonlocal done
        done += steps
        if stop is not None and done >= stop:
            if not asked:
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    engine = LaneEngine(
        lanes,
        tiny.model(),
        tiny.OPTIMIZER,
        tiny.params(),
        spec=tiny.spec(),
        stores=tiny.stores(),
        quota=np.asarray(to_quota(tiny.targets().prior)),
        heldout_loss=heldout_loss,
    )
    loop = LoopConfig(log_every=4, checkpoint_every=every)
    run = Run(folder=folder, steps=lanes.steps, facts={"what": "test"}, loop=loop)
    return engine.losses(train(run, engine, engine.begin, listeners=[Shown(tick)]))


def static_run(folder, steps):
    begin = functools.partial(tiny.state, Static())
    return tiny.carry_out(tiny.run(folder, steps), tiny.engine(method=Static(), steps=steps), begin)


RUNS = (ShortRun(20, (4, 20)), ShortRun(10, (10,)), ShortRun(5, (5,)), ShortRun(4, (4,)))


def test_each_run_ends_as_it_would_alone(tmp_path):
    together = trained(tmp_path / "lanes", packed(RUNS))
    alone = static_run(tmp_path / "one", 20)
    np.testing.assert_allclose(together[0][1], heldout_loss(alone.params), rtol=2e-5)
    ten = static_run(tmp_path / "ten", 10)
    np.testing.assert_allclose(together[1][0], heldout_loss(ten.params), rtol=2e-5)
    # Half-way through the long run its rate is still high: not the short run's loss.
    assert np.abs(together[0][0] - together[3][0]).max() > 1e-3


def test_a_killed_program_goes_on_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole", packed(RUNS))
    with pytest.raises(Killed):
        trained(tmp_path / "broken", packed(RUNS), stop=8, every=6)
    # Later it is asked to stop, and saves where it is.
    with pytest.raises(Interrupted) as stop:
        trained(tmp_path / "broken", packed(RUNS), stop=14, every=6, asked=True)
    assert 14 <= stop.value.step < 20
    steps = []
    for left, right in zip(whole, trained(tmp_path / "broken", packed(RUNS), every=6), strict=True):
        np.testing.assert_array_equal(left, right)
        steps.append(len(left))
    assert steps == [2, 1, 1, 1]
    assert [entry.name for entry in (tmp_path / "broken" / "checkpoints").iterdir()]


def test_lengths_that_halve_fill_two_lanes():
    lanes = packed(RUNS)
    assert lanes.of_lane == ((0,), (1, 2, 3))
    assert lanes.steps == 20
    run, within = lanes.schedule()
    assert run[:, 1].tolist() == [1] * 10 + [2] * 5 + [3] * 4 + [-1]
    assert within[:, 1].tolist() == [*range(10), *range(5), *range(4), 0]
    assert packed((ShortRun(20, (20,)), ShortRun(4, (4,)))).of_lane == ((0, 1),)
    assert isinstance(lanes, Lanes)
