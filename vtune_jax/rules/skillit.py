"""Skill-it: more of the budget for domains that help the domains which are still bad, by a given graph.

Source: Chen et al. 2023, "Skill-it! A Data-Driven Skills Framework", arXiv:2307.14430, and its code,
HazyResearch/skill-it, `trainer/mw_trainer.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.history import last_seen, newest, remembering
from vtune_jax.core.numbers import LONGEST_MEMORY
from vtune_jax.core.reweighting import share_out
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights, constant
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number


class Evaluations(NamedTuple):
    """What the normalised and the fading forms carry."""

    reference: Float[Array, " domains"]  # l_0: losses of the second evaluation; of the first until there is a second
    seen: Bool[Array, " domains"]
    evaluations: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillIt(MethodConfig):
    """`w = softmax(eta A s)`, s the sum of the last held-out evaluations; past weights count through this sum alone.

    A domain that is missing from some evaluations of the window is taken at its mean over the others; a domain that is
    in none adds nothing. The method needs held-out losses, and a learned graph if asked for.
    """

    name: Literal["skillit"] = "skillit"
    graph: tuple[tuple[float, ...], ...] = ()  # A; row i, column j: how much training on i helps j; empty: identity
    graph_domains: tuple[str, ...] = ()  # the domains that rows and columns stand for, checked against the corpus
    learn_graph: bool = False  # A is `targets.constants["graph"]`, from short runs on each domain before this run
    step_size: float = number(0.2)  # eta
    window: int = number(3, low=1, high=LONGEST_MEMORY)  # evaluations summed
    masked: tuple[int, ...] = ()  # the domains that count, by place; s is then a mean over the window; empty: all
    normalize: bool = False  # divides s by l_0. The code means the first evaluation and takes the second
    scale_step: bool = False  # eta times `sum l_0 / sum l` with the newest evaluation l
    fade: bool = False  # halves the help of others after each evaluation (in the code: after each update)

    def method(self) -> Method:
        """See `MethodConfig`.

        Raises:
            ValueError: a graph that is not square or not finite, or given as well as learned; when called, a graph of
                another size or missing, or a masked domain that does not exist.
        """
        graph = self._given_graph()
        begin, remember = remembering("heldout", self.window)

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            if graph is not None and len(graph) != domains:
                raise ValueError(f"graph must have {domains} rows, one per domain, got {len(graph)}.")
            if self.masked and not all(0 <= index < domains for index in self.masked):
                raise ValueError(f"masked must name domains in [0, {domains}), got {list(self.masked)}.")
            start = Evaluations(jnp.zeros(domains, dtype), jnp.zeros(domains, bool), jnp.zeros((), jnp.int32))
            return begin(targets)._replace(memory=start)

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            history = remember(history, observation)
            old: Evaluations = history.memory
            loss, seen = newest(history)
            takes = seen & (~old.seen | (old.evaluations < 2))
            reference = jnp.where(takes, loss, old.reference).astype(old.reference.dtype)
            return history._replace(memory=Evaluations(reference, old.seen | seen, old.evaluations + 1))

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            domains, dtype = weights.shape[0], weights.dtype
            state: Evaluations = history.memory
            valid = (history.tokens > 0) & jnp.isfinite(history.nats)
            losses = jnp.where(valid, history.nats / jnp.maximum(history.tokens, 1), 0.0).astype(dtype)
            times = jnp.maximum(valid.sum(axis=0), 1)
            score = losses.sum(axis=0) / times
            if not self.masked:
                score = score * jnp.minimum(history.entries, self.window)
            eta: Scalar = self.step_size
            if self.normalize:
                usable = state.reference > 0
                score = jnp.where(usable, score / jnp.where(usable, state.reference, 1.0), 0.0)
            if self.scale_step:
                now = jnp.maximum(last_seen(history)[0].sum(), jnp.finfo(dtype).tiny)
                eta = eta * state.reference.sum() / now
            if self.learn_graph:
                matrix = constant(targets, "graph", "what domains do for each other").astype(dtype)
            else:
                matrix = jnp.eye(domains, dtype=dtype) if graph is None else jnp.asarray(graph, dtype)
            if self.fade:
                own = jnp.eye(domains, dtype=bool)
                matrix = jnp.where(own, matrix, matrix * jnp.exp2(1.0 - state.evaluations.astype(dtype)))
            if self.masked:
                chosen = jnp.array(self.masked)
                score = jnp.zeros_like(score).at[chosen].set(score[chosen])
            logits = jnp.nan_to_num(eta * (matrix @ score), nan=0.0, posinf=1e30, neginf=-1e30)
            even = jnp.full_like(weights, 1.0 / domains)
            new = share_out(even, logits, jnp.ones(domains, bool))
            return jnp.where(valid.any(), new, weights).astype(dtype)

        needs = {"heldout", "graph"} if self.learn_graph else {"heldout"}
        return Method(init=init, observe=observe, update=update, needs=frozenset(needs))

    def _given_graph(self) -> np.ndarray | None:
        if not self.graph:
            return None
        if self.learn_graph:
            raise ValueError("graph must not be given where it is to be learned.")
        if len({len(row) for row in self.graph}) > 1:
            raise ValueError(f"graph must be square, got rows of {[len(row) for row in self.graph]} numbers.")
        graph = np.asarray(self.graph, np.float64)
        if graph.shape[0] != graph.shape[1] or not np.isfinite(graph).all():
            raise ValueError(f"graph must be a square of finite numbers, got shape {graph.shape}.")
        return graph

    def assert_fits(self, names: tuple[str, ...]) -> None:
        """See `MethodConfig`."""
        if self.graph_domains not in ((), names):
            raise ValueError(f"graph_domains must be the corpus' domains in their order {list(names)}")


skillit = factory_of(SkillIt)

PUBLISHED = Published(
    config=SkillIt,
    source="Chen et al. 2023, arXiv:2307.14430; HazyResearch/skill-it",
    place=60,
    departures=(
        "the first weights are the prior; in the original they come from the graph alone",
        "one evaluation per update, so that `fade` counts evaluations; in the original it counts updates",
        "a domain missing from an evaluation is taken at its mean over the window",
        "the original's loader turns off-diagonal ones into 0.5; whoever writes the graph does that here",
    ),
)
