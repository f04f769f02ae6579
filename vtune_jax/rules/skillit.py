"""Skill-it: more of the budget for domains that help the domains which are still bad, by a given graph.

Source: Chen et al. 2023, "Skill-it! A Data-Driven Skills Framework", arXiv:2307.14430, and its code,
HazyResearch/skill-it, `trainer/mw_trainer.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import last_seen, newest, remembering
from vtune_jax.core.reweighting import share_out
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights, constant
from vtune_jax.rules.config import Arm

Graph = Sequence[Sequence[float]] | np.ndarray


class Evaluations(NamedTuple):
    """What the normalised and the fading forms carry."""

    reference: Float[Array, " domains"]  # l_0: losses of the second evaluation; of the first until there is one
    seen: Bool[Array, " domains"]
    evaluations: Int[Array, ""]


def skillit(
    graph: Graph | None = None,
    *,
    step_size: Scalar = 0.2,
    window: int = 3,
    masked: Sequence[int] = (),
    normalize: bool = False,
    scale_step: bool = False,
    fade: bool = False,
    learned: bool = False,
) -> Method:
    """`w = softmax(eta A s)`, s the sum of the last held-out evaluations; the window stands for past weights.

    A domain that is missing from some evaluations of the window is taken at its mean over the others; one that is in
    none adds nothing.

    Args:
        graph: A, k by k; row i, column j: how much training on domain i helps domain j. None: each helps itself only.
        step_size: eta >= 0.
        window: evaluations summed.
        masked: the domains that count; s is then the mean over the window instead of the sum, and so eta is smaller.
        normalize: divides s by l_0. The code means the first evaluation and takes the second, from there on.
        scale_step: eta times `sum l_0 / sum l` with the newest evaluation l.
        learned: the graph is `targets.constants["graph"]`, found by short runs before this one.
        fade: halves what domains do for each other after each evaluation (the code: after each update).

    Returns:
        A method that needs held-out losses, and a learned graph if asked for.

    Raises:
        ValueError: a graph that is not square or not finite, given as well as learned, or, when called, of another
            size or missing; a masked domain that does not exist; a hyper-parameter out of its range.
    """
    assert_within(step_size=step_size)
    assert_within(1.0, window=window)
    given = None if graph is None else np.asarray(graph, np.float64)
    if given is not None and (given.ndim != 2 or given.shape[0] != given.shape[1] or not np.isfinite(given).all()):
        raise ValueError(f"graph must be a square of finite numbers, got shape {given.shape}.")
    if given is not None and learned:
        raise ValueError("graph must not be given where it is to be learned.")
    begin, remember = remembering("heldout", window)

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        if given is not None and len(given) != domains:
            raise ValueError(f"graph must have {domains} rows, one per domain, got {len(given)}.")
        if masked and not all(0 <= index < domains for index in masked):
            raise ValueError(f"masked must name domains in [0, {domains}), got {list(masked)}.")
        start = Evaluations(jnp.zeros(domains, dtype), jnp.zeros(domains, bool), jnp.zeros((), jnp.int32))
        return begin(targets)._replace(memory=start)

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        history = remember(history, observation)
        held: Evaluations = history.memory
        loss, seen = newest(history)
        takes = seen & (~held.seen | (held.evaluations < 2))
        reference = jnp.where(takes, loss, held.reference).astype(held.reference.dtype)
        return history._replace(memory=Evaluations(reference, held.seen | seen, held.evaluations + 1))

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        domains, dtype = weights.shape[0], weights.dtype
        held: Evaluations = history.memory
        valid = (history.tokens > 0) & jnp.isfinite(history.nats)
        losses = jnp.where(valid, history.nats / jnp.maximum(history.tokens, 1), 0.0).astype(dtype)
        times = jnp.maximum(valid.sum(axis=0), 1)
        score = losses.sum(axis=0) / times
        if not masked:
            score = score * jnp.minimum(history.entries, window)
        eta = step_size
        if normalize:
            score = jnp.where(held.reference > 0, score / jnp.where(held.reference > 0, held.reference, 1.0), 0.0)
        if scale_step:
            now = jnp.maximum(last_seen(history)[0].sum(), jnp.finfo(dtype).tiny)
            eta = eta * held.reference.sum() / now
        if learned:
            matrix = constant(targets, "graph", "what domains do for each other").astype(dtype)
        else:
            matrix = jnp.eye(domains, dtype=dtype) if given is None else jnp.asarray(given, dtype)
        if fade:
            own = jnp.eye(domains, dtype=bool)
            matrix = jnp.where(own, matrix, matrix * jnp.exp2(1.0 - held.evaluations.astype(dtype)))
        if masked:
            score = jnp.zeros_like(score).at[jnp.array(masked)].set(score[jnp.array(masked)])
        logits = jnp.nan_to_num(eta * (matrix @ score), nan=0.0, posinf=1e30, neginf=-1e30)
        even = jnp.full_like(weights, 1.0 / domains)
        new = share_out(even, logits, jnp.ones(domains, bool))
        return jnp.where(valid.any(), new, weights).astype(dtype)

    needs = {"heldout", "graph"} if learned else {"heldout"}
    return Method(init=init, observe=observe, update=update, needs=frozenset(needs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillIt(Arm):
    """Skill-it's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["skillit"] = "skillit"
    graph: tuple[tuple[float, ...], ...] = ()  # row i, column j: what training on i does for j; empty: each for itself
    graph_domains: tuple[str, ...] = ()  # the domains that rows and columns stand for, checked against the corpus
    learn_graph: bool = False  # by one short run on each domain alone, of proxies.length
    step_size: float = 0.2  # eta
    window: int = 3  # evaluations summed
    masked: tuple[int, ...] = ()  # the domains that count, by their place; empty: all
    normalize: bool = False  # losses as shares of the first ones
    scale_step: bool = False  # a step that grows as losses fall
    fade: bool = False  # domains help each other half as much after each evaluation

    def method(self) -> Method:
        """See `Arm`."""
        if len({len(row) for row in self.graph} | {len(self.graph)}) > 1:
            raise ValueError(f"graph must be square, got rows of {[len(row) for row in self.graph]} numbers.")
        return skillit(
            self.graph or None,
            step_size=self.step_size,
            window=self.window,
            masked=self.masked,
            normalize=self.normalize,
            scale_step=self.scale_step,
            fade=self.fade,
            learned=self.learn_graph,
        )
