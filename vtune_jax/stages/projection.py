"""The projection shown before anything is trained: what will be read, how often, and what it will cost."""

from typing import NamedTuple

from vtune_jax.core.needs import NEEDS
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.stages.corpus import Corpus
from vtune_jax.stages.supplies import proxy_steps, runs_of
from vtune_jax.stages.target_proxies import design, real_run


class DomainProjection(NamedTuple):
    """One domain's share of the budget."""

    name: str
    weight: float
    rows: int  # in one epoch
    rows_read: float  # under the prior
    heldout_rows: int
    limit: int | None = None  # most rows ever read
    stops: bool = False  # at its limit the run ends

    def epochs(self, factor: float = 1.0) -> float:
        """How often the domain is read if its weight is multiplied by `factor` and all weights are then rescaled."""
        rescaled = factor / (1 + (factor - 1) * self.weight)
        return rescaled * self.rows_read / self.rows

    @property
    def exhausted_at(self) -> float | None:
        """Share of the run after which the limit is reached under the prior; None if it is not."""
        if self.limit is None or self.rows_read <= self.limit:
            return None
        return self.limit / self.rows_read


class Projection(NamedTuple):
    """A run before it runs."""

    domains: tuple[DomainProjection, ...]
    parameters: int
    steps: dict[str, int]  # optimiser steps per part of the job
    batch_tokens: int
    evaluations: int  # of all held-out rows
    flops: float  # of everything
    memory_bytes: int  # parameters, gradients, optimiser state and one batch's logits


def project(config: ExperimentConfig, corpus: Corpus) -> Projection:
    """Counts rows, epochs, steps, evaluations and floating-point operations of the whole job."""
    data = config.data
    rows_read = config.train.steps * data.batch * corpus.prior
    streams = corpus.domains
    domains = tuple(
        DomainProjection(name, float(weight), len(store), float(read), data.heldout_rows, limit, stops)
        for name, weight, store, read, limit, stops in zip(
            corpus.names,
            corpus.prior,
            streams.stores,
            rows_read,
            streams.limits or (None,) * len(rows_read),
            streams.stop or (False,) * len(rows_read),
            strict=True,
        )
    )
    rounds = design(config.targets, real_run(config)) if config.trains_proxies else []
    proxies = [run for plan in rounds for run in plan.runs]
    before = runs_before(config)
    pretrain = 0 if config.pretrain.from_run else config.pretrain.steps
    steps = {
        "pretrain": pretrain,
        "proxies": sum(run.steps for run in proxies),
        **{name: sum(runs) for name, runs in before.items()},
        **{f"arm {arm.name}": config.train.steps for arm in config.arms},
    }
    along = (pretrain, *(run for runs in before.values() for run in runs), *(config.train.steps for _ in config.arms))
    evaluations = (
        sum(run // config.mixture.interval for run in along)
        + sum(len(run.evaluate_after) for run in proxies)
        + 2 * (1 + len(config.arms))
    )
    vocabulary = corpus.prepared.vocab_size
    parameters = config.model.parameters(vocabulary)
    evaluated = evaluations * len(domains) * data.heldout_rows * data.sequence
    rows_at_once = max(data.batch, data.evaluate_rows_at_once)
    return Projection(
        domains=domains,
        parameters=parameters,
        steps=steps,
        batch_tokens=data.batch_tokens,
        evaluations=evaluations,
        # A forward pass is a third of a training step.
        flops=config.model.flops_per_token(vocabulary, data.sequence)
        * (sum(steps.values()) * data.batch_tokens + evaluated / 3),
        # Parameters, gradient, two moments; logits, their gradient and log-sum-exp.
        memory_bytes=16 * parameters + 12 * rows_at_once * data.sequence * vocabulary,
    )


def runs_before(config: ExperimentConfig) -> dict[str, tuple[int, ...]]:
    """Optimiser steps of the runs that some arms need before they train, by what the runs are."""
    needed = {need for arm in config.arms for need in arm.method.build().needs}
    shared = {NEEDS[need].stage: runs_of(need, config) for need in NEEDS if need in needed}
    own = {f"proxy of {arm.name}": (proxy_steps(config, arm),) for arm in config.arms if arm.proxy_share}
    return {name: runs for name, runs in shared.items() if runs} | own
