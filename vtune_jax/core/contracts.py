"""What a method's three functions are given, looked at when they are called or traced: types, shapes and dtypes."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vtune_jax.core.checks import MOST, given
from vtune_jax.core.types import LossHistory, LossSums, Method, Observation, Targets, Weights


def checked(method: Method) -> Method:
    """The method, behind a look at what it is given.

    Nothing of it enters a compiled program, as values are not looked at; but counts that would not fit into the
    history's integers are refused where numpy's arrays show them.

    Raises:
        ValueError: when called, an array of another shape, or counts beyond 2^31 - 1 for integers of 32 bits.
        TypeError: when called, what is no `Targets`, `Observation`, `LossHistory` or array of numbers.
    """

    def init(targets: Any) -> LossHistory:
        _assert_kind("targets", targets, Targets)
        prior = targets.prior
        if jnp.ndim(_array("targets.prior", prior)) != 1 or not prior.size:
            raise ValueError(f"targets.prior must hold one share per domain, got shape {jnp.shape(prior)}.")
        for name in ("initial", "target", "target_error"):
            _assert_shape(f"targets.{name}", getattr(targets, name), prior.shape)
        return method.init(targets)

    def observe(history: Any, observation: Any) -> LossHistory:
        _assert_kind("history", history, LossHistory)
        _assert_kind("observation", observation, Observation)
        shape = history.nats.shape[1:]
        for name in ("heldout", "train"):
            _assert_sums(f"observation.{name}", getattr(observation, name), history)
        for name in ("trained_tokens", "available", "weights"):
            if (values := getattr(observation, name)) is not None:
                _assert_shape(f"observation.{name}", values, shape)
        return method.observe(history, observation)

    def update(weights: Any, history: Any, targets: Any) -> Weights:
        _assert_kind("history", history, LossHistory)
        _assert_kind("targets", targets, Targets)
        if not jnp.issubdtype(_array("weights", weights).dtype, jnp.floating):
            raise TypeError(f"weights must be an array of floats, got {given(weights)}.")
        _assert_shape("weights", weights, targets.prior.shape)
        _assert_shape("history.nats", history.nats, (history.nats.shape[0], *weights.shape))
        return method.update(weights, history, targets)

    return method._replace(init=init, observe=observe, update=update)


def _assert_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {given(value)}.")


def _array(name: str, value: Any) -> Any:
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"{name} must be an array, got {given(value)}.")
    return value


def _assert_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if _array(name, value).shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}.")


def _assert_sums(name: str, sums: Any, history: LossHistory) -> None:
    _assert_kind(name, sums, LossSums)
    for part, values in sums._asdict().items():
        if values is not None or part != "squares":
            _assert_shape(f"{name}.{part}", values, history.nats.shape[1:])
    if jnp.issubdtype(history.tokens.dtype, jnp.floating):
        return
    # Jax would cut them down to whatever the integers of the history hold, in silence.
    if not jnp.issubdtype(sums.tokens.dtype, jnp.integer):
        raise TypeError(f"{name}.tokens must be integers, as those of the history are, got {given(sums.tokens)}.")
    if isinstance(sums.tokens, np.ndarray) and (sums.tokens > MOST).any():
        raise ValueError(
            f"{name}.tokens must be at most {MOST}, got {given(sums.tokens.tolist())}; "
            "a history with tokens in float32, such as Mixer's, takes more."
        )
