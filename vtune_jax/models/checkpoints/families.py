"""Families of published models in Hugging Face's format: which config each is, and what its tensors are called.

A family is added by an entry of `FAMILIES`. Where a config.json leaves a key out, the value is the one that the
family's class in `transformers` has by default; norm epsilons and rope bases differ between classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vtune_jax.errors import UserError
from vtune_jax.models.checkpoints.names import FUSED, TURNED, NameMap, Place, linear, norm
from vtune_jax.models.decoder_config import DecoderConfig, RotaryScaling

Json = Mapping[str, Any]
_GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Published:
    """One family."""

    name: str  # `model_type` in config.json
    architecture: str  # class in transformers
    names: NameMap
    config: Callable[[Json], DecoderConfig]
    json: Callable[[DecoderConfig], dict[str, Any]]  # its own keys of config.json
    says: Callable[[DecoderConfig], bool]  # whether a config can be written as one of this family


def family_named(model_type: object) -> Published:
    """The family of a config.json.

    Raises:
        UserError: an unknown one.
    """
    for family in FAMILIES:
        if family.name == model_type:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"models of the kind {model_type!r} are not known", f"give one of {known}")


def family_of(config: DecoderConfig) -> Published:
    """The first family that a config can be written as.

    Raises:
        UserError: there is none.
    """
    for family in FAMILIES:
        if family.says(config) and family.config(family.json(config)) == as_published(config):
            return family
    raise UserError(
        "no published family has a decoder of this shape",
        "train one whose norm, MLP, biases and window are those of Llama, Mistral, Qwen or GPT-NeoX",
    )


def as_published(config: DecoderConfig) -> DecoderConfig:
    """The config without what a checkpoint does not say: how it is computed, and how many tokens its tokenizer has."""
    return dataclasses.replace(config, dtype="float32", remat="none", rows=0, head_width=config.of_head)


def _scaling(said: Json | None) -> RotaryScaling:
    said = said or {}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return RotaryScaling()
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=float(said["factor"]))
    if kind == "llama3":
        return RotaryScaling(
            kind="llama3",
            factor=float(said["factor"]),
            low_frequency=float(said["low_freq_factor"]),
            high_frequency=float(said["high_freq_factor"]),
            original_length=int(said["original_max_position_embeddings"]),
        )
    raise UserError(f"rope scaling of the kind {kind!r} is not known", "give a model with default, linear or llama3")


def _scaling_json(scaling: RotaryScaling) -> dict[str, Any] | None:
    if scaling.kind == "none":
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
        "original_max_position_embeddings": scaling.original_length,
    }


def _llama_like(
    said: Json, *, theta: float, epsilon: float, tied: bool, head: int | None = None, **fields: Any
) -> DecoderConfig:
    """What Llama, Mistral and Qwen have in common.

    Args:
        said: config.json.
        theta: rope base by default.
        epsilon: of norms, by default.
        tied: whether the head is the embedding, by default.
        head: width of a head by default; None: width / heads.
        **fields: of the config.
    """
    if said.get("hidden_act", "silu") != "silu":
        raise UserError(f"an MLP with {said['hidden_act']!r} is not known here", "give a model with silu")
    heads, width = int(said["num_attention_heads"]), int(said["hidden_size"])
    # Release 5 of transformers writes `rope_parameters`, earlier ones two keys.
    rope = said.get("rope_parameters") or {}
    return DecoderConfig(
        layers=int(said["num_hidden_layers"]),
        width=width,
        heads=heads,
        key_value_heads=int(said.get("num_key_value_heads") or heads),
        head_width=int(said.get("head_dim") or head or width // heads),
        hidden=int(said["intermediate_size"]),
        tied_head=bool(said.get("tie_word_embeddings", tied)),
        rope_theta=float(rope.get("rope_theta") or said.get("rope_theta") or theta),
        rope_scaling=_scaling(rope or said.get("rope_scaling")),
        norm_epsilon=float(said.get("rms_norm_eps", epsilon)),
        **fields,
    )


def _llama_like_json(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.of_head,
        "tie_word_embeddings": config.tied_head,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_json(config.rope_scaling),
        "rms_norm_eps": config.norm_epsilon,
    }


def _window(said: Json, default: int) -> int:
    """A window that all layers have.

    Raises:
        UserError: only some layers have one.
    """
    kinds = set(said.get("layer_types") or ())
    if len(kinds) > 1:
        raise UserError("layers with and without a window in one model are not known here", "give another model")
    if kinds == {"full_attention"}:
        return 0
    return int(said.get("sliding_window", default) or 0)


def _qwen_window(said: Json) -> int:
    if not said.get("use_sliding_window", False):
        return 0
    full = int(said.get("max_window_layers", said["num_hidden_layers"]))
    if full >= int(said["num_hidden_layers"]):
        return 0
    if full > 0:
        raise UserError("layers with and without a window in one model are not known here", "give another model")
    return _window(said, 4096)


def _neox(said: Json) -> DecoderConfig:
    heads, width = int(said["num_attention_heads"]), int(said["hidden_size"])
    rope = said.get("rope_parameters") or {}
    act = said.get("hidden_act", "gelu")
    if act not in _GELU:
        raise UserError(f"an MLP with {act!r} is not known here", f"give a model with one of {', '.join(_GELU)}")
    if not said.get("attention_bias", True):
        raise UserError("GPT-NeoX without biases is not known here", "give another model")
    return DecoderConfig(
        layers=int(said["num_hidden_layers"]),
        width=width,
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        hidden=int(said["intermediate_size"]),
        tied_head=bool(said.get("tie_word_embeddings", False)),
        rope_theta=float(rope.get("rope_theta") or said.get("rotary_emb_base") or 10_000.0),
        rope_fraction=float(rope.get("partial_rotary_factor") or said.get("rotary_pct") or 0.25),
        rope_scaling=_scaling(rope or said.get("rope_scaling")),
        norm="layer",
        norm_epsilon=float(said.get("layer_norm_eps", 1e-5)),
        attention_bias="all",
        mlp=_GELU[act],  # type: ignore[arg-type]
        mlp_bias=True,
        parallel=bool(said.get("use_parallel_residual", True)),
    )


def _neox_json(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_act": "gelu" if config.mlp == "gelu" else "gelu_new",
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "tie_word_embeddings": config.tied_head,
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction,
        "rope_scaling": _scaling_json(config.rope_scaling),
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel,
        "attention_bias": True,
    }


_LLAMA_NAMES = NameMap(
    whole=(
        Place("model.embed_tokens.weight", ("embedding",)),
        *norm("norm", "model.norm"),
        Place("lm_head.weight", ("head",), TURNED),
    ),
    of_layer=(
        *norm("attention_norm", "model.layers.{}.input_layernorm"),
        *linear("attention.query", "model.layers.{}.self_attn.q_proj"),
        *linear("attention.key", "model.layers.{}.self_attn.k_proj"),
        *linear("attention.value", "model.layers.{}.self_attn.v_proj"),
        *linear("attention.out", "model.layers.{}.self_attn.o_proj"),
        *norm("attention.query_norm", "model.layers.{}.self_attn.q_norm"),
        *norm("attention.key_norm", "model.layers.{}.self_attn.k_norm"),
        *norm("mlp_norm", "model.layers.{}.post_attention_layernorm"),
        *linear("mlp.gate", "model.layers.{}.mlp.gate_proj"),
        *linear("mlp.up", "model.layers.{}.mlp.up_proj"),
        *linear("mlp.down", "model.layers.{}.mlp.down_proj"),
    ),
    ignored=("rotary_emb.inv_freq",),
)

_IN_NEOX = "gpt_neox.layers.{}."
_NEOX_NAMES = NameMap(
    whole=(
        Place("gpt_neox.embed_in.weight", ("embedding",)),
        *norm("norm", "gpt_neox.final_layer_norm"),
        Place("embed_out.weight", ("head",), TURNED),
    ),
    of_layer=(
        *norm("attention_norm", f"{_IN_NEOX}input_layernorm"),
        *(
            Place(
                f"{_IN_NEOX}attention.query_key_value.{theirs}",
                tuple(f"attention.{name}.{ours}" for name in ("query", "key", "value")),
                FUSED,
            )
            for ours, theirs in (("matrix", "weight"), ("bias", "bias"))
        ),
        *linear("attention.out", f"{_IN_NEOX}attention.dense"),
        *norm("mlp_norm", f"{_IN_NEOX}post_attention_layernorm"),
        *linear("mlp.up", f"{_IN_NEOX}mlp.dense_h_to_4h"),
        *linear("mlp.down", f"{_IN_NEOX}mlp.dense_4h_to_h"),
    ),
    ignored=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)


def _rms_swiglu(config: DecoderConfig) -> bool:
    return config.norm == "rms" and config.mlp == "swiglu" and not config.parallel and config.rope_fraction == 1


FAMILIES = (
    Published(
        name="llama",
        architecture="LlamaForCausalLM",
        names=_LLAMA_NAMES,
        config=lambda said: _llama_like(
            said,
            theta=10_000.0,
            epsilon=1e-6,
            tied=False,
            attention_bias="all" if said.get("attention_bias") else "none",
            mlp_bias=bool(said.get("mlp_bias")),
        ),
        json=lambda config: {
            **_llama_like_json(config),
            "attention_bias": config.attention_bias == "all",
            "mlp_bias": config.mlp_bias,
        },
        says=_rms_swiglu,
    ),
    Published(
        name="mistral",
        architecture="MistralForCausalLM",
        names=_LLAMA_NAMES,
        config=lambda said: _llama_like(said, theta=10_000.0, epsilon=1e-6, tied=False, window=_window(said, 4096)),
        json=lambda config: {**_llama_like_json(config), "sliding_window": config.window or None},
        says=_rms_swiglu,
    ),
    Published(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        names=_LLAMA_NAMES,
        config=lambda said: _llama_like(
            said, theta=10_000.0, epsilon=1e-6, tied=False, attention_bias="inputs", window=_qwen_window(said)
        ),
        json=lambda config: {
            **_llama_like_json(config),
            "use_sliding_window": bool(config.window),
            "sliding_window": config.window or None,
            "max_window_layers": 0 if config.window else config.layers,
        },
        says=_rms_swiglu,
    ),
    Published(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        names=_LLAMA_NAMES,
        config=lambda said: _llama_like(
            said,
            theta=10_000.0,
            epsilon=1e-6,
            tied=False,
            head=128,
            query_key_norm=True,
            attention_bias="all" if said.get("attention_bias") else "none",
            window=_qwen_window(said),
        ),
        json=lambda config: {
            **_llama_like_json(config),
            "attention_bias": config.attention_bias == "all",
            "use_sliding_window": bool(config.window),
            "sliding_window": config.window or None,
            "max_window_layers": 0 if config.window else config.layers,
        },
        says=_rms_swiglu,
    ),
    Published(
        name="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        names=_NEOX_NAMES,
        config=_neox,
        json=_neox_json,
        says=lambda config: config.norm == "layer" and not config.gated and config.key_value_heads == config.heads,
    ),
)
"""In the order in which a config trained here is written: Llama first."""
