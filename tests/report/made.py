"""Results made up for the tests of the report."""

import dataclasses

from vtune_jax.machine.provenance import Provenance
from vtune_jax.report.results import ArmResult, Curve, Final, Points, Results, RunFacts, StepRow, TargetResult, Update

MAKER = Provenance(commit="0123456789ab+", versions={"jax": "1"}, machine="x86_64, 1 x cpu")


def made_results(domains=4, arms=("velocitune", "static"), **changes):
    names = tuple(f"domain {index}" for index in range(domains))
    initial = [5.0 + 0.1 * index for index in range(domains)]
    target = [loss - 1.0 for loss in initial]

    def arm(name, gain):
        updates = [
            Update(
                step=100 * row,
                tokens=1000 * row,
                weights=[1 / domains] * domains,
                heldout_loss=[loss - gain * row / 4 for loss in initial],
                train_loss=[None] * domains,
                remaining=[1 - gain * row / 4] * domains,
                tokens_read=[250 * row] * domains,
                epochs=[0.5 * row] * domains,
            )
            for row in range(5)
        ]
        final = Final(
            heldout_loss=[loss - gain for loss in initial],
            remaining=[1 - gain] * domains,
            base_loss=4.2,
            average_loss=sum(initial) / domains - gain,
            smallest_progress=gain,
        )
        train = [
            StepRow(step=step, tokens=10 * step, loss=5 - step / 100, learning_rate=1e-3, gradient_norm=1.0)
            for step in range(1, 30)
        ]
        return ArmResult(name=name, method=f"{name}()", updates=updates, train=train, final=final)

    results = Results(
        experiment="made",
        domains=names,
        base="prose",
        initial_base_loss=4.0,
        arms={name: arm(name, 0.75 if name == "static" else 0.875) for name in arms},
        targets=TargetResult(
            initial=initial,
            target=target,
            lower=[value - 0.1 for value in target],
            upper=[value + 0.1 for value in target],
            verdict=["trustworthy"] * domains,
            advice=[""] * domains,
            law={"E": [2.0] * domains, "log_B": [1.0] * domains, "beta": [0.1] * domains},
            curve=Curve(tokens=[1000.0, 4000.0], loss=[[4.7] * domains, [4.0] * domains]),
            points=Points(tokens=[400, 800, 1600], loss=[[5.0] * domains, [4.8] * domains, [4.6] * domains]),
            target_tokens=4000,
            proxy_tokens=2800,
            level=0.9,
            notes=[],
        ),
        corpus={"domains": []},
        run=RunFacts(
            seed=0,
            config_sha256="ab" * 32,
            command="vtune-jax run made.toml",
            made_by={"corpus": MAKER, "arm static": MAKER},
            parameters=1_000_000,
            token_budget=4000,
            interval=100,
            prior=[1 / domains] * domains,
        ),
    )
    return dataclasses.replace(results, **changes)
