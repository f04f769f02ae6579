"""Aioli: short probe runs within training say how much each domain lowers every loss; weights follow.

Source: Chen et al. 2024, "Aioli: A Unified Optimization Framework for Language Model Data Mixing", arXiv:2411.05735,
and its code, HazyResearch/aioli, `trainer/aioli_trainer.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtune_jax.core.history import newest, remembering
from vtune_jax.core.numbers import LONGEST_MEMORY
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights
from vtune_jax.rules.config import MethodConfig, Published, factory_of, is_off, number


class Probing(NamedTuple):
    """Where a round stands, and what it has measured."""

    phase: Int[Array, ""]  # probes finished in this round; -1 before its first evaluation
    rounds: Int[Array, ""]  # rounds finished
    order: Int[Array, " probes"]  # the domain that each probe of the round favours
    last: Float[Array, " domains"]  # losses of the previous evaluation
    drops: Float[Array, "domains domains"]  # D: summed fall of the row's loss while the column was favoured
    mixtures: Float[Array, "domains domains"]  # summed mixtures of the column's probes
    average: Float[Array, " domains"]  # column sums of the moving average of A
    chosen: Weights  # of the newest finished round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aioli(MethodConfig):
    """`w' = softmax(log w + eta a)`, a the column sums of A in the assumed law `losses' = losses - A w`.

    A round: one evaluation, then `sweeps` times k intervals of training, each under a mixture that gives one domain
    `favour` and the others the rest evenly; D sums the falls of all losses, `A = D P^-1` with P the mixtures of the
    probes. Then `hold` intervals under the new weights, and the next round.

    - normalize: `A - min(0, min A)`, then divided by its sum
    - diagonal: `A = diag(D_ii / P_ii)`
    - memory theta > 0: `E = (1 - theta) A + theta E`, `w = softmax(eta column sums of E)`, as E keeps the past

    Weights count from uniform: the prior is what trains before the first round only, as in the code. The method needs
    held-out losses and the mixture the training batches were drawn from. Its weights are those of a probe during
    `sweeps * k` of every `sweeps * k + hold` intervals.
    """

    name: Literal["aioli"] = "aioli"
    step_size: float = number(0.2)  # eta
    favour: float = number(0.75, high=1.0)  # share of the domain that a probe favours, above 1 / k
    sweeps: int = number(1, low=1, high=LONGEST_MEMORY)  # probes of each domain per round
    hold: int = number(4, low=1)  # intervals under the new weights before the next round
    warmup: int = number(1, low=1)  # intervals at the prior before the first round
    memory: float = number(0.0, high=1.0, off=0.0)  # theta of the moving average over rounds; 0: none
    normalize: bool = True  # shifts and scales A to sum to one
    diagonal: bool = False  # leaves out what domains do for each other
    order: Literal["random", "listed"] = "random"  # of a sweep's probes: drawn anew for every round, or as listed
    order_seed: int = 0  # of a random order

    def method(self) -> Method:
        """See `MethodConfig`.

        Raises:
            ValueError: when called for k domains, `favour` not above 1 / k.
        """
        sweeps = self.sweeps
        begin, remember = remembering("heldout")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            if isinstance(self.favour, int | float) and domains > 1 and not self.favour > 1 / domains:
                raise ValueError(f"favour must be above 1/{domains} for {domains} domains, got {self.favour}.")
            zeros, square = jnp.zeros(domains, dtype), jnp.zeros((domains, domains), dtype)
            start = Probing(
                phase=jnp.asarray(-self.warmup, jnp.int32),
                rounds=jnp.zeros((), jnp.int32),
                order=jnp.tile(jnp.arange(domains), sweeps),
                last=zeros,
                drops=square,
                mixtures=square,
                average=zeros,
                chosen=jnp.full(domains, 1.0 / domains, dtype),
            )
            return begin(targets)._replace(memory=start)

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            history = remember(history, observation)
            old: Probing = history.memory
            domains, dtype = old.last.shape[0], old.last.dtype
            loss, seen = newest(history)
            # A domain that is missing from an evaluation, or not finite there, counts as unchanged.
            loss = jnp.where(seen & (jnp.abs(loss) < 1e15), loss, old.last).astype(dtype)
            # An evaluation without any evidence does not count: the round waits.
            phase = jnp.where(seen.any(), old.phase + 1, old.phase)
            probed = old.order[jnp.clip(old.phase, 0, sweeps * domains - 1)]
            drawn = observation.weights
            mixture = self._probe(probed, domains, dtype) if drawn is None else drawn
            in_round = seen.any() & (old.phase >= 0) & (old.phase < sweeps * domains)
            fell = jnp.where(in_round, old.last - loss, 0.0)
            drops = old.drops.at[:, probed].add(fell)
            mixtures = old.mixtures.at[:, probed].add(jnp.where(in_round, mixture, 0.0).astype(dtype))
            begins = seen.any() & (phase == 0)
            state = old._replace(
                phase=phase,
                order=jnp.where(begins, self._shuffled(old.rounds, domains), old.order),
                last=loss,
                drops=jnp.where(begins, 0.0, drops),
                mixtures=jnp.where(begins, 0.0, mixtures),
            )
            ends = in_round & (phase == sweeps * domains)
            state = jax.lax.cond(ends, self._finish, lambda unfinished: unfinished, state)
            # The evaluation after the last interval under the new weights is the first of the next round.
            over = state.phase >= sweeps * domains + self.hold - 1
            return history._replace(memory=state._replace(phase=jnp.where(over, -1, state.phase)))

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            state: Probing = history.memory
            domains = weights.shape[0]
            probing = (state.phase >= 0) & (state.phase < sweeps * domains)
            favoured = state.order[jnp.clip(state.phase, 0, sweeps * domains - 1)]
            probe = self._probe(favoured, domains, weights.dtype)
            mixture = jnp.where(probing, probe, state.chosen.astype(weights.dtype))
            _, seen = newest(history)
            waits = (state.phase < 0) & (state.rounds == 0)
            return jnp.where(seen.any() & ~waits, mixture, weights)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "weights", "probes"}))

    def _probe(self, domain: Int[Array, ""], domains: int, dtype: jnp.dtype) -> Weights:
        """The mixture that favours a domain."""
        if domains == 1:
            return jnp.ones(1, dtype)
        others = jnp.full(domains, (1.0 - self.favour) / (domains - 1), dtype)
        return others.at[domain].set(self.favour)

    def _shuffled(self, rounds: Int[Array, ""], domains: int) -> Int[Array, " probes"]:
        """The domains that the probes of a round favour, one after the other."""
        listed = jnp.tile(jnp.arange(domains), self.sweeps)
        if self.order == "listed":
            return listed
        key = jax.random.fold_in(jax.random.key(self.order_seed), rounds)
        keys = jax.random.split(key, self.sweeps)
        return jax.vmap(lambda k: jax.random.permutation(k, domains))(keys).reshape(-1).astype(listed.dtype)

    def _finish(self, state: Probing) -> Probing:
        """New weights from a finished round."""
        drops, mixtures = state.drops / self.sweeps, state.mixtures / self.sweeps
        # D = A P, column j of P the mixture of domain j's probes.
        own = jnp.diag(jnp.diag(drops) / jnp.diag(mixtures))
        matrix = own if self.diagonal else jnp.linalg.solve(mixtures.T, drops.T).T
        if self.normalize:
            matrix = matrix - jnp.minimum(0.0, matrix.min())
            total = matrix.sum()
            # Where no probe changed any loss, 0 / 0 would be NaN.
            matrix = matrix / jnp.where(total > 0, total, 1.0)
        # Probes that constraints have made alike leave no solution.
        matrix = jnp.where(jnp.isfinite(matrix).all(), matrix, 0.0)
        gain, domains = matrix.sum(axis=0), state.last.shape[0]
        first = state.rounds == 0
        average = jnp.where(first, gain, (1.0 - self.memory) * gain + self.memory * state.average)
        if is_off(self.memory):
            start, score = state.chosen, gain
        else:
            start, score = jnp.full(domains, 1.0 / domains), average
        everyone = jnp.ones(domains, bool)
        chosen = exponentiated_gradient(start.astype(gain.dtype), score, everyone, step_size=self.step_size)
        return state._replace(rounds=state.rounds + 1, average=average.astype(gain.dtype), chosen=chosen)

    def intervals(self, domains: int) -> int:
        """See `MethodConfig`: the warm-up and the probes of the first round."""
        return self.warmup + self.sweeps * domains


aioli = factory_of(Aioli)

PUBLISHED = Published(
    config=Aioli,
    source="Chen et al. 2024, arXiv:2411.05735; HazyResearch/aioli",
    place=90,
    departures=(
        "probes last one interval each, and so does every evaluation; `hold` says how long the weights then stay",
        "the mixtures that were really drawn from are inverted, so that floors and ceilings do not falsify A",
        "a round in which no loss moves leaves the weights alone; NaN in the code",
        "the order of probes is drawn by a key of the round's number, not by a global generator",
    ),
)
