"""The shape of a decoder: what tells Llama, Mistral, Qwen and GPT-NeoX apart is a field here."""

import dataclasses
from typing import Literal

from vtune_jax.core.checks import MOST, assert_within

Remat = Literal["none", "products", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary frequencies are stretched beyond the length that a model was first trained on.

    - "linear": every frequency over `factor` (Chen et al. 2023, arXiv:2306.15595)
    - "llama3": waves longer than `original_length / low_frequency` tokens by `factor`, those shorter than
      `original_length / high_frequency` not at all, and those between in part (Grattafiori et al. 2024,
      arXiv:2407.21783, and Meta's code)
    """

    kind: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        assert_within(1.0, factor=self.factor)
        assert_within(1, MOST, original_length=self.original_length)
        if not 0 < self.low_frequency < self.high_frequency < float("inf"):
            raise ValueError(
                "low_frequency and high_frequency must be positive and grow, "
                f"got {self.low_frequency} and {self.high_frequency}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of the model; the vocabulary comes from the tokenizer."""

    name: Literal["decoder"] = "decoder"
    layers: int = 4
    width: int = 128  # of the residual stream
    heads: int = 4
    key_value_heads: int = 2  # divides heads; equal to heads is plain multi-head attention
    head_width: int = 0  # 0: width / heads
    hidden: int = 352  # of the MLP
    tied_head: bool = True  # one matrix for embedding and logits
    rows: int = 0  # of the embedding, where a checkpoint has more than its tokenizer has tokens; 0: as many
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0  # of each head that turns
    rope_scaling: RotaryScaling = RotaryScaling()
    window: int = 0  # tokens that a place sees, itself included; 0: all before it
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    query_key_norm: bool = False  # of each head, before it turns
    attention_bias: Literal["none", "inputs", "all"] = "none"  # inputs: of query, key and value
    mlp: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"  # gelu: without a gate
    mlp_bias: bool = False
    parallel: bool = False  # attention and MLP read the same input, as in GPT-NeoX
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
    remat: Remat = "none"  # what the backward pass computes again: element-wise work, or all of a layer

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "key_value_heads", "hidden"):
            assert_within(1, MOST, **{field: getattr(self, field)})
        for field in ("head_width", "rows", "window"):
            assert_within(0, MOST, **{field: getattr(self, field)})
        assert_within(1.0, rope_theta=self.rope_theta)
        assert_within(0.0, 1.0, norm_epsilon=self.norm_epsilon, rope_fraction=self.rope_fraction)
        if not self.head_width and self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even, got {self.head_width}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads must divide heads = {self.heads}, got {self.key_value_heads}")

    @property
    def of_head(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def turning(self) -> int:
        """How many of a head's numbers turn, an even number."""
        return int(self.of_head * self.rope_fraction) // 2 * 2

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp == "swiglu"

    def embedded(self, vocabulary: int) -> int:
        """Rows of the embedding.

        Raises:
            ValueError: the tokenizer has more tokens.
        """
        if self.rows and self.rows < vocabulary:
            raise ValueError(f"rows must be at least the tokenizer's {vocabulary} tokens, got {self.rows}")
        return self.rows or vocabulary

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters, embedding included."""
        inner, kv = self.heads * self.of_head, self.key_value_heads * self.of_head
        norm = self.width * (2 if self.norm == "layer" else 1)
        block = self._products + 2 * norm
        block += (inner + 2 * kv) * (self.attention_bias != "none") + self.width * (self.attention_bias == "all")
        block += 2 * self.of_head * self.query_key_norm
        block += (self.hidden * (2 if self.gated else 1) + self.width) * self.mlp_bias
        return self.layers * block + norm + self.embedded(vocabulary) * self.width * (1 if self.tied_head else 2)

    def flops_per_token(self, vocabulary: int, sequence: int) -> int:
        """Of one training step, forward and backward: 6 per weight used in a product, and the attention scores.

        The embedding is a lookup and costs nothing, the head is a product; scores count causal pairs once.
        """
        head = self.embedded(vocabulary) * self.width
        seen = min(self.window or sequence, sequence)
        # A row of n places with a window of w has w * n - w * w / 2 pairs; each is read for its score and its value.
        scores = self.heads * self.of_head * (2 * seen * sequence - seen * seen) // sequence
        return 6 * (self.layers * (self._products + scores) + head)

    @property
    def _products(self) -> int:
        """Weights of one layer that are used in products."""
        attention = self.width * self.of_head * 2 * (self.heads + self.key_value_heads)
        return attention + (3 if self.gated else 2) * self.width * self.hidden
