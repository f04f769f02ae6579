"""README and BUILD.md do what they say."""

import doctest
import re
from pathlib import Path

import pytest

from experiments.methods import methods_table
from vtune_jax.cli import main as cli
from vtune_jax.experiment.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "BUILD.md", "vtune_jax/fits/README.md"])
def test_examples_print_what_they_show(name):
    result = doctest.testfile(str(ROOT / name), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("name", ["README.md", "BUILD.md", "experiments/LOG.md", "vtune_jax/fits/README.md"])
def test_links_lead_somewhere(name):
    path = ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_every_verb_is_named():
    for verb in (*cli.STAGES, "fit", "doctor"):
        assert f"`{verb}`" in README or f"vtune-jax {verb}" in README


def test_the_corpus_example_is_accepted(tmp_path):
    example, targets = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[:2]
    path = tmp_path / "own.toml"
    path.write_text(f'{example}\n{targets}\n[[arms]]\nname = "static"\n')
    config = load(path)
    assert [domain.name for domain in config.corpus.domains] == ["manuals", "tickets"]


def test_the_table_of_methods_is_current():
    assert methods_table() in (ROOT / "BUILD.md").read_text()


def test_folders_of_the_map_exist():
    table = README.partition("## Where things are")[2].partition("\n[")[0]
    for row in table.splitlines():
        names = re.findall(r"`([a-z_/]+)`", row.split("|")[1]) if row.startswith("| `") else []
        for name in names:
            assert (ROOT / name).is_dir() or (ROOT / "vtune_jax" / name).is_dir(), name
