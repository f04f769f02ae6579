import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtune_jax.core.simplex import QUOTA_ONE, to_quota
from vtune_jax.core.types import Cursor
from vtune_jax.data.plan import PlanSpec, advance, allocate, fingerprint, plan_steps, shuffle


def cursor_of(domains):
    return Cursor(np.zeros(domains, np.uint32), np.zeros(domains, np.uint32))


def quota_of(weights):
    weights = np.asarray(weights, np.float32)
    return np.asarray(jax.jit(to_quota)(jnp.asarray(weights / weights.sum())))


def random_quota(rng, domains, zeros=0.2):
    weights = rng.dirichlet(np.ones(domains)) * (rng.random(domains) >= zeros)
    return quota_of(weights if weights.sum() > 0 else np.ones(domains))


ALLOCATIONS = ("systematic", "multinomial")


@given(
    shape=st.sampled_from([(1, 4), (3, 32), (7, 96), (300, 16), (5, 7)]),
    allocation=st.sampled_from(ALLOCATIONS),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 10),
)
@settings(max_examples=40, deadline=None)
def test_numpy_and_jax_plan_the_same_rows_bit_for_bit(shape, allocation, seed, step):
    domains, batch = shape
    rng = np.random.default_rng(seed)
    # Lengths are fixed per shape, so that each shape compiles once.
    rows = tuple(1 + 7 * index % 41 for index in range(domains))
    spec, quota = PlanSpec(rows=rows, batch=batch, seed=5, allocation=allocation), random_quota(rng, domains)
    cursor = Cursor(rng.integers(0, 9, domains, np.uint32), rng.integers(0, 2**31, domains) % np.uint32(rows))
    cursor = Cursor(*(column.astype(np.uint32) for column in cursor))
    host = plan_steps(np, spec, step, 4, quota, cursor)
    device = _compiled(spec)(np.uint32(step), quota, cursor)
    for ours, theirs in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


_programs = {}


def _compiled(spec):
    if spec not in _programs:
        _programs[spec] = jax.jit(lambda step, quota, cursor: plan_steps(jnp, spec, step, 4, quota, cursor))
    return _programs[spec]


@given(seed=st.integers(0, 10**6), domains=st.sampled_from([1, 2, 7, 40]), batch=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_each_count_is_the_floor_or_ceiling_of_the_share_and_all_sum_to_the_batch(seed, domains, batch):
    quota = random_quota(np.random.default_rng(seed), domains)
    spec = PlanSpec(rows=(100,) * domains, batch=batch, seed=seed)
    counts = allocate(np, spec, np.arange(20, dtype=np.uint32), quota).astype(np.int64)
    exact = batch * quota.astype(np.int64)
    assert (counts.sum(axis=1) == batch).all()
    assert (counts >= exact // QUOTA_ONE).all()
    assert (counts <= -(-exact // QUOTA_ONE)).all()


def test_allocation_is_unbiased_for_a_batch_that_is_no_power_of_two():
    quota = quota_of([0.45, 0.3, 0.2, 0.05])
    spec = PlanSpec(rows=(100,) * 4, batch=7, seed=1)
    counts = allocate(np, spec, np.arange(200_000, dtype=np.uint32), quota)
    # A share's fraction is Bernoulli: its mean over n steps has a standard error below 0.5 / sqrt(n) = 0.0012.
    np.testing.assert_allclose(counts.mean(axis=0), 7 * quota / QUOTA_ONE, atol=0.005)


def test_a_weight_of_one_in_a_hundred_thousand_gets_its_share_of_a_small_batch():
    quota = quota_of([1e-5, 0.5, 0.5 - 1e-5])
    spec = PlanSpec(rows=(100,) * 3, batch=2, seed=4)
    counts = allocate(np, spec, np.arange(2_000_000, dtype=np.uint32), quota)
    # 40 rows expected; a Poisson count strays by more than 5 standard deviations once in a million.
    assert abs(int(counts[:, 0].sum()) - 40) < 32


def test_multinomial_counts_have_the_binomials_mean_and_variance_and_sum_to_the_batch():
    spec = PlanSpec(rows=(100,) * 4, batch=32, seed=1, allocation="multinomial")
    weights = np.array([0.45, 0.3, 0.2, 0.05])
    counts = allocate(np, spec, np.arange(20_000, dtype=np.uint32), quota_of(weights)).astype(int)
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
    plan, _ = plan_steps(np, spec, 0, 200, quota_of(weights), cursor_of(3))
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


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_no_row_is_read_twice_in_an_epoch_and_none_is_skipped(allocation, seed):
    rng = np.random.default_rng(seed)
    rows = tuple(int(count) for count in rng.integers(1, 30, 4))
    spec = PlanSpec(rows=rows, batch=int(rng.integers(1, 50)), seed=seed, allocation=allocation)
    plan, cursor = plan_steps(np, spec, 0, 40, random_quota(rng, 4), cursor_of(4))
    for domain, count in enumerate(rows):
        read = plan.row[plan.domain == domain]
        assert read.size == int(cursor.epoch[domain]) * count + int(cursor.row[domain])
        seen = np.bincount(read, minlength=count)
        assert seen.max(initial=0) - seen.min() <= 1


@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 7), (11, 1)])
def test_planning_in_chunks_changes_nothing(chunks):
    rng = np.random.default_rng(0)
    spec, quota = PlanSpec(rows=(3, 50, 7), batch=9, seed=1), random_quota(rng, 3, zeros=0)
    whole, end = plan_steps(np, spec, 100, 12, quota, cursor_of(3))
    cursor, step, parts = cursor_of(3), 100, []
    for steps in chunks:
        part, cursor = plan_steps(np, spec, step, steps, quota, cursor)
        parts.append(part)
        step += steps
    for name in ("domain", "row", "counts"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    np.testing.assert_array_equal(cursor, end)


def test_the_order_of_a_domain_does_not_depend_on_the_weights():
    spec, quotas = PlanSpec(rows=(500, 500), batch=20, seed=2), (quota_of([0.9, 0.1]), quota_of([0.2, 0.8]))
    streams = []
    for quota in quotas:
        stream, cursor = [], cursor_of(2)
        for step in range(12):
            counts = allocate(np, spec, np.array([step], np.uint32), quota)[0]
            plan, cursor = plan_steps(np, spec, step, 1, quota, cursor)
            stream.append(np.sort(plan.row[plan.domain == 0]))
            assert stream[-1].size == counts[0]
        streams.append(np.concatenate(stream))
    common = min(map(len, streams))
    everything = shuffle(np, spec, np.zeros(500, np.int32), np.zeros(500, np.uint32), np.arange(500, dtype=np.uint32))
    for stream in streams:
        assert set(everything[: common // 2]) <= set(stream)


def test_a_cursor_runs_past_ten_trillion_tokens_without_wrapping():
    # 10**13 tokens in rows of 512 are 2 * 10**10 rows, past 32 bits; the epoch counts them apart.
    spec = PlanSpec(rows=(1_000_003,), batch=1, seed=0)
    cursor = Cursor(np.array([19_531], np.uint32), np.array([1_000_002], np.uint32))
    after = advance(np, spec, cursor, np.array([2], np.uint32))
    assert (int(after.epoch[0]), int(after.row[0])) == (19_532, 1)


def test_the_fingerprint_names_all_that_the_rows_depend_on():
    base = PlanSpec(rows=(3, 4), batch=5, seed=6)
    others = [PlanSpec(rows=(4, 3), batch=5, seed=6), PlanSpec(rows=(3, 4), batch=6, seed=6)]
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=7))
    others.append(PlanSpec(rows=(3, 4), batch=5, seed=6, allocation="multinomial"))
    assert len({str(fingerprint(spec)) for spec in [base, *others]}) == 5
    assert "planner" in fingerprint(base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ()}, "rows must name at least one domain"),
        ({"rows": (3, 0)}, "rows must lie in"),
        ({"batch": 0}, "batch must lie in"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PlanSpec(**{"rows": (3, 4), "batch": 2, "seed": 0, **changes})
