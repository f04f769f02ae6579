"""DoGE: more weight for domains whose gradient points where the target domains' gradients point.

Source: Fan, Pagliardini and Jaggi 2023, "DoGE: Domain Reweighting with Generalization Estimation", arXiv:2310.15393,
and its code, Olivia-fsm/DoGE, `src/trainer.py`; also HazyResearch/aioli, `trainer/doge_trainer.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vtune_jax.core.checks import assert_within
from vtune_jax.core.history import remembering
from vtune_jax.core.reweighting import exponentiated_gradient
from vtune_jax.core.types import Alignment, LossHistory, Method, Observation, Scalar, Targets, Weights
from vtune_jax.rules.config import Arm

Towards = Literal["train", "heldout"]


def doge(
    *,
    step_scale: Scalar = 20.0,
    smoothing: Scalar = 0.0,
    lowest: Scalar = 0.0,
    highest: Scalar = 5.0,
    max_norm: Scalar = 5.0,
    targets: Sequence[int] = (),
    towards: Towards = "train",
    keep_absent: bool = True,
) -> Method:
    """`w' = (1 - c) softmax(log w + s / mu) + c / k`, with `s = clip(lr W / (mean ||g|| + 1e-6), lr low, lr high)`.

    `W_i = <g_i, sum_j g_j>` over the target domains j, every gradient of a domain's mean loss clipped to norm G first
    by `min(1, G / (||g|| + 1e-6))`; lr is the learning rate of now.

    Args:
        step_scale: 1 / mu >= 0; 20 is the code's default, 100 that of its configuration.
        smoothing: c in [0, 1].
        lowest: below it scores are cut; 0 in the code, so that opposing gradients count as zero.
        highest: above it scores are cut.
        max_norm: G > 0.
        targets: the domains to become good at, by their place among the columns; empty: all.
        towards: whether the target gradients are those of training batches or of held-out text.
        keep_absent: a domain that is not in the batch keeps its last gradient, as in DoGE's code; else its row is
            zero, as in Aioli's. Keeping takes as much memory as the parameters, times the number of domains.

    Returns:
        A method that needs the alignment of gradients. Published use: on a small proxy, and the average of its weights
        is the mixture of the real run.

    Raises:
        ValueError: a hyper-parameter out of its range, or, when called, an observation without alignment.
    """
    assert_within(step_scale=step_scale, max_norm=max_norm)
    assert_within(0.0, 1.0, smoothing=smoothing)
    if isinstance(lowest, int | float) and isinstance(highest, int | float) and not lowest <= highest:
        raise ValueError(f"lowest must not lie above highest = {highest}, got {lowest}.")
    if towards not in ("train", "heldout"):
        raise ValueError(f"towards must be train or heldout, got '{towards}'.")
    begin, remember = remembering("train")

    def init(constants: Targets) -> LossHistory:
        domains, dtype = constants.prior.shape[0], constants.prior.dtype
        if targets and not all(0 <= index < domains for index in targets):
            raise ValueError(f"targets must name domains in [0, {domains}), got {list(targets)}.")
        return begin(constants)._replace(memory=jnp.full(domains, jnp.nan, dtype))

    def observe(history: LossHistory, observation: Observation) -> LossHistory:
        if observation.alignment is None:
            raise ValueError("observation.alignment must hold inner products of the domains' gradients, got None.")
        score = _score(observation.alignment).astype(history.memory.dtype)
        return remember(history, observation)._replace(memory=score)

    def _score(found: Alignment) -> Float[Array, " domains"]:
        shrunk, target_shrunk = (
            jnp.minimum(1.0, max_norm / (jnp.where(jnp.isfinite(norm), norm, 0.0) + 1e-6))
            for norm in (found.norm, found.target_norm)
        )
        inner = found.inner * shrunk[:, None] * target_shrunk
        inner = inner[:, jnp.array(targets)] if targets else inner
        norm = shrunk * found.norm
        rate = found.learning_rate
        score = rate * inner.sum(axis=1) / (norm.mean() + 1e-6)
        return jnp.clip(score, rate * lowest, rate * highest)

    def update(weights: Weights, history: LossHistory, constants: Targets) -> Weights:
        score = history.memory
        seen = jnp.isfinite(score)
        new = exponentiated_gradient(weights, score, seen, step_size=step_scale, smoothing=smoothing)
        return jnp.where(seen.any(), new, weights)

    kind = "alignment" if towards == "train" else "heldout_alignment"
    needs = {kind, "last_gradients"} if keep_absent else {kind}
    return Method(init=init, observe=observe, update=update, needs=frozenset(needs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoGE(Arm):
    """DoGE's hyper-parameters; `build` gives the method within its constraints."""

    name: Literal["doge"] = "doge"
    step_scale: float = 20.0  # 1 / mu
    smoothing: float = 0.0  # c, the uniform share of each update
    lowest: float = 0.0  # scores are cut to [lowest, highest] times the learning rate
    highest: float = 5.0
    max_norm: float = 5.0  # to which each domain's gradient is clipped
    targets: tuple[int, ...] = ()  # the domains to become good at, by their place; empty: all
    towards: Towards = "train"  # or "heldout": gradients of held-out text
    keep_absent: bool = True  # a domain absent from the batch keeps its last gradient; takes memory

    def method(self) -> Method:
        """See `Arm`."""
        return doge(
            step_scale=self.step_scale,
            smoothing=self.smoothing,
            lowest=self.lowest,
            highest=self.highest,
            max_norm=self.max_norm,
            targets=self.targets,
            towards=self.towards,
            keep_absent=self.keep_absent,
        )
