"""How fast the mixture reads: ours with weights that move every 50 steps, against static peers and the bare gather.

    python -m experiments.mixture_speed.measure                       # appends to results.jsonl
    python -m experiments.mixture_speed.measure --python PYTHON       # peers in another environment
    python -m experiments.mixture_speed.measure --write               # the table in experiments/README.md

One process per contender is kept alive; in each round each works for 0.6 s, in an order that is reversed every other
round. Figures are medians over rounds of tokens per CPU-second of the process, and of its ratio to another contender in
the same round. Four domains of 50M tokens of two bytes, in the page cache.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.mixture_speed.contenders import CONTENDERS
from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.data.tokens.array_record import write_records

RESULTS = Path(__file__).with_name("results.jsonl")
SETTINGS = ((512, 32), (512, 512), (2048, 32), (2048, 512))
PEERS = ("hf_map", "hf_iterable", "mosaicml")
NAMES = {
    "numpy_limit": "numpy gather of rows chosen beforehand (the limit)",
    "ours": "**ours**, as prepared: one file",
    "ours_file_per_domain": "ours, a file per domain",
    "ours_thread": "ours, one thread reading ahead",
    "ours_records": "ours, ArrayRecord shards",
    "grain_static": "grain `MapDataset.mix`, static weights",
    "hf_map": "HF `interleave_datasets`, map",
    "hf_iterable": "HF `interleave_datasets`, iterable",
    "mosaicml": "mosaicml-streaming",
    "device": "ours on the device, scan of 50 steps",
    "device_limit": "gather on the device of rows chosen beforehand",
}
AGAINST = {name: "device_limit" if name == "device" else "numpy_limit" for name in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="per domain")
    parser.add_argument("--folder", type=Path, help="for the made files; a temporary one by default")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, help="contenders")
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_files(folder, options.tokens)
        for length, batch in SETTINGS:
            record = {"row_tokens": length, "batch": batch, "tokens": options.tokens, **facts()}
            record["results"] = measure(folder, length, batch, options)
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


def make_files(folder: Path, tokens: int) -> None:
    """The same random tokens as raw files and as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "all.bin").exists():
        return
    with (folder / "all.tmp").open("wb") as whole:
        for index in range(4):
            array = np.random.default_rng(index).integers(0, 50_000, tokens, np.uint16)
            array.tofile(folder / f"{index}.bin")
            array.tofile(whole)
            write_records(str(folder / f"{index}.array_record"), [array], array.dtype)
    (folder / "all.tmp").rename(folder / "all.bin")


def measure(folder: Path, length: int, batch: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By contender: Mtokens per CPU-second and wall second, and the median ratios to the limit and to grain."""
    script = str(Path(__file__).with_name("contenders.py"))
    running = {}
    for name in options.only or CONTENDERS:
        python = options.python if name in PEERS else sys.executable
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": ""}
        process = subprocess.Popen(
            [python, script, name, str(folder), str(length), str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.startswith("{")), "")
        if "ready" in said:
            running[name] = process
        else:
            print(f"{name} left out: {said.strip() or 'it failed'}", file=sys.stderr)
            _end(process)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    for turn in range(-1, options.rounds):
        for name in list(running)[:: 1 if turn % 2 else -1]:
            process = running[name]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{options.seconds}\n")
            process.stdin.flush()
            tokens, wall, cpu = json.loads(process.stdout.readline())
            if turn >= 0:  # the first round warms up
                speeds[name].append((tokens / cpu / 1e6, tokens / wall / 1e6))
    for process in running.values():
        _end(process)

    def ratio(name: str, other: str) -> float | None:
        if other not in speeds:
            return None
        return statistics.median(a[0] / b[0] for a, b in zip(speeds[name], speeds[other], strict=True))

    return {
        name: {
            "per_cpu_second": statistics.median(cpu for cpu, _ in found),
            "per_wall_second": statistics.median(wall for _, wall in found),
            "to_limit": ratio(name, AGAINST[name]),
            "to_grain": ratio(name, "grain_static"),
        }
        for name, found in speeds.items()
    }


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def facts() -> dict[str, str]:
    """Versions and machine."""
    packages = {name: version(name) for name in ("numpy", "jax", "grain", "array_record")}
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores", **packages}


def write() -> None:
    """The newest record of each setting as a table."""
    newest = {}
    for line in RESULTS.read_text().splitlines():
        record = json.loads(line)
        newest[record["row_tokens"], record["batch"]] = record["results"]
    header = ["Mtokens per CPU-second (to the limit, to grain)"]
    header += [f"{batch} rows of {length:,}" for length, batch in SETTINGS if (length, batch) in newest]
    rows = []
    for name, title in NAMES.items():
        cells = [newest[setting].get(name) for setting in SETTINGS if setting in newest]
        if any(cells):
            rows.append([title, *("" if cell is None else _cell(cell) for cell in cells)])
    replace_block(ROOT / "experiments" / "README.md", "mixture speed", markdown(header, rows))
    for line in comparisons(newest):
        print(line)


PAIRS = (
    ("ours", "hf_map"),
    ("ours", "mosaicml"),
    ("ours_records", "ours_file_per_domain"),
    ("ours_records", "ours"),
    ("ours_thread", "ours"),
)
"""Whose quotient the text quotes."""


def comparisons(newest: dict[tuple[int, int], dict[str, dict[str, float]]]) -> list[str]:
    """Quotients of two contenders' medians, setting by setting."""
    lines = []
    for above, below in PAIRS:
        cells = [newest[setting] for setting in SETTINGS if setting in newest]
        quotients = [
            f"{cell[above]['per_cpu_second'] / cell[below]['per_cpu_second']:.2f}"
            for cell in cells
            if above in cell and below in cell
        ]
        lines.append(f"{NAMES[above]} / {NAMES[below]}: {', '.join(quotients)}")
    return lines


def _cell(cell: dict[str, float]) -> str:
    limit = "" if cell["to_limit"] is None else f"{cell['to_limit']:.2f}"
    grain = "" if cell["to_grain"] is None else f", {cell['to_grain']:.1f}x"
    return f"{cell['per_cpu_second']:,.0f} ({limit}{grain})"


if __name__ == "__main__":
    main()
