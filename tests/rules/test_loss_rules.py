"""The rules over losses alone, by hand arithmetic; recorded numbers of their own code are in `test_fixtures`."""

import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets

TARGETS = Targets(
    initial=jnp.array([4.0, 4.0]),
    target=jnp.array([2.0, 3.0]),
    target_error=jnp.zeros(2),
    prior=jnp.array([0.5, 0.5]),
    constants={"sizes": jnp.array([100.0, 400.0])},
)


def seen(losses, step=1, weights=(0.5, 0.5), present=(True, True)):
    tokens = jnp.where(jnp.array(present), 10, 0)
    sums = LossSums(jnp.array(losses) * tokens, tokens)
    return Observation(sums, sums, jnp.zeros(2), jnp.asarray(step), weights=jnp.array(weights))


def after(method, *observations, weights=(0.5, 0.5)):
    history, weights = method.init(TARGETS), jnp.array(weights)
    for observation in observations:
        history = method.observe(history, observation)
        weights = method.update(weights, history, TARGETS)
    return np.asarray(weights)


def softmax(*logits):
    raised = np.exp(logits)
    return raised / raised.sum()


def test_dynamic_batch_loading_follows_the_gap_to_the_target():
    # Gaps of 1 and -0.5 nats.
    one = seen([3.0, 2.5])
    np.testing.assert_allclose(after(rules.dynamic_batch_loading(smoothing=0.0), one), softmax(1.0, -0.5), rtol=1e-6)
    clipped = after(rules.dynamic_batch_loading(smoothing=0.0, clip=True), one)
    np.testing.assert_allclose(clipped, softmax(1.0, 0.0), rtol=1e-6)
    bandit = after(rules.dynamic_batch_loading(form="bandit", smoothing=0.2, step_size=2.0), one, weights=(0.1, 0.9))
    np.testing.assert_allclose(bandit, 0.8 * softmax(0.1 + 2.0, 0.9 - 1.0) + 0.1, rtol=1e-6)


def test_dynamic_batch_loading_keeps_the_weight_of_a_domain_that_is_not_seen():
    for form in ("exponential", "bandit"):
        method = rules.dynamic_batch_loading(form=form, smoothing=0.0)
        kept = after(method, seen([3.0, 2.5], present=(True, False)), weights=(0.3, 0.7))
        np.testing.assert_allclose(kept, [0.3, 0.7], rtol=1e-6)


def test_group_dro_climbs_on_the_loss_and_an_absent_domain_counts_as_zero():
    np.testing.assert_allclose(after(rules.group_dro(step_size=0.5), seen([3.0, 2.0])), softmax(1.5, 1.0), rtol=1e-6)
    absent = after(rules.group_dro(step_size=0.5), seen([3.0, 2.0], present=(False, True)))
    np.testing.assert_allclose(absent, softmax(0.0, 1.0), rtol=1e-6)
    # C / sqrt(n) = 0.2 and 0.1; shares of 3.2 and 2.1.
    adjusted = after(rules.group_dro(step_size=1.0, adjustment=2.0, normalize=True), seen([3.0, 2.0]))
    np.testing.assert_allclose(adjusted, softmax(3.2 / 5.3, 2.1 / 5.3), rtol=1e-6)


def test_cvar_gives_all_weight_to_the_worst_share_of_the_data():
    # The smaller domain has a fifth of the data: with alpha = 0.5 it is taken whole, and 0.3 of the other.
    one = seen([3.0, 2.0])
    np.testing.assert_allclose(after(rules.cvar_dro(alpha=0.5), one), [0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after(rules.cvar_dro(alpha=0.5), seen([2.0, 3.0])), [0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(after(rules.cvar_dro(alpha=0.5, natural_share=0.5), one), [0.3, 0.7], rtol=1e-6)
    # The average of the first goes 3, 2.7, 2.43, that of the second stays at 2.65.
    falling, first, later = rules.cvar_dro(alpha=0.2), seen([3.0, 2.65]), seen([0.0, 2.65])
    np.testing.assert_allclose(after(falling, first, later), [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(after(falling, first, later, later), [0.0, 1.0], atol=1e-6)
    unseen = seen([0.0, 2.65], present=(False, True))
    np.testing.assert_allclose(after(falling, first, unseen, unseen), [1.0, 0.0], atol=1e-6)


def test_odm_explores_evenly_at_first_and_then_follows_the_rewards():
    method = rules.odm()
    even = after(method, seen([3.0, 2.0]), weights=(0.9, 0.1))
    np.testing.assert_allclose(even, [0.5, 0.5], rtol=1e-6)
    # Late: rewards of 0.1 b / w, exploration 1/2 before and sqrt(ln 2 / (2 t)) now.
    late = after(method, seen([3.0, 2.0], step=1000, weights=(0.3, 0.7)))
    now = np.sqrt(np.log(2) / 2000)
    chosen = softmax(0.5 * 0.1 * 3.0 / 0.3, 0.5 * 0.1 * 2.0 / 0.7)
    np.testing.assert_allclose(late, (1 - 2 * now) * chosen + now, rtol=1e-5)
    paper = after(rules.odm(form="paper", memory=0.75), seen([3.0, 2.0], step=1000, weights=(0.3, 0.7)))
    chosen = softmax(0.5 * 0.25 * 3.0 / 0.3, 0.5 * 0.25 * 2.0 / 0.7)
    np.testing.assert_allclose(paper, (1 - 2 * now) * chosen + now, rtol=1e-5)


def test_odm_waits_for_its_warmup():
    method = rules.odm(warmup=5)
    np.testing.assert_allclose(after(method, seen([3.0, 2.0], step=5), weights=(0.9, 0.1)), [0.9, 0.1])
    assert after(method, seen([3.0, 2.0], step=6), weights=(0.9, 0.1))[1] > 0.1


def test_skillit_favours_what_helps_the_domains_that_are_still_bad():
    graph = [[1.0, 0.5], [0.0, 1.0]]
    one, two = seen([3.0, 2.0]), seen([2.0, 1.0], step=2)
    np.testing.assert_allclose(after(rules.skillit(graph=graph, step_size=0.1), one), softmax(0.4, 0.2), rtol=1e-6)
    # Sums of 5 and 3; a window of one sees the last only; of masked domains the mean counts.
    method = rules.skillit(graph=graph, step_size=0.1)
    np.testing.assert_allclose(after(method, one, two), softmax(0.5 + 0.15, 0.3), rtol=1e-6)
    last = rules.skillit(graph=graph, step_size=0.1, window=1)
    np.testing.assert_allclose(after(last, one, two), softmax(0.2 + 0.05, 0.1), rtol=1e-6)
    masked = rules.skillit(graph=graph, step_size=0.1, masked=(1,))
    np.testing.assert_allclose(after(masked, one, two), softmax(0.075, 0.15), rtol=1e-6)
    faded = rules.skillit(graph=graph, step_size=0.1, fade=True)
    np.testing.assert_allclose(after(faded, one, two), softmax(0.5 + 0.075, 0.3), rtol=1e-6)
    # Missing from the second evaluation, the first domain counts with its mean, twice.
    hidden = seen([9.0, 1.0], step=2, present=(False, True))
    np.testing.assert_allclose(after(method, one, hidden), softmax(0.6 + 0.15, 0.3), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.dynamic_batch_loading(step_size=-1.0), "step_size must not be negative, got -1.0"),
        (lambda: rules.dynamic_batch_loading(smoothing=2.0), r"smoothing must lie in \[0, 1\], got 2.0"),
        (lambda: rules.group_dro(step_size=float("nan")), "step_size must not be negative, got nan"),
        (lambda: rules.cvar_dro(alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: rules.cvar_dro(alpha=0.0), "alpha must be positive, got 0"),
        (lambda: rules.odm(memory=-0.1), r"memory must lie in \[0, 1\], got -0.1"),
        (lambda: rules.odm(warmup=-1), "warmup must not be negative, got -1"),
        (lambda: rules.skillit(graph=[[1.0, 0.0]]), r"graph must be a square of finite numbers, got shape \(1, 2\)"),
        (lambda: rules.skillit(graph=np.eye(3)).init(TARGETS), "graph must have 2 rows, one per domain, got 3"),
        (lambda: rules.skillit(masked=(2,)).init(TARGETS), r"masked must name domains in \[0, 2\), got \[2\]"),
        (lambda: rules.skillit(window=0), "window must be at least 1, got 0"),
        (lambda: rules.SkillIt(graph=((1.0,), (0.0, 1.0))), r"graph must be square, got rows of \[1, 2\] numbers"),
        (lambda: rules.GroupDro(adjustment=-2.0), "adjustment must not be negative, got -2.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [rules.dynamic_batch_loading, rules.odm])
def test_an_unknown_form_is_refused(make):
    # By the types where they are checked, by the function itself everywhere else.
    with pytest.raises((ValueError, TypeError), match="form"):
        make(form="exp4")


def test_what_a_method_needs_and_is_not_given_is_named():
    method = rules.odm()
    with pytest.raises(ValueError, match=r"observation.weights must hold the mixture"):
        method.observe(method.init(TARGETS), seen([3.0, 2.0])._replace(weights=None))
    method = rules.cvar_dro()
    history = method.observe(method.init(TARGETS), seen([3.0, 2.0]))
    with pytest.raises(ValueError, match='targets.constants must hold "sizes"'):
        method.update(TARGETS.prior, history, TARGETS._replace(constants=()))
