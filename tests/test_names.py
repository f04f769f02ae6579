"""One rule for every name of a config that becomes a folder, a file, a table cell or HTML."""

import html
import os
import shutil
from pathlib import PurePath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape

from tests.stages.experiment import write_experiment
from vtune_jax.cli import main as cli
from vtune_jax.core.names import LONGEST_NAME, assert_name, name_from
from vtune_jax.errors import UserError
from vtune_jax.experiment.load import load

PLACES = {"name": "name", "label": "arms.0.label", "domain": "corpus.domains.0.name"}
NO_NAMES = ["../../x", "a/b", "a\\b", "..", ".hidden", "-option", "a b", "[red]a", "<b>", "a\nb", "a\0b", "é", "x" * 65]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("text", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_when_the_config_is_read(small, place, text):
    with pytest.raises(UserError, match=f"{place.rpartition('.')[2]} must"):
        load(small, (f"{place}={_toml(text)}",))


def _toml(text):
    """A TOML string of any text."""
    return '"' + "".join(f"\\U{ord(letter):08X}" for letter in text) + '"'


@given(st.text(max_size=80) | st.text(alphabet="aZ0_.-/", max_size=80))
def test_a_name_is_one_part_of_a_path_and_the_same_in_html_and_in_a_table(text):
    try:
        assert_name(name=text)
    except ValueError:
        return
    assert PurePath("folder", text).name == PureWindowsPath("folder", text).name == text
    assert len(os.fsencode(text)) <= LONGEST_NAME
    assert html.escape(text) == escape(text) == text


@given(st.text(max_size=300))
def test_any_file_name_gives_a_name(text):
    assert_name(name=name_from(text))


def test_names_stay_as_they_are():
    assert [name_from(name) for name in ("small", "a.b-c_1", "my run (2)")] == ["small", "a.b-c_1", "my-run-2-"]


def test_a_file_with_any_name_is_read(small, tmp_path):
    path = tmp_path / "Résumé [v2].toml"
    shutil.copy(small, path)
    assert load(path).name == "R-sum-v2-"


def test_a_config_cannot_write_outside_its_run_folder(tmp_path, capsys):
    inside = tmp_path / "inside" / "deeper"
    inside.mkdir(parents=True)
    path = write_experiment(inside)
    before = sorted(tmp_path.rglob("*"))
    assert cli.invoke(["prepare", str(path), 'name="../../x"']) == 2
    assert "name must be letters" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_experiment_is_not_called_like_the_store(small):
    with pytest.raises(UserError, match="name must not be 'store'"):
        load(small, ("name=store",))
