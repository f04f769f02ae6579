import json

import grain.experimental
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.mixed import (
    BATCH,
    INTERVAL,
    LENGTH,
    SIZES,
    assert_same,
    host_batches,
    iterator,
    quota,
    quota_of,
    spec,
    stores,
)
from vtune_jax.data.mixture.on_device import build_table, draw
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.mixture.spec import PlanSpec, start_cursor
from vtune_jax.data.tokens.array_record import RecordTokens, write_records
from vtune_jax.data.tokens.packing import PackedRows
from vtune_jax.data.tokens.rows import BlockRows, TokenRows


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
    only_first, only_last = (quota_of(np.eye(4)[index]) for index in (0, 3))
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


def with_lag(lag, steps, **options):
    made, batches = iterator(lag=lag, **options), []
    for step in range(steps):
        if step % INTERVAL == 0:
            made.post(step // INTERVAL, quota(step // INTERVAL))
        batches.append(next(made))
    return batches, made


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lag_delays_every_version_by_exactly_so_many_steps(workers):
    first, later = (quota_of(np.eye(4)[index]) for index in (0, 3))
    made = MixtureIterator(spec(), stores(), quota=first, interval=INTERVAL, lag=4, workers=workers)
    made.post(1, later)
    made.post(2, first)
    domains = [np.unique(next(made)["domain"]).tolist() for _ in range(2 * INTERVAL + 6)]
    assert domains == [[0]] * (INTERVAL + 4) + [[3]] * INTERVAL + [[0]] * 2
    made.close()


@pytest.mark.parametrize("start", [3, 10, 11, 13, 14, 27])
def test_a_state_with_a_lag_holds_the_weights_announced(start):
    unbroken, _ = with_lag(4, 40)
    _, saved = with_lag(4, start)
    made = iterator(lag=4)
    made.set_state(json.loads(json.dumps(saved.get_state())))
    batches = []
    for step in range(start, 40):
        if step % INTERVAL == 0 and step > start:
            made.post(step // INTERVAL, quota(step // INTERVAL))
        if step == start and step % INTERVAL == 0:
            made.post(step // INTERVAL, quota(step // INTERVAL))
        batches.append(next(made))
    assert_same(unbroken[start:], batches)


def test_a_state_of_other_data_can_be_taken_over_if_asked():
    _, saved = host_batches(25)
    shorter = tuple(TokenRows(store.tokens[:-9], LENGTH, name=store.name) for store in stores()[1:2])
    changed = (stores()[0], *shorter, *stores()[2:])
    other_spec = PlanSpec(rows=tuple(map(len, changed)), batch=BATCH, seed=7)
    made = MixtureIterator(other_spec, changed, quota=quota(0), interval=INTERVAL)
    with pytest.raises(ValueError, match=r"rows was \[7, 112, 3, 49\], is \[7, 111, 3, 49\]"):
        made.set_state(saved.get_state())
    made.set_state(saved.get_state(), allow_data_change=True)
    assert int(next(made)["step"]) == 25
    assert made.get_state()["epoch"] >= saved.get_state()["epoch"]


def limited(stop=False):
    limits = (14, None, None, None)
    return PlanSpec(rows=tuple(map(len, stores())), batch=BATCH, seed=7, limits=limits, stop=(stop,) + (False,) * 3)


def test_a_mixture_ends_where_a_domain_stops_it_and_says_which():
    even = quota_of([0.25] * 4)
    made = MixtureIterator(limited(stop=True), stores(), quota=even, interval=100)
    batches = list(made)
    read = sum(int((batch["domain"] == 0).sum()) for batch in batches)
    assert 14 - BATCH < read <= 14
    assert made.ended().intended
    assert "'d60' has been read as often as allowed and is set to stop the run" in made.ended().reason
    with pytest.raises(StopIteration):
        next(made)


def test_a_mixture_without_weight_left_ends_and_says_so():
    made = MixtureIterator(limited(), stores(), quota=quota_of(np.eye(4)[0]), interval=100)
    assert len(list(made)) == 1
    end = made.ended()
    assert not end.intended
    assert end.reason.startswith("'d60' cannot fill another batch within the limits, and 'd900', 'd25', 'd400' has")


def test_both_engines_read_limited_and_blocked_domains_alike(tmp_path):
    paths = [str(tmp_path / store.name) for store in stores()]
    blocked = []
    for path, store in zip(paths, stores(), strict=True):
        write_records(path, [store.tokens], np.dtype(np.uint16), record_tokens=32)
        source = RecordTokens([path], [len(store.tokens)], np.dtype(np.uint16), name=store.name, record_tokens=32)
        blocked.append(BlockRows(source, LENGTH, block=5))
    weights = np.array([0.3, 0.3, 0.2, 0.2])
    options = {"batch": BATCH, "interval": 100, "seed": 7, "limits": (14, None, 9, None), "allocation": "deficit"}
    made = MixtureIterator.from_stores(blocked, weights, workers=1, **options)
    host = [next(made) for _ in range(40)]
    table, cursor = build_table(blocked), start_cursor(4)
    one = jax.jit(lambda step, cursor: draw(made._spec, LENGTH, table, step, made._quotas[0], cursor))
    device = []
    for step in range(40):
        batch, cursor = one(np.uint32(step), cursor)
        device.append(batch)
    assert_same(host, device)
    jax.tree.map(np.testing.assert_array_equal, cursor, made.cursor)
    made.close()


def test_both_engines_read_packed_rows_alike():
    packed = [PackedRows(np.where(store.tokens % 7, store.tokens, 0), LENGTH, end=0) for store in stores()]
    made = MixtureIterator.from_stores(packed, [0.25] * 4, batch=BATCH, interval=100)
    table, cursor = build_table(packed), start_cursor(4)
    one = jax.jit(lambda step, cursor: draw(made._spec, LENGTH, table, step, made._quotas[0], cursor))
    for step in range(20):
        host, (device, cursor) = next(made), one(np.uint32(step), cursor)
        assert set(device) == {"inputs", "labels", "segments", "positions", "domain"}
        for name, array in device.items():
            np.testing.assert_array_equal(host[name], array)


def test_weights_may_be_given_as_shares():
    made = MixtureIterator.from_stores(stores(), [0.5, 0.5, 0, 0], batch=4, interval=5)
    made.post(1, [0, 0, 0.5, 0.5])
    domains = [set(next(made)["domain"].tolist()) for _ in range(10)]
    assert set.union(*domains[:5]) == {0, 1}
    assert set.union(*domains[5:]) == {2, 3}


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [-0.5, 0.5, 0.5, 0.5], [np.nan, 0.5, 0.5, 0]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 4 shares with sum 1"):
        MixtureIterator.from_stores(stores(), weights, batch=4, interval=5)


def test_a_lag_outside_the_interval_is_refused():
    with pytest.raises(ValueError, match=r"lag must lie in \[0, interval = 10\), got 10"):
        iterator(lag=10)


def test_quotas_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="quota must be 4 numbers with sum 16777216"):
        MixtureIterator(spec(), stores(), quota=np.ones(4, np.uint32), interval=INTERVAL)


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch 12 must be a multiple of the hosts"):
        iterator(shard=(0, 5))


def test_stores_must_have_the_rows_of_the_spec():
    with pytest.raises(ValueError, match="rows as in the spec"):
        MixtureIterator(spec(), stores()[::-1], quota=quota(0), interval=INTERVAL)
