"""Models are found by looking, offer their shapes without computing, and their own loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vtune_jax.models
from tests import tiny
from vtune_jax.models import DecoderConfig, build, model_configs, registry

BIGRAM = '''
"""Each token's successor by a table: the smallest model there is."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vtune_jax.models.model import Family, Model, losses_from_logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigramConfig:
    name: Literal["bigram"] = "bigram"


def build_bigram(config, vocabulary):
    def logits(params, tokens, segments=None, positions=None):
        return params["table"][tokens]

    return Model(config, vocabulary, lambda seed: {"table": jnp.zeros((vocabulary, vocabulary))}, logits,
                 losses_from_logits(logits))


FAMILY = Family(config=BigramConfig, build=build_bigram)
'''


def test_a_model_is_added_by_one_file(tmp_path, monkeypatch):
    (tmp_path / "bigram.py").write_text(BIGRAM)
    monkeypatch.setattr(vtune_jax.models, "__path__", [*vtune_jax.models.__path__, str(tmp_path)])
    registry.families.cache_clear()
    try:
        (bigram,) = (config for config in model_configs() if config.__name__ == "BigramConfig")
        model = build(bigram(), 7)
        nats, counted = model.losses(model.init(0), {"tokens": jnp.arange(12).reshape(2, 6) % 7})
        np.testing.assert_allclose(nats, np.full((2, 5), np.log(7)), rtol=1e-6)
        assert counted.all()
    finally:
        registry.families.cache_clear()


def test_the_decoder_is_found_and_its_config_told_apart_by_name():
    assert DecoderConfig in model_configs()
    assert next(iter(dataclasses.fields(DecoderConfig))).name == "name"
    assert DecoderConfig().name == "decoder"


def test_a_config_of_no_family_is_refused():
    with pytest.raises(ValueError, match="config must be one of DecoderConfig, got dict"):
        build({}, 7)


def test_the_template_has_the_shapes_of_the_parameters_and_computes_nothing():
    model = tiny.model()
    computed = []
    watched = model._replace(init=lambda seed: (jax.debug.callback(computed.append, seed), model.init(seed))[1])
    template = watched.template()
    jax.effects_barrier()
    assert computed == []
    params = model.init(3)
    assert jax.tree.structure(template) == jax.tree.structure(params)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)
    ]


def test_losses_are_minus_the_log_probability_of_the_next_token():
    model, tokens = tiny.model(), jnp.asarray([[1, 5, 2, 7, 0, 3, 3, 9, 4]])
    params = model.init(0)
    nats, counted = model.losses(params, {"tokens": tokens})
    probability = np.asarray(jax.nn.softmax(model.logits(params, tokens[:, :-1])[0].astype(jnp.float32)), np.float64)
    np.testing.assert_allclose(nats[0], -np.log(probability[np.arange(8), tokens[0, 1:]]), rtol=1e-5)
    assert nats.dtype == jnp.float32
    assert counted.all()


def test_places_of_padding_do_not_count():
    places = {
        "inputs": [[1, 2, 3, 0]],
        "labels": [[2, 3, 4, 0]],
        "segments": [[1, 1, 2, 0]],
        "positions": [[0, 1, 0, 0]],
    }
    packed = {name: jnp.asarray(rows) for name, rows in places.items()}
    _, counted = tiny.model().losses(tiny.model().init(0), packed)
    assert counted.tolist() == [[True, True, True, False]]
