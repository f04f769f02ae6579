"""Aioli: short probe runs within training say how much each domain lowers every loss; weights follow.

Source: Chen et al. 2024, "Aioli: A Unified Optimization Framework for Language Model Data Mixing", arXiv:2411.05735,
and its code, HazyResearch/aioli, `trainer/aioli_trainer.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import newest, remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm


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


def aioli(
    *,
    step_size: Scalar = 0.2,
    favour: Scalar = 0.75,
    sweeps: int = 1,
    hold: int = 1,
    warmup: int = 1,
    memory: Scalar = 0.0,
    normalize: bool = True,
    diagonal: bool = False,
    order: Literal["random", "listed"] = "random",
    seed: int = 0,
) -> Method:
    """`w' = softmax(log w + eta a)`, a the column sums of A in the assumed law `losses' = losses - A w`.

    A round: one evaluation, then `sweeps` times k intervals of training, each under a mixture that gives one domain
    `favour` and the others the rest evenly; D sums the falls of all losses, `A = D P^-1` with P the mixtures of the
    probes. Then `hold` intervals under the new weights, and the next round.

    - normalize: `A - min(0, min A)`, then divided by its sum
    - diagonal: `A = diag(D_ii / P_ii)`
    - memory theta > 0: `E = (1 - theta) A + theta E`, `w = softmax(eta column sums of E)`, as E keeps the past

    Weights count from uniform: the prior is what trains before the first round only, as in the code.

    Args:
        step_size: eta >= 0.
        favour: share of the probed domain, in (1 / k, 1].
        sweeps: probes of each domain per round, at least 1.
        hold: intervals under the new weights, at least 1.
        warmup: intervals at the prior before the first round, at least 1.
        memory: theta in [0, 1).
        normalize: scales A.
        diagonal: leaves out what domains do for each other.
        order: of the probes of a sweep: drawn anew for every round, or as domains are listed.
        seed: of that order.

    Returns:
        A method that needs held-out losses and the mixture the training batches were drawn from. Its weights are
        those of a probe during `sweeps` times k of every `sweeps * k + hold` intervals.

    Raises:
        ValueError: a hyper-parameter out of its range, or, when called for k domains, `favour` not above 1 / k.
    """
    assert_within(step_size=step_size)
    assert_within(0.0, 1.0, favour=favour, memory=memory)
    assert_within(1.0, sweeps=sweeps, hold=hold, warmup=warmup)
    begin, remember = remembering("heldout")

    def probe(domain: Int[Array, ""], domains: int, dtype: jnp.dtype) -> Weights:
        if domains == 1:
            return jnp.ones(1, dtype)
        others = jnp.full(domains, (1.0 - favour) / (domains - 1), dtype)
        return others.at[domain].set(favour)

    def shuffled(rounds: Int[Array, ""], domains: int) -> Int[Array, " probes"]:
        listed = jnp.tile(jnp.arange(domains), sweeps)
        if order == "listed":
            return listed
        key = jax.random.fold_in(jax.random.key(seed), rounds)
        keys = jax.random.split(key, sweeps)
        return jax.vmap(lambda k: jax.random.permutation(k, domains))(keys).reshape(-1).astype(listed.dtype)

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        if isinstance(favour, int | float) and domains > 1 and not favour > 1 / domains:
            raise ValueError(f"favour must be above 1/{domains} for {domains} domains, got {favour}.")
        zeros, square = jnp.zeros(domains, dtype), jnp.zeros((domains, domains), dtype)
        start = Probing(
            phase=jnp.asarray(-warmup, jnp.int32),
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
        held: Probing = history.memory
        domains, dtype = held.last.shape[0], held.last.dtype
        loss, seen = newest(history)
        # A domain that is missing from an evaluation, or not finite there, has not moved as far as we know.
        loss = jnp.where(seen & (jnp.abs(loss) < 1e15), loss, held.last).astype(dtype)
        phase = held.phase + 1
        # An evaluation without any evidence is none: the round waits.
        phase = jnp.where(seen.any(), phase, held.phase)
        probed = held.order[jnp.clip(held.phase, 0, sweeps * domains - 1)]
        mixture = probe(probed, domains, dtype) if observation.weights is None else observation.weights
        in_round = seen.any() & (held.phase >= 0) & (held.phase < sweeps * domains)
        fell = jnp.where(in_round, held.last - loss, 0.0)
        drops = held.drops.at[:, probed].add(fell)
        mixtures = held.mixtures.at[:, probed].add(jnp.where(in_round, mixture, 0.0).astype(dtype))
        begins = seen.any() & (phase == 0)
        held = held._replace(
            phase=phase,
            order=jnp.where(begins, shuffled(held.rounds, domains), held.order),
            last=loss,
            drops=jnp.where(begins, 0.0, drops),
            mixtures=jnp.where(begins, 0.0, mixtures),
        )
        held = jax.lax.cond(in_round & (phase == sweeps * domains), finish, lambda held: held, held)
        # After the last interval under the new weights its evaluation is the first of the next round.
        over = held.phase >= sweeps * domains + hold - 1
        return history._replace(memory=held._replace(phase=jnp.where(over, -1, held.phase)))

    def finish(held: Probing) -> Probing:
        """New weights from a finished round."""
        drops, mixtures = held.drops / sweeps, held.mixtures / sweeps
        # D = A P, column j of P the mixture of domain j's probes.
        own = jnp.diag(jnp.diag(drops) / jnp.diag(mixtures))
        matrix = own if diagonal else jnp.linalg.solve(mixtures.T, drops.T).T
        if normalize:
            matrix = matrix - jnp.minimum(0.0, matrix.min())
            total = matrix.sum()
            # No probe changed any loss: nothing was learnt, and 0 / 0 would be NaN.
            matrix = matrix / jnp.where(total > 0, total, 1.0)
        # Probes that constraints have made alike leave no solution.
        matrix = jnp.where(jnp.isfinite(matrix).all(), matrix, 0.0)
        gain, domains = matrix.sum(axis=0), held.last.shape[0]
        first = held.rounds == 0
        average = jnp.where(first, gain, (1.0 - memory) * gain + memory * held.average)
        remembers = not (isinstance(memory, int | float) and memory == 0)
        start, score = (jnp.full(domains, 1.0 / domains), average) if remembers else (held.chosen, gain)
        everyone = jnp.ones(domains, bool)
        chosen = exponentiated_gradient(start.astype(gain.dtype), score, everyone, step_size=step_size)
        return held._replace(rounds=held.rounds + 1, average=average.astype(gain.dtype), chosen=chosen)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        held: Probing = history.memory
        domains = weights.shape[0]
        probing = (held.phase >= 0) & (held.phase < sweeps * domains)
        favoured = held.order[jnp.clip(held.phase, 0, sweeps * domains - 1)]
        mixture = jnp.where(probing, probe(favoured, domains, weights.dtype), held.chosen.astype(weights.dtype))
        _, seen = newest(history)
        before = (held.phase < 0) & (held.rounds == 0)
        return jnp.where(seen.any() & ~before, mixture, weights)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"heldout", "weights", "probes"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aioli(Arm):
    """Aioli's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["aioli"] = "aioli"
    step_size: float = 0.2  # eta
    favour: float = 0.75  # share of the domain that a probe favours
    sweeps: int = 1  # probes of each domain per round
    hold: int = 4  # intervals under the new weights before the next round
    warmup: int = 1  # intervals at the prior before the first round
    memory: float = 0.0  # theta of the moving average over rounds
    normalize: bool = True  # what was measured is shifted and scaled to sum to one
    diagonal: bool = False  # what domains do for each other is left out
    order: Literal["random", "listed"] = "random"  # of a sweep's probes
    order_seed: int = 0

    def method(self) -> Method:
        """See `Arm`."""
        return aioli(
            step_size=self.step_size,
            favour=self.favour,
            sweeps=self.sweeps,
            hold=self.hold,
            warmup=self.warmup,
            memory=self.memory,
            normalize=self.normalize,
            diagonal=self.diagonal,
            order=self.order,
            seed=self.order_seed,
        )

    def intervals(self, domains: int) -> int:
        """See `Arm`."""
        return self.warmup + self.sweeps * domains
