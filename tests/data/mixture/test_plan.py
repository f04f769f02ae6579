import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.mixed import quota_of
from vtune_jax.core.simplex import QUOTA_ONE
from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.allocation import PLENTY, allocate, rescaled, rows_left
from vtune_jax.data.mixture.order import OrderCache, shuffle
from vtune_jax.data.mixture.plan import blocks_ahead, plan_steps, steps_left
from vtune_jax.data.mixture.spec import PlanSpec, fingerprint, start_cursor


def counts_of(spec, steps, quota):
    return allocate(np, spec, np.arange(steps, dtype=np.uint32), quota, start_cursor(len(spec.rows))).rows


def random_quota(rng, domains, zeros=0.2):
    weights = rng.dirichlet(np.ones(domains)) * (rng.random(domains) >= zeros)
    return quota_of(weights if weights.sum() > 0 else np.ones(domains))


ALLOCATIONS = ("systematic", "multinomial", "deficit")


def random_cursor(rng, rows, epochs=9):
    domains = len(rows)
    return Cursor(
        epoch=rng.integers(0, epochs, domains).astype(np.uint32),
        row=(rng.integers(0, 2**31, domains) % np.array(rows)).astype(np.uint32),
        credit=rng.integers(-(2**23), 2**23, domains).astype(np.int32),
        order=rng.integers(0, 2**32, 2).astype(np.uint32),
    )


def spec_of(domains, batch, allocation, *, limited=False, blocks=False):
    rows = tuple(1 + 7 * domain % 41 for domain in range(domains))
    return PlanSpec(
        rows=rows,
        batch=batch,
        seed=5,
        allocation=allocation,
        limits=tuple(9 * count + domain for domain, count in enumerate(rows)) if limited else (),
        stop=tuple(domain % 5 == 4 for domain in range(domains)) if limited else (),
        blocks=tuple(1 + domain % 6 for domain in range(domains)) if blocks else (),
    )


# Any two of shape, allocation, limits and blocks meet here or in the test over seeds below; few, as each is compiled.
SPECS = (
    spec_of(7, 96, "systematic"),
    spec_of(1, 4, "systematic", limited=True, blocks=True),
    spec_of(3, 32, "multinomial", limited=True),
    spec_of(5, 7, "multinomial", blocks=True),
    spec_of(300, 16, "deficit"),
)


@given(spec=st.sampled_from(SPECS), seed=st.integers(0, 2**32 - 1), step=st.integers(0, 2**32 - 10))
@settings(max_examples=60, deadline=None)
def test_numpy_and_jax_plan_the_same_rows_bit_for_bit(spec, seed, step):
    rng = np.random.default_rng(seed)
    quota, cursor = random_quota(rng, len(spec.rows)), random_cursor(rng, spec.rows)
    host = plan_steps(np, spec, step, 4, quota, cursor, seed=seed)
    device = _compiled(spec)(np.uint32(step), quota, cursor, np.uint32(seed))
    for ours, theirs in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def _planning(spec):
    return lambda step, quota, cursor, seed: plan_steps(jnp, spec, step, 4, quota, cursor, seed=seed)


@functools.cache
def _compiled(spec):
    return jax.jit(_planning(spec))


@functools.cache
def _compiled_over_seeds(spec):
    return jax.jit(jax.vmap(_planning(spec), in_axes=(None, None, None, 0)))


@given(seed=st.integers(0, 2**32 - 1), step=st.integers(0, 2**32 - 10))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_plan_mapped_over_seeds_is_each_seeds_own_plan(allocation, seed, step):
    spec, rng, seeds = spec_of(5, 7, allocation, limited=True, blocks=True), np.random.default_rng(seed), (0, 11, seed)
    quota, cursor = random_quota(rng, 5), random_cursor(rng, spec.rows)
    mapped = _compiled_over_seeds(spec)(np.uint32(step), quota, cursor, np.array(seeds, np.uint32))
    for index, own in enumerate(seeds):
        alone = plan_steps(np, dataclasses.replace(spec, seed=own), step, 4, quota, cursor)
        for ours, lanes in zip(jax.tree.leaves(alone), jax.tree.leaves(mapped), strict=True):
            np.testing.assert_array_equal(ours, lanes[index])


def test_a_seed_given_apart_stands_for_the_specs_on_the_host_too():
    extent = {"rows": (50, 50), "batch": 8, "blocks": (4, 1), "limits": (100, None), "stop": (True, False)}
    own, other = PlanSpec(seed=5, **extent), PlanSpec(seed=6, **extent)
    quota, cursor, seed = quota_of([0.5, 0.5]), start_cursor(2), np.uint32(5)
    made = steps_left(own, 0, 100, quota, cursor)
    assert steps_left(other, 0, 100, quota, cursor, seed=seed) == made
    whole = plan_steps(np, own, 0, made, quota, cursor)
    orders = OrderCache(other, seed=seed)
    for options in ({}, {"orders": orders}):
        again = plan_steps(np, other, 0, made, quota, cursor, seed=seed, **options)
        jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert blocks_ahead(other, 0, 1, 3, 5, seed=seed) == blocks_ahead(own, 0, 1, 3, 5)
    with pytest.raises(ValueError, match="orders must be those of seed 6, got those of seed 5"):
        plan_steps(np, other, 0, 1, quota, cursor, orders=orders)


@given(seed=st.integers(0, 10**6), domains=st.sampled_from([1, 2, 7, 40]), batch=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_each_count_is_the_floor_or_ceiling_of_the_share_and_all_sum_to_the_batch(seed, domains, batch):
    quota = random_quota(np.random.default_rng(seed), domains)
    spec = PlanSpec(rows=(100,) * domains, batch=batch, seed=seed)
    counts = counts_of(spec, 20, quota).astype(np.int64)
    exact = batch * quota.astype(np.int64)
    assert (counts.sum(axis=1) == batch).all()
    assert (counts >= exact // QUOTA_ONE).all()
    assert (counts <= -(-exact // QUOTA_ONE)).all()


def test_allocation_is_unbiased_for_a_batch_that_is_no_power_of_two():
    quota = quota_of([0.45, 0.3, 0.2, 0.05])
    spec = PlanSpec(rows=(100,) * 4, batch=7, seed=1)
    counts = counts_of(spec, 200_000, quota)
    # A share's fraction is Bernoulli: its mean over n steps has a standard error below 0.5 / sqrt(n) = 0.0012.
    np.testing.assert_allclose(counts.mean(axis=0), 7 * quota / QUOTA_ONE, atol=0.005)


def test_a_weight_of_one_in_a_hundred_thousand_gets_its_share_of_a_small_batch():
    quota = quota_of([1e-5, 0.5, 0.5 - 1e-5])
    spec = PlanSpec(rows=(100,) * 3, batch=2, seed=4)
    counts = counts_of(spec, 2_000_000, quota)
    # 40 rows expected; a Poisson count strays by more than 5 standard deviations once in a million.
    assert abs(int(counts[:, 0].sum()) - 40) < 32


def test_multinomial_counts_have_the_binomials_mean_and_variance_and_sum_to_the_batch():
    spec = PlanSpec(rows=(100,) * 4, batch=32, seed=1, allocation="multinomial")
    weights = np.array([0.45, 0.3, 0.2, 0.05])
    counts = counts_of(spec, 20_000, quota_of(weights)).astype(int)
    assert (counts.sum(axis=1) == 32).all()
    spread = np.sqrt(32 * weights * (1 - weights))
    # Five standard errors of a mean and of a standard deviation.
    np.testing.assert_allclose(counts.mean(axis=0), 32 * weights, atol=5 * spread.max() / np.sqrt(20_000))
    np.testing.assert_allclose(counts.std(axis=0), spread, rtol=5 / np.sqrt(2 * 20_000))
    # Neighbouring steps share nothing.
    first, second = counts[:-1, 0], counts[1:, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_domain_of_weight_zero_is_never_read(zero, allocation):
    weights = np.ones(3)
    weights[zero] = 0
    spec = PlanSpec(rows=(5, 5, 5), batch=8, seed=0, allocation=allocation)
    plan, _ = plan_steps(np, spec, 0, 200, quota_of(weights), start_cursor(3))
    assert zero not in np.unique(plan.domain)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 31, 32, 33, 97, 1000])
def test_every_epoch_is_a_permutation_of_the_rows(rows):
    spec = PlanSpec(rows=(rows,), batch=1, seed=3)
    orders = [
        shuffle(np, spec, np.zeros(rows, np.int32), np.full(rows, epoch, np.uint32), np.arange(rows, dtype=np.uint32))
        for epoch in range(4)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(rows))
    if rows >= 31:
        assert len({order.tobytes() for order in orders}) == 4


def test_neighbours_in_an_epoch_are_no_neighbours_in_the_file():
    # For a random permutation of n rows the mean of |difference| of neighbours is (n + 1) / 3.
    spec, count = PlanSpec(rows=(97,), batch=1, seed=0), 97
    steps = []
    for epoch in range(200):
        epochs = np.full(count, epoch, np.uint32)
        order = shuffle(np, spec, np.zeros(count, np.int32), epochs, np.arange(count, dtype=np.uint32)).astype(int)
        steps.append(np.abs(np.diff(order)).mean())
    # One epoch's mean has a standard deviation of about n / sqrt(18 n); 200 of them: 0.17.
    np.testing.assert_allclose(np.mean(steps), 98 / 3, atol=0.8)


@given(seed=st.integers(0, 10**6), blocks=st.booleans())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_no_row_is_read_twice_in_an_epoch_and_none_is_skipped(allocation, seed, blocks):
    rng = np.random.default_rng(seed)
    rows = tuple(int(count) for count in rng.integers(1, 30, 4))
    sizes = tuple(int(size) for size in rng.integers(1, 12, 4)) if blocks else ()
    spec = PlanSpec(rows=rows, batch=int(rng.integers(1, 50)), seed=seed, allocation=allocation, blocks=sizes)
    plan, cursor = plan_steps(np, spec, 0, 40, random_quota(rng, 4), start_cursor(4))
    for domain, count in enumerate(rows):
        read = plan.row[plan.domain == domain]
        assert read.size == int(cursor.epoch[domain]) * count + int(cursor.row[domain])
        seen = np.bincount(read, minlength=count)
        assert seen.max(initial=0) - seen.min() <= 1


def in_chunks(spec, quota, chunks, first=100):
    cursor, step, parts = start_cursor(len(spec.rows)), first, []
    for steps in chunks:
        part, cursor = plan_steps(np, spec, step, steps, quota, cursor)
        parts.append(part)
        step += steps
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts), cursor


@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 7), (11, 1)])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("limits", [(), (None, 60, 20)])
def test_planning_in_chunks_changes_nothing(chunks, allocation, limits):
    quota = random_quota(np.random.default_rng(0), 3, zeros=0)
    spec = PlanSpec(rows=(3, 50, 7), batch=9, seed=1, allocation=allocation, limits=limits)
    whole, parts = (in_chunks(spec, quota, steps) for steps in ((12,), chunks))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_order_of_a_domain_does_not_depend_on_the_weights():
    spec, quotas = PlanSpec(rows=(500, 500), batch=20, seed=2), (quota_of([0.9, 0.1]), quota_of([0.2, 0.8]))
    order = shuffle(np, spec, np.zeros(500, np.int32), np.zeros(500, np.uint32), np.arange(500, dtype=np.uint32))
    for quota in quotas:
        cursor, read = start_cursor(2), 0
        for step in range(12):
            plan, cursor = plan_steps(np, spec, step, 1, quota, cursor)
            taken = plan.row[plan.domain == 0]
            assert set(taken) == set(order[read : read + taken.size])
            read += taken.size
        assert read > 0


def test_a_cursor_runs_past_ten_trillion_tokens_without_wrapping():
    # 10**13 tokens in rows of 512 are 2 * 10**10 rows, past 32 bits; the epoch counts them apart.
    spec = PlanSpec(rows=(1_000_003,), batch=1, seed=0)
    epoch, row = np.array([19_531], np.uint32), np.array([1_000_002], np.uint32)
    _, after = plan_steps(np, spec, 0, 2, quota_of([1.0]), start_cursor(1)._replace(epoch=epoch, row=row))
    assert (int(after.epoch[0]), int(after.row[0])) == (19_532, 1)


def test_the_fingerprint_names_all_that_the_rows_depend_on():
    base = PlanSpec(rows=(3, 4), batch=5, seed=6)
    others = [PlanSpec(rows=(4, 3), batch=5, seed=6), PlanSpec(rows=(3, 4), batch=6, seed=6)]
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=7))
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=6, allocation="multinomial"))
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=6, limits=(3, None)))
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=6, limits=(3, None), stop=(True, False)))
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=6, blocks=(2, 2)))
    assert len({str(fingerprint(spec)) for spec in [base, *others]}) == 8
    assert "planner" in fingerprint(base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ()}, "rows must name at least one domain"),
        ({"rows": (3, 0)}, "rows must lie in"),
        ({"batch": 0}, "batch must lie in"),
        ({"seed": -1}, "seed must lie in"),
        ({"allocation": "random"}, "allocation must be systematic, multinomial or deficit, got 'random'"),
        ({"limits": (3,)}, r"limits must have one entry per domain \(2\), got 1"),
        ({"limits": (3, -1)}, "limits must lie in"),
        ({"blocks": (0, 1)}, "blocks must lie in"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PlanSpec(**{"rows": (3, 4), "batch": 2, "seed": 0, **changes})


@pytest.mark.parametrize("domains", [2, 7, 64, 1000])
@pytest.mark.parametrize("batch", [2, 32, 100])
def test_deficit_keeps_every_domain_within_a_row_or_two_of_its_share_while_weights_move(domains, batch):
    rng = np.random.default_rng(domains)
    spec = PlanSpec(rows=(10**6,) * domains, batch=batch, seed=0, allocation="deficit")
    cursor, owed, worst = start_cursor(domains), np.zeros(domains, np.int64), 0
    for version in range(60):
        quota = random_quota(rng, domains, zeros=0.1)
        plan, cursor = plan_steps(np, spec, version * 5, 5, quota, cursor)
        for counts in plan.counts.astype(np.int64):
            owed += batch * quota.astype(np.int64) - counts * QUOTA_ONE
            worst = max(worst, int(np.abs(owed).max()))
        np.testing.assert_array_equal(cursor.credit, owed)
    assert worst < 2 * QUOTA_ONE


def test_systematic_strays_from_the_share_like_a_random_walk_and_deficit_does_not():
    quota, steps = quota_of([0.45, 0.3, 0.2, 0.05]), 4096
    ends = {}
    for allocation in ALLOCATIONS:
        spec = PlanSpec(rows=(10**6,) * 4, batch=32, seed=2, allocation=allocation)
        read = counts_of(spec, steps, quota).astype(np.int64).cumsum(axis=0) * QUOTA_ONE
        error = np.abs(read - 32 * quota.astype(np.int64) * np.arange(1, steps + 1)[:, None]).max() / QUOTA_ONE
        ends[allocation] = error
    assert ends["deficit"] < 1
    # Five standard deviations: a step's count strays by at most 0.5 rows, or sqrt(B w (1 - w)) = 2.8.
    assert 1 < ends["systematic"] < 5 * 0.5 * np.sqrt(steps)
    assert ends["systematic"] < ends["multinomial"] < 5 * 2.82 * np.sqrt(steps)


_rescaled = jax.jit(lambda quota, available: rescaled(jnp, quota, available))


@given(seed=st.integers(0, 10**6), domains=st.sampled_from([1, 3, 50]))
@settings(max_examples=60, deadline=None)
def test_rescaled_weights_are_the_exact_shares_of_the_available(seed, domains):
    rng = np.random.default_rng(seed)
    quota, available = random_quota(rng, domains), rng.random(domains) < 0.6
    scaled = rescaled(np, quota, available)
    np.testing.assert_array_equal(scaled, _rescaled(quota, available))
    kept = np.where(available, quota, 0).astype(object)
    if not kept.sum():
        assert not scaled.any()
        return
    assert int(scaled.sum()) == QUOTA_ONE
    for ours, share in zip(scaled, kept, strict=True):
        assert share * QUOTA_ONE // kept.sum() <= ours <= -(-share * QUOTA_ONE // kept.sum())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_limited_domain_gives_exactly_its_limit_and_the_others_fill_the_batch(allocation, seed):
    rng = np.random.default_rng(seed)
    rows = tuple(int(count) for count in rng.integers(1, 30, 4))
    limits = (None, *(int(limit) for limit in rng.integers(0, 90, 3)))
    batch = int(rng.integers(1, 40))
    spec = PlanSpec(rows=rows, batch=batch, seed=seed, allocation=allocation, limits=limits)
    plan, cursor = plan_steps(np, spec, 0, 60, random_quota(rng, 4, zeros=0), start_cursor(4))
    assert not plan.short.any()
    assert (plan.counts.sum(axis=1) == batch).all()
    read = plan.counts.sum(axis=0)
    left = rows_left(np, spec, cursor)
    assert left[0] == PLENTY
    np.testing.assert_array_equal(read[1:] + left[1:], limits[1:])
    # What is left over belongs to a domain whose share was too small to use it up.
    for domain in range(1, 4):
        gone = plan.counts[:, domain].cumsum() == limits[domain]
        assert not plan.counts[1:, domain][gone[:-1]].any()


def test_the_weight_of_an_exhausted_domain_goes_to_the_others_in_proportion():
    spec = PlanSpec(rows=(40, 10**6, 10**6), batch=30, seed=1, limits=(40, None, None))
    plan, _ = plan_steps(np, spec, 0, 3000, quota_of([0.5, 0.1, 0.4]), start_cursor(3))
    later = plan.counts[10:]
    assert not later[:, 0].any()
    # One fifth and four fifths of 30 rows are whole numbers; a unit of 2**-24 moves one row in half a million.
    np.testing.assert_allclose(later[:, 1:].mean(axis=0), [6, 24], atol=0.01)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_domain_that_stops_the_run_ends_it_before_the_step_it_cannot_fill(allocation):
    spec = PlanSpec(rows=(50, 50), batch=10, seed=1, allocation=allocation, limits=(100, None), stop=(True, False))
    quota = quota_of([0.5, 0.5])
    made = steps_left(spec, 0, 100, quota, start_cursor(2))
    plan, cursor = plan_steps(np, spec, 0, made + 1, quota, start_cursor(2))
    assert plan.short.tolist() == [False] * made + [True]
    assert 100 - 10 < plan.counts[:, 0].sum() <= 100
    assert not plan.counts[-1].any()
    # Planned step by step the same number can be made.
    cursor, step = start_cursor(2), 0
    while steps_left(spec, step, 1, quota, cursor):
        _, cursor = plan_steps(np, spec, step, 1, quota, cursor)
        step += 1
    assert step == made


def test_when_only_domains_without_weight_have_rows_left_the_batch_is_short():
    spec = PlanSpec(rows=(20, 20, 20), batch=8, seed=1, limits=(20, 20, None))
    assert steps_left(spec, 0, 50, quota_of([0.5, 0.5, 0.0]), start_cursor(3)) == 5
    assert steps_left(spec, 0, 50, quota_of([0.5, 0.4, 0.1]), start_cursor(3)) == 50


def test_blocks_are_read_whole_in_a_shuffled_order_and_shuffled_within():
    spec = PlanSpec(rows=(95,), batch=1, seed=3, blocks=(10,))
    for epoch in range(3):
        epochs, places = np.full(95, epoch, np.uint32), np.arange(95, dtype=np.uint32)
        order = shuffle(np, spec, np.zeros(95, np.int32), epochs, places)
        np.testing.assert_array_equal(np.sort(order), np.arange(95))
        blocks = [set((part // 10).tolist()) for part in np.split(order, range(10, 95, 10))]
        assert all(len(block) == 1 for block in blocks)
        seen = [block.pop() for block in blocks]
        assert seen[-1] == 9
        assert seen != sorted(seen)
        assert order[:10].tolist() != sorted(order[:10])
        assert blocks_ahead(spec, 0, epoch, 0, 10) == seen
    assert blocks_ahead(spec, 0, 0, 34, 8)[-1] == blocks_ahead(spec, 0, 1, 0, 1)[0]


def test_the_rolling_hash_tells_any_two_orders_apart_and_equal_ones_not():
    def order(seed=1, weights=(0.5, 0.5), chunks=(6,)):
        spec = PlanSpec(rows=(30, 30), batch=4, seed=seed)
        return tuple(in_chunks(spec, quota_of(weights), chunks)[1].order.tolist())

    assert order() == order(chunks=(1, 2, 3))
    assert len({order(), order(seed=2), order(weights=(0.4, 0.6)), order(chunks=(5,))}) == 4
