"""The command `vtune-jax fit`, as a user calls it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.fits.laws.test_chinchilla import FOLDER, planted
from tests.fits.test_head import dense
from vtune_jax.cli import main as cli

TOKENS = np.geomspace(1e6, 3.2e7, 8)


def table(tmp_path, text=None, losses=None):
    path = tmp_path / "points.csv"
    if text is None:
        losses = 2 + 30 * TOKENS**-0.3 if losses is None else losses
        text = "tokens,loss\n" + "".join(
            f"{t!r},{x!r}\n" for t, x in zip(TOKENS.tolist(), losses.tolist(), strict=True)
        )
    path.write_text(text)
    return str(path)


def asked(capsys, *arguments):
    code = cli.invoke(["fit", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_parameters_target_and_verdict_are_printed_with_a_picture(tmp_path, capsys):
    code, out, _ = asked(capsys, table(tmp_path), "--predict", "1e8", "--initial", "5")
    assert code == 0
    assert "L(D) = E + B / D^beta" in out
    assert "trustworthy" in out
    assert f"target    {2 + 30 * 1e8**-0.3:.4f}"[:15] in out
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_the_documented_keys(tmp_path, capsys):
    code, out, _ = asked(capsys, table(tmp_path), "--predict", "1e8", "--json", "--no-plot", "--delta", "auto")
    of = json.loads(out)["domains"]["all"]
    assert code == 0
    assert {"E", "log_B", "beta", "target", "lower", "upper", "objective", "diagnostics"} <= set(of)
    np.testing.assert_allclose([of["E"], np.exp(of["log_B"]), of["beta"]], [2, 30, 0.3], rtol=1e-5)
    assert of["lower"] < of["target"] < of["upper"]
    assert not (tmp_path / "points.png").exists()


def test_order_and_repeated_lines_change_nothing(tmp_path, capsys):
    rng = np.random.default_rng(0)
    noisy = (2 + 30 * TOKENS**-0.3) * np.exp(0.002 * rng.standard_normal(8))
    rows = [f"{t!r},{x!r}\n" for t, x in zip(TOKENS.tolist(), noisy.tolist(), strict=True)]
    outs = []
    for chosen in (rows, [rows[i] for i in rng.permutation(8)], [*rows, *rows[2:5]]):
        path = table(tmp_path, "tokens,loss\n" + "".join(chosen))
        outs.append(asked(capsys, path, "--predict", "1e8", "--json", "--no-plot")[1])
    assert outs[0] == outs[1] == outs[2]


def test_domains_get_their_own_numbers(tmp_path, capsys):
    rows = "".join(f"{t!r},{x + 30 * t**-0.3!r},{d}\n" for d, x in (("a", 2), ("b", 1)) for t in TOKENS.tolist())
    path = table(tmp_path, f"tokens,loss,domain\n{rows}")
    options = ("--predict", "1e8", "--json", "--no-plot", "--initial", "a=5,b=4", "--current", "a=2")
    out = asked(capsys, path, *options)[1]
    domains = json.loads(out)["domains"]
    np.testing.assert_allclose([domains[name]["E"] for name in "ab"], [2, 1], rtol=1e-5)
    assert domains["a"]["verdicts"] == ["target not below current"]
    assert domains["b"]["verdicts"] == ["trustworthy"]


def test_points_of_several_runs_are_no_neighbours(tmp_path, capsys):
    off = 0.01 * np.array([1, 1, -1, -1, 1, 1, -1, -1])
    losses = (2 + 30 * TOKENS**-0.3) * np.exp(off)
    rows = [f"{t!r},{x!r}" for t, x in zip(TOKENS.tolist(), losses.tolist(), strict=True)]
    one = asked(capsys, table(tmp_path, "tokens,loss\n" + "\n".join(rows)), "--json", "--no-plot", "--predict", "1e8")[
        1
    ]
    text = "tokens,loss,run\n" + "\n".join(f"{row},{number}" for number, row in enumerate(rows, start=1))
    several = asked(capsys, table(tmp_path, text), "--json", "--no-plot", "--predict", "1e8")[1]
    one, several = (json.loads(out)["domains"]["all"]["diagnostics"] for out in (one, several))
    assert one["autocorrelation"] > 0.1
    assert several["autocorrelation"] is None
    assert one["effective_points"] < several["effective_points"] == 8


def test_units_that_are_no_tokens_are_warned_of(tmp_path, capsys):
    billions = "".join(f"{t / 1e9!r},{2 + 30 * t**-0.3!r}\n" for t in TOKENS.tolist())
    out = asked(capsys, table(tmp_path, f"tokens,loss\n{billions}"), "--no-plot")[1]
    assert "as if they were counted in millions or billions" in out
    mixed = "".join(f"{t / (1e9 if t > 5e6 else 1)!r},{2 + 30 * t**-0.3!r}\n" for t in TOKENS.tolist())
    assert "as if units were mixed" in asked(capsys, table(tmp_path, f"tokens,loss\n{mixed}"), "--no-plot")[1]
    assert "warning" not in asked(capsys, table(tmp_path), "--no-plot")[1]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, ("--law", "XYZ"), "unknown law 'XYZ'; known are LD"),
        ("tokens,loss\n1,3\n2,2\n", (), "domain 'all' has 2 points, the law LD needs at least 3"),
        (None, ("--delta", "-1"), 'delta must be positive or "auto"'),
        (None, ("--predict", "-5"), "--predict must be positive"),
        (None, ("--law", "LND"), "no column 'params'"),
        (None, ("--predict", "1e8", "--initial", "x=3"), "--initial names 'x'"),
        (None, ("--initial", "much"), "--initial is no number: 'much'"),
        (None, ("--level", "2"), "level must lie in"),
        (None, ("--plot", "/nowhere/at/all.png"), "cannot write the picture /nowhere/at/all.png"),
        (None, ("--plot", "picture.nothing"), "cannot draw a picture of kind '.nothing'"),
        (None, ("--drop-worst", "9"), "of which 9 are to be left out"),
        (None, ("--drop-worst", "-3"), "must not be negative"),
        (None, ("--drop-head", "1.7"), "--drop-head is no whole number: '1.7'"),
        (None, ("--drop-head", "inf"), "--drop-head is no whole number"),
        (None, ("--predict", "0"), "--predict must be positive and finite, got 0"),
        (None, ("--predict", "nan"), "--predict must be positive and finite, got nan"),
        (None, ("--params", "1e9"), "the law LD makes no use of --params"),
        (None, ("--initial", "5"), "--initial judge a target"),
        (None, ("--law", "LND", "--share-beta", "--drop-head", "1"), "makes no use of --share-beta and --drop-head"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, text, arguments, message):
    options = arguments if "--plot" in arguments else ("--no-plot", *arguments)
    code, _, err = asked(capsys, table(tmp_path, text), *options)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_a_reader_who_has_had_enough_is_no_error(tmp_path):
    command = [sys.executable, "-m", "vtune_jax", "fit", table(tmp_path), "--no-plot"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.PIPE_CLOSED


def test_a_cache_that_cannot_be_written_is_nothing_to_speak_of(tmp_path):
    command = [sys.executable, "-m", "vtune_jax", "fit", table(tmp_path), "--no-plot", "--drop-head", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "points.csv")  # no folder
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0
    assert found.stderr == ""


def test_without_a_picture_nothing_is_computed_for_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vtune_jax.fits.curves._band_places", lambda *_: pytest.fail("a band is for a picture"))
    assert asked(capsys, table(tmp_path), "--no-plot", "--predict", "1e8")[0] == 0


def test_a_folder_is_no_table(capsys):
    code, _, err = asked(capsys, ".")
    assert code == 2
    assert "is no file" in err


def test_without_a_target_nothing_is_said_of_one(tmp_path, capsys):
    long = [f"{t * 1e3!r},{2 + 30 * t**-0.3!r},long\n" for t in TOKENS.tolist()]
    short = [f"{t!r},{2 + 30 * t**-0.3!r},short\n" for t in TOKENS.tolist()]
    out = asked(capsys, table(tmp_path, "tokens,loss,domain\n" + "".join(long + short)), "--no-plot", "--json")[1]
    of = json.loads(out)["domains"]["short"]
    assert of["verdicts"] == ["trustworthy"]
    assert "extrapolation_decades" not in of["diagnostics"]


def test_levels_are_printed_as_they_were_asked_for(tmp_path, capsys):
    out = asked(capsys, table(tmp_path), "--no-plot", "--predict", "1e8", "--level", "0.999")[1]
    assert "99.9% interval" in out


def test_a_target_behind_the_points_is_told(tmp_path, capsys):
    assert "extrapolates backwards" in asked(capsys, table(tmp_path), "--no-plot", "--predict", "2e6")[1]


def test_the_law_over_model_sizes_has_standard_errors(tmp_path, capsys):
    params, tokens, losses = planted(noise=0.01)
    rows = "".join(
        f"{n!r},{d!r},{x!r}\n" for n, d, x in zip(*(c.tolist() for c in (params, tokens, losses)), strict=True)
    )
    path = table(tmp_path, f"params,tokens,loss\n{rows}")
    options = ("--law", "LND", "--replicates", "50", "--json", "--predict", "1e12", "--params", "1e10")
    of = json.loads(asked(capsys, path, *options)[1])["domains"]["all"]
    assert {"A", "B", "E", "alpha", "beta", "standard_errors", "intervals", "objective"} <= set(of)
    low, high = of["intervals"]["alpha"]
    assert low < 0.34 < high
    assert of["lower"] < of["target"] < of["upper"]
    assert abs(of["target"] - (1.7 + 400 / 1e10**0.34 + 1800 / 1e12**0.36)) < 0.02
    assert (tmp_path / "points.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--predict", "-5", "--params", "1e9"), "--predict must be positive"),
        (("--predict", "1e9", "--params", "0"), "--params must be positive"),
        (("--predict", "1e9"), "give --predict D together with --params N"),
        (("--replicates", "1"), "replicates must be at least 2"),
        (("--level", "1"), "level must lie in"),
        (("--initial", "zzz=1", "--predict", "1e9", "--params", "1e9"), "--initial names 'zzz'"),
    ],
)
def test_mistakes_under_the_law_over_sizes_are_one_line(tmp_path, capsys, arguments, message):
    params, tokens, losses = planted(noise=0.01)
    rows = [f"{n!r},{d!r},{x!r}\n" for n, d, x in zip(*(c.tolist() for c in (params, tokens, losses)), strict=True)]
    path = table(tmp_path, "params,tokens,loss\n" + "".join(rows))
    code, _, err = asked(capsys, path, "--law", "LND", "--no-plot", *arguments)
    assert code == 2
    assert message in err


def test_one_model_size_says_nothing_of_another(tmp_path, capsys):
    rows = "".join(f"1e8,{t!r},{2 + 30 * t**-0.3!r}\n" for t in TOKENS.tolist())
    path = table(tmp_path, f"params,tokens,loss\n{rows}")
    options = ("--law", "LND", "--json", "--no-plot", "--predict", "1e8", "--params", "1e9", "--replicates", "50")
    of = json.loads(asked(capsys, path, *options)[1])["domains"]["all"]
    assert of["verdicts"] == ["under-determined", "too wide for a velocity"]
    assert "1 model size cannot tell" in of["advice"][0]
    assert of["upper"] is None
    assert of["intervals"]["alpha"] == [None, None]


def test_wild_points_are_told_under_the_law_over_sizes_and_the_advice_leaves_them_out(tmp_path, capsys):
    params, tokens, losses = planted(noise=0.004)
    losses[losses.argsort()[-5:]] *= np.array([1.15, 1.2, 1.25, 1.3, 1.4])
    rows = [f"{n!r},{d!r},{x!r}\n" for n, d, x in zip(*(c.tolist() for c in (params, tokens, losses)), strict=True)]
    # Under the names of public tables.
    path = table(tmp_path, "parameter_count,total_tokens,loss\n" + "".join(rows))
    options = ("--law", "LND", "--replicates", "50", "--no-plot", "--json")
    answer = json.loads(asked(capsys, path, *options)[1])
    assert "params from 'parameter_count', tokens from 'total_tokens'" in answer["warnings"][0]
    of = answer["domains"]["all"]
    assert of["verdicts"] == ["outliers"]
    option = re.search(r"--drop-worst \d+", of["advice"][0]).group()
    kept = json.loads(asked(capsys, path, *options, *option.split())[1])["domains"]["all"]
    assert kept["verdicts"] == ["trustworthy"]
    np.testing.assert_allclose(kept["beta"], 0.36, atol=0.03)


def test_a_sweep_in_steps_is_fitted_by_its_best(tmp_path, capsys):
    steps = [250, 500, 1000, 2000, 4000, 8000]
    rows = "".join(
        f"{step},{rate},{(2 + 30 * (step * 4000) ** -0.3) * worse!r}\n"
        for step in steps
        for rate, worse in ((1e-3, 1.05), (3e-3, 1.0), (1e-2, 1.1))
    )
    path = table(tmp_path, f"step,lr,eval ce\n{rows}")
    code, _, err = asked(capsys, path, "--no-plot")
    assert code == 2
    assert "no column 'tokens' and no column 'loss'" in err
    assert "--columns 'loss=eval ce' --tokens-per-step N" in err
    options = ("--columns", "loss=eval ce", "--tokens-per-step", "4000", "--no-plot")
    assert "--best-of-place" in asked(capsys, path, *options)[1]
    of = json.loads(asked(capsys, path, *options, "--best-of-place", "--json")[1])["domains"]["all"]
    np.testing.assert_allclose([of["E"], np.exp(of["log_B"]), of["beta"]], [2, 30, 0.3], rtol=1e-4)
    assert of["verdicts"] == ["trustworthy"]


def test_a_long_warm_up_is_left_out_aloud(tmp_path, capsys):
    tokens, losses, _ = dense(400, 57, domains=1)
    rows = "".join(f"{t!r},{x!r}\n" for t, x in zip(tokens.tolist(), losses.ravel().tolist(), strict=True))
    code, out, _ = asked(capsys, table(tmp_path, f"tokens,loss\n{rows}"), "--predict", "1e8", "--no-plot")
    assert code == 0
    dropped = int(re.search(r"the first (\d+) points are left out; --drop-head 0 keeps them", out).group(1))
    assert abs(dropped - 57) < 8


@pytest.mark.skipif(not FOLDER.exists(), reason="the points have no licence; VTUNE_CHINCHILLA names their folder")
def test_chinchillas_figure_by_the_command(tmp_path, capsys):
    lines = (FOLDER / "epoch_chinchilla_245.csv").read_text().splitlines()
    header = lines[0].split(",")
    place = [header.index(name) for name in ("Model Size", "Training FLOP", "loss")]
    rows = [[float(line.split(",")[i]) for i in place] for line in lines[1:]]
    text = "params,tokens,loss\n" + "".join(f"{n!r},{c / (6 * n)!r},{x!r}\n" for n, c, x in rows)
    path = table(tmp_path, text)
    options = ("--law", "LND", "--drop-worst", "5", "--json", "--no-plot", "--replicates", "10")
    of = json.loads(asked(capsys, path, *options)[1])["domains"]["all"]
    published = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347310, "beta": 0.367172}
    for name, value in published.items():
        np.testing.assert_allclose(of[name], value, rtol=1e-5)
    np.testing.assert_allclose(of["objective"], 0.00101827402, rtol=1e-8)
    assert of["diagnostics"]["points"] == 240


def test_the_law_with_annealing_takes_areas(tmp_path, capsys):
    forward, annealed = np.geomspace(5, 100, 24), np.linspace(0, 9, 24)
    losses = 2 + 5 * forward**-0.4 - 0.01 * annealed
    rows = "".join(
        f"{a!r},{b!r},{x!r}\n" for a, b, x in zip(*(c.tolist() for c in (forward, annealed, losses)), strict=True)
    )
    path = table(tmp_path, f"forward_area,annealed_area,loss\n{rows}")
    of = json.loads(asked(capsys, path, "--law", "LRA", "--json", "--no-plot")[1])["domains"]["all"]
    np.testing.assert_allclose([of["E"], of["alpha"], of["C"]], [2, 0.4, 0.01], rtol=1e-4)
    assert "needs tokens" in asked(capsys, path, "--law", "LRA", "--predict", "5")[2]
