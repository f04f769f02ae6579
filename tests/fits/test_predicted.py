"""Targets as plain values: from curves, from a law over sizes, from the user, and through a file."""

import json

import numpy as np
import pytest

from tests.fits.laws.test_chinchilla import planted
from vtune_jax.errors import UserError
from vtune_jax.fits import (
    LossCurve,
    MeasuredPoints,
    PredictedTargets,
    SizeTarget,
    estimate_over_sizes,
    estimate_targets,
)

TOKENS = np.geomspace(0.05, 0.4, 6)
INITIAL = np.array([9.0, 4.0])


def of_curves(**options):
    """One domain obeys 3 + 0.5 / D^0.5, the other rises; the budget is D = 1."""
    losses = np.stack([3 + 0.5 / TOKENS**0.5, np.linspace(3, 3.2, 6)], axis=1)
    found = estimate_targets(TOKENS, losses, 1.0, initial_losses=INITIAL)
    curve = LossCurve.of(found, [10, 20], [(0.5,), (1.0,)])
    points = MeasuredPoints.of(np.arange(6), losses, np.zeros(6, int))
    options = {"policy": "last_seen", "names": ("a", "b"), "curve": curve, "points": points, **options}
    return found, PredictedTargets.from_estimate(found, INITIAL, **options)


def test_a_target_that_was_replaced_keeps_its_prediction_and_loses_its_interval():
    found, targets = of_curves(notes=("line 7 was left out",))
    np.testing.assert_allclose(targets.target, [3.5, 3.2], rtol=1e-3)
    np.testing.assert_array_equal(targets.predicted, found.target)
    assert targets.lower[0] < targets.target[0] < targets.upper[0]
    assert targets.lower[1] is targets.upper[1] is targets.standard_error[1] is None
    assert targets.verdict == ("trustworthy", "rising loss")
    assert targets.notes[0] == "line 7 was left out"
    assert "domain 'b'" in targets.notes[1]
    assert set(targets.law) == {"E", "log_B", "beta"}
    np.testing.assert_allclose(targets.law["E"][0], 3.0, rtol=1e-3)


def test_the_curve_is_the_law_read_off_along_the_run():
    _, targets = of_curves()
    assert targets.curve.tokens == (10, 20)
    np.testing.assert_allclose([row[0] for row in targets.curve.loss], [3 + 0.5 / 0.5**0.5, 3.5], rtol=1e-3)


def test_the_policy_that_refuses_does():
    with pytest.raises(UserError, match="no usable target loss for 'b'"):
        of_curves(policy="error")


def test_a_law_over_sizes_gives_the_same_kind_of_value():
    params, tokens, losses = planted(noise=0.01)
    found = estimate_over_sizes(
        params, tokens, losses[:, None], SizeTarget(1e10, 1e12), initial_losses=np.array([5.0]), replicates=60
    )
    targets = PredictedTargets.from_estimate(found, np.array([5.0]), policy="error", names=("a",))
    assert targets.lower[0] < targets.target[0] < targets.upper[0]
    # Half the interval at 90 % over the normal quantile of 95 %.
    expected = (targets.upper[0] - targets.lower[0]) / 2 / 1.6448536
    np.testing.assert_allclose(targets.standard_error, [expected], rtol=1e-6)
    assert list(targets.law) == ["E", "log_A", "alpha", "log_B", "beta"]
    assert targets.diagnostics[0]["points"] == 60
    assert targets.curve is None


def test_the_users_own_targets_are_exact():
    targets = PredictedTargets.given((2.0, 2.5))
    assert targets.target == targets.lower == targets.upper == targets.predicted == (2.0, 2.5)
    assert targets.standard_error == (0.0, 0.0)
    assert targets.verdict == ("given", "given")
    assert targets.law is targets.curve is None


@pytest.mark.parametrize("made", [lambda: of_curves()[1], lambda: PredictedTargets.given((2.0, 2.5))])
def test_a_file_holds_all_of_it(made):
    targets = made()
    content = targets.as_json()
    assert {"target", "lower", "upper", "standard_error", "predicted", "verdict", "advice"} <= set(content)
    assert {"verdicts", "diagnostics", "law", "beta_prior", "notes", "curve", "points"} <= set(content)
    text = json.dumps({"initial": [4.0], **content}, allow_nan=False)
    assert PredictedTargets.from_json(json.loads(text)) == targets


def test_a_file_of_another_version_is_refused():
    content = PredictedTargets.given((2.0,)).as_json()
    del content["verdicts"]
    with pytest.raises(UserError, match="not what this version writes .*verdicts"):
        PredictedTargets.from_json(content)
