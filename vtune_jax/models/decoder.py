"""One decoder for the families of published models, in flax NNX, used functionally: `build` splits it once.

Pre-norm residual blocks of causal attention and an MLP. Which norm, which MLP, where biases stand and how positions
turn is said by the config, see `decoder_config`; which published model is which config, by `checkpoints.families`.

The layers' parameters are stacked, [layers, ...], and one layer's program is scanned over them, so that compile time
does not grow with depth.

Sources: Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245; Shazeer 2020, arXiv:2002.05202;
Black et al. 2022, arXiv:2204.06745 (parallel blocks); Jiang et al. 2023, arXiv:2310.06825 (windows).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vtune_jax.models.decoder_config import DecoderConfig
from vtune_jax.models.head import head_nats
from vtune_jax.models.model import Axes, Family, Model, losses_from_nats
from vtune_jax.models.rotary import frequencies, rotate

AXES = {
    "embedding": ("vocabulary", "width"),
    "head": ("width", "vocabulary"),
    "query": ("width", "heads"),
    "key": ("width", "key_value_heads"),
    "value": ("width", "key_value_heads"),
    "out": ("heads", "width"),
    "gate": ("width", "hidden"),
    "up": ("width", "hidden"),
    "down": ("hidden", "width"),
}
"""Logical axes of the matrices by name, which `machine.mesh` gives to the axes of a mesh. A bias has its matrix' last
axis, a norm's scale none; the parameters of blocks have `layers` in front."""


class Decoder(nnx.Module):
    """Tokens to next-token logits."""

    def __init__(self, config: DecoderConfig, vocabulary: int, rngs: nnx.Rngs) -> None:
        rows = config.embedded(vocabulary)
        self.config = config
        self.embedding = nnx.Param(_normal(rngs, (rows, config.width), 0.02))
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = nnx.vmap(lambda key: Block(config, nnx.Rngs(params=key)))(keys)
        self.norm = Norm(config, config.width)
        self.head = None if config.tied_head else nnx.Param(_normal(rngs, (config.width, rows), 0.02))

    def hidden(
        self,
        tokens: Int[Array, "rows tokens"],
        segments: Int[Array, "rows tokens"] | None = None,
        positions: Int[Array, "rows tokens"] | None = None,
    ) -> Float[Array, "rows tokens width"]:
        """What the head reads. Place t sees places 0..t, of its own segment only if segments are given.

        Args:
            tokens: inputs.
            segments: number of the document that each place belongs to.
            positions: of each place in its document; None counts from the row's beginning.
        """
        hidden = self.embedding[...][tokens].astype(self.config.dtype)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        same = None if segments is None else (segments[:, None, :, None] == segments[:, None, None, :])
        graph, layers = nnx.split(self.blocks)

        def block(hidden: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graph, layer)(hidden, positions, same), None

        return self.norm(jax.lax.scan(_remat(self.config, block), hidden, layers)[0])

    def projection(self) -> Float[Array, "width vocab"]:
        """From what the head reads to logits."""
        head = self.embedding[...].T if self.head is None else self.head[...]
        return head.astype(self.config.dtype)


class Block(nnx.Module):
    """Attention and an MLP, each behind a norm and added to the residual stream, in turn or both at once."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.parallel = config.parallel
        self.attention_norm = Norm(config, config.width)
        self.attention = Attention(config, rngs)
        self.mlp_norm = Norm(config, config.width)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        hidden: Float[Array, "rows tokens width"],
        positions: Int[Array, "#rows tokens"],
        same: Bool[Array, "rows 1 tokens tokens"] | None,
    ) -> Float[Array, "rows tokens width"]:
        """One layer."""
        attended = hidden + self.attention(self.attention_norm(hidden), positions, same)
        return attended + self.mlp(self.mlp_norm(hidden if self.parallel else attended))


class Norm(nnx.Module):
    """`x / rms(x) * scale`, or `(x - mean(x)) / std(x) * scale + bias`; computed in float32."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        self.epsilon = config.norm_epsilon
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if config.norm == "layer" else None

    def __call__(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Keeps the dtype."""
        wide = hidden.astype(jnp.float32)
        if self.bias is not None:
            wide = wide - wide.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        scaled = wide * inverse * self.scale[...]
        return (scaled if self.bias is None else scaled + self.bias[...]).astype(hidden.dtype)


class Linear(nnx.Module):
    """`x @ matrix + bias`, in the dtype of x."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, int], spread: float, bias: bool) -> None:
        self.matrix = nnx.Param(_normal(rngs, shape, spread))
        self.bias = nnx.Param(jnp.zeros(shape[1])) if bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applied to each place by itself."""
        product = x @ self.matrix[...].astype(x.dtype)
        return product if self.bias is None else product + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        width, spread = config.width, config.width**-0.5
        inner, kv = config.heads * config.of_head, config.key_value_heads * config.of_head
        biased = config.attention_bias != "none"
        self.query = Linear(rngs, (width, inner), spread, biased)
        self.key = Linear(rngs, (width, kv), spread, biased)
        self.value = Linear(rngs, (width, kv), spread, biased)
        last = inner**-0.5 * (2 * config.layers) ** -0.5
        self.out = Linear(rngs, (inner, width), last, config.attention_bias == "all")
        self.query_norm = Norm(config, config.of_head) if config.query_key_norm else None
        self.key_norm = Norm(config, config.of_head) if config.query_key_norm else None

    def __call__(
        self,
        hidden: Float[Array, "rows tokens width"],
        positions: Int[Array, "#rows tokens"],
        same: Bool[Array, "rows 1 tokens tokens"] | None,
    ) -> Float[Array, "rows tokens width"]:
        """Query head h reads key-value head `h // (heads / key_value_heads)`; `same` tells segments apart."""
        config = self.config
        radians = frequencies(config.turning, config.rope_theta, config.rope_scaling)
        query, key, value = (
            project(hidden).reshape(*hidden.shape[:2], -1, config.of_head)
            for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (rotate(heads, positions, radians) for heads in (query, key))
        window = (config.window - 1, 0) if config.window else None
        mixed = jax.nn.dot_product_attention(query, key, value, mask=same, is_causal=True, local_window_size=window)
        return self.out(mixed.reshape(*hidden.shape[:2], -1))


class MLP(nnx.Module):
    """`down(silu(gate x) * up x)`, or `down(gelu(up x))`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.kind = config.mlp
        wide, spread, bias = (config.width, config.hidden), config.width**-0.5, config.mlp_bias
        self.gate = Linear(rngs, wide, spread, bias) if config.gated else None
        self.up = Linear(rngs, wide, spread, bias)
        self.down = Linear(rngs, (config.hidden, config.width), (config.hidden * 2 * config.layers) ** -0.5, bias)

    def __call__(self, hidden: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Applied to each place by itself."""
        if self.gate is not None:
            return self.down(jax.nn.silu(self.gate(hidden)) * self.up(hidden))
        return self.down(jax.nn.gelu(self.up(hidden), approximate=self.kind == "gelu_tanh"))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], spread: float) -> Float[Array, "..."]:
    return spread * jax.random.normal(rngs.params(), shape)


def _remat(config: DecoderConfig, block: Any) -> Any:
    if config.remat == "none":
        return block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "products" else None
    return jax.checkpoint(block, policy=saved)


def axes_of(params: PyTree) -> PyTree:
    """The logical axes of each parameter; None is an axis that is never split."""

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> Axes:
        names = [part.key for part in path]
        front = ("layers",) if names[0] == "blocks" else ()
        known = [AXES[name] for name in names if name in AXES]
        own = known[-1][-(leaf.ndim - len(front)) :] if known else (None,) * (leaf.ndim - len(front))
        return Axes((*front, *own))

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def decayed(params: PyTree) -> PyTree:
    """True for matrices; the scales and biases of stacked layers are no matrices, whatever their shape."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].key in ("matrix", "embedding", "head"), params)


def build_decoder(config: DecoderConfig, vocabulary: int) -> Model:
    """The functional form of the decoder: NNX is split once, here, and merged inside `logits`."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, vocabulary, nnx.Rngs(0))))

    @jax.jit
    def init(seed: int) -> PyTree:
        key = jax.random.key(seed)
        return nnx.to_pure_dict(nnx.state(Decoder(config, vocabulary, nnx.Rngs(key)), nnx.Param))

    def merged(params: PyTree) -> Decoder:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    @jax.jit
    def logits(
        params: PyTree,
        tokens: Int[Array, "rows tokens"],
        segments: Int[Array, "rows tokens"] | None = None,
        positions: Int[Array, "rows tokens"] | None = None,
    ) -> Float[Array, "rows tokens vocab"]:
        decoder = merged(params)
        return decoder.hidden(tokens, segments, positions) @ decoder.projection()

    @jax.jit
    def nats(params: PyTree, labels: Int[Array, "rows tokens"], *inputs: Array) -> Float[Array, "rows tokens"]:
        decoder = merged(params)
        return head_nats(decoder.hidden(*inputs), decoder.projection(), labels)

    return Model(
        config=config,
        vocabulary=vocabulary,
        init=init,
        logits=logits,
        losses=losses_from_nats(nats),
        axes=axes_of,
        decayed=decayed,
    )


FAMILY = Family(config=DecoderConfig, build=build_decoder)
