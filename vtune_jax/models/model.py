"""What a model is to everybody else: pure functions of plain parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PyTree


class Model(NamedTuple):
    """A model as a pure function of plain parameters."""

    config: Any
    vocabulary: int
    init: Callable[[int], PyTree]  # seed -> params, nested dicts of arrays
    logits: Callable[..., Float[Array, "rows tokens vocab"]]  # (params, tokens, segments=None, positions=None)
