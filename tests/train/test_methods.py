"""Every method trains end to end, on evidence that the trainer has really computed, and does what its idea says.

Planted domains: text that the base model knows already ("finished"), text whose one pattern is quickly learnt
("learnable"), and text of random tokens, of which the base model knows all there is to know ("noise").
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vtune_jax import rules
from vtune_jax.core.targets import make_targets
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.heldout import make_evaluate, mean_loss
from vtune_jax.train.host_engine import HostEngine
from vtune_jax.train.state import start

FINISHED, LEARNABLE, NOISE = range(3)
INTERVAL, BATCH, LENGTH = tiny.INTERVAL, 8, tiny.LENGTH


@functools.cache
def stores():
    rng = np.random.default_rng(0)
    # One token over and over; a cycle of eight tokens; tokens at random.
    texts = np.full(2000, 3), np.tile(np.arange(8, 16), 250), rng.integers(0, tiny.VOCABULARY, 2000)
    return tuple(TokenRows(text.astype(np.uint16), LENGTH, name=f"d{n}") for n, text in enumerate(texts))


@functools.cache
def heldout():
    rows = [store.read(np.arange(8, dtype=np.uint32))["tokens"] for store in stores()]
    return {"tokens": jnp.asarray(np.stack(rows))}


EVALUATE = jax.jit(make_evaluate(tiny.model(), 8))


def spec(rows):
    return PlanSpec(rows=rows, batch=BATCH, seed=1)


def trained(folder, config, steps, *, params, prior, reference=None, acts_on="sampling"):
    initial = mean_loss(EVALUATE(params, heldout()))
    # What can be reached: nothing more where the base model is at its end or the text is noise.
    target = np.array([initial[0], 0.3, initial[2]])
    sizes = np.array([len(store) * LENGTH for store in stores()])
    constants = {"sizes": sizes, "budget": np.array(steps * BATCH * LENGTH), "graph": np.eye(3)}
    targets = make_targets(initial, target, 0 * initial, prior, constants)
    step = tiny.jitted(config, acts_on=acts_on)
    numbers = tiny.constants(2 * steps, config, seed=1).numbers
    of_run = RunConstants(heldout=heldout(), numbers=numbers, reference=reference)
    engine = HostEngine(step, spec(tuple(map(len, stores()))), stores(), of_run)
    state = tiny.carry_out(tiny.run(folder, steps=steps), engine, lambda: start(params, config, targets))
    rows = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    return state, np.array([row["weights"] for row in rows]), np.array([row["heldout_loss"] for row in rows])


def mostly_slow(table, quick):
    """All names of a table; but for the quick ones, by hand only (`pytest -m "slow or not slow"` runs all)."""
    assert quick <= set(table)
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in table]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model that knows the finished domain, and the noise as far as it can be known."""
    folder = tmp_path_factory.mktemp("base")
    only = np.array([0.5, 0.0, 0.5])
    state, _, losses = trained(folder, rules.Static(), 100, params=tiny.params(), prior=only)
    assert losses[-1, FINISHED] < 0.2
    assert losses[-1, LEARNABLE] > 3
    assert abs(losses[-1, NOISE] - np.log(tiny.VOCABULARY)) < 0.15
    return jax.device_get(state.params)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, base):
    """A model that has gone on at the even mixture."""
    state, _, losses = trained(
        tmp_path_factory.mktemp("reference"), rules.Static(), 120, params=base, prior=np.full(3, 1 / 3)
    )
    assert losses[-1, LEARNABLE] < 2
    assert losses[-1, NOISE] > 3
    return jax.device_get(state.params)


PROGRESS = {
    "velocitune": rules.Velocitune(step_size=2.0),
    "velocitune from_prior": rules.Velocitune(form="from_prior", step_size=2.0),
    "dbl": rules.DynamicBatchLoading(),
    "dbl bandit": rules.DynamicBatchLoading(form="bandit"),
    "doremi": rules.DoReMi(),
    "doremi levanter": rules.DoReMi(form="levanter"),
    "doremi aioli": rules.DoReMi(form="aioli"),
    "doremi doge": rules.DoReMi(form="doge"),
    "doge": rules.DoGE(step_scale=200.0, towards="heldout"),
    "ado": rules.Ado(
        start=4,
        refit_every=1,
        ignore=0,
        stride=1,
        filter_window=1,
        capacity=64,
        tokens_per_count=64.0,
        policy_decay=1.0,
    ),
    "velocitune filtered": rules.Velocitune(step_size=2.0, ceiling=0.8, largest_change=1.0),
}
"""Methods that look for what can still be gained: they must favour the learnable domain over both others."""
LEVEL = {
    "group_dro": rules.GroupDro(step_size=0.3),
    "group_dro cvar": rules.GroupDro(form="cvar", floor=0.05),
    "odm smoothed_share": rules.Odm(form="smoothed_share"),
    "odm smoothed_softmax": rules.Odm(form="smoothed_softmax"),
    "odm paper": rules.Odm(form="paper"),
    "odm": rules.Odm(),
    "skillit": rules.SkillIt(),
}
"""Methods that look at the loss itself: noise has the highest, which is their known weakness."""


def favoured(tmp_path, config, base, reference, steps=40):
    prior = np.full(3, 1 / 3)
    needs = config.build().needs
    _, path, losses = trained(
        tmp_path, config, steps, params=base, prior=prior, reference=reference if "reference" in needs else None
    )
    assert len(path) == steps // INTERVAL
    np.testing.assert_allclose(path.sum(axis=1), 1, rtol=1e-5)
    return path, losses


@pytest.mark.parametrize("name", mostly_slow(PROGRESS, {"velocitune", "doremi levanter"}))
def test_methods_that_look_for_gains_favour_the_learnable_domain(tmp_path, base, reference, name):
    path, losses = favoured(tmp_path, PROGRESS[name], base, reference)
    # While it is still being learnt: afterwards it is finished too. What the others unlearn under so lopsided a mixture
    # can be learnt again, and the gradient says so: DoGE is judged by its first choice.
    weights = path[0] if name == "doge" else path[losses[:, LEARNABLE] > 0.8][-1]
    assert weights.argmax() == LEARNABLE
    assert weights[LEARNABLE] > weights[NOISE] * 1.1
    assert weights[LEARNABLE] > weights[FINISHED] * 1.1


def test_aioli_trains_under_its_probes_and_then_under_what_they_showed(tmp_path, base, reference):
    path, _ = favoured(tmp_path, rules.Aioli(hold=2, step_size=1.0, order="listed"), base, reference)
    probes = np.full((3, 3), 0.125) + np.eye(3) * 0.625
    np.testing.assert_allclose(path[:3], probes, rtol=1e-5)
    np.testing.assert_array_equal(path[3], path[4])
    assert np.abs(path[3] - 1 / 3).max() > 0.01
    np.testing.assert_allclose(path[5:], probes, rtol=1e-5)


def test_grape_moves_by_gradients_of_heldout_losses(tmp_path, base, reference):
    path, _ = favoured(tmp_path, rules.Grape(step_scale=10.0), base, reference)
    moves = np.abs(np.diff([np.full(3, 1 / 3), *path], axis=0)).max(axis=1)
    assert moves.max() > 0.1
    # Once a domain has nearly all the weight the moves get small; rounding alone would move by 1e-7.
    assert moves.min() > 1e-5


@pytest.mark.parametrize("name", mostly_slow(LEVEL, {"odm smoothed_share"}))
def test_methods_that_look_at_the_loss_favour_noise_over_what_is_finished(tmp_path, base, reference, name):
    path, losses = favoured(tmp_path, LEVEL[name], base, reference, steps=80)
    assert losses[-1].argmax() == NOISE
    assert path[-1].argmax() == NOISE
    assert path[-1, NOISE] > path[-1, FINISHED]


def test_weights_on_the_loss_train_the_favoured_domain_more(tmp_path, base):
    """Group DRO as published: sampled evenly, the noise weighs more and more; a static run of the same length learns
    the cycle further."""
    weighed, _, losses = trained(
        tmp_path / "a",
        rules.GroupDro(step_size=2.0),
        60,
        params=base,
        prior=np.full(3, 1 / 3),
        acts_on="loss",
    )
    _, _, plain = trained(tmp_path / "b", rules.Static(), 60, params=base, prior=np.full(3, 1 / 3))
    assert np.asarray(weighed.mixture.weights)[NOISE] > 0.9
    assert losses[-1, LEARNABLE] > plain[-1, LEARNABLE] + 0.1
    read = weighed.mixture.trained.exact().astype(float)
    np.testing.assert_allclose(read / read.sum(), 1 / 3, atol=0.02)
