"""Methods are found by their files."""

import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from vtune_jax import rules
from vtune_jax.core.needs import assert_known
from vtune_jax.core.types import Method
from vtune_jax.rules.config import Published
from vtune_jax.rules.registry import collected

PACKAGE = Path(rules.__file__).parents[1]


def test_the_order_is_that_of_the_documentation():
    names = [entry.name for entry in rules.METHODS]
    assert names[:3] == ["static", "velocitune", "dbl"]
    assert names[-3:] == ["regmix", "mixing_laws", "olmix"]
    assert [config.name for config in rules.method_configs()] == names


@pytest.mark.parametrize("entry", rules.METHODS, ids=lambda entry: entry.name)
def test_a_published_method_has_a_factory_a_source_and_needs_that_can_be_supplied(entry):
    method = entry.factory()
    assert isinstance(method, Method)
    assert_known(method.needs)
    assert entry.source
    assert entry.config.moves == (entry.name not in ("static", "regmix", "mixing_laws", "olmix"))


def test_a_factory_takes_the_fields_of_its_method_alone():
    with pytest.raises(TypeError, match="velocitune takes form, step_size.*got floor; .* options of Velocitune"):
        rules.velocitune(floor=0.1)
    with pytest.raises(TypeError, match="got form"):
        rules.cvar_dro(form="online")


FILE = '''
"""A method."""
import dataclasses
from typing import Literal
from vtune_jax.rules.config import Published
from vtune_jax.rules.static import Static

@dataclasses.dataclass(frozen=True, kw_only=True)
class {name}(Static):
    """A method."""
    name: Literal["{name}"] = "{name}"

PUBLISHED = Published(config={name}, source="here"{more})
'''


def test_a_folder_is_read_by_place_and_then_by_name(tmp_path, monkeypatch):
    folder = tmp_path / "some_rules"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for file, name, more in (("one", "beta", ""), ("two", "alpha", ""), ("three", "first", ", place=5")):
        (folder / f"{file}.py").write_text(FILE.format(name=name, more=more))
    (folder / "helpers.py").write_text("HELP = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = collected(folder, "some_rules")
    assert [entry.name for entry in found] == ["first", "alpha", "beta"]
    assert all(isinstance(entry, Published) for entry in found)
    (folder / "zwei.py").write_text(FILE.format(name="alpha", more=""))
    with pytest.raises(ValueError, match="two methods are called 'alpha': alpha and alpha"):
        collected(folder, "some_rules")


def test_the_example_of_the_readme_is_a_method_once_its_file_lies_in_the_folder(tmp_path):
    """One file, and nothing else edited."""
    text = (PACKAGE / "rules" / "README.md").read_text()
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line[4:] for line in example.splitlines() if line[:4] in (">>> ", "... ")]
    copytree(PACKAGE, tmp_path / "vtune_jax", ignore=ignore_patterns("__pycache__"))
    (tmp_path / "vtune_jax" / "rules" / "loss_proportional.py").write_text("\n".join(lines) + "\n")
    program = (
        "import pathlib, sys\n"
        "from vtune_jax import rules\n"
        "from vtune_jax.experiment.load import load\n"
        "entry = {entry.name: entry for entry in rules.METHODS}['loss_proportional']\n"
        "assert entry.config in rules.method_configs()\n"
        "overrides = ('arms=[{name=\"loss_proportional\", power=2.0, floor=0.01}]',)\n"
        "config = load(pathlib.Path(sys.argv[1]), overrides)\n"
        "assert config.arms[0].method == entry.config(power=2.0, floor=0.01)\n"
        "print(rules.Mixer(entry.config(floor=0.1), [0.5, 0.5]).update(1, heldout=[3.0, 1.0]).round(3).tolist())"
    )
    command = [sys.executable, "-c", program, str(PACKAGE.parent / "configs" / "quickstart.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[0.7, 0.3]"
