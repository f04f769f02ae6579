"""What an update of the weights costs: jitted, jitted and vmapped over 256 cells, and in eager numpy.

    python -m experiments.rule_speed.measure           # appends to results.jsonl
    python -m experiments.rule_speed.measure --write   # the table in experiments/README.md

One update is `observe` and the rule, evidence at hand, the state donated as in the train step. All three are timed in
turn in one process, medians over the rounds; what is vmapped is divided by its cells, and the eager rule, which knows
no cells, is called once for each. ADO is its policy: the fit, due at every thousandth observation, is timed apart.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rule_speed import eager
from experiments.tables import ROOT, markdown, replace_block
from vtune_jax import rules
from vtune_jax.core.types import Alignment, ExcessSums, LossHistory, LossSums, Method, Observation, Targets
from vtune_jax.rules.ado import with_law
from vtune_jax.rules.ado_fit import Law, fit_laws

RESULTS = Path(__file__).with_name("results.jsonl")
DOMAINS, CELLS, LIMIT_S = (4, 64, 1000), 256, 4e-3
STEP_S = 50e-3  # a short training step


def methods(graph: np.ndarray) -> dict[str, Method]:
    """With the hyper-parameters of the eager forms."""
    return {
        "velocitune": rules.velocitune(),
        "dbl": rules.dynamic_batch_loading(),
        "group_dro": rules.group_dro(),
        "group_dro cvar": rules.cvar_dro(),
        "odm": rules.odm(),
        "skillit": rules.skillit(learn_graph=True),
        "doremi": rules.doremi(),
        "doge": rules.doge(),
        "grape": rules.grape(),
        "ado": rules.ado(start=0, refit_every=0, ignore=0, stride=1, filter_window=1, capacity=4, tokens_per_count=1.0),
    }


def problem(domains: int) -> tuple[dict[str, np.ndarray], dict[str, Any], Targets, Observation]:
    """The same numbers for both styles."""
    rng = np.random.default_rng(domains)
    initial = rng.uniform(3, 5, domains)
    facts = {
        "prior": rng.dirichlet(np.full(domains, 5.0)),
        "initial": initial,
        "target": initial - rng.uniform(0.5, 1.5, domains),
        "sizes": rng.uniform(1e6, 1e9, domains),
        "graph": rng.uniform(0, 1, (domains, domains)) / domains,
    }
    gradients = rng.normal(0, 1, (domains, 8))
    evidence = {
        "loss": initial - rng.uniform(0, 0.5, domains),
        "tokens": rng.integers(100, 1000, domains).astype(float),
        "inner": gradients @ gradients.T,
        "norm": np.linalg.norm(gradients, axis=1),
        "step": 10_000,
    }
    evidence["clipped"] = evidence["tokens"] * rng.uniform(0, 1, domains)
    single = partial(jnp.asarray, dtype=jnp.float32)
    constants = {"sizes": single(facts["sizes"]), "graph": single(facts["graph"])}
    columns = (single(facts[name]) for name in ("initial", "target"))
    targets = Targets(*columns, jnp.zeros(domains), single(facts["prior"]), constants)
    tokens = jnp.asarray(evidence["tokens"], jnp.int32)
    sums = LossSums(single(evidence["loss"] * evidence["tokens"]), tokens)
    excess = ExcessSums(single(evidence["clipped"]), single(evidence["clipped"]), tokens, tokens)
    alignment = Alignment(
        single(evidence["inner"]), single(evidence["norm"]), single(evidence["norm"]), jnp.float32(1e-3)
    )
    seen = Observation(
        sums,
        sums,
        single(evidence["tokens"]),
        jnp.asarray(10_000),
        weights=targets.prior,
        evidence={"excess": excess, "alignment": alignment},
    )
    return facts, evidence, targets, seen


def started(name: str, method: Method, targets: Targets) -> LossHistory:
    history = method.init(targets)
    if name == "ado":
        even = jnp.ones_like(targets.prior)
        history = with_law(history, Law(2.0 * even, 0.7 * even, 0.4 * even))
    return history


def compiled(name: str, method: Method, targets: Targets, seen: Observation, cells: int) -> Callable[[], None]:
    """A call that makes one update of every cell and waits for it."""

    def update(weights: jax.Array, history: LossHistory, targets: Targets, seen: Observation) -> Any:
        history = method.observe(history, seen._replace(weights=weights))
        return method.update(weights, history, targets), history

    mapped = jax.vmap(update, in_axes=(0, 0, None, None)) if cells > 1 else update
    jitted = jax.jit(mapped, donate_argnums=(0, 1))
    state = jax.tree.map(jnp.array, (targets.prior, started(name, method, targets)))
    if cells > 1:
        state = jax.tree.map(lambda leaf: jnp.tile(leaf, (cells, *(1,) * leaf.ndim)), state)
    held = [jitted(*state, targets, seen)]

    def call() -> None:
        held[0] = jitted(*held[0], targets, seen)
        jax.block_until_ready(held[0])

    return call


def measure(rounds: int, domains: tuple[int, ...] = DOMAINS) -> dict[str, dict[str, dict[str, float]]]:
    """Microseconds per update by number of domains, method and style, and the quotients of the same rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for k in domains:
        facts, evidence, targets, seen = problem(k)
        peers = eager.steps(facts)
        found[str(k)] = {}
        for name, method in methods(facts["graph"]).items():
            calls = {
                "eager": (partial(peers[name], evidence), 1),
                "jitted": (compiled(name, method, targets, seen, 1), 1),
                "vmapped": (compiled(name, method, targets, seen, CELLS), CELLS),
            }
            times = {style: [_timed(call) / cells for call, cells in [pair]] for style, pair in calls.items()}
            for _ in range(rounds - 1):
                for style, (call, cells) in calls.items():
                    times[style].append(_timed(call) / cells)
            cell = {style: 1e6 * statistics.median(values) for style, values in times.items()}
            quotients = [a / b for a, b in zip(times["eager"], times["vmapped"], strict=True)]
            found[str(k)][name] = cell | {"eager_to_vmapped": statistics.median(quotients)}
    return found


def _timed(call: Callable[[], Any]) -> float:
    """Seconds a call, over as many as fit into a few milliseconds."""
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < LIMIT_S:
        call()
        done += 1
    return (time.perf_counter() - began) / done


def fit_seconds(domains: int, points: int = 400) -> dict[str, float]:
    """ADO's fit: the first call with its compilation, and the median of five later ones."""
    n = 64.0 * jnp.arange(1, points + 1)[:, None] * jnp.ones(domains)
    losses = 2.0 + 4.0 * n ** -jnp.linspace(0.1, 0.7, domains)
    fit, kept, times = jax.jit(fit_laws), jnp.ones(points, bool), []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(fit(n, losses, kept))
        times.append(time.perf_counter() - began)
    return {"first": times[0], "later": statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="only write the table from the recorded results")
    options = parser.parse_args()
    if not options.write:
        facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "rounds": options.rounds}
        record = {**facts, "microseconds": measure(options.rounds), "ado_fit_seconds": fit_seconds(7)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record))
    write()


def write() -> None:
    """The newest record of each device as a table."""
    newest = {record["device"]: record for record in map(json.loads, RESULTS.read_text().splitlines())}
    replace_block(ROOT / "experiments" / "README.md", "rule speed", "\n\n".join(map(described, newest.values())))


def described(record: dict[str, Any]) -> str:
    """A table and two sentences."""
    cells = record["microseconds"]
    header = [f"{record['device']}, µs per update", *(f"{k} domains" for k in cells)]
    rows = [
        [
            name,
            *(
                f"{of[name]['eager']:.0f} / {of[name]['jitted']:.0f} / {of[name]['vmapped']:.2f}"
                f" ({of[name]['eager_to_vmapped']:.0f}x)"
                for of in cells.values()
            ),
        ]
        for name in next(iter(cells.values()))
    ]
    worst = max(of["jitted"] for of in cells["1000"].values())
    fit = record["ado_fit_seconds"]
    return (
        f"{markdown(header, rows)}\n\nThe slowest jitted update at 1,000 domains takes {worst / 1e6 / STEP_S:.2%} of a "
        f"step of 50 ms. ADO's fit of 7 domains through 400 points: {fit['later']:.2f} s, "
        f"{fit['first']:.1f} s with its compilation."
    )


if __name__ == "__main__":
    main()
