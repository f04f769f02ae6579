"""A method in somebody else's training loop: numpy in, numpy out, whatever the framework."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtune_jax.core.types import Alignment, ExcessSums, LossHistory, LossSums, Method, Observation, Targets
from vtune_jax.rules.config import MethodConfig

Numbers = Any
"""Anything that `numpy.asarray` takes: a list, an array, a tensor on the CPU."""


class Mixer:
    """Holds a method's weights and history; `update` takes what the loop has measured and returns new weights.

    Everything is compiled once, in float32. `state` is a tree of numpy arrays: save it, and set it again to go on.
    """

    def __init__(
        self,
        method: Method | MethodConfig,
        prior: Numbers,
        *,
        initial: Numbers = None,
        target: Numbers = None,
        target_error: Numbers = None,
        **constants: Numbers,
    ) -> None:
        """Starts at the prior.

        Args:
            method: as `rules.velocitune()` or `rules.Velocitune(floor=0.02)` give it.
            prior: starting weights, positive sum; scaled to one.
            initial: losses of the base model, nats per token, if the method needs targets.
            target: losses predicted for the end of training.
            target_error: their standard errors.
            constants: `sizes` and `budget` in tokens, `graph` [domains, domains], if the method needs them.

        Raises:
            ValueError: an array of another length than the prior, targets that the method needs and that are missing,
                or a prior that is negative or not finite.
        """
        self._method = method.build() if isinstance(method, MethodConfig) else method
        weights = np.asarray(prior, np.float64)
        if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(f"prior must be shares that are not negative, got {np.asarray(prior).tolist()}.")
        self.domains = len(weights)
        if "targets" in self._method.needs:
            for name, values in (("initial", initial), ("target", target)):
                if values is None:
                    raise ValueError(f"{name} must hold a loss per domain for this method, got None.")
        unknown = np.full(self.domains, np.nan)
        losses = {
            name: self._column(name, unknown if values is None else values)
            for name, values in (("initial", initial), ("target", target), ("target_error", target_error))
        }
        arrays = {name: jnp.asarray(np.asarray(values), jnp.float32) for name, values in constants.items()}
        shares = jnp.asarray(weights / weights.sum(), jnp.float32)
        self._targets = Targets(**losses, prior=shares, constants=arrays or ())
        self._weights = self._targets.prior
        self._history: LossHistory = self._method.init(self._targets)
        self._trained = np.zeros(self.domains)
        self._step = jax.jit(self._advance)

    @property
    def weights(self) -> np.ndarray:
        """The current weights, in float64 with sum one."""
        weights = np.array(self._weights, np.float64)
        weights /= weights.sum()
        return weights

    def update(
        self,
        step: int,
        *,
        heldout: Numbers = None,
        train: Numbers = None,
        train_tokens: Numbers = None,
        heldout_tokens: Numbers = None,
        heldout_squares: Numbers = None,
        train_squares: Numbers = None,
        excess: ExcessSums | None = None,
        alignment: Alignment | None = None,
    ) -> np.ndarray:
        """New weights from what has been measured since the last call.

        Args:
            step: optimiser steps done.
            heldout: mean held-out loss per domain, nats per token; NaN for a domain that was not evaluated.
            train: mean loss of the training batches per domain; NaN for a domain that was in none.
            train_tokens: tokens behind `train`, per domain; None: a token each.
            heldout_tokens: tokens behind `heldout`, per domain; None: a token each.
            heldout_squares: mean squared loss per held-out token, for filters and gates that use sampling errors.
            train_squares: the same of the training tokens.
            excess: losses above a reference model's, for DoReMi.
            alignment: inner products of gradients, for DoGE and GRAPE.

        Raises:
            ValueError: evidence that the method needs is missing, or of another length than the prior.
        """
        for name, means in (("heldout", heldout), ("train", train)):
            if name in self._method.needs and means is None:
                raise ValueError(f"{name} must hold a loss per domain for this method, got None.")
        sums = self._sums("heldout", heldout, heldout_tokens, heldout_squares)
        batches = self._sums("train", train, train_tokens, train_squares)
        self._trained = self._trained + np.asarray(batches.tokens)
        observation = Observation(
            sums,
            batches,
            trained_tokens=jnp.asarray(self._trained, jnp.float32),
            step=jnp.asarray(step, jnp.int32),
            weights=self._weights,
            evidence={
                kind: type(found)(*map(_device, found))
                for kind, found in (("excess", excess), ("alignment", alignment))
                if found is not None
            },
        )
        self._weights, self._history = self._step(self._weights, self._history, observation)
        return self.weights

    @property
    def state(self) -> dict[str, Any]:
        """Everything an interrupted loop needs to continue, as numpy arrays."""
        state = {"weights": self._weights, "history": self._history, "trained": self._trained}
        arrays: dict[str, Any] = jax.tree.map(np.asarray, state)
        return arrays

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        restored = jax.tree.map(jnp.asarray, {name: state[name] for name in ("weights", "history")})
        self._weights, self._history = restored["weights"], restored["history"]
        self._trained = np.asarray(state["trained"])

    def _advance(self, weights: Any, history: LossHistory, observation: Observation) -> Any:
        history = self._method.observe(history, observation)
        return self._method.update(weights, history, self._targets), history

    def _column(self, name: str, values: Numbers) -> Any:
        column = np.asarray(values, np.float32)
        if column.shape != (self.domains,):
            raise ValueError(f"{name} must hold {self.domains} numbers, one per domain, got shape {column.shape}.")
        return jnp.asarray(column)

    def _sums(self, name: str, mean: Numbers, tokens: Numbers, squares: Numbers) -> LossSums:
        losses = np.full(self.domains, np.nan) if mean is None else np.asarray(self._column(name, mean), np.float64)
        counts = np.ones(self.domains) if tokens is None else np.asarray(self._column(f"{name}_tokens", tokens))
        counts = np.where(np.isfinite(losses), counts, 0).astype(np.int32)
        spread = None
        if squares is not None:
            spread = jnp.asarray(np.asarray(self._column(f"{name}_squares", squares)) * counts, jnp.float32)
        return LossSums(jnp.asarray(np.nan_to_num(losses) * counts, jnp.float32), jnp.asarray(counts), spread)


def _device(values: Numbers) -> Any:
    array = np.asarray(values)
    return jnp.asarray(array, jnp.int32 if array.dtype.kind in "iu" else jnp.float32)
