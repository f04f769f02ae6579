"""What moving weights cost: steps of five loops, alternated in one process, as ratios to the static mixture.

    python -m experiments.step_time.measure                  # appends a line to results.jsonl
    python -m experiments.step_time.measure --return-freed   # the same without vtune_jax.machine.memory
    python -m experiments.step_time.measure --write          # the table in experiments/README.md, from results.jsonl

Every round runs each loop once for `--steps` optimiser steps, in an order that rotates; a figure is the median over
rounds, a ratio the median of the rounds' own ratios. The tokens are random: time does not depend on them.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.core.losses import token_nats
from vtune_jax.core.targets import make_targets
from vtune_jax.core.types import LossSums
from vtune_jax.data.mixture.spec import PlanSpec
from vtune_jax.data.tokens.rows import TokenRows
from vtune_jax.machine.memory import keep_freed_memory
from vtune_jax.models import DecoderConfig, build
from vtune_jax.rules import Static, Velocitune
from vtune_jax.train.constants import RunConstants
from vtune_jax.train.device_engine import DeviceEngine, compile_segment
from vtune_jax.train.heldout import Heldout, make_evaluate
from vtune_jax.train.host_engine import HostEngine, compile_step
from vtune_jax.train.numbers import run_numbers
from vtune_jax.train.optimizer import OptimizerConfig, descend, fresh_memory
from vtune_jax.train.state import start
from vtune_jax.train.step import make_train_step

RESULTS = Path(__file__).with_name("results.jsonl")
LOOPS = {
    "bare": "optax step, batches gathered by numpy, no mixture",
    "static": "static weights, no held-out evaluation",
    "moving": "Velocitune, no held-out evaluation",
    "evaluated": "Velocitune with its held-out evaluations",
    "device": "the same, batches gathered on the device",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The quick start's model and batch by default."""

    domains: int = 6
    rows: int = 4000
    heldout_rows: int = 40
    vocabulary: int = 2048
    sequence: int = 64
    batch: int = 4
    interval: int = 100
    model: DecoderConfig = DecoderConfig(layers=3, width=128, heads=4, key_value_heads=2, hidden=352)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps per loop and round")
    parser.add_argument("--interval", type=int, default=Setting.interval, help="steps between weight updates")
    parser.add_argument("--batch", type=int, default=Setting.batch, help="rows per optimiser step")
    parser.add_argument("--return-freed", action="store_true", help="leave the allocator as the system sets it")
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
        return
    kept = not options.return_freed and keep_freed_memory()
    setting = Setting(interval=options.interval, batch=options.batch)
    if options.steps % setting.interval:
        parser.error("--steps must be a multiple of --interval")
    record = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "keeps_freed_memory": kept,
        "interval": setting.interval,
        "batch": setting.batch,
        "steps": options.steps,
        "rounds": options.rounds,
        **measure(setting, options.rounds, options.steps),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))


def measure(setting: Setting, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Median milliseconds per step of each loop, and its ratio to the static one."""
    loops = {name: make_loop(name, setting) for name in LOOPS}
    for loop in loops.values():
        loop(setting.interval)  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    names = list(loops)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            loops[name](steps)
            seconds[name].append(time.perf_counter() - began)
    static = np.array(seconds["static"])
    return {
        "milliseconds": {name: 1e3 * statistics.median(times) / steps for name, times in seconds.items()},
        "ratio": {name: float(np.median(np.array(times) / static)) for name, times in seconds.items()},
    }


def make_loop(name: str, setting: Setting) -> Callable[[int], None]:
    """A function that runs so many more steps."""
    rng = np.random.default_rng(0)
    stores = [
        TokenRows(
            rng.integers(0, setting.vocabulary, setting.rows * setting.sequence + 1).astype(np.uint16),
            setting.sequence,
            name=f"domain {index}",
        )
        for index in range(setting.domains)
    ]
    model = build(setting.model, setting.vocabulary)
    params, optimizer = model.init(0), OptimizerConfig()
    if name == "bare":
        return bare_loop(setting, stores, model, params, optimizer.numbers())
    method = Static() if name == "static" else Velocitune(floor=0.01)
    evaluate = make_evaluate(model, 32) if name in ("evaluated", "device") else known_losses
    read = [store.read(np.arange(setting.heldout_rows, dtype=np.uint32))["tokens"] for store in stores]
    numbers = run_numbers(steps=100_000, interval=setting.interval, optimizer=optimizer, method=method)
    constants = RunConstants(heldout={"tokens": jnp.asarray(np.stack(read))}, numbers=numbers)
    train_step = make_train_step(model, method, evaluate)
    spec = PlanSpec(rows=tuple(map(len, stores)), batch=setting.batch, seed=0)
    engine: DeviceEngine | HostEngine
    if name == "device":
        engine = DeviceEngine(compile_segment(train_step, spec, setting.sequence), spec, stores, constants)
    else:
        engine = HostEngine(compile_step(train_step), spec, stores, constants)
    ones = np.ones(setting.domains)
    targets = make_targets(9 * ones, np.linspace(1, 5, setting.domains), 0.1 * ones, ones / setting.domains)
    state = start(params, method, targets)
    engine.start(state, 0)

    def loop(steps: int) -> None:
        nonlocal state
        for _ in range(0, steps, setting.interval):
            state = engine.advance(state, setting.interval).state
        jax.block_until_ready(state)

    return loop


def known_losses(params: object, heldout: Heldout) -> LossSums:
    """Evidence that costs nothing: losses that differ by domain."""
    domains, rows, window = heldout["tokens"].shape
    tokens, losses = jnp.full(domains, rows * (window - 1)), jnp.linspace(4.0, 8.0, domains)
    return LossSums(nats=losses * tokens, tokens=tokens, squares=losses**2 * tokens)


def bare_loop(setting, stores, model, params, numbers):
    """What one would write without any mixture: one shuffled pool of rows, a jitted optax step."""
    pool = np.concatenate([store.read(np.arange(len(store), dtype=np.uint32))["tokens"] for store in stores])
    rng = np.random.default_rng(1)

    def loss_of(params, tokens):
        return token_nats(model.logits(params, tokens[:, :-1]), tokens[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments, count, tokens):
        loss, gradient = jax.value_and_grad(loss_of)(params, jnp.asarray(tokens, jnp.int32))
        params, moments, _ = descend(numbers, gradient, params, moments, count, jnp.int32(100_000))
        return params, moments, count + 1, loss

    state = jax.device_put((params, fresh_memory(params), jnp.int32(0)), jax.devices()[0])

    def loop(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            *state, _loss = step(*state, pool[rng.integers(0, len(pool), setting.batch)])
        jax.block_until_ready(state)

    return loop


def write() -> None:
    """The newest record of each setting as a table."""
    newest = {}
    for line in RESULTS.read_text().splitlines():
        record = json.loads(line)
        newest[tuple(record[name] for name in ("device", "batch", "interval", "keeps_freed_memory"))] = record
    header = ["ms per step (ratio to static)"]
    header += [
        f"{record['device']}, batch {record['batch']}, every {record['interval']} steps"
        + ("" if record["keeps_freed_memory"] else ", glibc as is")
        for record in newest.values()
    ]
    rows = [
        [purpose]
        + [
            f"{record['milliseconds'][name]:.2f} ({record['ratio'][name]:.3f})" if name in record["ratio"] else "–"
            for record in newest.values()
        ]
        for name, purpose in LOOPS.items()
    ]
    replace_block(ROOT / "experiments" / "README.md", "step time", markdown(header, rows))


if __name__ == "__main__":
    main()
