"""The order of a domain's rows within an epoch: a keyed bijection, computed row by row without a stored permutation.

Rows of memory-mapped files are shuffled one by one. Where storage is slow or made of records, neighbouring rows are
read together in blocks: the whole blocks come in a shuffled order, the rows within each block are shuffled too, and a
last block that is not whole comes at the end of the epoch.
"""

from types import ModuleType
from typing import Any

import jax
import numpy as np

from vtune_jax.core.hashing import key, mix
from vtune_jax.core.types import Seed
from vtune_jax.data.mixture.spec import PlanSpec, Purpose

_ROUNDS = 6  # with 4 rounds, neighbours in the file stay correlated in domains of a few dozen rows


def shuffle(xp: ModuleType, spec: PlanSpec, domain: Any, epoch: Any, position: Any, *, seed: Seed | None = None) -> Any:
    """The row read at a position of an epoch: a bijection of [0, rows) for each (seed, domain, epoch).

    Args:
        xp: numpy or jax.numpy.
        spec: of the plan.
        domain: index, any shape.
        epoch: uint32, likewise.
        position: uint32, below the domain's rows.
        seed: in place of the spec's; a traced uint32 can be mapped over.

    Returns:
        uint32, likewise.
    """
    seed = spec.seed if seed is None else seed
    word = xp.asarray(domain).astype(np.uint32)
    rows = np.array(spec.rows, np.uint32)
    if not spec.blocks or max(spec.blocks) == 1:
        length = xp.asarray(rows)[domain]
        bits = xp.asarray(_bits(rows))[domain]
        return _permute(xp, key(xp, seed, Purpose.ROWS, word, epoch), bits, length, position)
    size = xp.asarray(np.array(spec.blocks, np.uint32))[domain]
    block = block_at(xp, spec, domain, epoch, position // size, seed=seed)
    length = xp.minimum(size, xp.asarray(rows)[domain] - block * size)
    # The last block is short, so the number of bits differs within a domain.
    bits = _bits_of(xp, length)
    within = _permute(xp, key(xp, seed, Purpose.WITHIN, word, epoch, block), bits, length, position % size)
    return block * size + within


def block_at(xp: ModuleType, spec: PlanSpec, domain: Any, epoch: Any, ordinal: Any, *, seed: Seed | None = None) -> Any:
    """The block that an epoch reads as its `ordinal`-th; arguments as for `shuffle`."""
    seed = spec.seed if seed is None else seed
    sizes, rows = np.array(spec.block_by_domain, np.uint32), np.array(spec.rows, np.uint32)
    whole = np.maximum(rows // sizes, 1)
    length = xp.asarray(whole)[domain]
    bits = xp.asarray(_bits(whole))[domain]
    word = xp.asarray(domain).astype(np.uint32)
    # The block after the whole ones is shorter and stays last.
    inside = xp.minimum(ordinal, length - np.uint32(1))
    permuted = _permute(xp, key(xp, seed, Purpose.BLOCKS, word, epoch), bits, length, inside)
    return xp.where(ordinal < length, permuted, ordinal)


class OrderCache:
    """Stretches of each domain's order, computed once and then sliced; for planning on the host.

    The order of a domain's rows does not depend on weights, so the rows that a chunk of steps needs are consecutive.
    """

    def __init__(self, spec: PlanSpec, *, seed: Seed | None = None, stretch: int = 1 << 15) -> None:
        """Remembers nothing yet.

        Args:
            spec: of the plan.
            seed: in place of the spec's.
            stretch: positions computed at once.
        """
        self.seed = spec.seed if seed is None else int(seed)
        self._spec, self._stretch = spec, stretch
        self._stretches: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def rows(self, domain: int, epoch: int, first: int, count: int) -> list[np.ndarray]:
        """The next `count` rows of a domain from position `first` of an epoch on, in consecutive arrays."""
        parts, length = [], self._spec.rows[domain]
        while count:
            if first >= length:
                epoch, first = epoch + 1, 0
            start = first // self._stretch * self._stretch
            part = self._stretch_from(domain, epoch, start)[first - start : first - start + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return parts

    def _stretch_from(self, domain: int, epoch: int, start: int) -> np.ndarray:
        found = self._stretches.get(domain)
        if found is None or found[0] != (epoch, start):
            place = np.arange(start, min(start + self._stretch, self._spec.rows[domain]), dtype=np.uint32)
            which = np.array([domain]), np.array([epoch], np.uint32)
            found = ((epoch, start), shuffle(np, self._spec, *which, place, seed=self.seed))
            self._stretches[domain] = found
        return found[1]


def _bits(counts: np.ndarray) -> np.ndarray:
    return np.array([max(1, (int(count) - 1).bit_length()) for count in counts], np.uint32)


def _bits_of(xp: ModuleType, length: Any) -> Any:
    """Bits that the numbers 0 .. length - 1 need, at least one, for an array of lengths up to `MAX_BLOCK`."""
    bits = xp.ones_like(length)
    for power in range(1, 20):
        bits = bits + (length > np.uint32(1 << power)).astype(np.uint32)
    return bits


def _permute(xp: ModuleType, hashed: Any, bits: Any, length: Any, position: Any) -> Any:
    """A bijection of [0, length): an alternating Feistel network on `bits` bits.

    It is applied again while its result is not below `length` (cycle walking), on average at most twice in all.
    """
    low_bits = bits - bits // 2
    low_mask = (np.uint32(1) << low_bits) - np.uint32(1)
    high_mask = (np.uint32(1) << (bits // 2)) - np.uint32(1)

    def encrypt(value: Any, hashed: Any, low_bits: Any, low_mask: Any, high_mask: Any) -> Any:
        high, low = value >> low_bits, value & low_mask
        for turn in range(0, _ROUNDS, 2):
            high = high ^ (mix(low ^ (hashed + np.uint32(turn * 0x9E3779B1 % 2**32))) & high_mask)
            low = low ^ (mix(high ^ (hashed + np.uint32((turn + 1) * 0x9E3779B1 % 2**32))) & low_mask)
        return (high << low_bits) | low

    if xp is not np:

        def walk(value: Any) -> Any:
            return xp.where(value >= length, encrypt(value, hashed, low_bits, low_mask, high_mask), value)

        value = encrypt(position, hashed, low_bits, low_mask, high_mask)
        return jax.lax.while_loop(lambda value: (value >= length).any(), walk, value)

    hashed, low_bits, low_mask, high_mask, length, position = np.broadcast_arrays(
        hashed, low_bits, low_mask, high_mask, length, position
    )
    value = encrypt(position, hashed, low_bits, low_mask, high_mask)
    outside = np.flatnonzero((value >= length).ravel())
    flat = value.reshape(-1)
    parts = [part.reshape(-1)[outside] for part in (hashed, low_bits, low_mask, high_mask, length)]
    # Only results that lie outside are encrypted again: each turn costs about half of the turn before.
    while outside.size:
        again = encrypt(flat[outside], *parts[:4])
        flat[outside] = again
        still = again >= parts[4]
        outside, parts = outside[still], [part[still] for part in parts]
    return value
