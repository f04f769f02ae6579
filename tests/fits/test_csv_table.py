"""Tables of measured losses: what is read, and what is told in one line."""

import numpy as np
import pytest

from vtune_jax.errors import UserError
from vtune_jax.fits.csv_dialects import parse_number
from vtune_jax.fits.csv_table import read_table
from vtune_jax.fits.laws.power_law import LAW

GOOD = "Tokens, LOSS ,domain,note\n1e6,3.0,code,a\n2e6,2.5,code,b\n4e6,2.2,code,c\n1e6,4.0,papers,\n3e6,3.5,papers,\n"


def written(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_text(text)
    return path


def test_columns_are_found_whatever_their_case_and_order(tmp_path):
    table = read_table(written(tmp_path, GOOD))
    assert table.names == ("code", "papers")
    np.testing.assert_array_equal(table.losses[:, 0], [3.0, 2.5, 2.2])
    np.testing.assert_array_equal(table.losses[:, 1], [4.0, 3.5, np.nan])
    assert table.columns["tokens"][:2, 1].tolist() == [1e6, 3e6]
    assert (table.columns["tokens"] > 0).all()


def test_lines_without_a_number_are_left_out_by_name(tmp_path):
    table = read_table(written(tmp_path, GOOD + "5e6,nan,code,\n6e6,,papers,\n\n"))
    assert table.losses.shape == (3, 2)
    assert table.notes[0].endswith("without a number in every column: lines 7, 8")


def test_losses_that_no_cross_entropy_reaches_are_told(tmp_path):
    told = read_table(written(tmp_path, "tokens,loss\n1e6,1100\n2e6,900\n")).notes
    assert "losses up to 1100" in told[0]
    assert "are they perplexities? Then give their logarithms" in told[0]
    assert read_table(written(tmp_path, "tokens,loss\n1e6,12.5\n2e6,11\n")).notes == ()


POINTS = ((1_000_000, 3.1943), (2_000_000, 2.9051), (4_000_000, 2.686))
PLAIN = "".join(f"{tokens},{loss}\n" for tokens, loss in POINTS)
DIALECTS = {
    "plain": "tokens,loss\n" + PLAIN,
    "semicolons": ("tokens,loss\n" + PLAIN).replace(",", ";"),
    "tabs": ("tokens,loss\n" + PLAIN).replace(",", "\t"),
    "decimal commas": "tokens;loss\n" + "".join(f"{n};{str(loss).replace('.', ',')}\n" for n, loss in POINTS),
    "thousands": "tokens,loss\n" + "".join(f'"{n:,}",{loss}\n' for n, loss in POINTS),
    "points for thousands": "tokens;loss\n"
    + "".join(
        f"{n:,};{loss}\n".replace(",", ".").replace(f";{loss}", f";{loss}".replace(".", ",")) for n, loss in POINTS
    ),
    "comments": "# run 7\ntokens,loss\n# begins here\n" + PLAIN,
    "missing": "tokens,loss\n" + PLAIN + "8000000,N/A\n9000000,-\n9900000,#N/A\n",
    "infinities": "tokens,loss\n" + PLAIN + "8000000,inf\n",
    "step 0": "tokens,loss\n0,10.8\n" + PLAIN,
    "carriage returns": ("tokens,loss\n" + PLAIN).replace("\n", "\r\n"),
    "line separators": "tokens,loss,note\n" + PLAIN.replace("\n", ",a\u2028b\n"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", DIALECTS)
def test_the_same_points_are_read_from_every_dialect(tmp_path, name, encoding):
    path = tmp_path / "points.csv"
    path.write_bytes(DIALECTS[name].encode(encoding))
    table = read_table(path)
    np.testing.assert_array_equal(table.columns["tokens"][:, 0], [tokens for tokens, _ in POINTS])
    np.testing.assert_array_equal(table.losses[:, 0], [loss for _, loss in POINTS])


def test_what_is_left_out_of_a_dialect_is_told_by_its_line(tmp_path):
    assert read_table(written(tmp_path, DIALECTS["step 0"])).notes == ("points.csv: left out, at 0 tokens: line 2",)
    assert read_table(written(tmp_path, DIALECTS["missing"])).notes[0].endswith("lines 5, 6, 7")
    text = DIALECTS["comments"] + "5000000,x\n"
    with pytest.raises(UserError, match=r"line 7: loss is no number: 'x'"):
        read_table(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "decimal_comma", "value"),
    [
        ("3,5", True, 3.5),
        ("1,000", True, 1.0),
        ("1,000", False, 1000.0),
        ("1.000", True, 1.0),
        ("1.000.000", True, 1e6),
        ("1.000,5", True, 1000.5),
        ("1,000,000.5", True, 1000000.5),
        ("-1,5e3", True, -1500.0),
        ("1e6", False, 1e6),
    ],
)
def test_commas_and_points_in_numbers(text, decimal_comma, value):
    assert parse_number(text, decimal_comma=decimal_comma) == value


@pytest.mark.parametrize(("text", "decimal_comma"), [("3,5", False), ("1,00,000", False), ("1.0.0", True), ("x", True)])
def test_what_is_no_number_is_refused(text, decimal_comma):
    with pytest.raises(ValueError, match="could not convert"):
        parse_number(text, decimal_comma=decimal_comma)


def test_the_worst_losses_and_their_equals_are_left_out(tmp_path):
    text = "tokens,loss\n1,5\n2,4\n3,4\n4,3\n5,2\n"
    assert read_table(written(tmp_path, text), drop_worst=2).losses[:, 0].tolist() == [3, 2]


def test_runs_are_labels(tmp_path):
    table = read_table(written(tmp_path, "tokens,loss,run\n1,5,r0\n2,4,r0\n1,4.5,0\n2,3,\n"))
    assert table.runs[:, 0].tolist() == [0, 0, 1, 2]
    assert set(table.columns) == {"tokens"}
    assert read_table(written(tmp_path, GOOD)).runs is None


def test_domains_are_taken_in_the_order_that_is_asked_for(tmp_path):
    assert read_table(written(tmp_path, GOOD), names=("papers", "code")).losses[0].tolist() == [4.0, 3.0]
    one = read_table(written(tmp_path, "tokens,loss\n1,5\n2,4\n3,4\n"), names=("code",))
    assert one.names == ("code",)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("steps,value\n1,2\n", {}, "no column 'tokens' and no column 'loss'; found: steps, value"),
        ("tokens,loss\n1,2\n", {"columns": ("tokens", "params")}, "no column 'params'; found: tokens, loss"),
        ("tokens,loss\n1,2\n", {"names": ("a", "b")}, "no column 'domain'"),
        ("tokens,loss\n0,2\n", {}, "holds no points"),
        ("tokens,loss\n1,2\n2,-1\n", {}, "line 3: loss must be positive and finite, got -1"),
        ("tokens,loss\n1,two\n", {}, "line 2: loss is no number: 'two'"),
        ("tokens,loss\n1,2,3\n", {}, "line 2: 3 values for 2 columns"),
        ("tokens,loss\n", {}, "holds no points"),
        ("tokens,loss\n1,nan\n", {}, "holds no points"),
        ("", {}, "is empty"),
        (GOOD, {"names": ("code", "maths")}, "no domain 'maths'; found: code, papers"),
        (GOOD, {"drop_worst": -1}, "must not be negative, got -1"),
        ("tokens,loss,Loss\n1,2,3\n", {}, "more than one column 'loss'"),
        ('tokens,loss\n1,"' + "2" * 200_000, {}, "is no CSV file"),
        (GOOD, {"drop_worst": 2}, "domain 'papers' has 2 points, of which 2 are to be left out"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, options, message):
    with pytest.raises(UserError, match=message):
        read_table(written(tmp_path, text), **options)


def test_a_table_with_too_few_points_for_a_law_is_refused_by_domain(tmp_path):
    few = read_table(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="at least 3 points in domain 'papers', got 2"):
        few.assert_fittable(LAW)
    read_table(written(tmp_path, GOOD + "4e6,3.4,papers,\n")).assert_fittable(LAW)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(tmp_path / "binary.csv")
