import jax.numpy as jnp
import numpy as np

from vtune_jax.core.losses import domain_sums, token_nats
from vtune_jax.core.types import LossSums


def test_token_nats_is_minus_the_log_of_the_softmax():
    logits = np.array([[[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]])
    labels = np.array([[1, 2]])
    expected = [-np.log(np.exp(2.0) / np.exp([1.0, 2.0, 0.5]).sum()), np.log(3.0)]
    np.testing.assert_allclose(token_nats(jnp.array(logits), jnp.array(labels))[0], expected, rtol=1e-6)


def test_domain_sums_add_the_masked_tokens_of_each_domain():
    nats = jnp.array([[1.0, 2.0], [4.0, jnp.nan], [8.0, 16.0]])
    mask = jnp.array([[True, True], [True, False], [True, True]])
    sums = domain_sums(nats, mask, jnp.array([2, 0, 2]), 4)
    np.testing.assert_array_equal(sums.nats, [4.0, 0.0, 27.0, 0.0])
    np.testing.assert_array_equal(sums.tokens, [1, 0, 4, 0])


def test_sums_of_parts_add_up_to_the_sum_of_the_whole():
    rng = np.random.default_rng(0)
    nats, domain = jnp.asarray(rng.random((8, 4), np.float32)), jnp.asarray(rng.integers(0, 3, 8))
    mask = jnp.ones((8, 4), bool)
    whole = domain_sums(nats, mask, domain, 3)
    parts = domain_sums(nats[:3], mask[:3], domain[:3], 3) + domain_sums(nats[3:], mask[3:], domain[3:], 3)
    assert isinstance(parts, LossSums)
    np.testing.assert_array_equal(parts.tokens, whole.tokens)
    np.testing.assert_allclose(parts.nats, whole.nats, rtol=1e-6)
