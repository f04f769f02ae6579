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

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm

Form = Literal["official", "levanter", "aioli", "doge"]


class ExcessScores(NamedTuple):
    """What DoReMi carries."""

    score: Float[Array, " domains"]  # lambda: each domain's newest excess loss, nats per token
    seen: Bool[Array, " domains"]  # whether the newest observation held the domain


def doremi(
    *, form: Form = "official", step_size: Scalar = 1.0, smoothing: Scalar = 1e-3, first_score: Scalar = 0.0
) -> Method:
    """`w' = (1 - c) softmax(log w + eta lambda) + c / k`, with the excess loss lambda by one of

    - official: the mean over the domain's tokens of `[loss - reference]_+`, clipped token by token
    - levanter: the same sum over the tokens that stay positive only; 0 for a domain that is absent
    - aioli, doge: `[mean loss - mean reference]_+`, clipped once for the domain

    In all but levanter's form an absent domain keeps its last score; in Aioli's also one whose excess is exactly 0.

    Args:
        form: whose version.
        step_size: eta >= 0; 1 in the official code and in levanter, 0.1 in DoGE's.
        smoothing: c in [0, 1]; 1e-3 in the paper, 1e-4 the official code's default, 0 in DoGE's.
        first_score: of a domain not seen yet; `ln |V|` in the official code, 1e-6 in Aioli's and DoGE's.

    Returns:
        A method that needs a reference model's losses on the training batches. Published use: the weights weigh the
        loss of a small proxy that is sampled at the prior, and their average is the mixture of the real run.

    Raises:
        ValueError: a hyper-parameter out of its range, or, when called, an observation without excess losses.
    """
    if form not in ("official", "levanter", "aioli", "doge"):
        raise ValueError(f"form must be official, levanter, aioli or doge, got '{form}'.")
    assert_within(step_size=step_size, first_score=first_score)
    assert_within(0.0, 1.0, smoothing=smoothing)
    begin, remember = remembering("train")

    def init(targets: Targets) -> LossHistory:
        domains, dtype = targets.prior.shape[0], targets.prior.dtype
        start = ExcessScores(jnp.full(domains, first_score, dtype), jnp.zeros(domains, bool))
        return begin(targets)._replace(memory=start)

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        excess, held = observation.excess, history.memory
        if excess is None:
            raise ValueError("observation.excess must hold the losses above a reference model's, got None.")
        counted = excess.positive if form == "levanter" else excess.tokens
        total = jnp.asarray(jnp.maximum(excess.raw, 0.0) if form in ("aioli", "doge") else excess.clipped)
        # A sum over nothing but padding must not become NaN, which would spread to every weight.
        seen = (excess.tokens > 0) & jnp.isfinite(total)
        new = jnp.where(seen, total, 0.0) / jnp.maximum(counted, 1)
        if form == "levanter":
            score = new
        else:
            score = jnp.where(seen & (excess.raw != 0.0) if form == "aioli" else seen, new, held.score)
        memory = ExcessScores(jnp.minimum(score, 1e30).astype(held.score.dtype), jnp.asarray(seen))
        return remember(history, observation)._replace(memory=memory)

    def update(weights: Weights, history: LossHistory, targets: Targets) -> Weights:
        held: ExcessScores = history.memory
        everyone = jnp.ones(weights.shape[0], bool)
        new = exponentiated_gradient(weights, held.score, everyone, step_size=step_size, smoothing=smoothing)
        return jnp.where(held.seen.any(), new, weights)

    return Method(init=init, observe=observe, update=update, needs=frozenset({"reference"}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoReMi(Arm):
    """DoReMi's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["doremi"] = "doremi"
    form: Form = "official"  # or "levanter", "aioli", "doge": three other versions of the rule
    step_size: float = 1.0  # eta
    smoothing: float = 1e-3  # c, the uniform share of each update
    first_score: float = 0.0  # of a domain not seen yet; ln |V| in the official code

    def method(self) -> Method:
        """See `Arm`."""
        return doremi(form=self.form, step_size=self.step_size, smoothing=self.smoothing, first_score=self.first_score)
