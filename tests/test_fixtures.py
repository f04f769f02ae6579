"""Recorded numbers of each rule: every case of a method we have must come out, in float64.

The folder is given by VTUNE_FIXTURES, by default one that may lie beside the checkout; a small extract with the same
schema is kept beside the tests, so that they stand alone. How a method's case is run is in `tests/recorded`.
"""

import json
import os
from pathlib import Path

import jax
import pytest

from tests.recorded import ado, by_excess, by_gradients, by_losses, by_probes, offline, static

EXTRACT = Path(__file__).parent / "fixtures"
WHOLE = Path(os.environ.get("VTUNE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
CASES = [
    pytest.param(case, id=f"{folder.name}-{case['id']}")
    for folder in (EXTRACT, WHOLE)
    for path in sorted(folder.glob("*.json"))
    for case in json.loads(path.read_text())["cases"]
]
FAMILIES = (ado, by_losses, by_excess, by_gradients, by_probes, offline, static)
VARIANTS = {method: variants for family in FAMILIES for method, variants in family.VARIANTS.items()}
RUNS = {method: family.run for family in FAMILIES for method in family.VARIANTS}


@pytest.mark.parametrize("case", CASES)
def test_fixtures(case):
    assert case["variant"] in VARIANTS[case["method"]]
    with jax.enable_x64(True):
        RUNS[case["method"]](case)


def test_the_extract_covers_every_variant():
    found = {}
    for path in EXTRACT.glob("*.json"):
        for case in json.loads(path.read_text())["cases"]:
            found.setdefault(case["method"], set()).add(case["variant"])
    assert found == VARIANTS
