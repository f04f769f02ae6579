"""The projection as a table in the terminal, with a rough duration."""

import time

import jax
import jax.numpy as jnp
from rich.console import Console

from vtune_jax.stages.projection import Projection


def measured_flops_per_second(seconds: float = 0.3) -> float:
    """What this machine does on a matrix product of a training step's kind, in float32."""
    left, right = jnp.ones((2048, 512)), jnp.ones((512, 512))
    product = jax.jit(lambda a, b: a @ b)
    product(left, right).block_until_ready()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        product(left, right).block_until_ready()
        done += 1
    return done * 2 * 2048 * 512 * 512 / (time.perf_counter() - start)


UTILISATION = 0.4
"""Share of the matrix product's speed that a small model's step reached when measured, see experiments/README.md."""


def render_plan(plan: Projection, console: Console, *, duration: bool = True) -> None:
    """Prints the plan: a row per domain, then the totals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Under the prior", title_justify="left")
    for column in ("domain", "weight", "rows", "rows read", "epochs", "at twice the weight", "held-out rows"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain in plan.domains:
        table.add_row(
            domain.name,
            f"{domain.weight:.3f}",
            f"{domain.rows:,}",
            f"{domain.rows_read:,.0f}",
            f"{domain.epochs():.2f}",
            f"{domain.epochs(2):.2f}",
            f"{domain.heldout_rows:,}",
        )
    console.print(table)
    steps = ", ".join(f"{name} {count:,}" for name, count in plan.steps.items())
    total = sum(plan.steps.values())
    console.print(f"optimiser steps: {steps}; {total:,} in all, {total * plan.batch_tokens:,} tokens")
    console.print(
        f"model: {plan.parameters:,} parameters; compute: {plan.flops:.2e} floating-point operations; "
        f"memory: about {plan.memory_bytes / 2**20:,.0f} MiB beside the activations"
    )
    console.print(f"held-out evaluations: {plan.evaluations:,}")
    if duration:
        seconds = plan.flops / (UTILISATION * measured_flops_per_second())
        console.print(f"rough duration on this machine: {seconds / 60:.1f} minutes plus compilation")
    for domain in plan.domains:
        if domain.exhausted_at is not None:
            then = "the run ends there" if domain.stops else "then its weight goes to the others"
            console.print(
                f"note: '{domain.name}' reaches its limit of {(domain.limit or 0) / domain.rows:.1f} epochs after "
                f"{domain.exhausted_at:.0%} of the run under the prior; {then}"
            )
        elif domain.epochs() > 4:
            console.print(
                f"note: '{domain.name}': {domain.epochs():.1f} epochs under the prior; "
                f"{domain.epochs(2):.1f} if its weight doubles"
            )
