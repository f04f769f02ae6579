"""Filters against hand arithmetic and second implementations; what they do to real noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.filters import Ema, LocalLevel, Median, ema, filtered, gated, local_level, moments, rolling_median
from vtune_jax.core.types import LossSums, Observation, Targets

TARGETS = Targets(jnp.array([4.0, 4.0]), jnp.array([2.0, 2.0]), jnp.zeros(2), prior=jnp.array([0.3, 0.7]))


def sums_of(losses, tokens=100, spread=1.0):
    """Means with the squares of tokens that have this standard deviation."""
    losses = jnp.asarray(losses, jnp.float32)
    count = jnp.broadcast_to(jnp.asarray(tokens, jnp.int32), losses.shape)
    return LossSums(losses * count, count, squares=count * (losses**2 + spread**2))


def observed(losses, step=1, **options):
    sums = sums_of(losses, **options)
    return Observation(sums, sums, jnp.zeros(2), jnp.asarray(step))


def run(by, rows, present=None):
    """Filtered means of a sequence of losses [times, domains]."""
    rows = np.asarray(rows, np.float32)
    state, shown = by.init(rows.shape[1], jnp.float32), []
    for index, row in enumerate(rows):
        tokens = 100 if present is None else np.where(present[index], 100, 0)
        sums = sums_of(row, tokens)
        state, smooth = by.fold(state, *moments(sums, jnp.float32))
        shown.append(np.asarray(smooth))
    return np.array(shown), state


def test_the_sampling_variance_of_a_mean_is_that_of_its_tokens():
    losses = np.random.default_rng(0).gamma(2.0, 1.5, 500)
    sums = LossSums(jnp.array([losses.sum()]), jnp.array([500]), squares=jnp.array([(losses**2).sum()]))
    mean, variance, seen = moments(sums, jnp.float32)
    np.testing.assert_allclose(mean, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance, losses.var() / 500, rtol=1e-4)
    assert seen.all()


def test_the_bias_corrected_average_by_hand():
    # d = 1/2: 4; then (4/4 + 2/2) / (3/4); then (4/8 + 2/4 + 1/2) / (7/8).
    shown, _ = run(ema(0.5), [[4.0], [2.0], [1.0]])
    np.testing.assert_allclose(shown[:, 0], [4.0, 8 / 3, 12 / 7], rtol=1e-6)


def test_a_half_life_of_two_weighs_the_loss_before_the_last_by_a_root_of_one_half():
    shown, _ = run(Ema(half_life=2.0).build(), [[1.0], [0.0]])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(shown[1, 0], root * (1 - root) / ((1 - root) * (1 + root)), rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_the_rolling_median_is_numpys_over_each_domains_own_last_losses(window):
    rng = np.random.default_rng(1)
    rows, present = rng.normal(3, 1, (25, 3)).astype(np.float32), rng.random((25, 3)) > 0.3
    shown, _ = run(rolling_median(window), rows, present)
    for domain in range(3):
        for time in range(25):
            own = rows[: time + 1, domain][present[: time + 1, domain]][-window:]
            expected = np.median(own) if len(own) else 0.0
            np.testing.assert_allclose(shown[time, domain], expected, rtol=1e-5)


def test_the_local_level_is_the_textbook_filter():
    rng = np.random.default_rng(2)
    rows, present = rng.normal(3, 0.2, (30, 2)), rng.random((30, 2)) > 0.2
    shown, state = run(local_level(0.05, inflation=2.0), rows, present)
    for domain in range(2):
        level = variance = None
        for time in range(30):
            if level is not None:
                variance += 0.05**2
            if present[time, domain]:
                error = 2.0 * 1.0 / 100  # inflated variance of a mean of 100 tokens of unit spread
                gain = 1.0 if level is None else variance / (variance + error)
                level = rows[time, domain] if level is None else level + gain * (rows[time, domain] - level)
                variance = error if gain == 1.0 else (1 - gain) * variance
            if level is not None:
                np.testing.assert_allclose(shown[time, domain], level, rtol=2e-4)
        np.testing.assert_allclose(state.variance[domain], variance, rtol=2e-3)


def test_the_gain_settles_at_the_root_of_its_equation():
    # Steady state: P^2 - q^2 P - q^2 v = 0 for the variance ahead of an observation.
    drift, error = 0.1, 0.01
    ahead = 0.5 * (drift**2 + np.sqrt(drift**4 + 4 * drift**2 * error))
    _, state = run(local_level(drift), np.full((60, 1), 2.0))
    np.testing.assert_allclose(state.variance[0], (1 - ahead / (ahead + error)) * ahead, rtol=1e-3)


def test_filters_bring_a_noisy_loss_nearer_to_the_true_one():
    rng = np.random.default_rng(3)
    true = 3 + np.cumsum(rng.normal(0, 0.01, (400, 4)), axis=0)
    noisy = true + rng.normal(0, 0.1, true.shape)  # as 100 tokens of unit spread have
    errors = {
        name: np.sqrt(np.mean((run(by, noisy)[0][50:] - true[50:]) ** 2))
        for name, by in (("level", local_level(0.01)), ("ema", ema(0.8)), ("median", rolling_median(5)))
    }
    # The optimal filter's error has the variance K v.
    ahead = 0.5 * (1e-4 + np.sqrt(1e-8 + 4e-6))
    optimum = np.sqrt(ahead / (ahead + 0.01) * 0.01)
    assert errors["level"] < 1.1 * optimum
    assert errors["level"] < errors["ema"] < 0.1
    assert errors["median"] < 0.1


def test_a_filtered_method_sees_filtered_losses_and_keeps_its_own_memory():
    inner = rules.skillit(step_size=0.2, window=1)
    method = filtered(inner, ema(0.5))
    history, weights = method.init(TARGETS), TARGETS.prior
    for losses in ([4.0, 3.0], [2.0, 3.0]):
        history = method.observe(history, observed(losses))
        weights = method.update(weights, history, TARGETS)
    smooth = np.array([8 / 3, 3.0])
    raised = np.exp(0.2 * smooth)
    np.testing.assert_allclose(weights, raised / raised.sum(), rtol=1e-5)
    assert int(history.memory.inner.evaluations) == 2


@pytest.mark.parametrize("by", [ema(0.7), rolling_median(3), local_level(0.05)], ids=["ema", "median", "level"])
def test_evidence_that_is_not_finite_or_not_there_leaves_no_trace(by):
    clean, _ = run(by, [[3.0], [2.0], [2.5]])
    rows = [[3.0], [np.nan], [np.inf], [2.0], [9.0], [2.5]]
    present = np.array([1, 1, 1, 1, 0, 1])[:, None].astype(bool)
    shown, _ = run(by, rows, present)
    assert np.isfinite(shown).all()
    if by.init(1, jnp.float32)._fields != ("mean", "variance", "started"):
        np.testing.assert_allclose(shown[[0, 3, 5]], clean, rtol=1e-6)


@pytest.mark.parametrize("config", [Ema(), Median(), LocalLevel()], ids=lambda config: config.name)
def test_a_filtered_method_can_be_mapped_scanned_and_traced_once(config):
    method, traces = filtered(rules.velocitune(), config.build()), []
    rng = np.random.default_rng(4)
    rows = jnp.asarray(rng.uniform(2, 4, (5, 6, 2)), jnp.float32)

    def path(losses):
        traces.append(1)

        def body(carry, row):
            weights, history = carry
            history = method.observe(history, observed(row))
            weights = method.update(weights, history, TARGETS)
            return (weights, history), weights

        return jax.lax.scan(body, (TARGETS.prior, method.init(TARGETS)), losses)[1]

    mapped = jax.jit(jax.vmap(path))(rows)
    count = len(traces)
    looped = np.stack([jax.jit(path)(row) for row in rows])
    np.testing.assert_allclose(mapped, looped, rtol=1e-5)
    assert count == 1
    assert mapped.dtype == jnp.float32


def test_a_filter_that_needs_sampling_errors_says_what_is_missing():
    method = filtered(rules.velocitune(), local_level(0.1))
    bare = LossSums(jnp.array([3.0, 3.0]), jnp.array([1, 1]))
    with pytest.raises(ValueError, match="observation.heldout.squares must hold sums of squares for this filter"):
        method.observe(method.init(TARGETS), Observation(bare, bare, jnp.zeros(2), jnp.asarray(1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ema(1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda: Ema(half_life=0.0), "half_life must be positive, got 0.0"),
        (lambda: Median(window=0), "window must be at least 1, got 0"),
        (lambda: LocalLevel(drift=-1.0), "drift must not be negative, got -1.0"),
        (lambda: LocalLevel(inflation=0.5), "inflation must be at least 1, got 0.5"),
        (lambda: gated(rules.velocitune(), -1.0), "errors must not be negative, got -1.0"),
    ],
)
def test_impossible_filters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def after_gate(errors, *rows, **options):
    method = gated(rules.velocitune(), errors)
    history, weights, path = method.init(TARGETS), TARGETS.prior, []
    for row in rows:
        history = method.observe(history, observed(row, **options))
        weights = method.update(weights, history, TARGETS)
        path.append(np.asarray(weights))
    return path


def test_the_gate_lets_only_significant_changes_move_weights():
    # The standard error of a change is sqrt(2) / 10 = 0.141; two of them are 0.283.
    first, still, moved = after_gate(2.0, [3.0, 3.5], [3.2, 3.3], [3.29, 3.2])
    np.testing.assert_array_equal(still, first)
    # Both have now moved by 0.29 and 0.3 since the first time.
    assert not np.array_equal(moved, still)
    ungated = after_gate(0.0, [3.0, 3.5], [3.2, 3.3], [3.29, 3.2])
    np.testing.assert_array_equal(first, ungated[0])


def test_a_domain_that_may_not_move_keeps_its_weight_and_the_others_share_the_rest():
    prior = jnp.array([0.2, 0.3, 0.5])
    targets = Targets(jnp.full(3, 4.0), jnp.full(3, 2.0), jnp.zeros(3), prior=prior)
    method = gated(rules.velocitune(step_size=2.0), 2.0)
    history = method.init(targets)
    weights = prior
    for row in ([3.0, 3.0, 3.0], [3.1, 2.0, 4.0]):
        sums = sums_of(row)
        history = method.observe(history, Observation(sums, sums, jnp.zeros(3), jnp.asarray(1)))
        before, weights = weights, method.update(weights, history, targets)
    assert weights[0] == before[0]
    # Remaining fractions 0 and 1 with a step of 2: odds of e^2.
    odds = float(weights[2] / weights[1]) / float(before[2] / before[1])
    np.testing.assert_allclose(odds, np.exp(2.0), rtol=1e-4)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)


def test_on_pure_noise_the_gate_opens_as_often_as_the_normal_tail_says():
    rng = np.random.default_rng(5)
    domains, pairs = 400, 10
    method = gated(rules.static(), 2.0)
    targets = Targets(*(jnp.ones(domains),) * 3, prior=jnp.full(domains, 1 / domains))
    opened = 0
    for _ in range(pairs):
        history = method.init(targets)
        for _ in range(2):
            sums = sums_of(3 + rng.normal(0, 0.1, domains))
            history = method.observe(history, Observation(sums, sums, jnp.zeros(domains), jnp.asarray(1)))
        opened += int(history.memory.moves.sum())
    # 4.55 % of 4,000: 182, with a standard deviation of 13.
    assert abs(opened - 182) < 4 * 13.2
