"""Recorded numbers of each rule: every case of a method we have must come out, in float64.

The folder is given by VTUNE_FIXTURES; a small extract with the same schema is kept beside the tests, so that they
stand alone.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax import rules
from vtune_jax.core.types import LossSums, Observation, Targets

EXTRACT = Path(__file__).parent / "fixtures"
FOLDERS = [EXTRACT] + ([Path(os.environ["VTUNE_FIXTURES"])] if os.environ.get("VTUNE_FIXTURES") else [])
READERS = {"velocitune.json"}
CASES = [
    pytest.param(case, id=f"{folder.name}-{case['id']}")
    for folder in FOLDERS
    for path in sorted(folder.glob("*.json"))
    if path.name in READERS
    for case in json.loads(path.read_text())["cases"]
]


@pytest.mark.parametrize("case", CASES)
def test_velocitune_gives_the_recorded_weights(case):
    hyper, tolerance = case["hyperparams"], case["numerics"]
    with jax.enable_x64(True):
        method = rules.velocitune(step_size=hyper["eta"], clamp=hyper["clamp_remaining_fraction"], smoothing=hyper["c"])
        prior = jnp.array(case["init"]["weights"])
        initial, target = (jnp.array(case["targets"][name]) for name in ("init_loss", "target_loss"))
        targets = Targets(initial, target, jnp.zeros_like(prior), prior)
        weights, history = prior, method.init(targets)
        ones = jnp.ones(len(prior), jnp.int32)
        for step in case["steps"]:
            sums = LossSums(jnp.array(step["inputs"]["losses"]), ones)
            evidence = Observation(sums, sums, jnp.zeros(len(prior)), jnp.asarray(step["t"]))
            history = method.observe(history, evidence)
            weights = method.update(weights, history, targets)
            np.testing.assert_allclose(
                weights, step["expected"]["weights"], rtol=tolerance["rtol"], atol=tolerance["atol"]
            )


def test_the_extract_covers_every_variant():
    variants = {case["variant"] for case in json.loads((EXTRACT / "velocitune.json").read_text())["cases"]}
    assert variants == {"clamped", "unclamped", "clamped_smoothed"}
