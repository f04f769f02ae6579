import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.core.history import append, empty_history, last_seen, newest_first
from vtune_jax.core.types import LossSums


def filled(rows, window=3):
    history = empty_history(2, window)
    for step, (nats, tokens) in enumerate(rows):
        sums = LossSums(jnp.array(nats, jnp.float32), jnp.array(tokens, jnp.int32))
        history = append(history, sums, jnp.zeros(2), jnp.asarray(step))
    return history


def test_the_ring_overwrites_the_oldest_row():
    history = filled([([float(n), 0.0], [1, 1]) for n in range(5)])
    assert int(history.entries) == 5
    np.testing.assert_array_equal(np.asarray(history.nats)[newest_first(history), 0], [4, 3, 2])
    np.testing.assert_array_equal(np.asarray(history.step)[newest_first(history)], [4, 3, 2])


def test_last_seen_divides_nats_by_tokens():
    loss, seen = last_seen(filled([([30.0, 8.0], [10, 4])]))
    np.testing.assert_allclose(loss, [3.0, 2.0])
    assert seen.all()


def test_last_seen_goes_back_to_the_newest_row_that_has_the_domain():
    loss, seen = last_seen(filled([([30.0, 8.0], [10, 4]), ([20.0, 0.0], [10, 0])]))
    np.testing.assert_allclose(loss, [2.0, 2.0])
    assert seen.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_evidence_that_is_not_finite_counts_as_none(bad):
    loss, seen = last_seen(filled([([30.0, bad], [10, 4])]))
    np.testing.assert_array_equal(seen, [True, False])
    np.testing.assert_allclose(loss, [3.0, 0.0])


def test_an_empty_history_has_seen_nothing():
    _, seen = last_seen(empty_history(4, 2))
    assert not seen.any()


def test_a_domain_last_seen_before_the_window_is_forgotten():
    _, seen = last_seen(filled([([3.0, 3.0], [1, 1])] + [([3.0, 0.0], [1, 0])] * 3))
    np.testing.assert_array_equal(seen, [True, False])


def test_a_window_without_rows_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        empty_history(2, 0)
