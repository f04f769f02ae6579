"""The commands in `experiments/` still run: at tiny sizes, with results that can only come from doing the work."""

import argparse
import gzip
import json
import re

import numpy as np
import pytest

from experiments import own_loop
from experiments.fit_speed import measure as fit_speed
from experiments.mixture_speed import measure as speed
from experiments.mixture_speed import waits
from experiments.plan_cost import measure as plan_cost
from experiments.rule_speed import eager
from experiments.rule_speed import measure as rule_speed
from experiments.step_time import measure as step_time
from experiments.target_error import choose as target_choice
from experiments.target_error import measure as target_error
from experiments.target_error import predict as target_predict
from tests.stages.experiment import write_experiment
from vtune_jax.models import DecoderConfig


def test_somebody_elses_loop_reads_by_its_own_weights(capsys):
    read = own_loop.main(60)
    # 50 steps of 32 rows under (0.6, 0.3, 0.1), 10 under (0.2, 0.3, 0.5): no domain is further off than a row a step.
    expected = 1600 * np.array([0.6, 0.3, 0.1]) + 320 * np.array([0.2, 0.3, 0.5])
    assert read.sum() == 1920
    assert np.abs(read - expected).max() < 60
    assert "step 50: loss" in capsys.readouterr().out


def test_the_cost_of_the_plan_is_measured():
    found = plan_cost.measure(2)
    assert set(found) == {"4", "64", "1000"}
    assert all(value > 0 for cell in found.values() for value in cell.values())


def test_the_eager_rules_that_ours_are_timed_against_compute_the_same():
    facts, evidence, targets, seen = rule_speed.problem(5)
    peers = eager.steps(facts)
    for name, method in rule_speed.methods(facts["graph"]).items():
        history, weights = rule_speed.started(name, method, targets), targets.prior
        history = method.observe(history, seen._replace(weights=weights))
        ours, theirs = np.asarray(method.update(weights, history, targets)), peers[name](evidence)
        if name == "ado":  # counts observations, not steps, for the average only
            assert ours.argmax() == theirs.argmax()
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5, err_msg=name)


def test_the_cost_of_a_rule_is_measured(monkeypatch):
    monkeypatch.setattr(rule_speed, "LIMIT_S", 0)
    monkeypatch.setattr(rule_speed, "CELLS", 3)
    found = rule_speed.measure(1, (4,))["4"]
    assert set(found) == set(eager.steps(rule_speed.problem(4)[0]))
    assert all(cell["vmapped"] > 0 and cell["eager"] > 0 for cell in found.values())


def test_the_cost_of_moving_is_measured():
    model = DecoderConfig(layers=1, width=8, heads=1, key_value_heads=1, hidden=8)
    setting = step_time.Setting(rows=40, heldout_rows=2, interval=2, vocabulary=32, sequence=8, model=model)
    found = step_time.measure(setting, rounds=1, steps=2)
    assert found["ratio"]["static"] == 1
    assert set(found["milliseconds"]) == set(step_time.LOOPS)


@pytest.mark.parametrize("case", waits.CASES)
def test_waits_are_measured(case, monkeypatch):
    monkeypatch.setattr(waits, "LATENCY_S", 0)
    monkeypatch.setattr(waits, "STEP_S", 0)
    found = waits.waits(*waits.CASES[case], steps=60, tokens=200_000)
    assert found["first_worst"] >= found["first_median"] > 0


def test_speeds_are_measured_side_by_side(tmp_path):
    speed.make_files(tmp_path, 40_000)
    options = argparse.Namespace(python="python", only=["numpy_limit", "ours"], rounds=1, seconds=0.02)
    found = speed.measure(tmp_path, 128, 8, options)
    assert found["numpy_limit"]["to_limit"] == 1
    assert found["ours"]["per_cpu_second"] > 0
    assert found["ours"]["to_grain"] is None


def test_fits_are_timed_against_scipy_on_the_same_objective():
    found = fit_speed.measure(1, domains=8, some=1, replicates=16, published=16)["found"]
    assert all(of["ours_s"] > 0 and of["first_call_s"] > 0 for of in found.values())
    assert sum(of["ratio"] is not None for of in found.values()) == 3
    # The rival's objective is ours: both find the same law.
    tokens, losses = fit_speed.curves(1)
    t, rng = np.log(tokens) - np.log(tokens).mean(), np.random.default_rng(0)
    theirs = fit_speed.scipy_fit(t, np.log(losses[:, 0]), fit_speed.scaled_starts(t, losses[:, 0], rng))
    ours = fit_speed.fit_loss_curves(tokens, losses)
    np.testing.assert_allclose(fit_speed.objective(theirs, t, np.log(losses[:, 0]))[0], ours.objective[0], rtol=1e-3)


def test_the_errors_of_targets_are_measured(tmp_path, monkeypatch):
    config = write_experiment(tmp_path)
    text = (
        config.read_text().replace(f"{tmp_path}/base.jsonl", "base/base.jsonl.gz").replace("steps = 30", "steps = 80")
    )
    config.write_text(text)
    for folder, name in (("base", "base.jsonl"), *(("made", f"{d}.jsonl") for d in ("letters", "digits", "mixed"))):
        place = tmp_path / "data" / folder / (name.removesuffix(".jsonl") if folder == "made" else "")
        place.mkdir(parents=True, exist_ok=True)
        target = place / ("train.jsonl.gz" if folder == "made" else "base.jsonl.gz")
        target.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    monkeypatch.setattr(target_error, "CONFIG", config)
    monkeypatch.setattr(target_error, "SETTINGS", {"made": ("letters", "digits", "mixed")})
    monkeypatch.setattr(target_error, "PROXY_SHARES", (0.4, 0.2, 0.1, 0.05))
    record = target_error.measure(tmp_path / "data", "made", 3, tmp_path / "run")
    assert record["runs"]["real"]["steps"][-1] == 80
    assert len(record["runs"]["annealed 32"]["rates"]) == 32
    assert record["runs"]["real"]["loss"][-1] != record["runs"]["constant"]["loss"][-1]


def test_the_recorded_predictions_follow_from_the_recorded_curves():
    record = json.loads(target_error.CURVES.read_text().splitlines()[-1])
    again = target_predict.predict(record, budgets=(0.2,))
    lines = (json.loads(line) for line in target_predict.PREDICTIONS.read_text().splitlines())
    wanted = (record["setting"], record["seed"], 0.2)
    kept = [row for row in lines if (row["setting"], row["seed"], row["budget"]) == wanted]
    assert [(row["way"], row["budget"]) for row in again] == [(row["way"], row["budget"]) for row in kept]
    for new, old in zip(again, kept, strict=True):
        np.testing.assert_allclose(new["target"], old["target"], rtol=1e-4)
        assert new["inside"] == old["inside"]
    assert "in the 90 % interval" in target_predict.table(again)


def test_the_options_of_short_runs_are_those_that_the_development_seeds_speak_for():
    records = target_predict.newest(target_choice.CURVES)
    assert {record["seed"] for record in records}.isdisjoint(
        {r["seed"] for r in target_predict.newest(target_error.CURVES)}
    )

    def at_a_fifth(**options):
        bias, size, inside = re.fullmatch(
            r"(.+) \((.+); (.+)\)", target_choice.cells(records, budgets=(0.2,), **options)[0]
        ).groups()
        return abs(float(bias)), float(size), float(inside)

    bias, size, inside = at_a_fifth()
    assert inside >= 0.9
    for memory in (0.05, 0.125):
        other = at_a_fifth(memory=memory)
        assert bias < other[0]
        assert size <= other[1]
    assert at_a_fifth(model_error_per_decade=0.02)[2] < 0.8
