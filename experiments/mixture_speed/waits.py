"""How long a step waits for its batch right after new weights, and how much memory reading takes.

    python -m experiments.mixture_speed.waits            # appends to waits.jsonl
    python -m experiments.mixture_speed.waits --write    # the tables in experiments/README.md

*Waits.* Batches of 32 rows of 512 tokens, a step of 5 ms between them, new weights every 20 steps: milliseconds that
`next` takes on the first step under new weights, and on all others; medians and worst. Memory maps; and a store that
answers each read after 10 ms, as a remote one would, read row by row, in blocks, and with a lag.

*Memory.* Four domains of 1 GB of tokens each, read at random: growth of the process's resident memory, shared pages
included, at its peak (Linux only).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.mixture_speed.measure import facts
from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.data.mixture.on_host import MixtureIterator
from vtune_jax.data.tokens.mapped import MappedTokens, TokenMap, checksums
from vtune_jax.data.tokens.rows import BlockRows, RowStore, TokenRows

RESULTS = Path(__file__).with_name("waits.jsonl")
LENGTH, BATCH, INTERVAL, STEP_S, LATENCY_S = 512, 32, 20, 5e-3, 10e-3
GB = 10**9


class Remote:
    """Tokens that take 10 ms to fetch, whatever their number."""

    dtype = np.dtype(np.uint16)

    def __init__(self, array: np.ndarray, name: str) -> None:
        self.array, self.name = array, name

    def __len__(self) -> int:
        return len(self.array)

    def slice(self, start: int, stop: int) -> np.ndarray:
        time.sleep(LATENCY_S)
        return np.array(self.array[start:stop])


CASES = {
    "memory maps, lag 0": ("map", {}),
    "remote, a row per read, 16 threads, lag 0": ("row", {"workers": 16, "chunk": 1}),
    "remote, a row per read, 16 threads, lag 16": ("row", {"workers": 16, "chunk": 1, "lag": 16}),
    "remote, blocks of 1,024 rows, lag 0": ("block", {}),
    "remote, blocks of 1,024 rows, 2 threads, lag 8": ("block", {"workers": 2, "lag": 8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="for 4 GB of made files; a temporary one by default")
    parser.add_argument("--write", action="store_true", help="only write the tables from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
        return
    record: dict = {**facts(), "waits": {name: waits(*case, options.steps) for name, case in CASES.items()}}
    with tempfile.TemporaryDirectory() as temporary:
        record["memory"] = memory(options.folder or Path(temporary))
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))


def waits(kind: str, iterator_options: dict, steps: int, tokens: int = 5_000_000) -> dict[str, float]:
    """Milliseconds that `next` takes; `tokens` per domain."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 50_000, tokens, np.uint16) for _ in range(4)]
    stores: list[RowStore] = []
    for index, array in enumerate(arrays):
        name = str(index)
        if kind == "map":
            stores.append(TokenRows(array, LENGTH, name=name))
        else:
            stores.append(BlockRows(Remote(array, name), LENGTH, block=1 if kind == "row" else 1024, keep=4096))
    made = MixtureIterator.from_stores(stores, [0.25] * 4, batch=BATCH, interval=INTERVAL, **iterator_options)
    lag = iterator_options.get("lag", 0)
    first, other = [], []
    for step in range(steps):
        if step and step % INTERVAL == 0:
            made.post(step // INTERVAL, rng.dirichlet(np.ones(4)))
        began = time.perf_counter()
        next(made)
        taken = 1e3 * (time.perf_counter() - began)
        # The start is no boundary: nothing can be read ahead of it.
        if step >= INTERVAL:
            (first if (step - lag) % INTERVAL == 0 else other).append(taken)
        time.sleep(STEP_S)
    made.close()
    return {
        "first_median": statistics.median(first),
        "first_worst": max(first),
        "other_median": statistics.median(other),
        "other_worst": max(other),
    }


def memory(folder: Path) -> dict[str, float]:
    """Growth of resident memory at its peak, in MB, over 4,000 batches of 64 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.bin"
    with path.open("wb") as out:
        for index in range(4):
            array = np.random.default_rng(index).integers(0, 50_000, GB // 2, np.uint16)
            array.tofile(out)
            del array
    whole = np.memmap(path, np.uint16, "r")
    checks = checksums(whole)
    del whole
    file = TokenMap(path, np.dtype(np.uint16), checks=checks)
    each = GB // 2
    stores = [TokenRows(MappedTokens(file, name=str(i), first=i * each, count=each), LENGTH) for i in range(4)]
    made = MixtureIterator.from_stores(stores, [0.25] * 4, batch=64, interval=50)
    rng = np.random.default_rng(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    for step in range(4000):
        if step and step % 50 == 0:
            made.post(step // 50, rng.dirichlet(np.ones(4)))
        next(made)
    return {"files": 4 * GB / 1e6, "growth": resident("VmHWM") - before, "read": 4000 * 64 * LENGTH * 2 / 1e6}


def resident(which: str) -> float:
    """MB, shared pages included: now (`VmRSS`) or at most so far (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) / 1e3


def write() -> None:
    """The newest record as two tables."""
    record = json.loads(RESULTS.read_text().splitlines()[-1])
    rows = [
        [name, *(f"{found[f'{which}_{what}']:.2f}" for which in ("first", "other") for what in ("median", "worst"))]
        for name, found in record["waits"].items()
    ]
    header = ["ms that a batch is waited for", "first under new weights", "worst", "others", "worst"]
    replace_block(ROOT / "experiments" / "README.md", "mixture waits", markdown(header, rows))
    used = record["memory"]
    text = (
        f"Reading {used['read']:,.0f} MB at random from four domains of {used['files'] / 4:,.0f} MB: resident memory "
        f"grows by at most {used['growth']:.0f} MB."
    )
    replace_block(ROOT / "experiments" / "README.md", "mixture memory", text)


if __name__ == "__main__":
    main()
