"""An experiment by one call from Python."""

import dataclasses

import pytest

import vtune_jax
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load


def test_a_file_with_overrides_gives_the_results_of_the_command(small, store, tmp_path):
    losses = {"targets__losses": [1.0, 2.0, 1.5], "arms": [{"name": "static"}]}
    results = vtune_jax.run(small, folder=tmp_path / "run", store=store, train__steps=10, **losses)
    assert results.run.token_budget == 10 * 4 * 16
    assert list(results.arms) == ["static"]
    assert (tmp_path / "run" / "latest" / "report.html").exists()


def test_a_config_made_in_python_runs_too(small, store, tmp_path):
    config = load(small, ("targets.losses=[1.0, 2.0, 1.5]", 'arms=[{name="static"}]', "train.steps=10"))
    results = vtune_jax.run(dataclasses.replace(config, name="mine"), folder=tmp_path / "run", store=store)
    assert results.experiment == "mine"
    with pytest.raises(ValueError, match="use dataclasses.replace on a config"):
        vtune_jax.run(config, seed=2)


def test_a_mistake_is_the_commands_mistake(small, tmp_path):
    with pytest.raises(UserError, match=r"unknown key 'train.stepz'; did you mean 'steps'\?"):
        vtune_jax.run(small, folder=tmp_path, train__stepz=3)


def test_the_public_surface_is_short_and_loads_nothing_heavy():
    import subprocess
    import sys

    assert set(vtune_jax.__all__) == {"__version__", "run", "rules", "fits", "data"}
    program = "import sys, vtune_jax; print(sorted({'jax', 'numpy'} & set(sys.modules))); vtune_jax.rules.velocitune"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    for name in vtune_jax.__all__:
        assert getattr(vtune_jax, name)
