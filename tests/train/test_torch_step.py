"""One training step against plain PyTorch: loss, norm of the gradient, and the parameters after AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.models import DecoderConfig, build
from vtune_jax.train.learn import LearnState, learn
from vtune_jax.train.optimizer import OptimizerConfig, fresh_memory, learning_rate

torch = pytest.importorskip("torch", reason="torch is of the extra `parity`")
torch_decoder = pytest.importorskip("experiments.torch_speed.torch_decoder")


@pytest.mark.parametrize("key_value_heads", [2, 4])
def test_steps_equal_those_of_pytorch(key_value_heads):
    config = DecoderConfig(layers=2, width=32, heads=4, key_value_heads=key_value_heads, hidden=48)
    model, optimizer = build(config, 60), OptimizerConfig(warmup_fraction=0.0)
    params = model.init(0)
    rival = torch_decoder.decoder(config, 60, params)
    descent = torch_decoder.optimiser(rival, optimizer)
    numbers, horizon = optimizer.numbers(), jnp.int32(10)
    learner = LearnState(params, fresh_memory(params))
    rng = np.random.default_rng(0)
    for count in range(3):
        tokens = rng.integers(0, 60, (4, 17))
        batch = {"tokens": jnp.asarray(tokens), "domain": jnp.zeros(4, jnp.int32)}
        rate = float(learning_rate(numbers, jnp.int32(count), horizon))
        loss, norm = torch_decoder.step(rival, descent, torch.tensor(tokens), rate, optimizer.clip_norm)
        learner, learned = learn(model, learner, batch, numbers, jnp.int32(count), horizon, domains=1)
        np.testing.assert_allclose(learned.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(learned.gradient_norm, norm, rtol=1e-5)
        ours = torch_decoder.named(jax.device_get(learner.params))
        for name, value in rival.state_dict().items():
            np.testing.assert_allclose(ours[name], value.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
