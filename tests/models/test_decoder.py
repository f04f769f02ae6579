import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vtune_jax.models import DecoderConfig, build
from vtune_jax.models.decoder import rotate

SMALL = DecoderConfig(layers=2, width=16, heads=4, key_value_heads=2, hidden=24)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)


def reference(params, tokens, config):
    """The same decoder in plain numpy and float64, loop by loop."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    half = config.width // config.heads // 2
    out = []
    for row in np.asarray(tokens):
        hidden = params["embedding"][row]
        for layer in range(config.layers):
            block = params["blocks"][layer]
            x = norm(hidden, block["attention_norm"]["scale"], config)
            mixed = np.zeros_like(hidden)
            for head in range(config.heads):
                group = head // (config.heads // config.key_value_heads)
                q, k, v = (
                    x @ block["attention"][name][:, index]
                    for name, index in (("query", head), ("key", group), ("value", group))
                )
                q, k = (turned(matrix, half, config.rope_theta) for matrix in (q, k))
                scores = q @ k.T / np.sqrt(2 * half)
                scores[np.triu_indices(len(row), 1)] = -np.inf
                share = np.exp(scores - scores.max(axis=1, keepdims=True))
                share /= share.sum(axis=1, keepdims=True)
                mixed += share @ v @ block["attention"]["out"][head]
            hidden = hidden + mixed
            x = norm(hidden, block["mlp_norm"]["scale"], config)
            gate = x @ block["mlp"]["gate"]
            hidden = hidden + (gate / (1 + np.exp(-gate)) * (x @ block["mlp"]["up"])) @ block["mlp"]["down"]
        head = params["embedding"].T if config.tied_head else params["head"]
        out.append(norm(hidden, params["norm"]["scale"], config) @ head)
    return np.stack(out)


def norm(x, scale, config):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * scale


def turned(matrix, half, theta):
    out = matrix.copy()
    for position in range(len(matrix)):
        for pair in range(half):
            angle = position * theta ** (-pair / half)
            a, b = matrix[position, pair], matrix[position, pair + half]
            out[position, pair] = a * np.cos(angle) - b * np.sin(angle)
            out[position, pair + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_logits_equal_a_plain_numpy_decoder(tied, key_value_heads):
    config = DecoderConfig(layers=2, width=16, heads=4, key_value_heads=key_value_heads, hidden=24, tied_head=tied)
    model = build(config, 50)
    # Any parameters will do: larger ones than at the start of training, so that attention is far from uniform.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(leaf.ndim == 1, 0.3, leaf.shape), jnp.float32), model.template()
    )
    np.testing.assert_allclose(model.logits(params, TOKENS), reference(params, TOKENS, config), rtol=2e-4, atol=2e-4)


def test_a_position_sees_no_later_token():
    model = build(SMALL, 50)
    params = model.init(0)
    changed = TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 50)
    before, after = model.logits(params, TOKENS), model.logits(params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


def test_rotary_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at, other):
        left, right = (rotate(x, jnp.array([[p]]), 100.0) for x, p in ((query, at), (key, other)))
        return float((left * right).sum())

    np.testing.assert_allclose(score(7, 3), score(14, 10), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_parameters_is_counted_right(tied):
    config = DecoderConfig(layers=3, width=24, heads=4, key_value_heads=2, hidden=40, tied_head=tied)
    counted = sum(leaf.size for leaf in jax.tree.leaves(build(config, 77).template()))
    assert config.parameters(77) == counted


def test_flops_are_six_per_weight_in_a_product_and_the_causal_scores():
    # By hand: attention 16*4*2*(4+2)=768, SwiGLU 3*16*24=1152, two layers 3840, head 16*50=800, scores 2*16*9=288.
    assert SMALL.flops_per_token(50, 9) == 6 * (3840 + 800 + 288)


def test_bfloat16_activations_stay_near_float32():
    low = build(DecoderConfig(layers=2, width=16, heads=4, key_value_heads=2, hidden=24, dtype="bfloat16"), 50)
    params = low.init(0)
    assert low.logits(params, TOKENS).dtype == jnp.bfloat16
    exact = build(SMALL, 50).logits(params, TOKENS)
    np.testing.assert_allclose(low.logits(params, TOKENS).astype(jnp.float32), exact, atol=0.02)


def test_the_seed_alone_decides_the_parameters():
    model = build(SMALL, 50)
    first, again, other = model.init(1), model.init(1), model.init(2)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert not np.allclose(first["embedding"], other["embedding"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"width": 20, "heads": 4}, "width must be a multiple of 2 \\* heads = 8, got 20"),
        ({"key_value_heads": 3}, "key_value_heads must divide heads = 4, got 3"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)
