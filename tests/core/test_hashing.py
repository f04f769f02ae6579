import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.hashing import key


def lowbias32(word):
    """The published function, in Python's whole numbers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("purpose", [1, 8])
def test_a_key_is_the_same_for_a_number_and_for_a_traced_seed(seed, purpose):
    words = np.array([0, 5, 2**32 - 1], np.uint32)
    expected = [
        lowbias32(lowbias32((seed + purpose * 0x9E3779B9) % 2**32) ^ lowbias32((word + 0x9E3779B9) % 2**32))
        for word in words.tolist()
    ]
    assert key(np, seed, purpose, words).tolist() == expected
    assert key(np, np.uint32(seed), purpose, words).tolist() == expected
    traced = jax.jit(lambda seed: key(jnp, seed, purpose, jnp.asarray(words)))
    assert traced(np.uint32(seed)).tolist() == expected
