"""How fast are the fits, against scipy's BFGS in the same process, round by round in turn?

    python -m experiments.fit_speed.measure            # appends to results.jsonl
    python -m experiments.fit_speed.measure --write    # the table in experiments/README.md, from the newest result

Float64, one BLAS thread, medians of alternating rounds; compilation is reported apart. Both sides fit the same points
by the same objective (Huber width 1e-3 on log losses); scipy gets the analytic gradient and data-scaled starts.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import minimize

from experiments.tables import ROOT, markdown, replace_block
from vtune_jax.fits import bootstrap_chinchilla, estimate_targets, fit_chinchilla, fit_loss_curves
from vtune_jax.fits.bootstrap import bootstrap_predictions
from vtune_jax.fits.fitted import fit_curves
from vtune_jax.fits.laws.power_law import LAW
from vtune_jax.machine.provenance import commit

RESULTS = Path(__file__).with_name("results.jsonl")
DELTA, POINTS, STARTS = 1e-3, 20, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if not options.write:
        result = {**measure(options.rounds), "cold_start": cold_start(), "commit": commit(), "jax": jax.__version__}
        with RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")
    result = json.loads(RESULTS.read_text().splitlines()[-1])
    text = table(result)
    print(text)
    if options.write:
        replace_block(ROOT / "experiments" / "README.md", "fit speed", text)


def curves(domains: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = np.geomspace(1e6, 1e7, POINTS)
    E, beta = rng.uniform(1, 3, domains), rng.uniform(0.2, 1.0, domains)
    losses = E + rng.uniform(0.3, 2, domains) * (tokens[:, None] / 3e6) ** -beta
    return tokens, losses * np.exp(0.005 * rng.standard_normal((POINTS, domains)))


def objective(parameters: np.ndarray, t: np.ndarray, logs: np.ndarray) -> tuple[float, np.ndarray]:
    """Of (log E, log B, beta), and its gradient."""
    log_e, log_b, beta = parameters
    power = log_b - beta * t
    model = np.logaddexp(log_e, power)
    residual = logs - model
    size, pull = np.abs(residual), np.clip(residual, -DELTA, DELTA)
    value = np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)).sum()
    of_e, of_power = np.exp(log_e - model), np.exp(power - model)
    slopes = of_e, of_power, -t * of_power
    return value, -np.array([(pull * slope).sum() for slope in slopes])


def scipy_fit(t: np.ndarray, logs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    ends = [minimize(objective, start, args=(t, logs), jac=True, method="BFGS") for start in starts]
    return min(ends, key=lambda end: end.fun).x


def scaled_starts(t: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share, beta = rng.uniform(0.2, 0.98, STARTS), rng.uniform(0.05, 1.5, STARTS)
    return np.stack([np.log(losses.min() * share), np.log(np.median(losses) - losses.min() * share), beta], axis=1)


def five_parameters(p: np.ndarray, n: np.ndarray, d: np.ndarray, logs: np.ndarray) -> tuple[float, np.ndarray]:
    terms = np.stack([p[0] - p[3] * n, p[1] - p[4] * d, np.full_like(n, p[2])])
    model = np.logaddexp.reduce(terms, axis=0)
    residual = logs - model
    size, pull = np.abs(residual), np.clip(residual, -DELTA, DELTA)
    of_n, of_d, of_e = np.exp(terms - model)
    slopes = of_n, of_d, of_e, -n * of_n, -d * of_d
    value = np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)).sum()
    return value, -np.array([(pull * slope).sum() for slope in slopes])


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(rounds: int, *, domains: int = 64, some: int = 4, replicates: int = 512, published: int = 4000) -> dict:
    """Seconds per fit or replicate of both sides, medians over the rounds."""
    tokens, losses = curves(domains)
    t, rng = np.log(tokens) - np.log(tokens).mean(), np.random.default_rng(1)
    starts = [scaled_starts(t, losses[:, domain], rng) for domain in range(some)]
    fitted = fit_curves(LAW, LAW.checked((tokens,), losses), DELTA)
    warm = np.stack(
        [np.log(np.maximum(fitted.fit.E, 1e-3)), fitted.fit.log_B - fitted.fit.beta * fitted.units[0], fitted.fit.beta],
        axis=1,
    )
    draws = rng.integers(0, POINTS, (50, POINTS))
    params, budget, grid = chinchilla_points()
    n, d = (np.log(x) - np.log(x).mean() for x in (params, budget))
    cases = rng.integers(0, len(params), (published, len(params)))
    few = 12
    whole = fit_chinchilla(params, budget, grid[:, None])
    five = np.array(
        [
            whole.log_A[0] - whole.alpha[0] * np.log(params).mean(),
            whole.log_B[0] - whole.beta[0] * np.log(budget).mean(),
            np.log(whole.E[0]),
            whole.alpha[0],
            whole.beta[0],
        ]
    )

    def scipy_five() -> None:
        for case in cases[:few]:
            minimize(five_parameters, five, args=(n[case], d[case], np.log(grid[case])), jac=True, method="BFGS")

    pairs: dict[str, tuple[Callable[[], object], int, Callable[[], object], int]] = {
        "global fit, 3 parameters": (
            lambda: fit_loss_curves(tokens, losses),
            domains,
            lambda: [scipy_fit(t, np.log(losses[:, k]), starts[k]) for k in range(some)],
            some,
        ),
        "bootstrap replicate, begun at the fit": (
            lambda: bootstrap_predictions(fitted, (1e8,), replicates=replicates),
            domains * replicates,
            lambda: [scipy_fit(t[draw], np.log(losses[draw, 0]), warm[:1]) for draw in draws],
            len(draws),
        ),
        "bootstrap replicate, 5 parameters": (
            lambda: bootstrap_chinchilla(params, budget, grid, cases),
            published,
            scipy_five,
            few,
        ),
        f"targets with intervals, {domains} domains": (
            lambda: estimate_targets(tokens, losses, 1e8, model_error_per_decade=0.0),
            1,
            lambda: None,
            1,
        ),
    }
    compiling = {name: timed(ours) for name, (ours, _, _, _) in pairs.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"ours": [], "scipy": []} for name in pairs}
    for _ in range(rounds):
        for name, (ours, ours_count, theirs, their_count) in pairs.items():
            times[name]["ours"].append(timed(ours) / ours_count)
            times[name]["scipy"].append(timed(theirs) / their_count)
    found = {}
    for name, (_, count, _, _) in pairs.items():
        ours, theirs = (statistics.median(times[name][side]) for side in ("ours", "scipy"))
        ratio = statistics.median(b / a for a, b in zip(times[name]["ours"], times[name]["scipy"], strict=True))
        found[name] = {
            "ours_s": ours,
            "batch_s": ours * count,
            "scipy_s": None if name.startswith("targets") else theirs,
            "ratio": None if name.startswith("targets") else ratio,
            "first_call_s": compiling[name],
        }
    return {"found": found, "rounds": rounds}


def chinchilla_points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As many points as Chinchilla's figure has, from a planted law."""
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7.5, 10, 240), 10 ** rng.uniform(9, 12, 240)
    losses = 1.8 + 480 / params**0.35 + 2100 / tokens**0.37
    return params, tokens, losses * np.exp(0.01 * rng.standard_normal(240))


def cold_start() -> dict[str, float]:
    """Seconds of the command in a fresh process, with an empty cache and with a filled one."""
    with tempfile.TemporaryDirectory() as folder:
        points = Path(folder) / "points.csv"
        tokens, losses = curves(1)
        rows = [f"{a:g},{b:g}" for a, b in zip(tokens, losses[:, 0], strict=True)]
        points.write_text("\n".join(["tokens,loss", *rows]) + "\n")
        command = [sys.executable, "-m", "vtune_jax", "fit", str(points), "--predict", "1e8"]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}

        def run() -> float:
            return timed(lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment))

        return {"first": run(), "second": statistics.median(run() for _ in range(3))}


def table(result: dict) -> str:
    rows = []
    for name, of in result["found"].items():
        scipy = "" if of["scipy_s"] is None else f"{of['scipy_s'] * 1e3:.3g}"
        ratio = "" if of["ratio"] is None else f"{of['ratio']:.0f}"
        rows.append(
            [name, f"{of['ours_s'] * 1e3:.3g}", scipy, ratio, f"{of['batch_s'] * 1e3:.0f}", f"{of['first_call_s']:.1f}"]
        )
    header = ["", "ours, ms", "scipy BFGS, ms", "times faster", "whole batch, ms", "first call, s"]
    cold = result["cold_start"]
    return (
        f"{markdown(header, rows)}\n\n`vtune-jax fit` in a fresh process: {cold['first']:.1f} s the first time, "
        f"{cold['second']:.1f} s from then on."
    )


if __name__ == "__main__":
    main()
