"""What the sampling plan costs the host: microseconds per step for 4, 64 and 1,000 domains, and its share of a step.

    python -m experiments.plan_cost.measure           # appends to results.jsonl
    python -m experiments.plan_cost.measure --write   # the table in experiments/README.md

Medians over rounds that go through all cells in turn, with new weights each time, rows looked up as by the iterator.
Between two weight updates whole chunks are planned at once.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.core.simplex import to_quota
from vtune_jax.core.types import Cursor
from vtune_jax.data.mixture.order import OrderCache
from vtune_jax.data.mixture.plan import plan_steps
from vtune_jax.data.mixture.spec import PlanSpec, start_cursor

RESULTS = Path(__file__).with_name("results.jsonl")
DOMAINS, CHUNKS, BATCH = (4, 64, 1000), (1, 16), 32
STEP_S = 50e-3  # a short training step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
        return
    facts = {"numpy": np.__version__, "batch": BATCH, "rounds": options.rounds}
    record = {**facts, "microseconds": measure(options.rounds)}
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record))


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """By number of domains, then by steps per call."""
    cells = [(domains, chunk, *_inputs(domains)) for domains in DOMAINS for chunk in CHUNKS]
    times: dict[tuple[int, int], list[float]] = {(domains, chunk): [] for domains, chunk, *_ in cells}
    places: dict[tuple[int, int], Cursor] = {(domains, chunk): start_cursor(domains) for domains, chunk, *_ in cells}
    rng = np.random.default_rng(0)
    for turn in range(rounds):
        for domains, chunk, spec, orders in cells:
            quota = np.asarray(to_quota(jnp.asarray(rng.dirichlet(np.ones(domains)), jnp.float32)))
            here = places[domains, chunk]
            began = time.perf_counter()
            _, places[domains, chunk] = plan_steps(np, spec, turn * chunk, chunk, quota, here, orders=orders)
            times[domains, chunk].append((time.perf_counter() - began) / chunk)
    return {
        str(domains): {str(chunk): 1e6 * statistics.median(times[domains, chunk]) for chunk in CHUNKS}
        for domains in DOMAINS
    }


def _inputs(domains: int) -> tuple[PlanSpec, OrderCache]:
    rng = np.random.default_rng(domains)
    spec = PlanSpec(rows=tuple(map(int, rng.integers(1_000, 1_000_000, domains))), batch=BATCH, seed=0)
    return spec, OrderCache(spec)


def write() -> None:
    """The newest record as a table."""
    cells = json.loads(RESULTS.read_text().splitlines()[-1])["microseconds"]
    header = ["µs per step (share of a step of 50 ms)"]
    header += [f"{chunk} step{'s' if chunk > 1 else ''} per call" for chunk in CHUNKS]
    rows = [
        [f"{name} domains", *(f"{cell[str(chunk)]:.0f} ({cell[str(chunk)] / 1e6 / STEP_S:.2%})" for chunk in CHUNKS)]
        for name, cell in cells.items()
    ]
    replace_block(ROOT / "experiments" / "README.md", "plan cost", markdown(header, rows))


if __name__ == "__main__":
    main()
