"""Mixtures that follow from the sizes of the domains alone: natural shares, power laws, UniMax, strata."""

import math
from collections.abc import Sequence

import numpy as np

from vtune_jax.core.checks import as_counts, assert_within, given

_ROUNDING = 1e-12
"""Share of a budget that is rounding error: a product of float64 is right to 1e-16 of it."""


def prior_weights(tokens: Sequence[int] | np.ndarray, power: float = 1.0) -> np.ndarray:
    """`w_i = n_i^a / sum_j n_j^a`: natural shares for `a = 1`, uniform for `a = 0`.

    Args:
        tokens: available per domain, positive.
        power: a >= 0; the reciprocal of what some authors call temperature.

    Raises:
        ValueError: a domain without tokens or with infinitely many, or a power that is negative or NaN.
        TypeError: what are no numbers.
    """
    assert_within(power=power)
    counts = as_counts("tokens", tokens)
    # Divided by the largest first: 10**13 tokens to a large power would overflow.
    powers = (counts / counts.max()) ** power
    shares: np.ndarray = powers / powers.sum()
    return shares


def unimax_weights(
    tokens: Sequence[int] | np.ndarray, budget: float | int, max_epochs: float | int
) -> tuple[np.ndarray, float]:
    """UniMax: uniform over the domains as far as none is read more than `max_epochs` times.

    From the smallest domain to the largest, with r domains and a budget of C_r left: `U_i = min(C_r / r, N n_i)`,
    `C_{r-1} = C_r - U_i`; then `w = U / sum U`. Source: Chung et al. 2023, arXiv:2304.09151 (in characters there).

    Args:
        tokens: available per domain, positive.
        budget: tokens of the whole run, C.
        max_epochs: N.

    Returns:
        weights, float64, and the tokens of the budget that cannot be spent within N epochs; exactly 0 where all can be.

    Raises:
        ValueError: an argument that is not positive, or tokens or a budget that are not finite.
        TypeError: what are no numbers.
    """
    counts = as_counts("tokens", tokens)
    assert_within(budget=budget, max_epochs=max_epochs)
    if not (0 < budget < math.inf and max_epochs > 0):
        raise ValueError(f"budget and max_epochs must be positive, got {budget} and {max_epochs}.")
    share, left = np.zeros(len(counts)), float(budget)
    for done, domain in enumerate(np.argsort(counts, kind="stable")):
        share[domain] = min(left / (len(counts) - done), max_epochs * counts[domain])
        left -= share[domain]
    # Not the budget less the shares' sum, whose rounding would look like a few tokens that cannot be spent.
    unspent = float(budget - max_epochs * counts.sum())
    return share / share.sum(), unspent if unspent > _ROUNDING * budget else 0.0


def stratified_weights(tokens: Sequence[int] | np.ndarray, groups: Sequence[str], power: float = 1.0) -> np.ndarray:
    """Groups of domains share evenly, the domains of a group by `n_i^a`: `w_i = n_i^a / (G sum_{j in group} n_j^a)`.

    Args:
        tokens: available per domain, positive.
        groups: the group that each domain belongs to, of G different ones.
        power: a >= 0, within a group.

    Raises:
        ValueError: not one group per domain, or as `prior_weights`.
        TypeError: groups that are no names, or as `prior_weights`.
    """
    counts = as_counts("tokens", tokens)
    if isinstance(groups, str) or not isinstance(groups, Sequence | np.ndarray):
        raise TypeError(f"groups must be a sequence of names, got {given(groups)}.")
    if len(groups) != len(counts):
        raise ValueError(f"groups must name one group per domain ({len(counts)}), got {len(groups)}.")
    group_of = np.array(groups)
    weights = np.zeros(len(counts))
    for group in set(groups):
        weights[group_of == group] = prior_weights(counts[group_of == group], power)
    weights /= weights.sum()
    return weights
