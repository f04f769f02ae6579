"""What the sampling plan costs the host: microseconds per step for 4, 64 and 1,000 domains.

    python -m experiments.plan_cost.measure           # appends to results.jsonl
    python -m experiments.plan_cost.measure --write   # the table in BUILD.md

Medians over rounds that go through all cells in turn. Read ahead plans whole chunks between two weight updates.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.core.types import Cursor
from vtune_jax.data.plan import PlanSpec, plan_steps

RESULTS = Path(__file__).with_name("results.jsonl")
DOMAINS, CHUNKS, BATCH = (4, 64, 1000), (1, 16), 32


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
    for turn in range(rounds):
        for domains, chunk, spec, quota, cursor in cells:
            began = time.perf_counter()
            plan_steps(np, spec, np.uint32(turn), chunk, quota, cursor)
            times[domains, chunk].append((time.perf_counter() - began) / chunk)
    return {
        str(domains): {str(chunk): 1e6 * statistics.median(times[domains, chunk]) for chunk in CHUNKS}
        for domains in DOMAINS
    }


def _inputs(domains: int) -> tuple[PlanSpec, np.ndarray, Cursor]:
    rng = np.random.default_rng(domains)
    spec = PlanSpec(rows=tuple(map(int, rng.integers(1_000, 1_000_000, domains))), batch=BATCH, seed=0)
    weights = rng.dirichlet(np.ones(domains))
    edges = np.round(np.cumsum(weights) * 2**24).astype(np.uint32)
    edges[-1] = 2**24
    quota = np.diff(edges, prepend=np.uint32(0)).astype(np.uint32)
    return spec, quota, Cursor(epoch=np.zeros(domains, np.uint32), row=np.zeros(domains, np.uint32))


def write() -> None:
    """The newest record as a table."""
    cells = json.loads(RESULTS.read_text().splitlines()[-1])["microseconds"]
    header = ["domains", *(f"{chunk} step{'s' if chunk > 1 else ''} per call (µs per step)" for chunk in CHUNKS)]
    rows = [[name, *(f"{cell[str(chunk)]:.0f}" for chunk in CHUNKS)] for name, cell in cells.items()]
    replace_block(ROOT / "BUILD.md", "plan cost", markdown(header, rows))


if __name__ == "__main__":
    main()
