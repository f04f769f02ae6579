"""The pages on adding a rule, a law, a model and a kind of evidence are followed word by word, one file each."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def block(page, after, name=""):
    """The first fenced Python block after some words; of a doctest the lines that are typed."""
    text = (ROOT / page).read_text()
    code = re.search(r"```python\n(.*?)```", text[text.index(after) :], re.DOTALL).group(1)
    if ">>> " not in code:
        return code
    typed = [line[4:] for line in code.splitlines() if line.startswith((">>> ", "... "))]
    return "\n".join(typed).partition("from vtune_jax import rules")[0]


ADDED = {
    "rules/loss_proportional.py": ("vtune_jax/rules/README.md", "## How to add a rule"),
    "fits/laws/pure_power.py": ("vtune_jax/fits/README.md", "## How to add a law"),
    "models/bigram.py": ("BUILD.md", "<!-- a model -->"),
}

PROGRAM = """
import json
from pathlib import Path

import numpy as np
from vtune_jax import fits, rules
from vtune_jax.experiment.load import load
from vtune_jax.models import build

config = load(Path("CONFIG"))
model = build(config.model, 7)
params = model.init(0)
nats, counted = model.losses(params, {"tokens": np.array([[1, 2, 3]])})
table = np.asarray(params["table"], np.float64)
by_hand = [np.log(np.exp(table[a]).sum()) - table[a, b] for a, b in ((1, 2), (2, 3))]
tokens = np.array([1e3, 2e3, 4e3, 8e3])
print(json.dumps({
    "rules": [method.name for method in rules.METHODS],
    "weights": rules.Mixer(config.arms[0].method, [0.5, 0.5]).update(1, heldout=[3.0, 1.0]).tolist(),
    "laws": list(fits.known_laws()),
    "model": [float(value) for value in np.asarray(nats)[0]],
    "by_hand": by_hand,
}))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """What a copy of the package with the files of the pages in it says."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "vtune_jax", folder / "vtune_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for file, (page, after) in ADDED.items():
        assert not (folder / "vtune_jax" / file).exists()
        (folder / "vtune_jax" / file).write_text(block(page, after))
    config = folder / "x.toml"
    config.write_text(
        '[corpus]\nbase = { name = "c", source = "c" }\ndomains = [{ name = "a", source = "a" }, { name = "b", '
        'source = "b" }]\n[model]\nname = "bigram"\n[[arms]]\nname = "loss_proportional"\npower = 1.0\n'
    )
    program = PROGRAM.replace("CONFIG", str(config))
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_a_rule_is_found_by_its_file_and_trains_by_its_name(extended):
    assert "loss_proportional" in extended["rules"]
    assert extended["weights"] == [0.75, 0.25]


def test_a_law_is_found_by_its_file(extended):
    assert "PD" in extended["laws"]


def test_a_model_is_found_by_its_file_and_offers_its_loss(extended):
    assert extended["model"] == pytest.approx(extended["by_hand"], rel=1e-5)
