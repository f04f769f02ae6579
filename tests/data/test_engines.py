import functools
import json

import grain.experimental
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.simplex import to_quota
from vtune_jax.data.device_engine import build_table, draw
from vtune_jax.data.grain_engine import MixtureIterator
from vtune_jax.data.plan import PlanSpec, start_cursor
from vtune_jax.data.rows import TokenRows
from vtune_jax.errors import UserError

LENGTH, INTERVAL, BATCH = 8, 10, 12
SIZES = (60, 900, 25, 400)


@functools.cache
def stores():
    rng = np.random.default_rng(0)
    return tuple(TokenRows(rng.integers(0, 5000, size, np.uint16), LENGTH, name=f"d{size}") for size in SIZES)


def spec(batch=BATCH):
    return PlanSpec(rows=tuple(map(len, stores())), batch=batch, seed=7)


@functools.cache
def quota(version):
    weights = np.random.default_rng(version).dirichlet(np.ones(len(SIZES)))
    weights[version % len(SIZES)] *= version % 3 > 0
    return np.asarray(to_quota(jnp.asarray(weights / weights.sum(), jnp.float32)))


def iterator(shard=(0, 1), start=0, cursor=None, chunk=16):
    made = MixtureIterator(spec(), stores(), quota=quota(0), interval=INTERVAL, shard=shard, chunk=chunk)
    if start:
        made.seek(start, cursor, quota(start // INTERVAL))
    return made


def host_batches(steps, **options):
    made, batches = iterator(**options), []
    for step in range(options.get("start", 0), steps):
        if step % INTERVAL == 0:
            made.post(step // INTERVAL, quota(step // INTERVAL))
        batches.append(next(made))
    return batches, made


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left["domain"], right["domain"])
        np.testing.assert_array_equal(left["tokens"], right["tokens"])


def test_both_engines_give_identical_batches_over_nineteen_weight_updates():
    host, made = host_batches(200)
    table = build_table(stores())
    one = jax.jit(lambda step, quota, cursor: draw(spec(), LENGTH, table, step, quota, cursor))
    cursor, device = start_cursor(len(SIZES)), []
    for step in range(200):
        batch, cursor = one(np.uint32(step), quota(step // INTERVAL), cursor)
        assert batch["tokens"].dtype == np.uint16
        device.append(batch)
    assert_same(host, device)
    jax.tree.map(np.testing.assert_array_equal, cursor, made.cursor)
    assert max(cursor.epoch) > 1


def test_a_scan_over_an_interval_draws_the_host_engines_batches():
    host, _ = host_batches(INTERVAL)
    table = build_table(stores())

    @jax.jit
    def interval(cursor):
        def body(cursor, step):
            batch, cursor = draw(spec(), LENGTH, table, step, quota(0), cursor)
            return cursor, batch

        return jax.lax.scan(body, cursor, jnp.arange(INTERVAL, dtype=jnp.uint32))[1]

    batches = interval(start_cursor(len(SIZES)))
    assert_same(host, [{name: column[step] for name, column in batches.items()} for step in range(INTERVAL)])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_global_batch(hosts):
    alone, _ = host_batches(35)
    shares = [host_batches(35, shard=(index, hosts)) for index in range(hosts)]
    joined = [
        {name: np.concatenate([batches[step][name] for batches, _ in shares]) for name in ("domain", "tokens")}
        for step in range(35)
    ]
    assert_same(alone, joined)
    assert all(made.get_state() == shares[0][1].get_state() for _, made in shares)


def test_a_run_saved_on_one_host_goes_on_with_four():
    alone, _ = host_batches(30)
    _, saved = host_batches(13)
    state = json.loads(json.dumps(saved.get_state()))
    shares = []
    for index in range(4):
        made, batches = iterator(shard=(index, 4)), []
        made.set_state(state)
        for step in range(13, 30):
            if step % INTERVAL == 0:
                made.post(step // INTERVAL, quota(step // INTERVAL))
            batches.append(next(made))
        shares.append(batches)
    joined = [
        {name: np.concatenate([batches[step][name] for batches in shares]) for name in ("domain", "tokens")}
        for step in range(17)
    ]
    assert_same(alone[13:], joined)


@pytest.mark.parametrize("start", [1, 7, 10, 19, 20])
def test_resuming_at_any_step_continues_the_same_batches(start):
    unbroken, _ = host_batches(30)
    _, before = host_batches(start)
    resumed, _ = host_batches(30, start=start, cursor=before.cursor)
    assert_same(unbroken[start:], resumed)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_chunk_changes_no_batch(chunk):
    assert_same(host_batches(25)[0], host_batches(25, chunk=chunk)[0])


def test_new_weights_act_from_exactly_the_first_step_of_their_version():
    only_first, only_last = (np.asarray(to_quota(jnp.eye(4)[index])) for index in (0, 3))
    made = MixtureIterator(spec(), stores(), quota=only_first, interval=INTERVAL)
    made.post(1, only_last)
    domains = [np.unique(next(made)["domain"]).tolist() for _ in range(2 * INTERVAL)]
    assert domains == [[0]] * INTERVAL + [[3]] * INTERVAL


def test_weights_that_were_not_posted_are_asked_for_and_the_iterator_stays_usable():
    made = iterator()
    for _ in range(INTERVAL):
        next(made)
    with pytest.raises(RuntimeError, match=r"call post\(1, weights\) before asking for step 10"):
        next(made)
    made.post(1, quota(1))
    assert int(next(made)["step"]) == INTERVAL


def test_a_version_cannot_be_posted_twice_with_other_weights_nor_after_it_is_over():
    made = iterator()
    made.post(1, quota(1))
    made.post(1, quota(1))
    with pytest.raises(ValueError, match="version 1 was posted with other weights"):
        made.post(1, quota(2))
    for _ in range(INTERVAL + 1):
        next(made)
    with pytest.raises(ValueError, match="version 0 is over"):
        made.post(0, quota(0))


def test_a_state_of_other_data_is_refused_by_name():
    state = iterator().get_state()
    other = MixtureIterator(spec(batch=24), stores(), quota=quota(0), interval=INTERVAL)
    with pytest.raises(ValueError, match="batch was 12, is 24"):
        other.set_state(state)


def test_grains_own_checkpoint_check_passes():
    # The helper runs to the end of a dataset; the mixture is endless, so a limit is put on it.
    class Mixture(grain.IterDataset):
        def __iter__(self):
            return MixtureIterator(spec(), stores(), quota=quota(1), interval=100)

    grain.experimental.assert_equal_output_after_checkpoint(grain.experimental.LimitIterDataset(Mixture(), 25))


def test_quotas_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="quota must be 4 numbers with sum 16777216"):
        MixtureIterator(spec(), stores(), quota=np.ones(4, np.uint32), interval=INTERVAL)


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch 12 must be a multiple of the hosts"):
        iterator(shard=(0, 5))


def test_stores_must_have_the_rows_of_the_spec():
    with pytest.raises(ValueError, match="rows as in the spec"):
        MixtureIterator(spec(), stores()[::-1], quota=quota(0), interval=INTERVAL)


def test_rows_predict_every_token_but_the_first_exactly_once():
    store = TokenRows(np.arange(30), 4)
    rows = store.read(np.arange(len(store), dtype=np.uint32))["tokens"]
    assert len(store) == 7
    np.testing.assert_array_equal(rows[:, 1:].ravel(), np.arange(1, 29))
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])


def test_a_share_of_the_rows_is_their_beginning():
    store = TokenRows(np.arange(41), 4).first(0.5)
    assert len(store) == 5
    with pytest.raises(IndexError, match="row 5 of domain 'domain' asked for; it has 5"):
        store.read(np.array([5], np.uint32))


def test_a_domain_shorter_than_one_row_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"sequence length 8 is longer than domain 'tiny' \(8 tokens\)"):
        TokenRows(np.arange(8), 8, name="tiny")
