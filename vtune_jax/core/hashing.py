"""Our own 32-bit hash, the same in numpy and jax.numpy.

Numpy's generators and jax.random promise no stable stream across versions, and a resumed run must read the same rows.
This module imports no jax, so that worker processes that only read rows start quickly.
"""

from types import ModuleType
from typing import Any

import numpy as np

_GOLDEN = 0x9E3779B9


def mix(word: Any) -> Any:
    """Xor-shifts and two odd multipliers (the "lowbias32" constants of C. Wellons' search)."""
    if isinstance(word, np.ndarray):
        return _mix_in_place(word >> 16, word)
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _mix_in_place(shifted: Any, word: Any) -> Any:
    """`mix` with two arrays of memory instead of seven, for numpy: planning spends half of its time here."""
    mixed = word ^ shifted
    mixed *= np.uint32(0x7FEB352D)
    np.right_shift(mixed, 15, out=shifted)
    mixed ^= shifted
    mixed *= np.uint32(0x846CA68B)
    np.right_shift(mixed, 16, out=shifted)
    mixed ^= shifted
    return mixed


def key(xp: ModuleType, seed: Any, purpose: int, *words: Any) -> Any:
    """Hashes a seed, a purpose and any words, one after the other, to uint32.

    Args:
        xp: numpy or jax.numpy.
        seed: a Python number, or a uint32 that may be traced; equal ones give the same hash.
        purpose: keeps the keys of different uses apart.
        words: uint32 arrays, broadcast against each other.

    Returns:
        uint32 in the words' common shape, with at least one dimension.
    """
    # At least one dimension throughout: numpy warns when a scalar wraps, and never for an array.
    if isinstance(seed, int):
        hashed = mix(xp.asarray([(seed + purpose * _GOLDEN) % 2**32], np.uint32))
    else:
        hashed = mix(xp.asarray(seed, np.uint32).reshape(1) + np.uint32(purpose * _GOLDEN % 2**32))
    for word in words:
        hashed = mix(hashed ^ mix(word + np.uint32(_GOLDEN)))
    return hashed
