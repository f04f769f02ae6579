"""The quick start over several seeds, with the targets its proxies predict and with those the static run reached.

    python -m experiments.quickstart.study --seeds 0 1 2     # appends to results.jsonl, about 3 minutes a seed
    python -m experiments.quickstart.study --write           # table and picture of README, from results.jsonl

The second kind of target is an oracle: no method can know it beforehand. It separates what the rule does from how
well its targets were predicted.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.tables import ROOT, markdown, replace_block

CONFIG = ROOT / "configs" / "quickstart.toml"
RESULTS = Path(__file__).with_name("results.jsonl")
PICTURE = Path(__file__).with_name("report.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quickstart-study", help="where run folders go")
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if options.write:
        write()
        return
    for seed in options.seeds:
        folder = options.runs / f"seed-{seed}"
        predicted = run(folder, seed)
        record(seed, "predicted by proxies", predicted)
        if seed == options.seeds[0]:
            # The picture shows the run with predicted targets, which was opened last.
            shutil.copy(folder / "latest" / "report.png", PICTURE)
        reached = predicted["arms"]["static"]["final"]["heldout_loss"]
        record(seed, "reached by the static run", run(folder, seed, f"targets.losses={json.dumps(reached)}"))


def run(folder: Path, seed: int, *overrides: str) -> dict:
    """The results of one run of the quick start; finished stages in the folder are used again."""
    command = [sys.executable, "-m", "vtune_jax", "run", str(CONFIG), f"seed={seed}", *overrides]
    subprocess.run([*command, "--run-folder", str(folder), "--quiet"], check=True, cwd=ROOT)
    return json.loads((folder / "latest" / "results.json").read_text())


def record(seed: int, targets: str, results: dict) -> None:
    """Appends what the tables need."""
    arms = {
        name: {key: arm["final"][key] for key in ("heldout_loss", "average_loss", "base_loss", "smallest_progress")}
        for name, arm in results["arms"].items()
    }
    line = {
        "seed": seed,
        "targets": targets,
        "domains": results["domains"],
        "initial": results["targets"]["initial"],
        "target": results["targets"]["target"],
        "initial_base_loss": results["initial_base_loss"],
        "arms": arms,
        **results["run"]["made_by"]["arm velocitune"],
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def write() -> None:
    """Means over seeds, and the spread of the differences."""
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    kinds = list(dict.fromkeys(line["targets"] for line in records))
    # The newest record of a seed counts.
    runs = {kind: list({line["seed"]: line for line in records if line["targets"] == kind}.values()) for kind in kinds}
    first = runs[kinds[0]]
    domains = first[0]["domains"]

    def losses(kind: str, arm: str, key: str = "heldout_loss") -> np.ndarray:
        return np.array([line["arms"][arm][key] for line in runs[kind]])

    def difference(kind: str, key: str) -> list[str]:
        values = np.atleast_2d((losses(kind, "velocitune", key) - losses(kind, "static", key)).T)
        return [f"{row.mean():+.3f} ± {row.std(ddof=1):.3f}" for row in values]

    header = ["held-out loss, nats per token", "initial", "static"]
    header += [f"Velocitune − static, targets {kind}" for kind in kinds]
    columns = [
        [f"{value:.3f}" for value in np.mean([line["initial"] for line in first], axis=0)],
        [f"{value:.3f}" for value in losses(kinds[0], "static").mean(axis=0)],
        *(difference(kind, "heldout_loss") for kind in kinds),
    ]
    rows = [[name, *(column[index] for column in columns)] for index, name in enumerate(domains)]
    initial_average = np.mean([line["initial"] for line in first])
    initial_base = np.mean([line["initial_base_loss"] for line in first])
    for name, key, initial in (
        ("average", "average_loss", initial_average),
        ("base domain", "base_loss", initial_base),
    ):
        static = losses(kinds[0], "static", key).mean()
        rows.append([f"**{name}**", f"{initial:.3f}", f"{static:.3f}", *(difference(kind, key)[0] for kind in kinds)])
    progress = [
        f"{losses(kind, 'velocitune', 'smallest_progress').mean():.0%} against "
        f"{losses(kind, 'static', 'smallest_progress').mean():.0%}"
        for kind in kinds
    ]
    rows.append(["slowest domain's way to its target", "", "", *progress])
    caption = f"Means over {len(first)} seeds; ± is the standard deviation of a single run's difference."
    replace_block(ROOT / "README.md", "quick start results", f"{markdown(header, rows)}\n\n{caption}")


if __name__ == "__main__":
    main()
