"""ADO: more of the domains whose loss a scaling law, fitted while training, expects to fall fastest.

Source: Jiang et al. 2024, "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws", arXiv:2410.11820,
and its code, yidingjiang/ado, `src/data_selectors/ado.py`; also eth-easl/mixtera, `mixtera/core/algo/ado/ado.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.history import newest, remembering
from vtune_jax.core.numbers import LONGEST_MEMORY
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights
from vtune_jax.rules.ado_fit import Law, fit_laws, smoothed, smoothing_rows
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["ado", "mixtera"]


class Record(NamedTuple):
    """A ring of training losses, one row per observation."""

    losses: Float[Array, "capacity domains"]  # an absent domain has its previous loss
    counts: Float[Array, "capacity domains"]  # n of the law at that row


class Adaptive(NamedTuple):
    """What ADO carries."""

    prior: Weights  # mu
    time: Int[Array, ""]  # observations so far; mixtera counts from one and is always one ahead
    credit: Float[Array, " domains"]  # h: how much each domain has been used lately
    average: Float[Array, " domains"]  # p bar: policies averaged over time
    counts: Float[Array, " domains"]  # n of the law, in counts
    law: Law
    fitted: Bool[Array, ""]
    loss: Float[Array, " domains"]  # newest known
    seen: Bool[Array, " domains"]
    chosen: Weights
    ready: Bool[Array, ""]  # whether there is a policy
    record: Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ado(MethodConfig):
    """`p = 0.9 p_bar + 0.1 rho`, rho in proportion to prior, credit and the law's slope.

    At each observation, with c the counts of the batch and n the counts so far:

    - `h = (1 - g1) h + g1 c / sum c`
    - `rho` proportional to `prior h^s max(alpha, 0.05) beta n^-alpha / n`, raised to 0.01 and normalised again
    - `p = (1 - g2) p_bar + g2 rho`, the new weights; `p_bar = p_bar + (rho - p_bar) / (t + 1)`

    The law `exp(log_e) + beta n^-alpha` is fitted anew every `refit_every` observations to the training losses,
    smoothed by a Savitzky-Golay filter of order 3; see `ado_fit`. Until the first fit, weights stay and only h moves.

    mixtera's form: no lower bound on alpha; only domains seen so far count; h follows the policy p, after it; 0.01
    bounds p instead of rho, for domains seen so far; the fit's penalties are steeper. Its other preparation of the
    record (a shorter filter on a short record, absent domains left out where n is a domain's own) is not taken over.

    The method needs training losses. Published numbers are for one observation per optimiser step: with longer
    intervals `start`, `refit_every`, `ignore` and `filter_window` shrink with them.
    """

    name: Literal["ado"] = "ado"
    form: Form = "ado"  # or "mixtera"
    credit_decay: float = number(0.1, high=1.0)  # g1
    policy_decay: float = number(0.1, high=1.0)  # g2
    credit_power: float = number(0.5)  # s
    least_share: float = number(0.01, high=1.0)  # of a domain in rho
    least_alpha: float = number(0.05)  # lower bound of alpha in front of the slope, not in the law
    same_counts: bool = True  # n is the count of all domains together, for each; else the domain's own
    tokens_per_count: float = number(1024.0, positive=True)  # tokens of a sequence; the law counts sequences
    start: int = number(500)  # observations before the first fit
    # Observations between fits; 0 never fits, for laws given by `with_law`. Under `vmap` the fit is computed at every
    # update, due or not: map over the policy alone, or take one cell after another.
    refit_every: int = number(1000)
    ignore: int = number(1000)  # observations at the head that are not fitted
    stride: int = number(10, low=1)  # of every so many observations one is fitted
    filter_window: int = number(101, low=1)  # observations smoothed together, odd; 1 smooths nothing
    capacity: int = 8192  # observations kept; when there are more, the newest are fitted

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter_window % 2 == 0:
            raise ValueError(f"filter_window must be odd, got {self.filter_window}.")
        if self.capacity < self.shortest_record:
            raise ValueError(
                f"capacity must be at least {self.shortest_record}, what a first fit takes, got {self.capacity}."
            )
        if self.capacity > LONGEST_MEMORY:
            raise ValueError(f"capacity must be at most {LONGEST_MEMORY}, got {self.capacity}.")

    @property
    def shortest_record(self) -> int:
        """Observations that a first fit takes: the filter's window, and four points for three unknowns."""
        return max(self.filter_window, self.ignore + 3 * self.stride + 1)

    def intervals(self, domains: int) -> int:
        """See `MethodConfig`: until the first fit."""
        first = max(self.shortest_record - 1, self.start)
        if not self.refit_every:
            raise ValueError("refit_every must be at least 1 in an experiment, got 0.")
        return -(-first // self.refit_every) * self.refit_every + 1

    def method(self) -> Method:
        """See `MethodConfig`."""
        begin, remember = remembering("train")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            # An array of its own for each: a state that holds the same array twice cannot be donated.
            prior, credit, average, chosen = (jnp.array(targets.prior) for _ in range(4))
            counts, loss, *law = (jnp.zeros(domains, dtype) for _ in range(5))
            memory = Adaptive(
                prior=prior,
                time=jnp.asarray(int(self.form == "mixtera"), jnp.int32),
                credit=credit,
                average=average,
                counts=counts,
                law=Law(*law),
                fitted=jnp.zeros((), bool),
                loss=loss,
                seen=jnp.zeros(domains, bool),
                chosen=chosen,
                ready=jnp.zeros((), bool),
                # Ones: a place that is never read must still have a logarithm.
                record=Record(jnp.ones((self.capacity, domains), dtype), jnp.ones((self.capacity, domains), dtype)),
            )
            return begin(targets)._replace(memory=memory)

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            history = remember(history, observation)
            old: Adaptive = history.memory
            loss, present = newest(history)
            # Losses that are not positive have no logarithm, and absurd losses would outlive their batch in every fit.
            present = present & (loss > 0) & (loss < 1e4)
            moved, some = self._fold(old, loss, present, observation), present.any()
            # The record, the last field, is written in place: choosing between two would copy it. Without evidence time
            # stands still, and the next observation writes the same row again.
            kept = jax.tree.map(lambda new, old: jnp.where(some, new, old), moved[:-1], old[:-1])
            return history._replace(memory=Adaptive._make((*kept, moved.record)))

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            state: Adaptive = history.memory
            _, present = newest(history)
            return jnp.where(state.ready & present.any(), state.chosen.astype(weights.dtype), weights)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"train"}))

    def _fold(self, old: Adaptive, loss: Array, present: Array, observation: Observation) -> Adaptive:
        """The state after an observation in which some domain is present."""
        prior, dtype, mixtera = old.prior, old.credit.dtype, self.form == "mixtera"
        batch = jnp.where(present, jnp.asarray(observation.train.tokens), 0).astype(dtype) / self.tokens_per_count
        total = jnp.maximum(batch.sum(), jnp.finfo(dtype).tiny)
        seen = old.seen | present
        more = jnp.where(jnp.asarray(self.same_counts), total, batch)
        counts = old.counts + (jnp.where(seen, more, 0.0) if mixtera else more)
        mean = (jnp.where(present, loss, 0.0) * batch).sum() / total
        loss = jnp.where(present, loss, jnp.where(old.seen, old.loss, mean)).astype(dtype)
        credit = old.credit
        if not mixtera:
            credit = (1.0 - self.credit_decay) * credit + self.credit_decay * batch / total
        row = old.time % self.capacity
        record = Record(old.record.losses.at[row].set(loss), old.record.counts.at[row].set(counts.astype(dtype)))
        law, fitted = self._refitted(old, record)
        ready = fitted & (old.time >= self.start)
        slope = law.alpha if mixtera else jnp.maximum(law.alpha, self.least_alpha)
        # In logarithms: beta n^-alpha / n leaves float32's range long before a corpus ends.
        log_n = jnp.log(jnp.maximum(counts, 1e-30))
        useful = (prior > 0) & (credit > 0) & (slope > 0) & (seen | (not mixtera))
        logs = jnp.log(jnp.where(useful, prior, 1.0)) + self.credit_power * jnp.log(jnp.where(useful, credit, 1.0))
        logs = logs + jnp.log(jnp.where(useful, slope, 1.0)) + law.log_beta - (law.alpha + 1.0) * log_n
        wanted = jax.nn.softmax(jnp.where(useful, logs, -jnp.inf)) if prior.shape[0] > 1 else jnp.ones_like(prior)
        wanted = jnp.where(useful.any(), wanted, prior)
        if not mixtera:
            wanted = jnp.maximum(wanted, self.least_share)
            wanted = wanted / wanted.sum()
        chosen = (1.0 - self.policy_decay) * old.average + self.policy_decay * wanted
        time = old.time.astype(dtype)
        average = old.average + (wanted - old.average) / (time + 1.0)
        if mixtera:
            chosen = chosen / chosen.sum()
            chosen = jnp.where(seen, jnp.maximum(chosen, self.least_share), chosen)
            chosen, average = chosen / chosen.sum(), average / average.sum()
            credit = jnp.where(ready, (1.0 - self.credit_decay) * credit + self.credit_decay * chosen, credit)
        return Adaptive(
            prior=prior,
            time=old.time + 1,
            credit=credit.astype(dtype),
            average=jnp.where(ready, average, old.average).astype(dtype),
            counts=counts.astype(dtype),
            law=law,
            fitted=fitted,
            loss=loss,
            seen=seen,
            chosen=jnp.where(ready, chosen, old.chosen).astype(dtype),
            ready=ready,
            record=record,
        )

    def _refitted(self, old: Adaptive, record: Record) -> tuple[Law, Bool[Array, ""]]:
        """The law, fitted anew where that is due and can be done."""
        if not self.refit_every:
            return old.law, old.fitted
        capacity = self.capacity
        length = jnp.minimum(old.time + 1, capacity)
        oldest = old.time + 1 - length
        due = (old.time >= self.start) & (old.time % self.refit_every == 0) & (length >= self.shortest_record)
        rows = smoothing_rows(self.filter_window)

        def refit(_: None) -> tuple[Law, Bool[Array, ""]]:
            ordered = jax.tree.map(lambda ring: ring[(oldest + jnp.arange(capacity)) % capacity], record)
            first = jnp.maximum(self.ignore - oldest, 0)
            wanted = first + self.stride * jnp.arange(-(-capacity // self.stride))
            kept = wanted < length
            places = jnp.where(kept, wanted, first)
            losses = smoothed(ordered.losses, length, places, rows)
            # mixtera takes the mean of the Huber losses and multiplies the penalties by 1000.
            steepness = 1e3 * kept.sum().astype(losses.dtype) if self.form == "mixtera" else 1.0
            law, value = fit_laws(ordered.counts[places], losses, kept, steepness)
            sound = jnp.isfinite(value).all() & jax.tree.reduce(
                lambda a, b: a & b, jax.tree.map(lambda part: jnp.isfinite(part).all(), law)
            )
            law = jax.tree.map(lambda new, old: jnp.where(sound, new, old).astype(old.dtype), law, old.law)
            return Law(*law), old.fitted | sound

        kept = old.law, old.fitted
        result: tuple[Law, Bool[Array, ""]] = jax.lax.cond(due, refit, lambda _: kept, None)
        return result


def with_law(history: LossHistory, law: Law) -> LossHistory:
    """The history of an `ado` method with laws that were fitted elsewhere, in counts."""
    return history._replace(memory=history.memory._replace(law=law, fitted=jnp.ones((), bool)))


ado = factory_of(Ado)

PUBLISHED = Published(
    config=Ado,
    source="Jiang et al. 2024, arXiv:2410.11820; yidingjiang/ado, eth-easl/mixtera",
    place=50,
    departures=(
        "as in the code: credit follows the batches' counts (the policy in the paper), and a floor of 0.05 stands "
        "before the slope only",
        "the fit's penalties act as bounds, which they are steep enough for; 48 damped Gauss-Newton starts for 512 "
        "of L-BFGS, to the same minimum",
        "no fit with fewer than four points, where the code fits a single one",
        "counts are tokens over `tokens_per_count`; one observation per update, at every step in the original",
        "with no evidence time stands still",
    ),
)
