"""DoReMi: more weight for domains whose loss lies far above a reference model's.

Source: Xie et al. 2023, "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", arXiv:2305.10429, its
code, sangmichaelxie/doremi, `doremi/trainer.py`, and three other versions of it, each of which is another rule:
stanford-crfm/levanter, `src/levanter/doremi.py`; HazyResearch/aioli, `trainer/doremi_trainer.py`; Olivia-fsm/DoGE,
`src/trainer.py`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vtune_jax.core.history import remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Targets, Weights, evidence
from vtune_jax.rules.config import MethodConfig, Published, factory_of, number

Form = Literal["official", "levanter", "aioli", "doge"]


class ExcessScores(NamedTuple):
    """What DoReMi carries."""

    score: Float[Array, " domains"]  # lambda: each domain's newest excess loss, nats per token
    seen: Bool[Array, " domains"]  # whether the newest observation held the domain


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoReMi(MethodConfig):
    """`w' = (1 - c) softmax(log w + eta lambda) + c / k`, with the excess loss lambda in one of four forms.

    - official: the mean over the domain's tokens of `[loss - reference]_+`, clipped token by token
    - levanter: the same sum over the tokens that stay positive only; 0 for a domain that is absent
    - aioli, doge: `[mean loss - mean reference]_+`, clipped once for the domain

    In all forms but levanter's an absent domain keeps its last score; in aioli's so does a domain whose excess is
    exactly 0. The method needs a reference model's losses on the training batches. Published use: the weights weigh the
    loss of a small proxy that is sampled at the prior, and their average is the mixture of the real run.
    """

    name: Literal["doremi"] = "doremi"
    form: Form = "official"  # whose version of the rule
    step_size: float = number(1.0)  # eta; 1 in the official code and in levanter, 0.1 in DoGE's
    smoothing: float = number(1e-3, high=1.0)  # c; 1e-3 in the paper, 1e-4 in the official code, 0 in DoGE's
    first_score: float = number(0.0)  # of a domain not seen yet; `ln |V|` in the official code, 1e-6 in Aioli's, DoGE's

    def method(self) -> Method:
        """See `MethodConfig`."""
        begin, remember = remembering("train")

        def init(targets: Targets) -> LossHistory:
            domains, dtype = targets.prior.shape[0], targets.prior.dtype
            start = ExcessScores(jnp.full(domains, self.first_score, dtype), jnp.zeros(domains, bool))
            return begin(targets)._replace(memory=start)

        def observe(history: LossHistory, observation: Observation) -> LossHistory:
            excess, old = evidence(observation, "excess", "losses above a reference model's"), history.memory
            counted = excess.positive if self.form == "levanter" else excess.tokens
            clips_domains = self.form in ("aioli", "doge")
            total = jnp.asarray(jnp.maximum(excess.raw, 0.0) if clips_domains else excess.clipped)
            # A sum over nothing but padding must not become NaN, which would spread to every weight.
            seen = (excess.tokens > 0) & jnp.isfinite(total)
            new = jnp.where(seen, total, 0.0) / jnp.maximum(counted, 1)
            if self.form == "levanter":
                score = new
            else:
                score = jnp.where(seen & (excess.raw != 0.0) if self.form == "aioli" else seen, new, old.score)
            memory = ExcessScores(jnp.minimum(score, 1e30).astype(old.score.dtype), jnp.asarray(seen))
            return remember(history, observation)._replace(memory=memory)

        def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
            scores: ExcessScores = history.memory
            everyone = jnp.ones(weights.shape[0], bool)
            new = exponentiated_gradient(
                weights, scores.score, everyone, step_size=self.step_size, smoothing=self.smoothing
            )
            return jnp.where(scores.seen.any(), new, weights)

        return Method(init=init, observe=observe, update=update, needs=frozenset({"reference"}))


doremi = factory_of(DoReMi)

PUBLISHED = Published(
    config=DoReMi,
    source="Xie et al. 2023, arXiv:2305.10429; sangmichaelxie/doremi",
    place=70,
    departures=(
        "four versions (`form`): the official code's and those of levanter, Aioli and DoGE, which are other rules",
        "evidence is pooled over the tokens since the last update; in the original the weights move at every step",
        "a domain not seen yet scores `first_score`, 0; in the official code ln |V|, in Aioli's and DoGE's 1e-6",
        "an empty or non-finite sum counts as absent; in the official code it makes every weight NaN",
        "the proxy (`proxy_share`) has the real model's size, and starts from the base model as the reference does",
        "the mean of the proxy's weights leaves out the prior it started from, as in the paper; the official code "
        "counts it in",
    ),
)
