"""The loss of a model on a text: by hand, and not dependent on how the rows are grouped."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.evals.text_loss import text_loss
from vtune_jax.models import DecoderConfig, Model, build
from vtune_jax.models.model import losses_from_logits

MODEL = build(DecoderConfig(layers=1, width=16, heads=2, key_value_heads=1, hidden=24), 40)
IDS = np.random.default_rng(0).integers(0, 40, 38).tolist()


def test_every_token_but_the_first_counts_once_and_sees_its_row():
    params = MODEL.init(0)
    found = text_loss(MODEL, params, IDS, bytes_said=100, sequence=8, rows_at_once=3)
    nats = 0.0
    for first in range(0, 37, 8):
        row = jnp.array([IDS[first : first + 9]])
        nats += float(MODEL.losses(params, {"tokens": row})[0].sum())
    assert found.tokens == 37
    assert found.nats == pytest.approx(nats, rel=1e-6)
    whole = text_loss(MODEL, params, IDS, bytes_said=100, sequence=1000)
    assert whole.nats == pytest.approx(float(MODEL.losses(params, {"tokens": jnp.array([IDS])})[0].sum()), rel=1e-6)


def test_units_by_hand():
    def logits(params, tokens, segments=None, positions=None):
        return jnp.zeros((*tokens.shape, 32))

    coin = Model(None, 32, lambda seed: {}, logits, losses_from_logits(logits))
    found = text_loss(coin, {}, [0, 1, 2, 3], bytes_said=5)
    # Five bits for each of three tokens, which say five bytes.
    assert found.nats_per_token == pytest.approx(math.log(32))
    assert found.bits_per_byte == pytest.approx(15 / 5)
    assert found.perplexity == pytest.approx(32)
    with pytest.raises(ValueError, match="ids must hold two tokens at least, got 1"):
        text_loss(coin, {}, [0], bytes_said=1)
