"""How far off are target losses that proxies predict, and does the interval hold what the real run reaches?

    python -m experiments.target_error.measure --data FOLDER     # curves.jsonl, 5 minutes per seed and setting
    python -m experiments.target_error.predict --write         # predictions from curves.jsonl: table, picture

Trains, for every seed and setting: the base model; the static run at the prior, whose end is the truth; proxies that
anneal over their own length; and one proxy that does not anneal. Held-out losses along all of them are recorded, so
that laws can be compared afterwards on the same runs. Seeds 0 and 6 served to choose the law's options
(`development.jsonl`, `choose.py`) and are not among those.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments.tables import ROOT
from vtune_jax.core.targets import blank_targets
from vtune_jax.experiment.config import ExperimentConfig
from vtune_jax.experiment.load import load
from vtune_jax.machine.json_lines import JsonLines
from vtune_jax.machine.memory import keep_freed_memory
from vtune_jax.machine.progress import Progress
from vtune_jax.machine.provenance import commit
from vtune_jax.rules import Static
from vtune_jax.stages.heldout_losses import losses_of
from vtune_jax.stages.pipeline import Pipeline
from vtune_jax.stages.trainer import TrainingRun
from vtune_jax.train.optimizer import OptimizerConfig

CONFIG = ROOT / "configs" / "target_error.toml"
CURVES = Path(__file__).with_name("curves.jsonl")
SETTINGS = {
    "reasoning": ("gsm8k", "latex_math", "formal_math", "math_synth", "python_code", "go_code"),
    "syscmd": ("tldr", "nl2bash", "man_pages", "shell_scripts", "sysadmin_docs", "cheatsheets_qa"),
}
PROXY_SHARES = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125)  # of the real run's steps, each annealed over its own length
CONSTANT_SHARE = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "target-error", help="where run folders go")
    parser.add_argument("--to", type=Path, default=CURVES, help="file that the curves are appended to")
    options = parser.parse_args()
    keep_freed_memory()
    for seed in options.seeds:
        for setting in options.settings:
            record = measure(options.data, setting, seed, options.runs / f"{setting}-{seed}")
            with options.to.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{setting}, seed {seed}: {np.round(record['runs']['real']['loss'][-1], 3).tolist()}", flush=True)


def measure(data: Path, setting: str, seed: int, folder: Path) -> dict:
    """All runs of one seed on one setting; finished ones in the folder are used again."""
    config = configured(data, setting, seed)
    pipeline = Pipeline(config, folder, Progress(silent=True))
    initial = pipeline.initial().domains
    steps, optimizer = config.train.steps, config.train.optimizer
    constant = dataclasses.replace(optimizer, final_fraction=1.0)
    runs = {"real": static_run(pipeline, folder / "real", steps, optimizer)}
    for share in PROXY_SHARES:
        length = round(share * steps)
        runs[f"annealed {length}"] = static_run(pipeline, folder / f"annealed-{length}", length, optimizer)
    length = round(CONSTANT_SHARE * steps)
    runs["constant"] = static_run(pipeline, folder / "constant", length, constant)
    return {
        "setting": setting,
        "seed": seed,
        "domains": pipeline.corpus().names,
        "steps": steps,
        "batch_tokens": config.data.batch_tokens,
        "initial": rounded(initial),
        "runs": runs,
        "commit": commit(),
    }


def configured(data: Path, setting: str, seed: int) -> ExperimentConfig:
    """The experiment's config with the setting's corpora, by path."""
    config = load(CONFIG, (f"seed={seed}",))
    corpus = config.corpus
    base = dataclasses.replace(corpus.base, source=str(data / corpus.base.source))
    domains = tuple(
        dataclasses.replace(corpus.domains[0], name=name, source=str(data / setting / name / "train.jsonl.gz"))
        for name in SETTINGS[setting]
    )
    return dataclasses.replace(config, corpus=dataclasses.replace(corpus, base=base, domains=domains))


def static_run(pipeline: Pipeline, folder: Path, steps: int, optimizer: OptimizerConfig) -> dict:
    """Held-out losses along a static run, and its learning rates."""
    corpus, base = pipeline.corpus(), pipeline.pretrain()
    run = TrainingRun(method=Static(), optimizer=optimizer, steps=steps, seed=pipeline.config.seed)
    targets, silent = blank_targets(corpus.prior), lambda steps, fields: None
    params = base.trainer.train(run, folder, corpus.unlimited, base.params(), targets, tick=silent)
    end = losses_of(base.trainer, params, corpus.domains)
    rows = list(JsonLines(folder / "updates.jsonl").rows())
    losses = {row["step"]: row["heldout_loss"] for row in rows} | {steps: end.tolist()}
    rates = [row["learning_rate"] for row in JsonLines(folder / "steps.jsonl").rows()]
    return {
        "steps": list(losses),
        "loss": [rounded(loss) for loss in losses.values()],
        "rates": [float(f"{rate:.6g}") for rate in rates],
    }


def rounded(losses) -> list[float]:
    return [round(float(loss), 5) for loss in losses]


if __name__ == "__main__":
    main()
