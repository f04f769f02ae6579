"""Families of published models against transformers: logits, loss and gradients, recorded and, where it is, live."""

import importlib.util

import jax
import numpy as np
import pytest

from experiments.parity.record import FAMILIES, FOLDER, make, measured
from vtune_jax.models import build
from vtune_jax.models.checkpoints import export, load_params, open_checkpoint
from vtune_jax.models.checkpoints.checkpoint import BLOCKS, path_of

LIVE = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")),
    reason="torch and transformers are of the extra `parity`",
)


def assert_equal_numbers(folder, truth):
    checkpoint = open_checkpoint(folder)
    model, params = build(checkpoint.config, checkpoint.config.rows), load_params(checkpoint)
    batch = {"tokens": truth["tokens"]}
    np.testing.assert_allclose(model.logits(params, truth["tokens"][:, :-1]), truth["logits"], atol=2e-5, rtol=0)

    loss, gradients = jax.value_and_grad(lambda params: model.losses(params, batch)[0].mean())(params)
    np.testing.assert_allclose(loss, truth["loss"], rtol=1e-6)
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
    compared = 0
    for path, place in checkpoint.names.places(leaves).items():
        for layer in range(checkpoint.config.layers) if path.startswith(BLOCKS) else [None]:
            theirs = truth[f"gradient {place.name.format(layer)}"]
            theirs = place.layout.ours(theirs, checkpoint.config)[place.ours.index(path.removeprefix(BLOCKS))]
            ours = leaves[path] if layer is None else leaves[path][layer]
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0, err_msg=path)
            compared += 1
    assert compared > 2 * checkpoint.config.layers


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_that_transformers_has_recorded(family):
    with np.load(FOLDER / family / "recorded.npz") as recorded:
        assert_equal_numbers(FOLDER / family, dict(recorded))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_to_the_byte_what_was_read(family, tmp_path):
    folder, checkpoint = FOLDER / family, open_checkpoint(FOLDER / family)
    export(tmp_path / "out", checkpoint.config, load_params(checkpoint), vocabulary=48, beside=folder)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@LIVE
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_transformers_that_is_installed(family, tmp_path):
    make(family, tmp_path)
    assert_equal_numbers(tmp_path, measured(tmp_path))


@LIVE
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_is_written_from_our_config_alone(family, tmp_path):
    checkpoint = open_checkpoint(FOLDER / family)
    export(tmp_path / "out", checkpoint.config, load_params(checkpoint), vocabulary=48)
    with np.load(FOLDER / family / "recorded.npz") as recorded:
        np.testing.assert_allclose(measured(tmp_path / "out")["logits"], recorded["logits"], atol=2e-6, rtol=0)
