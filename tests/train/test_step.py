import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vtune_jax.core.losses import token_nats
from vtune_jax.core.simplex import QUOTA_ONE
from vtune_jax.core.types import TokenCount
from vtune_jax.data.mixture.spec import start_cursor
from vtune_jax.rules import Static
from vtune_jax.train.heldout import make_evaluate, mean_loss
from vtune_jax.train.optimizer import OptimizerConfig, learning_rate
from vtune_jax.train.update import among


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tokens": jnp.asarray(rng.integers(0, tiny.VOCABULARY, (tiny.BATCH, tiny.LENGTH + 1)), jnp.uint16),
        "domain": jnp.array([0, 2, 2, 1], jnp.int32),
        "cursor": start_cursor(tiny.DOMAINS)._replace(row=np.full(tiny.DOMAINS, seed, np.uint32)),
        "available": np.ones(tiny.DOMAINS, bool),
    }


def test_one_step_is_adamw_on_the_mean_loss():
    step = jax.jit(tiny.step_of())
    before = tiny.state()
    after, metrics = step(before, batch(), tiny.constants())
    tokens = jnp.asarray(batch()["tokens"], jnp.int32)

    def loss(params):
        return token_nats(tiny.model().logits(params, tokens[:, :-1]), tokens[:, 1:]).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    # Warm-up is one of twenty steps, so the first step has the whole rate.
    matrices = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", before.params)
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrices)
    )
    updates, _ = jax.jit(adamw.update)(gradient, adamw.init(before.params), before.params)
    expected = optax.apply_updates(before.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2, rtol=1e-6)


def test_training_sums_are_kept_per_domain_until_the_update():
    jitted = tiny.jitted()
    state = tiny.state()
    for count in range(1, tiny.INTERVAL + 1):
        state, metrics = jitted(state, batch(count), tiny.constants())
        assert metrics["train_tokens"].tolist() == [8 * count, 8 * count, 16 * count]
    np.testing.assert_allclose(metrics["train_nats"].sum() / 160, metrics["loss"], rtol=0.5)
    assert state.mixture.train.tokens.tolist() == [0, 0, 0]


def test_weights_move_only_at_interval_boundaries_and_by_the_new_models_heldout_loss():
    jitted = tiny.jitted()
    state, weights = tiny.state(), []
    for step in range(2 * tiny.INTERVAL):
        state, _ = jitted(state, batch(step), tiny.constants())
        weights.append(np.asarray(state.mixture.weights))
    moved = [not np.array_equal(a, b) for a, b in zip([tiny.targets().prior, *weights], weights, strict=False)]
    assert moved == [step % tiny.INTERVAL == tiny.INTERVAL - 1 for step in range(2 * tiny.INTERVAL)]
    evaluate = make_evaluate(tiny.model(), 9)
    newest = (int(state.mixture.history.entries) - 1) % state.mixture.history.nats.shape[0]
    np.testing.assert_allclose(
        state.mixture.history.nats[newest], jax.jit(evaluate)(state.params, tiny.heldout()).nats, rtol=1e-5
    )
    assert int(state.mixture.quota.sum()) == QUOTA_ONE
    assert state.mixture.history.step[newest] == 2 * tiny.INTERVAL


def test_the_step_is_compiled_once_for_runs_of_different_length_and_targets():
    plain, traces = tiny.step_of(), []

    @jax.jit
    def counted(state, batch, constants):
        traces.append(1)
        return plain(state, batch, constants)

    for steps in (3, 7, 50):
        state = tiny.state()
        for step in range(3):
            state, _ = counted(state, batch(step), tiny.constants(steps))
    assert len(traces) == 1


def test_the_static_method_keeps_the_prior_and_still_records_losses():
    method = Static()
    jitted = tiny.jitted(method)
    state = tiny.state(method)
    for step in range(tiny.INTERVAL):
        state, _ = jitted(state, batch(step), tiny.constants(method=method))
    np.testing.assert_array_equal(state.mixture.weights, tiny.targets().prior)
    assert int(state.mixture.history.entries) == 1


def test_heldout_sums_are_those_of_each_row_by_itself():
    params = tiny.params(1)
    rows = tiny.heldout()
    sums = jax.jit(make_evaluate(tiny.model(), 5))(params, rows)
    assert sums.tokens.tolist() == [6 * tiny.LENGTH] * tiny.DOMAINS
    for domain in range(tiny.DOMAINS):
        alone = [
            token_nats(tiny.model().logits(params, row[None, :-1]), row[None, 1:]).sum()
            for row in rows["tokens"][domain].astype(jnp.int32)
        ]
        np.testing.assert_allclose(sums.nats[domain], np.sum(alone), rtol=1e-5)
    np.testing.assert_allclose(mean_loss(sums), np.log(tiny.VOCABULARY), atol=0.1)


def test_the_state_takes_the_place_in_the_data_from_the_batch():
    state, _ = tiny.jitted()(tiny.state(), batch(7), tiny.constants())
    assert state.mixture.cursor.row.tolist() == [7, 7, 7]


def test_token_counts_are_exact_past_32_bits():
    count = TokenCount(high=np.array([0, 2], np.uint32), low=np.array([2**32 - 10, 5], np.uint32))
    after = jax.jit(lambda count: count.plus(jnp.array([2**31 - 1, 7])))(count)
    assert after.exact().tolist() == [2**32 - 10 + 2**31 - 1, 2 * 2**32 + 12]
    np.testing.assert_allclose(after.as_float(), after.exact(), rtol=1e-6)


def test_an_exhausted_domains_weight_goes_to_the_others_and_the_rule_starts_from_that():
    jitted = tiny.jitted(Static())
    state = tiny.state(Static())
    for step in range(tiny.INTERVAL):
        exhausted = {**batch(step), "available": np.array([True, False, True])}
        state, _ = jitted(state, exhausted, tiny.constants(method=Static()))
    prior = np.asarray(tiny.targets().prior)
    np.testing.assert_allclose(state.mixture.weights, [prior[0] / 0.7, 0, prior[2] / 0.7], rtol=1e-6)
    assert state.mixture.quota[1] == 0
    assert int(state.mixture.quota.sum()) == QUOTA_ONE


def test_weights_are_left_alone_when_no_domain_with_weight_is_available():
    weights = jnp.array([0.25, 0.75, 0.0])
    np.testing.assert_array_equal(among(weights, jnp.array([False, False, True])), weights)
    np.testing.assert_array_equal(among(weights, jnp.array([True, True, True])), weights)
    np.testing.assert_array_equal(among(weights, jnp.array([True, False, True])), [1, 0, 0])


def test_with_a_lag_new_weights_come_into_force_that_many_steps_later():
    jitted, state, quotas, pending = tiny.jitted(), tiny.state(), [], []
    for step in range(2 * tiny.INTERVAL + 2):
        state, _ = jitted(state, batch(step), tiny.constants(lag=2))
        quotas.append(state.mixture.quota.tolist())
        pending.append(state.mixture.pending.tolist())
    first, second = pending[tiny.INTERVAL - 1], pending[2 * tiny.INTERVAL - 1]
    assert first != quotas[0]
    assert second != first
    # Weights made after 5 steps are in force from the batch of step 7 on, that is in the state after 7 steps.
    assert [quotas.index(first), quotas.index(second)] == [6, 11]


@pytest.mark.parametrize("value", [-1, tiny.INTERVAL])
@pytest.mark.parametrize("name", ["lag", "phase"])
def test_a_lag_or_phase_outside_the_interval_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, interval = 5\), got {value}"):
        tiny.constants(**{name: value})


@pytest.mark.parametrize(
    ("step", "rate"),
    # 10 % of 40 steps warm up linearly to the peak; the half cosine ends at a tenth of it.
    [(0, 0.25), (3, 1.0), (21, 0.55), (39, 0.1), (400, 0.1)],
)
def test_the_schedule_warms_up_and_decays_over_the_runs_own_length(step, rate):
    config = OptimizerConfig(peak_learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.1)
    np.testing.assert_allclose(learning_rate(config.numbers(), jnp.asarray(step), jnp.asarray(40)), rate, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("peak_learning_rate", 0.0), ("clip_norm", -1.0), ("warmup_fraction", 1.5), ("beta2", -0.1)],
)
def test_impossible_optimisers_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must"):
        OptimizerConfig(**{field: value})


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        tiny.constants(interval=0)
