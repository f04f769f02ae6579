"""What methods need is really computed by the train step: excess losses, gradients, weights on the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.train.test_step import batch
from vtune_jax import rules
from vtune_jax.core.losses import token_nats
from vtune_jax.core.types import Method
from vtune_jax.train.evidence.alignment import align, batch_gradients, heldout_gradients, latest
from vtune_jax.train.optimizer import learning_rate
from vtune_jax.train.state import start

RTOL = 2e-4  # float32 sums in another order


def constants(method, interval=100, **options):
    """Of a run whose weights are updated so often; they are not by default."""
    return tiny.constants(method=method, interval=interval)._replace(**options)


def started(method):
    return start(tiny.params(), method, tiny.targets())


def row_nats(params, tokens):
    return np.asarray(token_nats(tiny.model().logits(params, tokens[:, :-1]), tokens[:, 1:]), np.float64)


@jax.jit
def gradients(params, one):
    return batch_gradients(tiny.model(), params, one, tiny.DOMAINS)


@jax.jit
def towards_heldout(params, heldout):
    return heldout_gradients(tiny.model(), params, heldout)


def mean_loss(params, rows):
    return token_nats(tiny.model().logits(params, rows[:, :-1]), rows[:, 1:]).mean()


GRADIENT = jax.jit(jax.grad(mean_loss))


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def test_excess_losses_are_those_of_every_token_against_the_reference_model():
    method = rules.DoReMi()
    reference = tiny.params(7)
    of_run = constants(method, reference=reference)
    state, step = started(method), tiny.jitted(method)
    expected = np.zeros((4, tiny.DOMAINS))
    for seed in range(3):
        one = batch(seed)
        tokens, domain = jnp.asarray(one["tokens"], jnp.int32), np.asarray(one["domain"])
        excess = row_nats(state.params, tokens) - row_nats(reference, tokens)
        columns = (np.maximum(excess, 0).sum(1), excess.sum(1), (excess > 0).sum(1), np.full(len(domain), tiny.LENGTH))
        for kind, column in enumerate(columns):
            np.add.at(expected[kind], domain, column)
        state, _ = step(state, one, of_run)
    for found, column in zip(state.mixture.evidence["excess"], expected, strict=True):
        np.testing.assert_allclose(found, column, rtol=RTOL, atol=1e-3)


def test_excess_losses_start_again_after_an_update():
    method = rules.DoReMi()
    of_run = constants(method, 2, reference=tiny.params(7))
    state, step = started(method), tiny.jitted(method)
    for seed in range(2):
        state, _ = step(state, batch(seed), of_run)
    assert np.asarray(state.mixture.evidence["excess"].tokens).sum() == 0
    assert np.asarray(state.mixture.history.memory.seen).any()


def test_a_domains_gradient_is_that_of_its_own_rows():
    params, one = tiny.params(), batch(1)
    tokens, domain = jnp.asarray(one["tokens"], jnp.int32), np.asarray(one["domain"])
    stacked, present = gradients(params, one)
    assert present.tolist() == [index in domain for index in range(tiny.DOMAINS)]
    for index in set(domain.tolist()):
        rows = tokens[domain == index]

        of_domain = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        np.testing.assert_allclose(flat(of_domain), flat(GRADIENT(params, rows)), rtol=RTOL, atol=1e-5)


def test_a_heldout_gradient_is_that_of_the_domains_heldout_rows():
    params, heldout = tiny.params(), tiny.heldout()
    stacked = towards_heldout(params, heldout)
    for index in range(tiny.DOMAINS):
        rows = jnp.asarray(heldout["tokens"][index], jnp.int32)

        of_domain = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        np.testing.assert_allclose(flat(of_domain), flat(GRADIENT(params, rows)), rtol=RTOL, atol=1e-5)


def test_alignment_is_all_inner_products_and_norms():
    rng = np.random.default_rng(0)
    left, right = ({"a": rng.normal(size=(n, 3, 2)), "b": rng.normal(size=(n, 4))} for n in (3, 2))
    flat_left, flat_right = (
        np.concatenate([tree["a"].reshape(len(tree["a"]), -1), tree["b"]], axis=1) for tree in (left, right)
    )
    found = align(*jax.tree.map(jnp.asarray, (left, right)), jnp.float32(0.1))
    np.testing.assert_allclose(found.inner, flat_left @ flat_right.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.norm, np.linalg.norm(flat_left, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.target_norm, np.linalg.norm(flat_right, axis=1), rtol=1e-5)


def test_an_absent_domain_keeps_its_last_gradient():
    old, new = {"a": jnp.ones((3, 2))}, {"a": 2 * jnp.ones((3, 2))}
    kept = latest(old, new, jnp.array([True, False, True]))
    assert kept["a"].tolist() == [[2, 2], [1, 1], [2, 2]]


@pytest.mark.parametrize("towards", ["train", "heldout"])
def test_the_method_is_given_the_alignment_at_the_new_parameters(towards):
    given = []
    inner = rules.doge(towards=towards)

    def observe(history, observation):
        jax.debug.callback(lambda *fields: given.append(fields), *observation.evidence["alignment"])
        return inner.observe(history, observation)

    method = Method(inner.init, observe, inner.update, inner.needs)
    state, _ = tiny.jitted(method)(started(method), batch(2), constants(method, 1))
    jax.effects_barrier()
    train, _ = gradients(state.params, batch(2))
    target = train if towards == "train" else towards_heldout(state.params, tiny.heldout())
    expected = align(train, target, learning_rate(tiny.OPTIMIZER.numbers(), jnp.int32(1), jnp.int32(tiny.STEPS)))
    for found, wanted in zip(given[0], expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=1e-5)


def test_weights_on_the_loss_weigh_tokens_and_leave_the_sampling_at_the_prior():
    method = rules.GroupDro(step_size=1.0)
    state, step = started(method), tiny.jitted(method, acts_on="loss")
    first, _ = step(started(method), batch(3), constants(method, 1))
    assert not np.allclose(first.mixture.weights, tiny.targets().prior)
    np.testing.assert_array_equal(first.mixture.quota, state.mixture.quota)
    np.testing.assert_array_equal(first.mixture.pending, state.mixture.quota)
    one = batch(4)
    tokens, domain = jnp.asarray(one["tokens"], jnp.int32), np.asarray(one["domain"])
    importance = (np.asarray(first.mixture.weights) / np.asarray(tiny.targets().prior))[domain]

    def loss(params):
        nats = token_nats(tiny.model().logits(params, tokens[:, :-1]), tokens[:, 1:]).mean(axis=1)
        return (importance * nats).sum() / importance.sum()

    norm = np.linalg.norm(flat(jax.jit(jax.grad(loss))(first.params)))
    _, metrics = step(first, one, constants(method, 1))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=RTOL)


def test_weights_on_the_loss_equal_to_the_prior_change_nothing():
    method = rules.GroupDro(step_size=1.0)
    sampled, weighed = (tiny.jitted(method, acts_on=acts_on) for acts_on in ("sampling", "loss"))
    one, other = (step(started(method), batch(5), constants(method))[0] for step in (sampled, weighed))
    # The absolute part is a millionth of Adam's step: a parameter that it takes close to zero keeps its rounding.
    np.testing.assert_allclose(flat(one.params), flat(other.params), rtol=1e-6, atol=1e-8)


def test_a_need_that_nobody_supplies_is_refused_before_anything_is_compiled():
    plain = rules.static()
    method = plain._replace(needs=frozenset({"tea_leaves"}))
    with pytest.raises(ValueError, match=r"the method needs \['tea_leaves'\], but what can be supplied is"):
        tiny.step_of(method)
