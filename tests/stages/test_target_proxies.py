"""The design of proxies from a budget, and targets from them or from a table."""

import re
from itertools import pairwise

import numpy as np
import pytest

from vtune_jax.cli import main as cli
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load
from vtune_jax.machine.files import read_json
from vtune_jax.stages.target_proxies import design as design_rounds
from vtune_jax.stages.target_proxies import real_run, share_read


@pytest.fixture
def path(small):
    return small


def design(config):
    return design_rounds(config.targets, real_run(config))


def configured(path, *overrides):
    return load(path, ("train.steps=1000", *overrides))


@pytest.mark.parametrize("proxies", ["one", "several"])
@pytest.mark.parametrize("half_width", [0.0, 0.1])
@pytest.mark.parametrize("budget", [0.1, 0.2, 0.4])
def test_the_budget_is_nearly_spent_and_never_exceeded(path, proxies, half_width, budget):
    rounds = design(
        configured(path, f'targets.proxies="{proxies}"', f"targets.budget={budget}", f"targets.half_width={half_width}")
    )
    spent = sum(plan.cost_steps for plan in rounds)
    assert 0.85 * budget * 1000 <= spent <= budget * 1000
    assert len(rounds) in ((1, 2, 3) if half_width else (1,))


def test_one_proxy_is_looked_at_from_an_eighth_of_its_steps_to_its_end(path):
    (plan,) = design(configured(path, "targets.budget=0.2"))
    (run,) = plan.runs
    assert run.evaluate_after[0] == run.steps // 8 + 1
    assert run.evaluate_after[-1] == run.steps
    # An evaluation costs 1.5 steps: 3 domains x 6 rows over a batch of 4, a third of a step each.
    assert real_run(configured(path)).evaluation_steps == 1.5
    assert plan.cost_steps == run.steps + 1.5 * len(run.evaluate_after)


def test_a_ladder_halves_down_to_four_steps(path):
    (plan,) = design(configured(path, 'targets.proxies="several"', "targets.budget=0.2"))
    lengths = [run.steps for run in plan.runs]
    assert lengths == sorted(lengths, reverse=True)
    assert all(1.8 < long / short < 2.2 for long, short in pairwise(lengths))
    assert all(run.evaluate_after == (run.steps,) for run in plan.runs)


def test_rounds_double(path):
    lengths = [plan.runs[0].steps for plan in design(configured(path, "targets.half_width=0.1", "targets.budget=0.4"))]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("proxies", ["one", "several"])
@pytest.mark.parametrize(
    ("few", "advised"),
    [
        (("train.steps=500", "targets.budget=0.05", "data.heldout_rows=40"), {"budget", "heldout_rows", "steps"}),
        (("train.steps=100", "targets.budget=0.01"), {"budget", "steps"}),
        (("train.steps=4", "targets.budget=0.01"), {"steps"}),
    ],
)
def test_a_budget_that_is_too_small_says_what_would_do(path, proxies, few, advised):
    few = (f'targets.proxies="{proxies}"', *few)
    if proxies == "several":
        few = tuple(option.replace("steps=500", "steps=1500") for option in few)
    with pytest.raises(UserError, match="allows only") as told:
        design(configured(path, *few))
    fixes = re.findall(r"([a-z_.]+) to at (least|most) ([0-9.]+)", told.value.fix)
    assert {field.split(".")[1] for field, _, _ in fixes} == advised
    for field, end, value in fixes:
        design(configured(path, *few, f"{field}={value}"))
        if field != "targets.budget":  # which is told in hundredths
            beyond = int(value) + (1 if end == "most" else -1)
            with pytest.raises(UserError, match="allows only"):
                design(configured(path, *few, f"{field}={beyond}"))


def test_the_sub_sample_is_what_the_longest_proxy_comes_to(path):
    # 50 steps of 4 rows, half of them from each: 100 rows of 1,000 and of 400.
    read = share_read(real_run(configured(path)), np.array([1000, 400]), np.array([0.5, 0.5]), 50)
    np.testing.assert_allclose(read, [0.1, 0.25])


def facts_of(folder):
    return [read_json(file) for file in (folder.parent / "store").glob("targets-*/targets.json")]


def test_targets_come_from_a_ladder_in_rounds_or_from_a_table(path, tmp_path):
    folder = tmp_path / "run"
    ladder = ["train.steps=60", 'targets.proxies="several"', "targets.budget=1.5", "targets.half_width=1e-6"]
    options = ["--run-folder", str(folder), "--quiet"]
    assert cli.invoke(["targets", str(path), *ladder, *options]) == 0
    (facts,) = facts_of(folder)
    # Nothing is sure to a millionth: all rounds are spent.
    assert len(set(facts["points"]["tokens"])) == len(facts["points"]["loss"]) >= 4
    assert {"E", "log_B", "beta"} == set(facts["law"])
    assert 1.2 < facts["proxy_cost"] <= 1.5
    points = zip(facts["points"]["tokens"], facts["points"]["loss"], strict=True)
    rows = [
        f"{t},{x},{d}\n" for t, losses in points for x, d in zip(losses, ("letters", "digits", "mixed"), strict=True)
    ]
    table = tmp_path / "runs.csv"
    table.write_text("tokens,loss,domain\n" + "".join(rows))
    assert cli.invoke(["targets", str(path), "train.steps=60", "--from", str(table), *options]) == 0
    found = next(other for other in facts_of(folder) if other["proxy_tokens"] == 0)
    np.testing.assert_allclose(found["predicted"], facts["predicted"], rtol=1e-6)


def test_a_table_with_model_sizes_is_read_off_at_this_model(path, tmp_path):
    rng = np.random.default_rng(0)
    sizes, tokens = 10 ** rng.uniform(3, 6, 40), 10 ** rng.uniform(3, 6, 40)
    law = lambda n, d: 1.0 + 20 / n**0.4 + 30 / d**0.35  # noqa: E731
    rows = [
        f"{n!r},{d!r},{law(n, d)!r},{name}\n"
        for n, d in zip(sizes.tolist(), tokens.tolist(), strict=True)
        for name in ("letters", "digits", "mixed")
    ]
    table = tmp_path / "sizes.csv"
    table.write_text("params,tokens,loss,domain\n" + "".join(rows))
    options = ["--run-folder", str(tmp_path / "run"), "--quiet", "--from", str(table), "train.steps=1000"]
    assert cli.invoke(["targets", str(path), *options]) == 0
    (facts,) = facts_of(tmp_path / "run")
    experiment = load(path)
    expected = law(experiment.model.parameters(300), 1000 * experiment.data.batch_tokens)
    np.testing.assert_allclose(facts["target"], expected, rtol=2e-3)
    assert set(facts["verdict"]) <= {"trustworthy", "extrapolates too far"}
    assert {"log_A", "alpha"} < set(facts["law"])


def from_table(path, tmp_path, text, *overrides):
    table = tmp_path / "runs.csv"
    table.write_text(text)
    options = ["--run-folder", str(tmp_path / "run"), "--quiet", "--from", str(table), "train.steps=200"]
    code = cli.invoke(["targets", str(path), *options, *overrides])
    return code, facts_of(tmp_path / "run")


def rows_of(tokens, losses, extra=lambda index: ""):
    return "".join(
        f"{t!r},{x!r},{name}{extra(index)}\n"
        for index, (t, x) in enumerate(zip(tokens.tolist(), losses.tolist(), strict=True))
        for name in ("letters", "digits", "mixed")
    )


def test_a_target_that_was_replaced_has_no_interval(path, tmp_path):
    tokens = np.geomspace(300, 6000, 6)
    text = "tokens,loss,domain\n" + rows_of(tokens, 8 + 30 / tokens)
    code, (facts,) = from_table(path, tmp_path, text, "targets.when_unusable=given", "targets.fallback=[1,1.5,1]")
    assert code == 0
    assert facts["target"] == [1.0, 1.5, 1.0]
    assert facts["lower"] == facts["upper"] == facts["standard_error"] == [None] * 3
    np.testing.assert_allclose(facts["predicted"], 8, atol=0.2)


def test_runs_of_a_table_may_have_any_label(path, tmp_path):
    tokens = np.geomspace(300, 6000, 6)
    text = "tokens,loss,domain,run\n" + rows_of(tokens, 2 + 30 / tokens**0.5, lambda index: f",r{index % 2}")
    assert from_table(path, tmp_path, text)[0] == 0


def test_what_a_law_over_sizes_has_no_use_for_is_refused_before_training(path, tmp_path, capsys):
    text = "tokens,loss,domain,params\n" + rows_of(np.geomspace(300, 6000, 6), np.linspace(4, 3, 6), lambda _: ",1000")
    code, facts = from_table(path, tmp_path, text, "targets.when_unusable=pooled")
    assert code == 2
    assert facts == []
    assert "no curves to share or pool" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("base-model-*"))


def test_a_rate_that_ends_at_zero_has_targets_too(path, tmp_path):
    options = ["--run-folder", str(tmp_path / "run"), "--quiet", "train.optimizer.final_fraction=0.0"]
    assert cli.invoke(["targets", str(path), *options]) == 0
    (facts,) = facts_of(tmp_path / "run")
    assert np.isfinite(facts["predicted"]).all()


@pytest.mark.parametrize("share", [0.97, 1.0])
def test_a_warm_up_that_leaves_nothing_to_look_at_is_refused(path, share):
    with pytest.raises(UserError, match="places after its warm-up"):
        design(configured(path, f"train.optimizer.warmup_fraction={share}", "train.steps=60", "targets.budget=1.0"))


@pytest.mark.parametrize("field", ["losses", "fallback"])
@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_given_targets_must_be_losses(path, field, value):
    with pytest.raises(UserError, match="must be positive and finite|is (nan|inf). Fix: give a number"):
        configured(path, f"targets.{field}=[{value},1,1]")


def test_a_table_that_cannot_be_used_is_refused_before_the_base_model_is_trained(path, tmp_path, capsys):
    table = tmp_path / "runs.csv"
    table.write_text("tokens,loss,domain\n1,2,letters\n")
    options = ["--run-folder", str(tmp_path / "run"), "--quiet", "--from", str(table)]
    assert cli.invoke(["targets", str(path), *options]) == 2
    assert "holds no domain 'digits', 'mixed'" in capsys.readouterr().err
    table.write_text("tokens,loss,domain\n" + 2 * rows_of(np.array([1e3, 2e3]), np.array([4.0, 3.0])))
    assert cli.invoke(["targets", str(path), *options]) == 2
    assert "must have at least 3 different points in domain 'letters', got 2" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("base-model-*"))
