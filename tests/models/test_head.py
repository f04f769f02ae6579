"""The blockwise head: the same losses and gradients as all logits at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.losses import token_nats
from vtune_jax.models.head import head_nats

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.standard_normal((3, 10, 8)), jnp.float32)
PROJECTION = jnp.asarray(RNG.standard_normal((8, 40)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 40, (3, 10)))
WEIGHT = jnp.asarray(RNG.uniform(size=(3, 10)), jnp.float32)


def whole(hidden, projection):
    return (token_nats(hidden @ projection, LABELS) * WEIGHT).sum()


@pytest.mark.parametrize("most", [1, 3 * 40, 4 * 3 * 40, 9 * 3 * 40, 10**6])
def test_blocks_of_any_size_give_the_losses_and_gradients_of_the_whole(most):
    def blockwise(hidden, projection):
        return (head_nats(hidden, projection, LABELS, most=most) * WEIGHT).sum()

    np.testing.assert_allclose(
        head_nats(HIDDEN, PROJECTION, LABELS, most=most), token_nats(HIDDEN @ PROJECTION, LABELS), rtol=1e-6
    )
    for got, expected in zip(
        jax.grad(blockwise, argnums=(0, 1))(HIDDEN, PROJECTION),
        jax.grad(whole, argnums=(0, 1))(HIDDEN, PROJECTION),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_all_logits_are_never_in_memory():
    rows, places, width, vocab = 4, 512, 16, 4096

    def memory(most):
        def loss(hidden, projection):
            return head_nats(hidden, projection, jnp.zeros((rows, places), jnp.int32), most=most).sum()

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, places, width), (width, vocab))]
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * rows * places * vocab
    assert memory(2**40) >= logits
    assert memory(rows * vocab * 32) < logits / 4
