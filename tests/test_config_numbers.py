"""Numbers that are no numbers are refused in every field, and every config that is accepted can be written and read."""

from contextlib import suppress
from pathlib import Path

import pytest

from vtune_jax import settings
from vtune_jax.errors import UserError
from vtune_jax.experiment import load as loading
from vtune_jax.rules import METHODS

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.toml"
LONG = ("mixture.interval=1", "train.steps=3000", "proxies.mixtures=100")
"""What some methods need, to be possible at all."""
SIGNED = {"lowest", "highest"}
"""Of DoGE: bounds of gradients' alignment, which may be negative."""


def load(*overrides, arm="static"):
    return loading.load(QUICKSTART, (*LONG, f'arms=[{{name="{arm}"}}]', *overrides))


def numbers(table, where=""):
    """Every number of a config, by the key of an override."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield from numbers(value, f"{where}.{key}".lstrip("."))
    elif isinstance(table, list) and table and isinstance(table[0], dict):
        for entry in table:
            yield from numbers(entry, f"{where}.{entry.get('label') or entry['name']}")
    elif isinstance(table, int | float) and not isinstance(table, bool):
        yield where, table


FIELDS = {
    field: entry.name
    for entry in METHODS
    for field, _ in numbers(settings.as_plain(load(arm=entry.name)))
    if field.startswith("arms.") or entry.name == "static"
}
"""The arm of the config in which each is looked at."""


def test_all_fields_are_looked_at():
    assert {field.partition(".")[0] for field in FIELDS} >= {"seed", "corpus", "data", "model", "mixture", "arms"}
    assert len(FIELDS) > 150


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e300", "-1e300", str(10**20), str(-(10**20)), "-1e9"])
def test_no_field_takes_what_is_no_number_or_far_outside_its_range(text):
    taken = []
    for field, arm in FIELDS.items():
        # A whole number in a field of floats is one of 64 bits at most, and 1e9 is below what a float may be.
        if field.rpartition(".")[2] in SIGNED and text == "-1e9":
            continue
        with suppress(UserError):
            load(f"{field}={text}", arm=arm)
            taken.append(field)
    assert taken == []


def test_weights_losses_and_shares_in_lists_are_looked_at_too():
    for field in ("mixture.weights", "targets.losses", "targets.fallback"):
        for text in ("nan", "inf", "-1.0", "1e300"):
            with pytest.raises(UserError):
                load(f"{field}=[{text}, 0.2, 0.2, 0.2, 0.2, 0.2]")


@pytest.mark.parametrize("text", ["1", "1.5", "1e9", "0.25", "2147483647", "1e-30"])
def test_whatever_is_accepted_is_written_and_read_back_equal(text, tmp_path):
    accepted = 0
    for field, arm in FIELDS.items():
        try:
            found = load(f"{field}={text}", arm=arm)
        except UserError:
            continue
        accepted += 1
        path = tmp_path / f"{found.name}.toml"
        path.write_text(settings.dumps(found), encoding="utf-8")
        assert loading.load(path) == found
    assert accepted > 10


def test_a_second_line_of_an_override_is_not_dropped():
    with pytest.raises(UserError, match=r"the override of seed has a second line, 'train.steps=3'"):
        load("seed=1\ntrain.steps=3")


def test_text_that_no_file_can_hold_is_refused():
    with pytest.raises(UserError, match=r"'corpus.domains.0.source' holds half of a pair"):
        load("corpus.domains.python.source=a\ud800")
