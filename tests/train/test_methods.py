"""Every method trains end to end, on evidence that the trainer has really computed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vtune_jax import rules
from vtune_jax.train.loop import train
from vtune_jax.train.state import start

# Of three domains the first is nearly learnt at once, the last is the hardest: its loss stays the largest, and the
# furthest from its target.
FAVOURS_THE_HARDEST = [
    rules.DynamicBatchLoading(smoothing=0.01),
    rules.DynamicBatchLoading(form="bandit"),
    rules.GroupDro(step_size=0.5),
    rules.GroupDro(form="cvar", floor=0.05),
    rules.Odm(form="smoothed_share"),
    rules.Odm(form="paper"),
    rules.SkillIt(),
]


@pytest.mark.parametrize(
    "method", FAVOURS_THE_HARDEST, ids=lambda method: f"{method.name}-{getattr(method, 'form', '')}"
)
def test_the_hardest_domain_gets_the_most(tmp_path, method):
    ones = jnp.ones(tiny.DOMAINS)
    targets = tiny.targets()._replace(target=ones / 2, prior=ones / tiny.DOMAINS, constants={"sizes": 1e3 * ones})
    state = start(tiny.model().init(0), tiny.OPTIMIZER.build(), method.build(), targets)
    train(tiny.run(tmp_path), tiny.engine("host", method), state)
    updates = [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()]
    weights = np.array([row["weights"] for row in updates])
    losses = np.array([row["heldout_loss"] for row in updates])
    assert len(updates) == tiny.STEPS // tiny.INTERVAL
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert losses[-1].argmax() == weights[-1].argmax()
    assert losses[-1].argmin() == weights[-1].argmin()
