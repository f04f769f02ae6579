"""The projection shown before anything is trained: what will be read, how often, and what it will cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtune_jax.stages.target_proxies import design

if TYPE_CHECKING:
    from vtune_jax.experiment.config import ExperimentConfig
    from vtune_jax.stages.pipeline import Pipeline


class DomainPlan(NamedTuple):
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


class Plan(NamedTuple):
    """A run before it runs."""

    domains: tuple[DomainPlan, ...]
    parameters: int
    steps: dict[str, int]  # optimiser steps per part of the job
    batch_tokens: int
    evaluations: int  # of all held-out rows
    flops: float  # of everything
    memory_bytes: int  # parameters, gradients, optimiser state and one batch's logits


def make_plan(pipeline: Pipeline) -> Plan:
    """Counts rows, epochs, steps, evaluations and floating-point operations of the whole job."""
    config, data = pipeline.config, pipeline.config.data
    rows_read = config.train.steps * data.batch * pipeline.prior
    domains = tuple(
        DomainPlan(name, float(weight), len(store), float(read), data.heldout_rows, limit, stops)
        for name, weight, store, read, limit, stops in zip(
            pipeline.prepared.names,
            pipeline.prior,
            pipeline.streams.stores,
            rows_read,
            pipeline.streams.limits or (None,) * len(rows_read),
            pipeline.streams.stop or (False,) * len(rows_read),
            strict=True,
        )
    )
    rounds = design(config) if config.trains_proxies else []
    proxies = [run.steps for plan in rounds for run in plan.runs]
    looks = sum(len(run.evaluate_after) for plan in rounds for run in plan.runs)
    before = runs_before(config)
    steps = {
        "pretrain": 0 if config.pretrain.from_run else config.pretrain.steps,
        "proxies": sum(proxies),
        **{name: sum(runs) for name, runs in before.items()},
        **{label: config.train.steps for label in config.arm_labels},
    }
    interval = config.mixture.interval
    short = [run for runs in before.values() for run in runs]
    parts = (steps["pretrain"], *short, *(config.train.steps for _ in config.arms))
    evaluations = sum(part // interval for part in parts) + looks + 2 * (1 + len(config.arms))
    vocabulary = pipeline.prepared.vocab_size
    per_token = config.model.flops_per_token(vocabulary, data.sequence)
    evaluated = evaluations * len(domains) * data.heldout_rows * data.sequence
    parameters = config.model.parameters(vocabulary)
    rows_at_once = max(data.batch, data.evaluate_rows_at_once)
    return Plan(
        domains=domains,
        parameters=parameters,
        steps=steps,
        batch_tokens=data.batch_tokens,
        evaluations=evaluations,
        # A forward pass is a third of a training step.
        flops=per_token * (sum(steps.values()) * data.batch_tokens + evaluated / 3),
        # Parameters, gradient, two moments; logits, their gradient and log-sum-exp.
        memory_bytes=16 * parameters + 12 * rows_at_once * data.sequence * vocabulary,
    )


def runs_before(config: ExperimentConfig) -> dict[str, list[int]]:
    """Optimiser steps of the runs that some arms need before they train."""
    proxies, steps = config.proxies, config.train.steps
    needs = [arm.build().needs for arm in config.arms]
    short = max(1, round(proxies.length * steps))
    runs: dict[str, list[int]] = {}
    if any("reference" in need for need in needs):
        runs["reference"] = [max(1, round(proxies.reference_length * steps))]
    if any("graph" in need for need in needs):
        runs["skill graph"] = [short] * len(config.corpus.domains)
    if any("proxies" in need for need in needs):
        runs["random mixtures"] = [short] * proxies.mixtures
    for label, arm in zip(config.arm_labels, config.arms, strict=True):
        if arm.proxy_share:
            runs[f"proxy of {label}"] = [max(config.mixture.interval, round(arm.proxy_share * steps))]
    return runs
