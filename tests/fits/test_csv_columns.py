"""Tables as others write them: other names, steps instead of tokens, exports of trackers; and advice that works."""

import re
import shlex

import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_columns import Naming, parse_naming
from vtune_jax.fits.csv_table import read_table

SIZES, TOKENS, LOSSES = (1e8, 1e8, 4e8), (1e9, 4e9, 4e9), (3.5, 3.1, 2.9)
POINTS = tuple(zip(SIZES, TOKENS, LOSSES, strict=True))
BOTH = ("params", "tokens")


def read(tmp_path, text, columns=BOTH, naming=None, **options):
    path = tmp_path / "points.csv"
    path.write_text(text)
    return read_table(path, columns=columns, naming=naming, **options)


def rows(*cells):
    return "".join(",".join(map(str, row)) + "\n" for row in cells)


PUBLIC = {
    "letters": "D,N,lr,bs,smooth loss\n" + rows(*((d, n, 1e-3, 64, x) for n, d, x in POINTS)),
    "letters beside others": "N,D,C,n_layers,d,loss\n" + rows(*((n, d, 6 * n * d, 12, 768, x) for n, d, x in POINTS)),
    "counts": "model,parameter_count,total_tokens,loss\n" + rows(*(("m", n, d, x) for n, d, x in POINTS)),
    "words": "Num Params;Training-Tokens;val/loss;val/loss_std\n"
    + rows(*((n, d, x, 0.1) for n, d, x in POINTS)).replace(",", ";"),
    "our own beside others": "tokens,D,params,N,loss,train_loss\n" + rows(*((d, 1, n, 1, x, 9) for n, d, x in POINTS)),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_tables_are_read_as_they_come(tmp_path, name):
    table = read(tmp_path, PUBLIC[name])
    np.testing.assert_array_equal(table.columns["params"][:, 0], SIZES)
    np.testing.assert_array_equal(table.columns["tokens"][:, 0], TOKENS)
    np.testing.assert_array_equal(table.losses[:, 0], LOSSES)
    assert table.names == ("all",)


def test_it_is_told_which_columns_were_taken(tmp_path):
    assert read(tmp_path, PUBLIC["letters"]).notes == (
        "points.csv: params from 'N', tokens from 'D', loss from 'smooth loss'",
    )
    assert read(tmp_path, PUBLIC["our own beside others"]).notes == ()


def test_small_letters_are_no_sizes_and_a_letter_alone_changes_no_law(tmp_path):
    with pytest.raises(UserError, match="no column 'params'"):
        read(tmp_path, "n,tokens,loss\n1,2,3\n")
    table = read(tmp_path, "N,tokens,loss\n8,1e6,3\n", ("tokens",), optional=("params",))
    assert "params" not in table.columns
    table = read(tmp_path, "N,D,loss\n8,1e6,3\n", ("tokens",), optional=("params",))
    assert table.columns["params"].item() == 8


EXPORT = (
    '"Step","big-1 - _step","big-1 - eval/loss","big-1 - eval/loss__MIN","big-1 - eval/loss__MAX",'
    '"a - b - eval/loss","a - b - eval/loss__MIN","a - b - eval/loss__MAX"\n'
    '"0","0","11.0","11.0","11.0","","",""\n'
    '"100","100","4.0","3.9","4.1","","",""\n'
    '"150","","","","","3.8","3.7","3.9"\n'
    '"200","200","3.5","3.4","3.6","3.6","3.5","3.7"\n'
)


def test_a_trackers_export_has_a_column_of_losses_for_each_run(tmp_path):
    table = read(tmp_path, EXPORT, ("tokens",), Naming(tokens_per_step=512.0))
    np.testing.assert_array_equal(table.columns["tokens"][:, 0], [51_200, 76_800, 102_400, 102_400])
    np.testing.assert_array_equal(table.losses[:, 0], [4.0, 3.8, 3.5, 3.6])
    assert table.runs[:, 0].tolist() == [0, 1, 0, 1]
    assert table.names == ("all",)
    assert table.notes == (
        "points.csv: tokens from 'Step' times 512, losses from 2 columns, of 1 domain and 2 runs",
        "points.csv: left out, at 0 tokens: line 2",
    )


def test_several_metrics_of_a_tracker_are_domains(tmp_path):
    header = "Step,r - eval/code_loss,r - eval/web_loss,s - eval/code_loss,s - eval/web_loss,r - lr\n"
    table = read(tmp_path, header + "1,1,2,3,4,9\n2,5,6,7,8,9\n", ("tokens",), Naming(tokens_per_step=1.0))
    assert table.names == ("eval/code_loss", "eval/web_loss")
    np.testing.assert_array_equal(table.losses, [[1, 2], [3, 4], [5, 6], [7, 8]])
    np.testing.assert_array_equal(table.runs, [[0, 0], [1, 1]] * 2)


def test_an_export_of_a_single_run_has_no_label(tmp_path):
    text = "Step,train_loss,train_loss__MIN,train_loss__MAX\n5,3.0,2.9,3.1\n"
    table = read(tmp_path, text, ("tokens",), Naming(tokens_per_step=2.0))
    assert (table.columns["tokens"].item(), table.losses.item(), table.runs) == (10, 3, None)


@pytest.mark.parametrize("column", ["step", "steps", "Step", "_step", "global_step", "train/global_step"])
def test_steps_are_made_tokens(tmp_path, column):
    table = read(tmp_path, f"{column},loss\n1000,3\n", ("tokens",), Naming(tokens_per_step=524288))
    assert table.columns["tokens"].item() == 524_288_000


def test_columns_are_what_the_user_says(tmp_path):
    naming = parse_naming("tokens=Seen, so far,loss=b,loss=A loss,run=who", None, ("tokens",))
    text = 'tokens,"seen, so far",a loss,b,who\n9,1,2,3,x\n9,4,5,,y\n'
    table = read(tmp_path, text, ("tokens",), naming)
    assert table.names == ("b", "a loss")
    np.testing.assert_array_equal(table.columns["tokens"][:, 1], [1, 4])
    np.testing.assert_array_equal(table.losses, [[3, 2], [np.nan, 5]])
    np.testing.assert_array_equal(table.runs[:, 1], [0, 1])
    steps = parse_naming("step=updates,loss=x", 10.0, ("tokens",))
    assert read(tmp_path, "updates,x\n3,4\n", ("tokens",), steps).columns["tokens"].item() == 30


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("train tokens,final ce,size (M)\n1e9,3.1,100\n", ("tokens",)),
        ("consumed,size,entropy\n1e9,1e8,3.1\n2e9,1e8,3.0\n", BOTH),
        ("D,N,train_loss,eval_loss,note\n1e9,1e8,3.1,3.2,x\n", BOTH),
        ("it's,x,y\n1e9,1e8,3.1\n", BOTH),
        ("Iterations of it,nll\n1000,3.1\n", ("tokens",)),
        ("steps,value\n1000,3.1\n", ("tokens",)),
    ],
)
def test_the_options_that_are_proposed_make_the_table_readable(tmp_path, text, columns):
    with pytest.raises(UserError) as told:
        read(tmp_path, text, columns, Naming())
    assert f"found: {text.splitlines()[0].replace(',', ', ')}" in told.value.problem
    said = re.sub(r"N, sequences in a batch times tokens in a sequence", "512", told.value.fix)
    words = shlex.split(said.removeprefix("give "))
    options = dict(zip(words[::2], words[1::2], strict=True))
    per_step = options.get("--tokens-per-step")
    naming = parse_naming(options.get("--columns"), per_step and float(per_step), columns)
    table = read(tmp_path, text, columns, naming)
    losses = table.losses[~np.isnan(table.losses)]
    assert set(losses) <= {3.0, 3.1, 3.2}
    assert 3.2 in losses or "eval_loss" not in text
    assert (table.columns["tokens"] >= 1e9).all() or per_step or "Iterations" in text


def test_a_file_named_in_a_config_has_no_options(tmp_path):
    with pytest.raises(UserError) as told:
        read(tmp_path, "steps,value\n1,2\n", ("tokens",))
    assert told.value.fix.startswith("name its columns tokens, loss (tokens: steps times the tokens of one)")
    assert "--" not in told.value.fix


@pytest.mark.parametrize(
    ("columns", "per_step", "message"),
    [
        ("D", None, "--columns is no list of NAME=COLUMN: 'D'. Fix: give for instance tokens=D"),
        ("", None, "--columns is no list of NAME=COLUMN"),
        ("tokens=,loss=x", None, "--columns is no list of NAME=COLUMN"),
        ("tokns=D,loss=x", None, "--columns names 'tokns', which is no column of ours. Fix: use tokens, params, step"),
        ("tokens=D,tokens=E", None, "--columns names 'tokens' more than once"),
        ("tokens=D,loss=D", None, "--columns uses 'D' more than once"),
        (
            "tokens=E,loss=x",
            None,
            "--columns tokens=E: .*points.csv has no columns 'E'; found: D, x, X. Fix: use a name",
        ),
        ("tokens=D", None, "more than one column .*'x', 'X'|no column 'loss'; found: D, x, X"),
        ("tokens=D,loss=x", 512.0, "counts tokens, in column 'D', not steps. Fix: leave out --tokens-per-step"),
        ("loss=x", 512.0, "counts tokens|has no column of steps"),
        ("tokens=D,loss=x", 0.0, "--tokens-per-step must be positive and finite, got 0"),
        ("tokens=D,loss=x", float("nan"), "--tokens-per-step must be positive and finite, got nan"),
    ],
)
def test_mistakes_in_the_options_are_told(tmp_path, columns, per_step, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, "D,x,X\n1,2,3\n", ("tokens",), parse_naming(columns, per_step, ("tokens",)))


def test_names_are_told_as_the_table_has_them(tmp_path):
    with pytest.raises(UserError, match=r"line 3: params \('N'\) is no number: '70M'"):
        read(tmp_path, "N,D,loss\n1,2,3\n70M,2,3\n")
    with pytest.raises(UserError, match=r"line 2: loss \('val_loss'\) must be positive and finite, got -3"):
        read(tmp_path, "N,D,val_loss\n1,2,-3\n")
    with pytest.raises(UserError, match=r"more than one column of tokens \('n_tokens', 'total_tokens'\)"):
        read(tmp_path, "n_tokens,total_tokens,loss\n1,2,3\n", ("tokens",))


def test_losses_that_are_named_perplexities_are_told(tmp_path):
    table = read(tmp_path, "tokens,val_ppl\n1e6,12\n", ("tokens",), Naming((("loss", "val_ppl"),)))
    assert "named perplexities; give their logarithms" in table.notes[-1]


SWEEP = "params,tokens,domain,lr,loss\n" + rows(
    (1, 8, "a", 1, 3.3),
    (1, 8, "a", 2, 3.1),
    (1, 8, "a", 3, 3.1),
    (2, 8, "a", 1, 3.0),
    (1, 8, "b", 1, 3.2),
    (1, 9, "b", 1, 9),
)


def test_the_best_of_each_place_is_kept_and_the_others_are_counted(tmp_path):
    table = read(tmp_path, SWEEP, best_only=True)
    np.testing.assert_array_equal(table.losses, [[3.1, 3.2], [3.0, 9.0]])
    assert table.notes == ("points.csv: 2 of 6 rows left out, which are not the best of their domain, params, tokens",)
    # The worst are left out of the best.
    assert read(tmp_path, SWEEP, best_only=True, drop_worst=1).losses.tolist() == [[3.0, 3.2]]
    assert read(tmp_path, SWEEP, ("tokens",), best_only=True).losses[0].tolist() == [3.0, 3.2]
