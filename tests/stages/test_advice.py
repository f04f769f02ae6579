"""Advice that names a field and a value is followed, and must then be enough; one step beyond it must not be."""

import re

import pytest

from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.machine.progress import Progress
from vtune_jax.stages.pipeline import Pipeline

AIOLI = 'arms=[{name="aioli"}]'
CASES = {
    "held-out rows": (('arms=[{name="static"}]', "data.heldout_rows=500"), {"data.heldout_rows"}),
    "random mixtures": (('arms=[{name="regmix"}]',), {"proxies.mixtures"}),
    "a first round": ((AIOLI, "mixture.interval=5", "train.steps=12"), {"mixture.interval", "train.steps"}),
    "a first round of more steps than there are": ((AIOLI, "train.steps=2"), {"train.steps"}),
    "a proxy's first round": (
        ('arms=[{name="aioli", proxy_share=0.3}]', "mixture.interval=6", "train.steps=40"),
        {"mixture.interval", "train.steps"},
    ),
    "domains that may be read once": (
        (
            'arms=[{name="static"}]',
            *(f'corpus.domains.{place}.exhaustion="drop"' for place in range(3)),
            "train.steps=9000",
        ),
        {"train.steps"},
    ),
    "proxies": (("targets.budget=0.05", "train.steps=400", "data.heldout_rows=10"), {"targets.budget", "train.steps"}),
}


@pytest.mark.parametrize(("overrides", "named"), CASES.values(), ids=CASES)
def test_each_value_that_is_advised_is_enough_and_one_beyond_is_not(small, store, tmp_path, overrides, named):
    def tried(*more):
        found = load(small, (*overrides, *more))
        pipeline = Pipeline(found, tmp_path / "run", Progress(silent=True), store=store)
        pipeline.project()

    with pytest.raises(UserError) as refused:
        tried()
    advised = re.findall(r"([a-z_]+\.[a-z_.]+) to at (least|most) ([0-9.]*[0-9])", str(refused.value))
    assert {field for field, _, _ in advised} >= named
    for field, end, value in advised:
        tried(f"{field}={value}")
        if "." not in value:
            with pytest.raises(UserError):
                tried(f"{field}={int(value) + (1 if end == 'most' else -1)}")
