"""The rules in somebody else's loop."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import Alignment, ExcessSums, LossSums, Observation, Targets
from vtune_jax.rules import METHODS

PRIOR, INITIAL, TARGET = [0.5, 0.3, 0.2], [4.0, 4.0, 4.0], [2.0, 3.0, 3.5]
SIZES = {"sizes": [1000, 2000, 3000], "budget": 5000, "graph": np.eye(3)}
EXCESS = ExcessSums(np.array([5.0, 1.0, 0.0]), np.array([4.0, 1.0, -2.0]), np.array([5, 2, 0]), np.array([10, 10, 10]))
ALIGNED = Alignment(
    np.array([[4.0, 1, 0], [1, 2, 0], [0, 0, 1]]), np.array([2.0, 1.4, 1]), np.ones(3), np.float64(0.01)
)


def mixer(method):
    return rules.Mixer(method, PRIOR, initial=INITIAL, target=TARGET, **SIZES)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_every_method_runs_on_numpys_own_float64_without_a_warning(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = mixer(entry.config())
        for step in range(1, 6):
            weights = one.update(
                step, heldout=np.array([3.0, 3.2, 3.9]), train=[3.1, np.nan, 3.8], excess=EXCESS, alignment=ALIGNED
            )
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)


def test_it_is_the_rule_itself():
    one = mixer(rules.velocitune(step_size=2.0))
    found = one.update(1, heldout=[3.0, 3.2, 3.9])
    raised = np.array(PRIOR) * np.exp(2.0 * np.array([0.5, 0.2, 0.8]))
    np.testing.assert_allclose(found, raised / raised.sum(), rtol=1e-5)


def test_counts_and_absent_domains_reach_the_rule():
    one = mixer(rules.group_dro(step_size=1.0))
    found = one.update(1, train=[3.0, np.nan, 2.0], train_tokens=[100, 0, 50])
    raised = np.array(PRIOR) * np.exp([3.0, 0.0, 2.0])
    np.testing.assert_allclose(found, raised / raised.sum(), rtol=1e-5)
    np.testing.assert_array_equal(one.state["trained"], [100, 0, 50])


def test_torch_tensors_are_as_good_as_arrays():
    torch = pytest.importorskip("torch")
    one, other = mixer(rules.Velocitune()), mixer(rules.Velocitune())
    losses = [3.0, 3.2, 3.9]
    np.testing.assert_array_equal(one.update(1, heldout=torch.tensor(losses)), other.update(1, heldout=losses))


def test_a_saved_state_goes_on_as_the_unbroken_run():
    whole, half = mixer(rules.SkillIt(window=3)), mixer(rules.SkillIt(window=3))
    rows = np.random.default_rng(0).uniform(2, 4, (6, 3))
    for step, row in enumerate(rows[:3]):
        whole.update(step, heldout=row)
        half.update(step, heldout=row)
    again = mixer(rules.SkillIt(window=3))
    again.state = pickle.loads(pickle.dumps(half.state))
    for step, row in enumerate(rows[3:], 3):
        np.testing.assert_array_equal(again.update(step, heldout=row), whole.update(step, heldout=row))


def test_a_method_in_a_jax_loop_and_in_a_mixer_agree():
    method = rules.dynamic_batch_loading()
    targets = Targets(*map(jnp.array, (INITIAL, TARGET, [0.0] * 3, PRIOR)))
    sums = LossSums(jnp.array([3.0, 3.2, 3.9]), jnp.ones(3, jnp.int32))
    seen = Observation(sums, sums, jnp.zeros(3), jnp.asarray(1))
    jitted = jax.jit(method.update)(targets.prior, method.observe(method.init(targets), seen), targets)
    np.testing.assert_allclose(mixer(method).update(1, heldout=[3.0, 3.2, 3.9]), jitted, rtol=1e-6)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: rules.Mixer(rules.static(), [0.5, -0.5]), "prior must be shares that are not negative"),
        (
            lambda: rules.Mixer(rules.velocitune(), PRIOR),
            "initial must hold a loss per domain for this method, got None",
        ),
        (lambda: rules.Mixer(rules.velocitune(), PRIOR, initial=[1.0], target=TARGET), "initial must hold 3 numbers"),
        (lambda: mixer(rules.velocitune()).update(1), "heldout must hold a loss per domain for this method, got None"),
        (lambda: mixer(rules.velocitune()).update(1, heldout=[1.0]), r"heldout must hold 3 numbers.*got shape \(1,\)"),
        (lambda: mixer(rules.doremi()).update(1), 'observation.evidence must hold "excess"'),
        (lambda: rules.Mixer(rules.cvar_dro(), PRIOR).update(1, train=PRIOR), 'targets.constants must hold "sizes"'),
        (lambda: mixer(rules.skillit(graph=[[1.0, 0.0], [0.0, 1.0]])), "graph must have 3 rows, one per domain, got 2"),
    ],
)
def test_what_is_missing_or_of_another_size_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
