"""DoReMi, DoGE, GRAPE and Aioli by hand arithmetic; recorded numbers of their code are in `test_fixtures`."""

import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import Alignment, ExcessSums, LossSums, Observation, Targets

PRIOR = jnp.array([0.5, 0.5])
TARGETS = Targets(*(jnp.full(2, jnp.nan),) * 3, prior=PRIOR)
NOTHING = LossSums(jnp.zeros(2), jnp.zeros(2, jnp.int32))


def softmax(*logits):
    raised = np.exp(logits)
    return raised / raised.sum()


def after(method, *observations, weights=PRIOR):
    history = method.init(TARGETS)
    for observation in observations:
        history = method.observe(history, observation)
        weights = method.update(weights, history, TARGETS)
    return np.asarray(weights)


def excess(clipped, raw, positive, tokens):
    sums = ExcessSums(
        jnp.asarray(clipped, jnp.float32), jnp.asarray(raw, jnp.float32), jnp.asarray(positive), jnp.asarray(tokens)
    )
    return Observation(NOTHING, NOTHING, jnp.zeros(2), jnp.asarray(1), evidence={"excess": sums})


def test_the_four_versions_of_doremi_score_the_same_tokens_differently():
    # Ten tokens each: 6 nats above the reference on 4 of them and 2 below on the others; 1 above and 3 below.
    one = excess([6.0, 1.0], [4.0, -2.0], [4, 2], [10, 10])
    plain = {"smoothing": 0.0}
    np.testing.assert_allclose(after(rules.doremi(**plain), one), softmax(0.6, 0.1), rtol=1e-6)
    np.testing.assert_allclose(after(rules.doremi(form="levanter", **plain), one), softmax(1.5, 0.5), rtol=1e-6)
    for form in ("aioli", "doge"):
        np.testing.assert_allclose(after(rules.doremi(form=form, **plain), one), softmax(0.4, 0.0), rtol=1e-6)
    half = after(rules.doremi(step_size=0.5, smoothing=0.2), one)
    np.testing.assert_allclose(half, 0.8 * softmax(0.3, 0.05) + 0.1, rtol=1e-6)


def test_an_absent_domain_keeps_its_excess_except_in_levanters_version():
    first, then = excess([6.0, 1.0], [4.0, 1.0], [4, 2], [10, 10]), excess([0.0, 3.0], [0.0, 3.0], [0, 5], [0, 10])
    kept = after(rules.doremi(smoothing=0.0), first, then)
    np.testing.assert_allclose(kept, softmax(0.6 + 0.6, 0.1 + 0.3), rtol=1e-6)
    dropped = after(rules.doremi(form="levanter", smoothing=0.0), first, then)
    np.testing.assert_allclose(dropped, softmax(1.5 + 0.0, 0.5 + 0.6), rtol=1e-6)
    unseen = after(rules.doremi(smoothing=0.0, first_score=2.0), then)
    np.testing.assert_allclose(unseen, softmax(2.0, 0.3), rtol=1e-6)


def aligned(inner, norm, target_norm=None, rate=0.1, losses=None):
    parts = (jnp.asarray(part, jnp.float32) for part in (inner, norm, norm if target_norm is None else target_norm))
    sums = NOTHING if losses is None else LossSums(jnp.asarray(losses) * 10, jnp.full(2, 10))
    return Observation(
        sums, sums, jnp.zeros(2), jnp.asarray(1), evidence={"alignment": Alignment(*parts, jnp.float32(rate))}
    )


def test_doge_favours_the_domain_whose_gradient_helps_all():
    # Gradients (3, 0) and (1, 0), not clipped: W = 3 * 4 and 1 * 4, mean norm 2.
    one = aligned([[9.0, 3.0], [3.0, 1.0]], [3.0, 1.0])
    method = rules.doge(step_scale=2.0, max_norm=10.0, highest=100.0)
    np.testing.assert_allclose(after(method, one), softmax(2 * 0.1 * 12 / 2, 2 * 0.1 * 4 / 2), rtol=1e-5)
    # Clipped to norm 1, both are the same vector.
    np.testing.assert_allclose(after(rules.doge(step_scale=2.0, max_norm=1.0), one), [0.5, 0.5], atol=1e-6)
    # Scores are cut at `highest` times the learning rate.
    cut = after(rules.doge(step_scale=2.0, max_norm=10.0, highest=5.0), one)
    np.testing.assert_allclose(cut, softmax(2 * 0.1 * 5, 2 * 0.1 * 2), rtol=1e-5)
    only = after(rules.doge(step_scale=2.0, max_norm=10.0, highest=100.0, targets=(1,)), one)
    np.testing.assert_allclose(only, softmax(2 * 0.1 * 3 / 2, 2 * 0.1 * 1 / 2), rtol=1e-5)


def test_doge_counts_opposing_gradients_as_none_unless_told():
    one = aligned([[1.0, -2.0], [-2.0, 4.0]], [1.0, 2.0])
    np.testing.assert_allclose(after(rules.doge(step_scale=1.0), one), softmax(0.0, 0.1 * 2 / 1.5), rtol=1e-5)
    signed = after(rules.doge(step_scale=1.0, lowest=-5.0), one)
    np.testing.assert_allclose(signed, softmax(-0.1 * 1 / 1.5, 0.1 * 2 / 1.5), rtol=1e-5)


def test_grape_turns_to_the_task_that_improves_least():
    # Task 0 improves by a quarter, task 1 by nothing: z = softmax(-2 * 0.25, 0). Each domain helps its own task.
    inner = [[1.0, 0.0], [0.0, 1.0]]
    method = rules.grape(step_scale=10.0, task_step=2.0)
    first, second = aligned(inner, [1.0, 1.0], losses=[4.0, 2.0]), aligned(inner, [1.0, 1.0], losses=[3.0, 2.0])
    start = 10 * 0.1 * np.array([0.5 / 4, 0.5 / 2])
    tasks = softmax(-0.5, 0.0)
    then = 10 * 0.1 * tasks / np.array([3.0, 2.0])
    np.testing.assert_allclose(after(method, first, second), softmax(*(start + then)), rtol=1e-5)


def evaluated(losses, weights=PRIOR):
    sums = LossSums(jnp.asarray(losses, jnp.float32) * 1000, jnp.full(2, 1000))
    return Observation(sums, sums, jnp.zeros(2), jnp.asarray(1), weights=jnp.asarray(weights))


def test_aioli_recovers_a_linear_law_from_its_probes():
    # Losses fall by A p under the mixture p; column sums of A are 0.4 and 0.2.
    law = np.array([[0.3, 0.1], [0.1, 0.1]])
    method = rules.aioli(step_size=2.0, normalize=False, order="listed", hold=2)
    history, weights, losses = method.init(TARGETS), PRIOR, np.array([4.0, 3.0])
    history = method.observe(history, evaluated(losses, weights))
    weights = method.update(weights, history, TARGETS)
    for favoured in range(2):
        np.testing.assert_allclose(weights, [[0.75, 0.25], [0.25, 0.75]][favoured], rtol=1e-6)
        losses = losses - law @ np.asarray(weights)
        history = method.observe(history, evaluated(losses, weights))
        weights = method.update(weights, history, TARGETS)
    np.testing.assert_allclose(weights, softmax(0.8, 0.4), rtol=1e-4)
    # It holds for two intervals, and the evaluation at their end begins the next round.
    history = method.observe(history, evaluated(losses, weights))
    np.testing.assert_allclose(method.update(weights, history, TARGETS), weights)
    history = method.observe(history, evaluated(losses, weights))
    np.testing.assert_allclose(method.update(weights, history, TARGETS), [0.75, 0.25], rtol=1e-6)


def test_aioli_inverts_the_mixtures_that_were_really_drawn_from():
    law, drawn = np.array([[0.3, 0.1], [0.1, 0.1]]), np.array([[0.6, 0.4], [0.4, 0.6]])
    method = rules.aioli(step_size=2.0, normalize=False, order="listed")
    history, losses = method.init(TARGETS), np.array([4.0, 3.0])
    history = method.observe(history, evaluated(losses))
    for favoured in range(2):
        losses = losses - law @ drawn[favoured]
        history = method.observe(history, evaluated(losses, drawn[favoured]))
    np.testing.assert_allclose(method.update(PRIOR, history, TARGETS), softmax(0.8, 0.4), rtol=1e-4)


def test_aioli_normalises_what_it_measured():
    # A = [[0.3, -0.1], [0.1, 0.1]], shifted by 0.1 and divided by 0.8: column sums 0.75 and 0.25.
    law = np.array([[0.3, -0.1], [0.1, 0.1]])
    method = rules.aioli(step_size=1.0, favour=1.0, order="listed")
    history, losses = method.init(TARGETS), np.array([4.0, 3.0])
    history = method.observe(history, evaluated(losses))
    for probe in np.eye(2):
        losses = losses - law @ probe
        history = method.observe(history, evaluated(losses, probe))
    np.testing.assert_allclose(method.update(PRIOR, history, TARGETS), softmax(0.75, 0.25), rtol=1e-4)


def test_a_round_in_which_nothing_moves_leaves_the_weights_alone():
    method = rules.aioli(order="listed")
    history = method.init(TARGETS)
    for _ in range(3):
        history = method.observe(history, evaluated([3.0, 3.0]))
    np.testing.assert_allclose(method.update(PRIOR, history, TARGETS), [0.5, 0.5], rtol=1e-6)


def test_the_order_of_probes_changes_from_round_to_round_and_with_the_seed():
    targets = Targets(*(jnp.full(6, jnp.nan),) * 3, prior=jnp.full(6, 1 / 6))

    def orders(seed):
        method, found = rules.aioli(order_seed=seed, sweeps=2, hold=1), []
        history = method.init(targets)
        for _ in range(2 * 13):
            sums = LossSums(jnp.full(6, 30.0), jnp.full(6, 10))
            history = method.observe(
                history, Observation(sums, sums, jnp.zeros(6), jnp.asarray(1), weights=targets.prior)
            )
            if int(history.memory.phase) == 0:
                found.append(history.memory.order.tolist())
        return found

    first, second = orders(0)
    assert sorted(first) == sorted([*range(6)] * 2)
    assert sorted(first[:6]) == list(range(6))
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1)[0] != first


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rules.doremi(step_size=-1.0), "step_size must not be negative, got -1.0"),
        (lambda: rules.doremi().observe(rules.doremi().init(TARGETS), evaluated([1.0, 1.0])), 'must hold "excess"'),
        (lambda: rules.doge().observe(rules.doge().init(TARGETS), evaluated([1.0, 1.0])), 'must hold "alignment"'),
        (lambda: rules.grape().observe(rules.grape().init(TARGETS), evaluated([1.0, 1.0])), 'must hold "alignment"'),
        (lambda: rules.doge(lowest=1.0, highest=0.5), "lowest must not lie above highest = 0.5, got 1.0"),
        (lambda: rules.doge(targets=(2,)).init(TARGETS), r"targets must name domains in \[0, 2\), got \[2\]"),
        (lambda: rules.aioli(favour=0.5).init(TARGETS), "favour must be above 1/2 for 2 domains, got 0.5"),
        (lambda: rules.aioli(sweeps=0), "sweeps must be at least 1, got 0"),
        (lambda: rules.aioli(memory=1.5), r"memory must lie in \[0, 1\], got 1.5"),
        (lambda: rules.RegMix(domain_weights=(1.0, -1.0)), "domain_weights must be positive"),
    ],
)
def test_impossible_hyper_parameters_and_missing_evidence_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
