"""Targets by case resampling under the law over model sizes: intervals, and what the points cannot tell."""

import numpy as np
import pytest

from tests.fits.laws.test_chinchilla import planted
from vtune_jax.errors import UserError
from vtune_jax.fits import SizeTarget, Verdict, apply_policy, estimate_over_sizes

AT = SizeTarget(1e10, 1e12)
TRUTH = 1.7 + 400 / 1e10**0.34 + 1800 / 1e12**0.36


def estimate(params, tokens, losses, target=AT, **options):
    return estimate_over_sizes(params, tokens, np.asarray(losses)[:, None], target, replicates=60, **options)


def test_the_target_lies_in_its_interval_and_near_the_truth():
    got = estimate(*planted(noise=0.01), initial_losses=np.array([5.0]))
    assert got.lower[0] < got.target[0] < got.upper[0]
    assert abs(got.target[0] - TRUTH) < 0.02
    assert got.upper[0] - got.lower[0] < 0.1
    assert got.verdicts == ((Verdict.TRUSTWORTHY,),)


@pytest.mark.parametrize(
    ("sizes", "lengths", "advice"),
    [
        ([1e8], np.geomspace(1e9, 1e11, 8), "1 model size cannot tell"),
        ([1e8, 1e9], np.geomspace(1e9, 1e11, 4), "2 model sizes cannot tell"),
        (np.geomspace(1e7, 1e9, 4), [1e9, 1e10], "2 token counts cannot tell"),
        ([1e7, 1e9], [1e9, 1e10], "4 different points for five unknowns"),
    ],
)
def test_what_the_points_cannot_tell_is_not_made_up(sizes, lengths, advice):
    params, tokens = (grid.ravel() for grid in np.meshgrid(sizes, lengths))
    # Eight points in every case, so that one program is compiled.
    params, tokens = np.resize(params, 8), np.resize(tokens, 8)
    got = estimate(params, tokens, 1.7 + 400 / params**0.34 + 1800 / tokens**0.36)
    assert got.verdicts[0][0] == Verdict.UNDER_DETERMINED
    assert advice in got.advices[0][0]
    assert got.upper[0] == np.inf
    assert got.lower[0] == 0


def test_a_target_that_is_no_progress_or_far_off_is_told():
    points = planted(noise=0.0)
    got = estimate(*points, initial_losses=np.array([1.95]), current_losses=np.array([1.0]))
    assert got.verdicts[0] == (Verdict.NOT_BELOW_INITIAL, Verdict.NOT_BELOW_CURRENT)
    far = estimate(*points, SizeTarget(1e10, 1e15))
    assert far.verdicts[0] == (Verdict.TOO_FAR,)
    assert "decades of tokens" in far.advices[0][0]


def test_a_policy_replaces_it_by_the_longest_run_of_the_nearest_size():
    params, tokens, losses = planted(noise=0.0)
    initial = np.array([1.95])
    got = estimate(params, tokens, losses, initial_losses=initial)
    nearest = np.abs(np.log(params / AT.params)).argmin()
    target, notes = apply_policy(got, initial, policy="last_seen", names=("a",))
    assert target[0] == losses[nearest]
    assert "not 0.01 nats below" in notes[0]


def test_domains_cannot_pool_what_is_no_curve():
    params, tokens, losses = planted(noise=0.0)
    initial = np.array([1.95, 9.0])
    got = estimate_over_sizes(params, tokens, np.stack([losses] * 2, 1), AT, initial_losses=initial, replicates=60)
    with pytest.raises(UserError, match="no curves that domains could pool"):
        apply_policy(got, initial, policy="pooled", names=("a", "b"))


def test_without_a_target_only_the_law_is_judged():
    got = estimate(*planted(noise=0.01), target=None)
    assert np.isnan(got.target).all()
    assert got.verdicts == ((Verdict.TRUSTWORTHY,),)
