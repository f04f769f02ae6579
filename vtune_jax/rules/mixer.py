"""A method in somebody else's training loop: numpy in, numpy out, whatever the framework."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr
from jax.tree_util import tree_flatten_with_path as flattened

from vtune_jax.core.checks import MOST, MOST_EXACT, as_numbers, as_shares, assert_whole, given
from vtune_jax.core.needs import NEEDS
from vtune_jax.core.targets import Numbers, make_targets, single
from vtune_jax.core.types import Alignment, ExcessSums, LossHistory, LossSums, Method, Observation, constant
from vtune_jax.rules.config import MethodConfig


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
            prior: starting weights, shares that sum to 1; `rules.prior_weights` makes them from token counts.
            initial: losses of the base model, nats per token, if the method needs targets.
            target: losses predicted for the end of training.
            target_error: their standard errors.
            constants: `sizes` and `budget` in tokens, `graph` [domains, domains], if the method needs them.

        Raises:
            ValueError: an array of another length than the prior, targets or constants that the method needs and that
                are missing, no share at all, sizes that are not positive, a graph that is not finite.
            TypeError: what is no method, no numbers, or a constant that no method reads.
        """
        self._method = _built(method)
        shares = as_shares("prior", prior)
        self.domains = len(shares)
        nothing = np.full(self.domains, np.nan)
        losses = {"initial": initial, "target": target, "target_error": target_error}
        for name in ("initial", "target") if "targets" in self._method.needs else ():
            if losses[name] is None or not np.isfinite(as_numbers(name, losses[name])).any():
                raise ValueError(f"{name} must hold a loss per domain for this method, got {given(losses[name])}.")
        # A method of somebody's own may name another constant among its needs.
        known = {"sizes", "budget", "graph", *(self._method.needs - set(NEEDS))}
        if unknown := set(constants) - known:
            raise TypeError(f"Mixer takes {', '.join(sorted(known))} as constants, got {', '.join(sorted(unknown))}.")
        columns = {name: nothing if values is None else values for name, values in losses.items()}
        self._targets = make_targets(**columns, prior=shares / shares.sum(), constants=constants)
        if "graph" in constants and not np.isfinite(self._targets.constants["graph"]).all():
            raise ValueError(f"graph must be finite, got {given(np.asarray(constants['graph']).tolist())}.")
        for need in sorted(set(self._method.needs) & {"sizes", "graph"}):
            constant(self._targets, need, NEEDS[need].meaning)
        self._weights = self._targets.prior
        history: LossHistory = self._method.init(self._targets)
        self._history = history._replace(tokens=history.tokens.astype(jnp.float32))
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

        Counts may be as large as float64 counts exactly, 2^53. They are added up so, and reach the method in float32,
        the precision in which every method divides by them and adds them up: 32-bit integers would end at 2^31, fewer
        than the tokens between two updates of a large run, and scaling sums and counts alike would falsify the methods
        that read counts themselves (ADO's law, the sampling errors of filters and gates).

        Args:
            step: optimiser steps done, below 2^31.
            heldout: mean held-out loss per domain, nats per token; NaN for a domain that was not evaluated.
            train: mean loss of the training batches per domain; NaN for a domain that was in none.
            train_tokens: tokens behind `train`, per domain; None: a token each.
            heldout_tokens: tokens behind `heldout`, per domain; None: a token each.
            heldout_squares: mean squared loss per held-out token, for filters and gates that use sampling errors.
            train_squares: the same of the training tokens.
            excess: losses above a reference model's, for DoReMi.
            alignment: inner products of gradients, for DoGE and GRAPE.

        Raises:
            ValueError: evidence that the method needs is missing, or of another shape than the prior's domains ask;
                counts that are negative, not whole or beyond 2^53; negative squares; a step out of range. Nothing has
                changed then.
            TypeError: what are no numbers, no `ExcessSums`, no `Alignment`.
        """
        assert_whole(0, MOST, step=step)
        for name, means in (("heldout", heldout), ("train", train)):
            if name in self._method.needs and means is None:
                raise ValueError(f"{name} must hold a loss per domain for this method, got None.")
        sums, _ = self._sums("heldout", heldout, heldout_tokens, heldout_squares)
        batches, counts = self._sums("train", train, train_tokens, train_squares)
        trained = self._trained + counts
        observation = Observation(
            sums,
            batches,
            trained_tokens=jnp.asarray(trained, jnp.float32),
            step=jnp.asarray(step, jnp.int32),
            weights=self._weights,
            evidence=self._evidence(excess, alignment),
        )
        self._weights, self._history = self._step(self._weights, self._history, observation)
        self._trained = trained
        return self.weights

    @property
    def state(self) -> dict[str, Any]:
        """Everything an interrupted loop needs to continue, as numpy arrays."""
        state = {"weights": self._weights, "history": self._history, "trained": self._trained}
        arrays: dict[str, Any] = jax.tree.map(np.asarray, state)
        return arrays

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        restored = _restored(self.state, state)
        self._weights, self._history = jax.tree.map(jnp.asarray, (restored["weights"], restored["history"]))
        self._trained = restored["trained"]

    def _advance(self, weights: Any, history: LossHistory, observation: Observation) -> Any:
        history = self._method.observe(history, observation)
        return self._method.update(weights, history, self._targets), history

    def _sums(self, name: str, mean: Numbers, tokens: Numbers, squares: Numbers) -> tuple[LossSums, np.ndarray]:
        """Sums for the method, and the counts in full."""
        shape = (self.domains,)
        if mean is None:
            for part, values in (("tokens", tokens), ("squares", squares)):
                if values is not None:
                    raise ValueError(f"{name} must be given where {name}_{part} is, got None.")
            zeros = np.zeros(self.domains, np.float32)
            # Sums of squares too: nothing was seen, and a filter has nothing to ask for.
            return LossSums(*(jnp.asarray(zeros) for _ in range(3))), zeros
        with np.errstate(over="ignore"):
            losses = as_numbers(name, mean, shape).astype(np.float32).astype(np.float64)
        seen = np.isfinite(losses)
        counts = np.ones(self.domains) if tokens is None else as_numbers(f"{name}_tokens", tokens, shape)
        # What stands beside a domain that was not seen may be anything, as its mean may.
        counts = np.where(seen, counts, 0.0)
        if not ((counts >= 0) & (counts <= MOST_EXACT) & (counts == np.floor(counts))).all():
            raise ValueError(f"{name}_tokens must be whole numbers in [0, 2**53], got {given(counts.tolist())}.")
        spread = None
        if squares is not None:
            means = as_numbers(f"{name}_squares", squares, shape)
            if (means < 0).any():
                raise ValueError(f"{name}_squares must not be negative, got {given(means.tolist())}.")
            spread = single(np.where(seen, means, 0.0) * counts)
        return LossSums(single(np.where(seen, losses, 0.0) * counts), single(counts), spread), counts

    def _evidence(self, excess: ExcessSums | None, alignment: Alignment | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        column = (self.domains,)
        if excess is not None:
            found["excess"] = _parts("excess", excess, ExcessSums, (column,) * len(ExcessSums._fields))
        if alignment is not None:
            others = np.shape(alignment.target_norm) if isinstance(alignment, Alignment) else ()
            found["alignment"] = _parts("alignment", alignment, Alignment, (column + others, column, others, ()))
        return found


def _built(method: Any) -> Method:
    if isinstance(method, MethodConfig):
        return method.build()
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be a value such as rules.velocitune() or rules.Velocitune(floor=0.02), got {given(method)}."
        )
    return method


def _parts(name: str, found: Any, kind: Any, shapes: tuple[tuple[int, ...], ...]) -> Any:
    """Evidence of a kind in float32, counts too: see `Mixer.update`."""
    if not isinstance(found, kind):
        raise TypeError(f"{name} must be {kind.__name__} of arrays, got {given(found)}.")
    fields = zip(kind._fields, found, shapes, strict=True)
    return kind(*(single(as_numbers(f"{name}.{field}", values, shape)) for field, values, shape in fields))


def _restored(own: dict[str, Any], state: Any) -> dict[str, Any]:
    """A saved state as numpy arrays of the types that this mixer's own state has.

    Raises:
        ValueError: it is another method's, or one of other domains, or its weights are no shares.
        TypeError: it is no state.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dictionary as `Mixer.state` gives it, got {given(state)}.")
    mine, theirs = ({keystr(path): leaf for path, leaf in flattened(dict(tree))[0]} for tree in (own, state))
    if mine.keys() != theirs.keys():
        both = " and ".join(sorted(mine.keys() ^ theirs.keys())[:2])
        raise ValueError(f"state must have the parts of this method's state, got one that differs in {both}.")
    leaves = []
    for place, leaf in mine.items():
        found = np.asarray(theirs[place])
        # Counts were 32-bit integers once; whole numbers become floats, and nothing else changes its kind.
        alike = found.dtype.kind == leaf.dtype.kind or (leaf.dtype.kind == "f" and found.dtype.kind in "iu")
        if found.shape != leaf.shape or not alike:
            raise ValueError(f"state{place} must be {given(leaf)}, got {given(found)}.")
        leaves.append(found.astype(leaf.dtype))
    restored: dict[str, Any] = jax.tree.unflatten(jax.tree.structure(own), leaves)
    as_shares("state['weights']", restored["weights"])
    if not (restored["trained"] >= 0).all():
        raise ValueError(f"state['trained'] must not be negative, got {given(restored['trained'].tolist())}.")
    return restored
