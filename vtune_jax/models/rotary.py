"""Rotary positions (Su et al. 2021, arXiv:2104.09864), with the stretched frequencies of long contexts."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtune_jax.models.decoder_config import RotaryScaling


def frequencies(turning: int, theta: float, scaling: RotaryScaling) -> Float[np.ndarray, " half"]:
    """Radians per token of each turning pair: `theta**(-2 i / turning)`, stretched, in float64.

    Args:
        turning: numbers of a head that turn.
        theta: the base.
        scaling: how they are stretched.
    """
    plain = theta ** (-np.arange(0, turning, 2) / max(turning, 1))
    if scaling.kind == "none":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.original_length * plain / (2 * np.pi)  # of a wave within the original length
    kept = np.clip(
        (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency), 0.0, 1.0
    )  # the share that is not stretched
    return kept * plain + (1 - kept) * plain / scaling.factor


def rotate(
    heads: Float[Array, "rows tokens heads width"],
    positions: Int[Array, "#rows tokens"],
    radians: Float[np.ndarray, " half"],
) -> Float[Array, "rows tokens heads width"]:
    """The pair (x_i, x_{i + half}) turns by `position * radians_i`; what lies beyond 2 * half stays as it is.

    Halves are paired, as in Hugging Face's checkpoints, not neighbours as in the paper, Meta's files and GGUF. Angles
    are float32 whatever the activations are: at position 100,000 bfloat16 would be off by hundreds of tokens.
    """
    half = len(radians)
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(radians, jnp.float32)
    cosine, sine = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    first, second = heads[..., :half].astype(jnp.float32), heads[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return jnp.concatenate([turned.astype(heads.dtype), heads[..., 2 * half :]], axis=-1)
