"""ADO: more of the domains whose loss a scaling law, fitted while training, expects to fall fastest.

Source: Jiang et al. 2024, "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws", arXiv:2410.11820,
and its code, yidingjiang/ado, `src/data_selectors/ado.py`; also eth-easl/mixtera, `mixtera/core/algo/ado/ado.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import newest, remembering
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.ado_fit import Law, fit_laws, smoothed, smoothing_rows
from vtune_jax.rules.config import Arm

Form = Literal["ado", "mixtera"]


class Record(NamedTuple):
    """A ring of training losses, one row per observation."""

    losses: Float[Array, "capacity domains"]  # an absent domain has its previous one
    counts: Float[Array, "capacity domains"]  # n of the law at that row


class Adaptive(NamedTuple):
    """What ADO carries."""

    prior: Weights  # mu
    time: Int[Array, ""]  # observations so far, one more for mixtera, which counts from one
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


def ado(
    *,
    form: Form = "ado",
    credit_decay: Scalar = 0.1,
    policy_decay: Scalar = 0.1,
    credit_power: Scalar = 0.5,
    least_share: Scalar = 0.01,
    least_alpha: Scalar = 0.05,
    same_counts: bool = True,
    tokens_per_count: Scalar = 1024.0,
    start: int = 500,
    refit_every: int = 1000,
    ignore: int = 1000,
    stride: int = 10,
    filter_window: int = 101,
    capacity: int = 8192,
) -> Method:
    """`p = 0.9 p_bar + 0.1 rho`, rho in proportion to prior, credit and the law's slope.

    At each observation, with c the counts of the batch and n the counts so far:

    - `h = (1 - g1) h + g1 c / sum c`
    - `rho` proportional to `prior h^s max(alpha, 0.05) beta n^-alpha / n`, raised to 0.01 and normalised again
    - `p = (1 - g2) p_bar + g2 rho`, the new weights; `p_bar = p_bar + (rho - p_bar) / (t + 1)`

    The law `exp(log_e) + beta n^-alpha` is fitted anew every `refit_every` observations to the training losses,
    smoothed by a Savitzky-Golay filter of order 3; see `ado_fit`. Until there is one, weights stay and only h moves.

    mixtera's form: no lower bound on alpha; only domains seen so far count; h follows the policy p, after it; 0.01
    bounds p instead of rho, for domains seen so far; the fit's penalties are steeper. Its other preparation of the
    record (a shorter filter on a short one, absent domains left out where n is a domain's own) is not taken over.

    Args:
        form: "ado", or "mixtera".
        credit_decay: g1 in [0, 1].
        policy_decay: g2 in [0, 1].
        credit_power: s >= 0.
        least_share: in [0, 1].
        least_alpha: >= 0; in front of the slope only, not in the law.
        same_counts: n is the count of all domains together, for each; else the domain's own.
        tokens_per_count: tokens of a sequence; the law counts sequences.
        start: observations before the first fit.
        refit_every: observations; 0 never fits, for laws given by `with_law`. Under `vmap` the fit is computed at every
            update, due or not: map over the policy alone, or take one cell after another.
        ignore: observations at the head that are not fitted.
        stride: every how many observations one is fitted.
        filter_window: of the smoothing, in observations, odd; 1 smooths nothing.
        capacity: observations kept; when there are more, the newest are fitted.

    Returns:
        A method that needs training losses. Published numbers are for one observation per optimiser step: with longer
        intervals `start`, `refit_every`, `ignore` and `filter_window` shrink with them.

    Raises:
        ValueError: a hyper-parameter out of its range.
    """
    if form not in ("ado", "mixtera"):
        raise ValueError(f"form must be ado or mixtera, got '{form}'.")
    assert_within(0.0, 1.0, credit_decay=credit_decay, policy_decay=policy_decay, least_share=least_share)
    assert_within(credit_power=credit_power, least_alpha=least_alpha, start=start, ignore=ignore)
    assert_within(refit_every=refit_every)
    assert_within(1.0, stride=stride, filter_window=filter_window)
    if filter_window % 2 == 0:
        raise ValueError(f"filter_window must be odd, got {filter_window}.")
    if isinstance(tokens_per_count, int | float) and not tokens_per_count > 0:
        raise ValueError(f"tokens_per_count must be positive, got {tokens_per_count}.")
    least = shortest_record(ignore=ignore, stride=stride, filter_window=filter_window)
    if capacity < least:
        raise ValueError(f"capacity must be at least {least}, what a first fit takes, got {capacity}.")
    begin, remember = remembering("train")
    rows = smoothing_rows(filter_window)
    points = -(-capacity // stride)

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        # An array of its own for each: a state that holds one twice cannot be donated.
        prior, credit, average, chosen = (jnp.array(targets.prior) for _ in range(4))
        counts, loss, *law = (jnp.zeros(domains, dtype) for _ in range(5))
        memory = Adaptive(
            prior=prior,
            time=jnp.asarray(int(form == "mixtera"), jnp.int32),
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
            record=Record(jnp.ones((capacity, domains), dtype), jnp.ones((capacity, domains), dtype)),
        )
        return begin(targets)._replace(memory=memory)

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        history = remember(history, observation)
        held: Adaptive = history.memory
        loss, present = newest(history)
        # Losses that are not positive have no logarithm, and absurd ones would outlive their batch in every fit.
        present = present & (loss > 0) & (loss < 1e4)
        moved, some = fold(held, loss, present, observation), present.any()
        # The record, the last field, is written in place: choosing between two would copy it. Without evidence time
        # stands still, and the next observation writes the same row again.
        kept = jax.tree.map(lambda new, old: jnp.where(some, new, old), moved[:-1], held[:-1])
        return history._replace(memory=Adaptive._make((*kept, moved.record)))

    def fold(held: Adaptive, loss: Array, present: Array, observation: Observation) -> Adaptive:
        prior, dtype = held.prior, held.credit.dtype
        batch = jnp.where(present, jnp.asarray(observation.train.tokens), 0).astype(dtype) / tokens_per_count
        total = jnp.maximum(batch.sum(), jnp.finfo(dtype).tiny)
        seen = held.seen | present
        more = jnp.where(jnp.asarray(same_counts), total, batch)
        counts = held.counts + (jnp.where(seen, more, 0.0) if form == "mixtera" else more)
        mean = (jnp.where(present, loss, 0.0) * batch).sum() / total
        loss = jnp.where(present, loss, jnp.where(held.seen, held.loss, mean)).astype(dtype)
        credit = held.credit
        if form == "ado":
            credit = (1.0 - credit_decay) * credit + credit_decay * batch / total
        row = held.time % capacity
        record = Record(held.record.losses.at[row].set(loss), held.record.counts.at[row].set(counts.astype(dtype)))
        law, fitted = refitted(held, record)
        ready = fitted & (held.time >= start)
        slope = jnp.maximum(law.alpha, least_alpha) if form == "ado" else law.alpha
        # In logarithms: beta n^-alpha / n leaves float32's range long before a corpus ends.
        log_n = jnp.log(jnp.maximum(counts, 1e-30))
        useful = (prior > 0) & (credit > 0) & (slope > 0) & (seen | (form == "ado"))
        logs = jnp.log(jnp.where(useful, prior, 1.0)) + credit_power * jnp.log(jnp.where(useful, credit, 1.0))
        logs = logs + jnp.log(jnp.where(useful, slope, 1.0)) + law.log_beta - (law.alpha + 1.0) * log_n
        wanted = jax.nn.softmax(jnp.where(useful, logs, -jnp.inf)) if prior.shape[0] > 1 else jnp.ones_like(prior)
        wanted = jnp.where(useful.any(), wanted, prior)
        if form == "ado":
            wanted = jnp.maximum(wanted, least_share)
            wanted = wanted / wanted.sum()
        chosen = (1.0 - policy_decay) * held.average + policy_decay * wanted
        time = held.time.astype(dtype)
        average = held.average + (wanted - held.average) / (time + 1.0)
        if form == "mixtera":
            chosen = chosen / chosen.sum()
            chosen = jnp.where(seen, jnp.maximum(chosen, least_share), chosen)
            chosen, average = chosen / chosen.sum(), average / average.sum()
            credit = jnp.where(ready, (1.0 - credit_decay) * credit + credit_decay * chosen, credit)
        return Adaptive(
            prior=prior,
            time=held.time + 1,
            credit=credit.astype(dtype),
            average=jnp.where(ready, average, held.average).astype(dtype),
            counts=counts.astype(dtype),
            law=law,
            fitted=fitted,
            loss=loss,
            seen=seen,
            chosen=jnp.where(ready, chosen, held.chosen).astype(dtype),
            ready=ready,
            record=record,
        )

    def refitted(held: Adaptive, record: Record) -> tuple[Law, Bool[Array, ""]]:
        """The law, fitted anew where that is due and can be done."""
        if not refit_every:
            return held.law, held.fitted
        length = jnp.minimum(held.time + 1, capacity)
        oldest = held.time + 1 - length
        due = (held.time >= start) & (held.time % refit_every == 0) & (length >= least)

        def refit(_: None) -> tuple[Law, Bool[Array, ""]]:
            ordered = jax.tree.map(lambda ring: ring[(oldest + jnp.arange(capacity)) % capacity], record)
            first = jnp.maximum(ignore - oldest, 0)
            wanted = first + stride * jnp.arange(points)
            kept = wanted < length
            places = jnp.where(kept, wanted, first)
            losses = smoothed(ordered.losses, length, places, rows)
            # mixtera takes the mean of the Huber losses and multiplies the penalties by 1000.
            steepness = 1e3 * kept.sum().astype(losses.dtype) if form == "mixtera" else 1.0
            law, value = fit_laws(ordered.counts[places], losses, kept, steepness)
            sound = jnp.isfinite(value).all() & jax.tree.reduce(
                lambda a, b: a & b, jax.tree.map(lambda part: jnp.isfinite(part).all(), law)
            )
            law = jax.tree.map(lambda new, old: jnp.where(sound, new, old).astype(old.dtype), law, held.law)
            return Law(*law), held.fitted | sound

        return jax.lax.cond(due, refit, lambda _: (held.law, held.fitted), None)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        held: Adaptive = history.memory
        _, present = newest(history)
        return jnp.where(held.ready & present.any(), held.chosen.astype(weights.dtype), weights)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"train"}))


def shortest_record(*, ignore: int, stride: int, filter_window: int) -> int:
    """Observations that a first fit takes: the filter's window, and four points for three unknowns."""
    return max(filter_window, ignore + 3 * stride + 1)


def with_law(history: LossHistory, law: Law) -> LossHistory:
    """The history of an `ado` method with laws that were fitted elsewhere, in counts."""
    return history._replace(memory=history.memory._replace(law=law, fitted=jnp.ones((), bool)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ado(Arm):
    """ADO's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["ado"] = "ado"
    form: Form = "ado"  # or "mixtera"
    credit_decay: float = 0.1  # g1
    policy_decay: float = 0.1  # g2
    credit_power: float = 0.5  # s
    least_share: float = 0.01  # of a domain in each step's preference
    same_counts: bool = True  # the law of each domain counts what all have read
    tokens_per_count: float = 1024.0  # the law counts sequences
    start: int = 500  # observations before the first fit; all of these are for one observation per step
    refit_every: int = 1000
    ignore: int = 1000  # observations at the head that are not fitted
    stride: int = 10  # every how many observations one is fitted
    filter_window: int = 101  # observations smoothed together
    capacity: int = 8192  # observations kept

    def method(self) -> Method:
        """See `Arm`."""
        return ado(
            form=self.form,
            credit_decay=self.credit_decay,
            policy_decay=self.policy_decay,
            credit_power=self.credit_power,
            least_share=self.least_share,
            same_counts=self.same_counts,
            tokens_per_count=self.tokens_per_count,
            start=self.start,
            refit_every=self.refit_every,
            ignore=self.ignore,
            stride=self.stride,
            filter_window=self.filter_window,
            capacity=self.capacity,
        )

    def intervals(self, domains: int) -> int:
        """See `Arm`: the first fit."""
        least = shortest_record(ignore=self.ignore, stride=self.stride, filter_window=self.filter_window)
        first = max(least - 1, self.start)
        if not self.refit_every:
            raise ValueError("refit_every must be at least 1 in an experiment, got 0.")
        return -(-first // self.refit_every) * self.refit_every + 1
