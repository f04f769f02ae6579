import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vtune_jax.models import DecoderConfig, build
from vtune_jax.models.decoder import axes_of
from vtune_jax.models.decoder_config import RotaryScaling
from vtune_jax.models.rotary import frequencies, rotate

SMALL = DecoderConfig(layers=2, width=16, heads=4, key_value_heads=2, hidden=24)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)


def reference(params, tokens, config):
    """The same decoder in plain numpy and float64, loop by loop."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    wide = config.of_head
    out = []
    for row in np.asarray(tokens):
        hidden = params["embedding"][row]
        for layer in range(config.layers):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
            x = norm(hidden, block["attention_norm"], config)
            query, key, value = (linear(x, block["attention"][name]) for name in ("query", "key", "value"))
            mixed = np.zeros((len(row), config.heads * wide))
            for head in range(config.heads):
                group = head // (config.heads // config.key_value_heads)
                q, k, v = (
                    matrix[:, index * wide : (index + 1) * wide]
                    for matrix, index in ((query, head), (key, group), (value, group))
                )
                if config.query_key_norm:
                    q = norm(q, block["attention"]["query_norm"], config)
                    k = norm(k, block["attention"]["key_norm"], config)
                q, k = turned(q, config), turned(k, config)
                scores = q @ k.T / np.sqrt(wide)
                for place in range(len(row)):
                    scores[place, place + 1 :] = -np.inf
                    scores[place, : max(place + 1 - (config.window or len(row)), 0)] = -np.inf
                share = np.exp(scores - scores.max(axis=1, keepdims=True))
                share /= share.sum(axis=1, keepdims=True)
                mixed[:, head * wide : (head + 1) * wide] = share @ v
            attended = hidden + linear(mixed, block["attention"]["out"])
            x = norm(hidden if config.parallel else attended, block["mlp_norm"], config)
            up = linear(x, block["mlp"]["up"])
            if config.mlp == "swiglu":
                gate = linear(x, block["mlp"]["gate"])
                inner = gate / (1 + np.exp(-gate)) * up
            else:
                inner = up * (1 + erf(up / np.sqrt(2))) / 2
            hidden = attended + linear(inner, block["mlp"]["down"])
        head = params["embedding"].T if config.tied_head else params["head"]
        out.append(norm(hidden, params["norm"], config) @ head)
    return np.stack(out)


def linear(x, weights):
    return x @ weights["matrix"] + weights.get("bias", 0)


def norm(x, weights, config):
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * weights["scale"] + weights.get(
        "bias", 0
    )


def turned(matrix, config):
    out, half = matrix.copy(), config.turning // 2
    for position in range(len(matrix)):
        for pair in range(half):
            angle = position * config.rope_theta ** (-pair / half)
            a, b = matrix[position, pair], matrix[position, pair + half]
            out[position, pair] = a * np.cos(angle) - b * np.sin(angle)
            out[position, pair + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


SHAPES = {
    "llama": {"tied_head": False},
    "multi-query": {"key_value_heads": 1},
    "multi-head": {"key_value_heads": 4},
    "mistral": {"window": 4, "rope_theta": 1e6},
    "qwen2": {"attention_bias": "inputs", "rows": 64},
    "qwen3": {"query_key_norm": True, "head_width": 6, "norm_epsilon": 1e-6},
    "neox": {
        "key_value_heads": 4,
        "norm": "layer",
        "mlp": "gelu",
        "mlp_bias": True,
        "attention_bias": "all",
        "parallel": True,
        "rope_fraction": 0.5,
        "tied_head": False,
    },
}


def shaped(name):
    return dataclasses.replace(SMALL, **SHAPES[name])


def drawn(model):
    # Any parameters will do: larger ones than at the start of training, so that attention is far from uniform.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.5, 0.3, leaf.shape), jnp.float32), model.template())


@pytest.mark.parametrize("remat", ["none", "products", "all"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_a_plain_numpy_decoder(name, remat):
    if remat != "none" and name not in ("llama", "neox"):
        pytest.skip("what is computed again is the same in all families")
    config = dataclasses.replace(shaped(name), remat=remat)
    model = build(config, 50)
    params = jax.tree.map(lambda leaf: leaf - 0.5 * (leaf.ndim > 2), drawn(model))
    expected = reference(params, TOKENS, config)
    assert expected.shape[-1] == (64 if name == "qwen2" else 50)
    np.testing.assert_allclose(model.logits(params, TOKENS), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


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
    radians = frequencies(8, 100.0, RotaryScaling())

    def score(at, other):
        left, right = (rotate(x, jnp.array([[p]]), radians) for x, p in ((query, at), (key, other)))
        return float((left * right).sum())

    np.testing.assert_allclose(score(7, 3), score(14, 10), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-4


def test_frequencies_are_stretched_as_llama_3_1_says():
    scaling = RotaryScaling(kind="llama3", factor=8.0, original_length=8192)
    plain, got = frequencies(128, 500_000.0, RotaryScaling()), frequencies(128, 500_000.0, scaling)
    # As Meta's code says it, one frequency at a time.
    for frequency, stretched in zip(plain, got, strict=True):
        wave = 2 * np.pi / frequency
        if wave < 8192 / 4:
            expected = frequency
        elif wave > 8192 / 1:
            expected = frequency / 8
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 8 + smooth * frequency
        np.testing.assert_allclose(stretched, expected, rtol=1e-12)
    assert got[0] == plain[0]
    assert got[-1] == plain[-1] / 8
    np.testing.assert_allclose(frequencies(8, 1e4, RotaryScaling(kind="linear", factor=4.0)), plain_over_four())


def plain_over_four():
    return [1 / 4, 0.1 / 4, 0.01 / 4, 0.001 / 4]


def test_positions_far_on_turn_by_the_right_angle_whatever_the_activations_are():
    heads = jnp.array([[[[1.0, 0.0]]]], jnp.bfloat16)
    got = rotate(heads, jnp.array([[100_001]]), np.array([1.0]))
    np.testing.assert_allclose(got.astype(jnp.float32).ravel(), [np.cos(100_001), np.sin(100_001)], atol=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_the_number_of_parameters_is_counted_right(name):
    counted = sum(leaf.size for leaf in jax.tree.leaves(build(shaped(name), 50).template()))
    assert shaped(name).parameters(50) == counted


@pytest.mark.parametrize("name", SHAPES)
def test_every_axis_of_a_matrix_has_a_name(name):
    model = build(shaped(name), 50)
    template, axes = model.template(), axes_of(model.template())
    sizes = {"layers": 2, "width": 16, "hidden": 24, "vocabulary": shaped(name).embedded(50)}
    inner = shaped(name).of_head
    sizes |= {"heads": 4 * inner, "key_value_heads": shaped(name).key_value_heads * inner}
    for leaf, of_leaf in zip(jax.tree.leaves(template), jax.tree.leaves(axes), strict=True):
        names = of_leaf.names
        assert len(names) == leaf.ndim
        assert all(sizes[axis] == size for axis, size in zip(names, leaf.shape, strict=True) if axis)
        assert (None in names) == (leaf.ndim - names.count("layers") == 1 and names[-1] is None)


@pytest.mark.parametrize("name", SHAPES)
def test_weight_decay_spares_scales_and_biases(name):
    model = build(shaped(name), 50)
    kept = jax.tree_util.tree_leaves_with_path(model.decayed(model.template()))
    spared = {path[-1].key for path, decays in kept if not decays}
    assert spared == {"scale"} | ({"bias"} if name in ("qwen2", "neox") else set())


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        model = build(dataclasses.replace(SMALL, layers=layers), 50)
        return len(jax.jit(model.logits).lower(model.template(), TOKENS).as_text().splitlines())

    assert size(30) == size(10)


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
