"""The mixture says what it was given and what it wants, and a refusal changes nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.mixed import BATCH, LENGTH, iterator, quota, spec, stores
from vtune_jax.core.simplex import QUOTA_ONE
from vtune_jax.data.mixture.config import DataConfig, MixtureConfig
from vtune_jax.data.mixture.on_device import build_table, draw
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.plan import plan_steps
from vtune_jax.data.mixture.spec import PlanSpec, start_cursor
from vtune_jax.data.tokens.packing import PackedRows
from vtune_jax.data.tokens.rows import TokenRows

EVEN = [0.25] * 4


def made(weights=EVEN, **options):
    return MixtureIterator.from_stores(**{"stores": stores(), "weights": weights, "batch": 4, "interval": 5, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stores": []}, "stores must hold at least one row store, got none"),
        ({"stores": [np.arange(99)]}, r"stores\[0\] must be a row store such as TokenRows, got an array"),
        ({"stores": stores()[0]}, "stores must be a sequence of row stores, one per domain, got a TokenRows"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"interval": 2.5}, "interval must be a whole number, got 2.5"),
        ({"interval": "2"}, "interval must be a whole number, got '2'"),
        ({"lag": None}, "lag must be a whole number, got None"),
        ({"batch": 2.5}, "batch must be a whole number, got 2.5"),
        ({"batch": "4"}, "batch must be a whole number, got '4'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"workers": 1, "worker_kind": "thread"}, "worker_kind must be threads or processes, got 'thread'"),
        ({"shard": (0, 0)}, "hosts must be at least 1, got 0"),
        ({"shard": (0,)}, r"shard must be the index of this host and the number of hosts, got \(0,\)"),
        ({"shard": 3}, "shard must be the index of this host and the number of hosts, got 3"),
        ({"shard": (0.0, 2.0)}, "hosts must be a whole number, got 2.0"),
        ({"limits": (1.5, None, None, None)}, "limits must be a tuple, each entry a whole number or None"),
        ({"stop": ("no",) * 4}, "stop must be a tuple, each entry True or False"),
        ({"allocation": []}, "allocation must be 'systematic' or 'multinomial' or 'deficit'"),
        ({"sizez": 1}, "unexpected keyword argument 'sizez'"),
    ],
)
def test_a_mixture_is_not_begun_with_what_it_cannot_use(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made(**options)


WRONG_WEIGHTS = [
    ([0.0] * 4, "weights must be 4 shares with sum 1"),
    ([[0.25] * 4], "weights must be 4 shares with sum 1"),
    ([], "weights must be 4 shares with sum 1"),
    ([0, 0, 0, 0], f"quota must be 4 numbers with sum {QUOTA_ONE}, got"),
    ([1, 0, 0, 0], f"quota must be 4 numbers with sum {QUOTA_ONE}, got"),
    (0, f"quota must be 4 numbers with sum {QUOTA_ONE}, got 0"),
    # Cut to 32 bits without a sign, these two would sum to one.
    (np.array([2**32 + QUOTA_ONE, 0, 0, 0]), "quota must be 4 numbers"),
    (np.array([-1, QUOTA_ONE + 1, 0, 0]), "quota must be 4 numbers"),
    ("abcd", "weights must be numbers, got 'abcd'"),
    (None, "weights must be numbers, got None"),
    ([True, False, False, False], "weights must be numbers, got"),
]


@pytest.mark.parametrize(("weights", "message"), WRONG_WEIGHTS)
def test_weights_that_are_no_shares_are_refused_at_the_start_and_later(weights, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made(weights)
    one = made()
    with pytest.raises((TypeError, ValueError), match=message):
        one.post(1, weights)
    assert one.get_state()["next_version"] == 0


@pytest.mark.parametrize("version", ["1", 1.5, None, -1])
def test_a_version_is_a_whole_number(version):
    with pytest.raises((TypeError, ValueError), match="version must (be a whole number|not be negative), got"):
        made().post(version, EVEN)


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def with_(**changes):
    return lambda state: {**state, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "got one without step, epoch, row, credit, order, version"),
        (lambda state: None, "state must be a dictionary as `get_state` gives it, got None"),
        (json.dumps, "state must be a dictionary as `get_state` gives it, got '{"),
        (without("made_of"), "got one without made_of"),
        (without("order", "row"), "got one without row, order"),
        (with_(made_of=[]), r"state\['made_of'\] must be a dictionary, got \[\]"),
        (with_(step="1"), "step must be a whole number, got '1'"),
        (with_(step=-1), "step must not be negative, got -1"),
        (with_(row=[1]), r"cursor.row must hold 4 whole numbers in \[0, 4294967295\], got \[1.0\]"),
        (with_(row=[-1, 0, 0, 0]), "cursor.row must hold 4 whole numbers"),
        (with_(row=[0.5, 0, 0, 0]), "cursor.row must hold 4 whole numbers"),
        (with_(row=[10**6, 0, 0, 0]), r"cursor.row must lie below \[7, 112, 3, 49\], got \[1000000, 0, 0, 0\]"),
        (with_(row="abcd"), "cursor.row must be numbers, got 'abcd'"),
        (with_(quota=[0] * 4), "quota must be 4 numbers with sum 16777216"),
        (with_(next_quota=[0.5] * 4), "weights must be 4 shares with sum 1"),
        (with_(version=7, next_version=7), "version must be in force at step 3, got 7"),
        (with_(version=1, next_version=0), "version must not be above next_version = 0, got 1"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change, message):
    one, same = iterator(), iterator()
    for _ in range(3):
        next(one), next(same)
    with pytest.raises((TypeError, ValueError), match=message):
        one.set_state(change(one.get_state()))
    assert one.get_state() == same.get_state()
    np.testing.assert_array_equal(next(one)["tokens"], next(same)["tokens"])


@pytest.mark.parametrize(
    ("step", "cursor", "weights", "message"),
    [
        (-1, start_cursor(4), EVEN, "step must not be negative, got -1"),
        (1.0, start_cursor(4), EVEN, "step must be a whole number, got 1.0"),
        (1, None, EVEN, "cursor must be a Cursor, such as start_cursor gives it, got None"),
        (1, start_cursor(3), EVEN, "cursor.epoch must hold 4 whole numbers"),
        (1, start_cursor(4)._replace(row=np.full(4, 99)), EVEN, r"cursor.row must lie below \[7, 112, 3, 49\]"),
        (1, start_cursor(4), [0.5] * 4, "weights must be 4 shares with sum 1"),
    ],
)
def test_a_position_that_does_not_exist_is_refused_and_changes_nothing(step, cursor, weights, message):
    one, same = iterator(), iterator()
    with pytest.raises((TypeError, ValueError), match=message):
        one.seek(step, cursor, weights)
    np.testing.assert_array_equal(next(one)["tokens"], next(same)["tokens"])


def test_a_mixture_that_goes_on_has_no_reason_to_have_ended():
    with pytest.raises(RuntimeError, match="the mixture has not ended at step 0; call this after StopIteration"):
        iterator().ended()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [4, 4]}, r"rows must be a tuple, each entry a whole number, got \[4, 4\]"),
        ({"rows": (4.5, 4)}, "rows must be a tuple, each entry a whole number"),
        ({"rows": "ab"}, "rows must be a tuple, each entry a whole number, got 'ab'"),
        ({"batch": None}, "batch must be a whole number, got None"),
        ({"blocks": (1.5, 1)}, "blocks must be a tuple, each entry a whole number"),
    ],
)
def test_a_spec_is_made_of_whole_numbers(options, message):
    with pytest.raises(TypeError, match=message):
        PlanSpec(**{"rows": (4, 4), "batch": 4, "seed": 0, **options})


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": None}, "spec must be a PlanSpec, got None"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"first_step": -1}, "first_step must not be negative, got -1"),
        ({"first_step": 1.5}, "first_step must be a whole number, got 1.5"),
        ({"quota": np.array(EVEN)}, "quota must be an array of whole numbers, as to_quota makes it"),
        ({"quota": [1, 2]}, r"quota must be an array of whole numbers, as to_quota makes it, got \[1, 2\]"),
        ({"quota": quota(0)[:1]}, "quota must be 4 numbers with sum 16777216"),
        ({"quota": quota(0) // 2}, "quota must be 4 numbers with sum 16777216"),
        ({"cursor": None}, "cursor must be a Cursor, such as start_cursor gives it, got None"),
        ({"cursor": start_cursor(3)}, r"cursor.epoch must have shape \(4,\), got \(3,\)"),
    ],
)
def test_a_plan_is_refused_by_argument(xp, arguments, message):
    usual = {"spec": spec(), "first_step": 0, "steps": 2, "quota": quota(0), "cursor": start_cursor(4)}
    with pytest.raises((TypeError, ValueError), match=message):
        plan_steps(xp, **{**usual, **arguments})


def test_what_is_traced_is_looked_at_by_its_shape():
    planned = jax.jit(lambda step, quota, cursor: plan_steps(jnp, spec(), step, 2, quota, cursor)[1])
    jax.tree.map(
        np.testing.assert_array_equal,
        planned(np.uint32(0), quota(0), start_cursor(4)),
        plan_steps(np, spec(), 0, 2, quota(0), start_cursor(4))[1],
    )
    with pytest.raises(ValueError, match="quota must be 4 numbers with sum 16777216, got a traced array of shape"):
        planned(np.uint32(0), quota(0)[:3], start_cursor(4))


def test_other_planners_than_numpy_and_jax_and_no_domains_are_refused():
    with pytest.raises(TypeError, match="xp must be numpy or jax.numpy, got 'numpy'"):
        plan_steps("numpy", spec(), 0, 1, quota(0), start_cursor(4))
    with pytest.raises(ValueError, match="domains must be at least 1, got 0"):
        start_cursor(0)


TABLE = build_table(stores())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": None}, "spec and table must be a PlanSpec and a TokenTable, got a PlanSpec and None"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": LENGTH + 1}, "table must be that of stores with .* rows of length 9, got one with 4 domains"),
        ({"spec": PlanSpec(rows=(7, 112, 3, 48), batch=BATCH, seed=7)}, r"stores with \[7, 112, 3, 48\] rows"),
        ({"spec": PlanSpec(rows=(7, 112), batch=BATCH, seed=7)}, "table must be that of stores"),
    ],
)
def test_a_batch_is_drawn_from_the_table_of_its_spec(arguments, message):
    usual = {"spec": spec(), "length": LENGTH, "table": TABLE}
    with pytest.raises((TypeError, ValueError), match=message):
        draw(**{**usual, **arguments}, step=np.uint32(0), quota=quota(0), cursor=start_cursor(4))


@pytest.mark.parametrize(
    ("these", "message"),
    [
        ([], "stores must hold at least one row store, got none"),
        ([np.arange(99)], r"stores\[0\] must be a row store"),
        ([stores()[0], TokenRows(np.arange(99), 5)], r"stores must have rows of one length, got \[5, 8\]"),
        ([stores()[0], PackedRows(np.arange(99), 8, end=0)], "stores must all be packed, or none of them"),
    ],
)
def test_a_table_is_made_of_stores_that_are_alike(these, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_table(these)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: MixtureConfig(weights=(np.nan, 1.0)), "weights must not be negative, got"),
        (lambda: MixtureConfig(power=np.nan), "power must not be negative, got nan"),
        (lambda: MixtureConfig(interval=2.5), "interval must be a whole number, got 2.5"),
        (lambda: MixtureConfig(lag="0"), "lag must be a whole number, got '0'"),
        (lambda: DataConfig(batch=2.5), "batch must be a whole number, got 2.5"),
        (lambda: DataConfig(packing=None), "packing must be 'concatenate' or 'best_fit', got None"),
    ],
)
def test_options_of_an_experiment_are_refused_where_they_are_made(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_shares_up_to_rounding_and_fixed_point_are_as_good():
    for weights in (np.float16([0.3, 0.3, 0.3, 0.1]), jnp.array(EVEN), quota(0), quota(0).tolist()):
        assert sum(made(weights).get_state()["quota"]) == QUOTA_ONE
    assert iterator().get_state()["quota"] == quota(0).tolist()


def test_numpys_whole_numbers_are_as_good_and_leave_a_state_that_json_can_hold():
    options = {"interval": 5, "batch": 4, "seed": 3, "limits": (7, None, 3, 9)}
    numpys = {
        name: tuple(entry if entry is None else np.int64(entry) for entry in value)
        if isinstance(value, tuple)
        else np.int64(value)
        for name, value in options.items()
    }
    assert json.loads(json.dumps(made(**numpys).get_state())) == made(**options).get_state()
