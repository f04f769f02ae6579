"""A Llama-style decoder in flax NNX, used functionally: `build` splits it once into a pure function and plain params.

Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied head.
Sources: Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245; Shazeer 2020, arXiv:2002.05202;
Su et al. 2021, arXiv:2104.09864.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.core.checks import MOST, assert_within
from vtune_jax.models.model import Family, Model, losses_from_logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of the model; the vocabulary comes from the tokenizer."""

    name: Literal["decoder"] = "decoder"
    layers: int = 4
    width: int = 128  # of the residual stream
    heads: int = 4
    key_value_heads: int = 2  # divides heads; equal to heads is plain multi-head attention
    hidden: int = 352  # of the SwiGLU
    tied_head: bool = True  # one matrix for embedding and logits
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "key_value_heads", "hidden"):
            assert_within(1, MOST, **{field: getattr(self, field)})
        assert_within(1.0, rope_theta=self.rope_theta)
        assert_within(0.0, 1.0, norm_epsilon=self.norm_epsilon)
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads must divide heads = {self.heads}, got {self.key_value_heads}")

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters, embedding included."""
        head_width = self.width // self.heads
        attention = self.width * head_width * 2 * (self.heads + self.key_value_heads)
        block = attention + 3 * self.width * self.hidden + 2 * self.width
        return self.layers * block + self.width + vocabulary * self.width * (1 if self.tied_head else 2)

    def flops_per_token(self, vocabulary: int, sequence: int) -> int:
        """Of one training step, forward and backward: 6 per weight used in a product, and the attention scores.

        The embedding is a lookup and costs nothing, the head is a product; scores count causal pairs once.
        """
        embedding = vocabulary * self.width * (0 if self.tied_head else 1)
        products = self.parameters(vocabulary) - embedding - (2 * self.layers + 1) * self.width
        return 6 * (products + self.layers * self.width * sequence)


class Decoder(nnx.Module):
    """Tokens to next-token logits."""

    def __init__(self, config: DecoderConfig, vocabulary: int, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(config.dtype)
        self.embedding = nnx.Param(_normal(rngs, (vocabulary, config.width), 0.02))
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = RMSNorm(config)
        self.head = None if config.tied_head else nnx.Param(_normal(rngs, (config.width, vocabulary), 0.02))

    def __call__(
        self,
        tokens: Int[Array, "rows tokens"],
        segments: Int[Array, "rows tokens"] | None = None,
        positions: Int[Array, "rows tokens"] | None = None,
    ) -> Float[Array, "rows tokens vocab"]:
        """Place t sees places 0..t, of its own segment only if segments are given.

        Args:
            tokens: inputs.
            segments: number of the document that each place belongs to.
            positions: of each place in its document; None counts from the row's beginning.
        """
        hidden = self.embedding[...][tokens].astype(self.dtype)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        same = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
        for block in self.blocks:
            hidden = block(hidden, positions, same)
        head = self.embedding[...].T if self.head is None else self.head[...]
        return self.norm(hidden) @ head.astype(self.dtype)


class Block(nnx.Module):
    """Attention and SwiGLU, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = SwiGLU(config, rngs)

    def __call__(
        self,
        hidden: Float[Array, "rows tokens width"],
        positions: Int[Array, "#rows tokens"],
        same: Bool[Array, "rows 1 tokens tokens"] | None,
    ) -> Float[Array, "rows tokens width"]:
        """One layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), positions, same)
        return hidden + self.mlp(self.mlp_norm(hidden))


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale`, computed in float32."""

    def __init__(self, config: DecoderConfig) -> None:
        self.epsilon = config.norm_epsilon
        self.scale = nnx.Param(jnp.ones(config.width))

    def __call__(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Keeps the dtype."""
        wide = hidden.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale[...]).astype(hidden.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        head_width = config.width // config.heads
        self.theta = config.rope_theta
        spread = config.width**-0.5
        kv = (config.width, config.key_value_heads, head_width)
        self.query = nnx.Param(_normal(rngs, (config.width, config.heads, head_width), spread))
        self.key = nnx.Param(_normal(rngs, kv, spread))
        self.value = nnx.Param(_normal(rngs, kv, spread))
        self.out = nnx.Param(
            _normal(rngs, (config.heads, head_width, config.width), spread * (2 * config.layers) ** -0.5)
        )

    def __call__(
        self,
        hidden: Float[Array, "rows tokens width"],
        positions: Int[Array, "#rows tokens"],
        same: Bool[Array, "rows 1 tokens tokens"] | None,
    ) -> Float[Array, "rows tokens width"]:
        """Query head h reads key-value head `h // (heads / key_value_heads)`; `same` tells segments apart."""
        query, key, value = (
            jnp.einsum("btw,wnh->btnh", hidden, weight[...].astype(hidden.dtype))
            for weight in (self.query, self.key, self.value)
        )
        query, key = (rotate(heads, positions, self.theta) for heads in (query, key))
        mixed = jax.nn.dot_product_attention(query, key, value, mask=same, is_causal=True)
        return jnp.einsum("btnh,nhw->btw", mixed, self.out[...].astype(hidden.dtype))


class SwiGLU(nnx.Module):
    """`down(silu(gate x) * up x)`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        wide = (config.width, config.hidden)
        self.gate = nnx.Param(_normal(rngs, wide, config.width**-0.5))
        self.up = nnx.Param(_normal(rngs, wide, config.width**-0.5))
        spread = (config.hidden * 2 * config.layers) ** -0.5
        self.down = nnx.Param(_normal(rngs, (config.hidden, config.width), spread))

    def __call__(self, hidden: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Applied to each token by itself."""
        gate, up, down = (weight[...].astype(hidden.dtype) for weight in (self.gate, self.up, self.down))
        return (jax.nn.silu(hidden @ gate) * (hidden @ up)) @ down


def rotate(
    heads: Float[Array, "rows tokens heads width"], positions: Int[Array, "#rows tokens"], theta: float
) -> Float[Array, "rows tokens heads width"]:
    """Rotary positions: the pair (x_i, x_{i + width/2}) turns by `position * theta**(-2 i / width)`.

    Halves are paired, as in Llama's published checkpoints, not neighbours as in the paper.
    """
    half = heads.shape[-1] // 2
    angle = positions[..., None] * theta ** (-jnp.arange(half) / half)
    cosine, sine = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    first, second = heads[..., :half].astype(jnp.float32), heads[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(heads.dtype)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], spread: float) -> Float[Array, "..."]:
    return spread * jax.random.normal(rngs.params(), shape)


def build_decoder(config: DecoderConfig, vocabulary: int) -> Model:
    """The functional form of the decoder: NNX is split once, here, and merged inside `logits`."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, vocabulary, nnx.Rngs(0))))

    @jax.jit
    def init(seed: int) -> PyTree:
        key = jax.random.key(seed)
        return nnx.to_pure_dict(nnx.state(Decoder(config, vocabulary, nnx.Rngs(key)), nnx.Param))

    @jax.jit
    def logits(
        params: PyTree,
        tokens: Int[Array, "rows tokens"],
        segments: Int[Array, "rows tokens"] | None = None,
        positions: Int[Array, "rows tokens"] | None = None,
    ) -> Float[Array, "rows tokens vocab"]:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(tokens, segments, positions)

    return Model(config=config, vocabulary=vocabulary, init=init, logits=logits, losses=losses_from_logits(logits))


FAMILY = Family(config=DecoderConfig, build=build_decoder)
