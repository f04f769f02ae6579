"""Tokens per second of a training step against plain PyTorch: same model, same threads, processes in turns.

    pip install -e '.[parity]'
    python -m experiments.torch_speed.measure             # appends to results.jsonl; about 20 minutes on two cores
    python -m experiments.torch_speed.measure --write     # the table in experiments/README.md

Each turn is a process of its own, which compiles, warms up and times a number of steps; a figure is the median over
turns, a ratio the median of the ratios of neighbouring turns. PyTorch runs eagerly and with `torch.compile`; the
faster of the two counts. Memory is a process' peak resident set.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.models.decoder_config import DecoderConfig

RESULTS = Path(__file__).with_name("results.jsonl")
SIDES = ("ours", "torch", "torch compiled")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and a batch."""

    model: DecoderConfig
    vocabulary: int
    batch: int
    sequence: int
    steps: int  # timed in each turn


SMALL = DecoderConfig(layers=3, width=128, heads=4, key_value_heads=2, hidden=352)
TEN = DecoderConfig(layers=6, width=384, heads=6, key_value_heads=6, hidden=1024)
SMOLLM2 = DecoderConfig(layers=30, width=576, heads=9, key_value_heads=3, hidden=1536, rope_theta=100_000.0)
SETTINGS = {
    "1M, 4 x 64": Setting(SMALL, 2048, 4, 64, 100),
    "1M, 16 x 128": Setting(SMALL, 2048, 16, 128, 20),
    "10M, 4 x 256": Setting(TEN, 2048, 4, 256, 6),
    "SmolLM2-135M, 2 x 256": Setting(SMOLLM2, 49_152, 2, 256, 2),
    "10M, 8 x 1,024, vocabulary 32k": Setting(TEN, 32_768, 8, 1024, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one", choices=SIDES, help="only one turn of one side, printed as JSON")
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
    elif options.one:
        print(json.dumps(turn(options.one, SETTINGS[options.settings[0]])))
    else:
        for name in options.settings:
            measure(name, options.turns)


def measure(name: str, turns: int) -> None:
    """All sides in turns, in an order that rotates; one line of results."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for index in range(turns):
        for side in SIDES[index % 3 :] + SIDES[: index % 3]:
            command = [sys.executable, "-m", "experiments.torch_speed.measure", "--one", side, "--settings", name]
            said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            found[side].append(json.loads(said.stdout.splitlines()[-1]))
    rivals = [
        max(pair) for pair in zip(*([t["tokens_per_second"] for t in found[side]] for side in SIDES[1:]), strict=True)
    ]
    record = {
        "setting": name,
        "cores": os.cpu_count(),
        "turns": turns,
        "tokens_per_second": {
            side: statistics.median(turn["tokens_per_second"] for turn in found[side]) for side in SIDES
        },
        "mebibytes": {side: statistics.median(turn["mebibytes"] for turn in found[side]) for side in SIDES},
        "ratio": statistics.median(
            ours["tokens_per_second"] / rival for ours, rival in zip(found["ours"], rivals, strict=True)
        ),
        **{version: found["ours"][0].get(version) or found["torch"][0].get(version) for version in ("jax", "torch")},
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1), flush=True)


def turn(side: str, setting: Setting) -> dict[str, Any]:
    """Tokens per second and peak memory of one side, in this process."""
    step, versions = ours(setting) if side == "ours" else torchs(setting, compiled=side.endswith("compiled"))
    rng = np.random.default_rng(0)
    batches = rng.integers(0, setting.vocabulary, (setting.steps + 2, setting.batch, setting.sequence + 1))
    for batch in batches[:2]:
        step(batch)
    began = time.perf_counter()
    for batch in batches[2:]:
        step(batch)
    seconds = time.perf_counter() - began
    tokens = setting.steps * setting.batch * setting.sequence
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": tokens / seconds, "mebibytes": peak, **versions}


def ours(setting: Setting) -> tuple[Callable[[np.ndarray], None], dict[str, str]]:
    """The learning step that every run goes through."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from vtune_jax.machine.memory import keep_freed_memory
    from vtune_jax.models import build
    from vtune_jax.train.learn import LearnState, learn
    from vtune_jax.train.optimizer import OptimizerConfig, fresh_memory

    keep_freed_memory()
    model, numbers = build(setting.model, setting.vocabulary), OptimizerConfig().numbers()
    params = model.init(0)
    learner = LearnState(params, fresh_memory(params))

    @partial(jax.jit, donate_argnums=0)
    def compiled(learner: LearnState, count: Any, tokens: Any) -> Any:
        batch = {"tokens": tokens, "domain": jnp.zeros(setting.batch, jnp.int32)}
        learner, learned = learn(model, learner, batch, numbers, count, jnp.int32(1000), domains=1)
        return learner, count + 1, learned.loss

    count = jnp.int32(0)

    def step(tokens: np.ndarray) -> None:
        nonlocal learner, count
        learner, count, loss = compiled(learner, count, jnp.asarray(tokens, jnp.int32))
        float(loss)

    return step, {"jax": jax.__version__}


def torchs(setting: Setting, *, compiled: bool) -> tuple[Callable[[np.ndarray], None], dict[str, str]]:
    """The rival's step, on as many threads as there are cores."""
    import torch

    from experiments.torch_speed import torch_decoder
    from vtune_jax.train.optimizer import OptimizerConfig

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    optimizer, model = OptimizerConfig(), torch_decoder.Decoder(setting.model, setting.vocabulary)
    with torch.no_grad():
        model.embedding.weight.mul_(0.02)
    descent = torch_decoder.optimiser(model, optimizer)
    runs = torch.compile(model) if compiled else model

    def step(tokens: np.ndarray) -> None:
        torch_decoder.step(runs, descent, torch.from_numpy(tokens), optimizer.peak_learning_rate, optimizer.clip_norm)

    return step, {"torch": torch.__version__}


def write() -> None:
    """The newest record of each setting as a table."""
    newest = {record["setting"]: record for record in map(json.loads, RESULTS.read_text().splitlines())}
    header = ["", *(f"{side}: tokens/s (MiB)" for side in SIDES), "ours / the faster"]
    rows = [
        [
            name,
            *(f"{record['tokens_per_second'][side]:,.0f} ({record['mebibytes'][side]:,.0f})" for side in SIDES),
            f"{record['ratio']:.2f}",
        ]
        for name, record in newest.items()
    ]
    replace_block(ROOT / "experiments" / "README.md", "against PyTorch", markdown(header, rows))


if __name__ == "__main__":
    main()
