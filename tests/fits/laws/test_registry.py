"""A law is one file and one test: the README's example is put beside the other laws and used."""

import re
from pathlib import Path

import numpy as np
import pytest

import vtune_jax.fits.laws as folder
from tests.test_layers import GRAPH, PACKAGE
from vtune_jax.cli import main as cli
from vtune_jax.fits.laws import chinchilla
from vtune_jax.fits.laws.registry import known_laws, law_named

REGISTRY = "vtune_jax.fits.laws.registry"


def law_and_test():
    """The two files of the README's recipe."""
    text = (PACKAGE / "fits" / "README.md").read_text().partition("## How to add a law")[2]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder whose modules count as modules of `laws`."""
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    known_laws.cache_clear()
    yield tmp_path
    known_laws.cache_clear()


def test_the_laws_are_those_of_the_folder():
    assert [law.name for law in known_laws().values()] == ["LD", "LND", "LRA"]
    with pytest.raises(ValueError, match=r"unknown law 'XYZ'; known are LD \(L\(D\) = E \+ B / D\^beta\), LND"):
        law_named("XYZ")


def test_a_law_is_one_file_and_one_test(elsewhere, tmp_path, capsys):
    law, test = law_and_test()
    (elsewhere / "pure_power.py").write_text(law)
    names = {}
    exec(test, names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for planted in tests:
        planted()
    tokens = np.geomspace(1e6, 1e8, 8)
    rows = [f"{t!r},{x!r}" for t, x in zip(tokens.tolist(), (7 * tokens**-0.1).tolist(), strict=True)]
    table = tmp_path / "points.csv"
    table.write_text("\n".join(["tokens,loss", *rows]) + "\n")
    options = ("--law", "PD", "--predict", "1e9", "--replicates", "20")
    assert cli.invoke(["fit", str(table), *options]) == 0
    printed = capsys.readouterr().out
    assert "L(D) = B / D^beta" in printed
    values = dict(re.findall(r"^  (B|beta) +([0-9.]+)", printed, re.MULTILINE))
    np.testing.assert_allclose([float(values["B"]), float(values["beta"])], [7, 0.1], rtol=1e-5)
    assert f"target    {7 * 1e9**-0.1:.4f}"[:15] in printed
    assert (tmp_path / "points.png").exists()
    assert cli.invoke(["fit", str(table), "--law", "PD", "--share-beta"]) == 2
    assert "the law PD makes no use of --share-beta" in capsys.readouterr().err


def test_two_laws_of_one_name_are_refused(elsewhere):
    (elsewhere / "twin.py").write_text(Path(chinchilla.__file__).read_text())
    with pytest.raises(ValueError, match=r"bring a law 'LND', one is (twin|chinchilla)"):
        known_laws()


@pytest.mark.parametrize("module", sorted(name for name in GRAPH if name.startswith("vtune_jax.fits.laws.")))
def test_no_law_leads_back_to_the_registry(module):
    """The registry imports the laws by name, which the test of circles cannot see."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            # A package's own list of names is no part of its modules.
            waiting += [lower for lower in GRAPH[name] if lower != "vtune_jax.fits"]
    assert module == REGISTRY or REGISTRY not in reached
