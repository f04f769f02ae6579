"""The loss history: a ring buffer of evidence that a rule reads and `append` extends."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vtune_jax.core.checks import assert_whole, given
from vtune_jax.core.types import LossHistory, LossSums, Observation, Targets


def empty_history(domains: int, window: int = 1, dtype: DTypeLike = jnp.float32) -> LossHistory:
    """A history without evidence.

    Args:
        domains: number of domains, k.
        window: observations kept, at least 1.
        dtype: of the losses.

    Raises:
        ValueError: domains or window below 1.
        TypeError: what are no whole numbers.
    """
    assert_whole(1, domains=domains, window=window)
    return LossHistory(
        nats=jnp.zeros((window, domains), dtype),
        tokens=jnp.zeros((window, domains), jnp.int32),
        trained_tokens=jnp.zeros((window, domains), dtype),
        step=jnp.zeros(window, jnp.int32),
        entries=jnp.zeros((), jnp.int32),
    )


def remembering(
    evidence: Literal["heldout", "train"], window: int = 1
) -> tuple[Callable[[Targets], LossHistory], Callable[[LossHistory, Observation], LossHistory]]:
    """`init` and `observe` of a method that remembers one kind of losses.

    Args:
        evidence: field of the observation.
        window: observations kept.

    Raises:
        ValueError: evidence of another name, or a window below 1.
        TypeError: a window that is no whole number.
    """
    if evidence not in ("heldout", "train"):
        raise ValueError(f"evidence must be 'heldout' or 'train', got {given(evidence)}.")
    assert_whole(1, window=window)

    def init(targets: Targets) -> LossHistory:
        return empty_history(targets.prior.shape[0], window, targets.prior.dtype)

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        return append(history, getattr(observation, evidence), observation.trained_tokens, observation.step)

    return init, observe


def append(
    history: LossHistory,
    evidence: LossSums,
    trained_tokens: Float[Array, " domains"],
    step: Int[Array, ""],
) -> LossHistory:
    """Writes one observation over the oldest row."""
    row = history.entries % history.nats.shape[0]
    return history._replace(
        nats=history.nats.at[row].set(evidence.nats.astype(history.nats.dtype)),
        tokens=history.tokens.at[row].set(evidence.tokens),
        trained_tokens=history.trained_tokens.at[row].set(trained_tokens.astype(history.nats.dtype)),
        step=history.step.at[row].set(step),
        entries=history.entries + 1,
    )


def newest_first(history: LossHistory) -> Int[Array, " window"]:
    """Row numbers from the newest observation to the oldest; rows never written come last and hold no tokens."""
    window = history.nats.shape[0]
    return (history.entries - 1 - jnp.arange(window)) % window


def last_seen(history: LossHistory) -> tuple[Float[Array, " domains"], Bool[Array, " domains"]]:
    """Each domain's newest loss within the window.

    Evidence counts only when it is finite and has tokens behind it; a NaN or infinite sum is the same as none.

    Returns:
        nats per token (0 where nothing was seen), and whether anything was seen.
    """
    order = newest_first(history)
    nats, tokens = history.nats[order], history.tokens[order]
    valid = (tokens > 0) & jnp.isfinite(nats)
    newest = jnp.argmax(valid, axis=0)[None]
    seen = jnp.take_along_axis(valid, newest, axis=0)[0]
    nats = jnp.where(seen, jnp.take_along_axis(nats, newest, axis=0)[0], 0.0)
    tokens = jnp.where(seen, jnp.take_along_axis(tokens, newest, axis=0)[0], 1)
    return nats / tokens.astype(nats.dtype), seen


def newest(history: LossHistory) -> tuple[Float[Array, " domains"], Bool[Array, " domains"]]:
    """The newest observation alone: nats per token (0 for a domain that is not in it), and whether it is."""
    row = newest_first(history)[:1]
    return last_seen(
        history._replace(nats=history.nats[row], tokens=history.tokens[row], entries=jnp.ones((), jnp.int32))
    )
