import ast
import re
from pathlib import Path

import pytest

import vtune_jax
from vtune_jax.machine import hosts
from vtune_jax.machine.provenance import PACKAGES, Provenance

PACKAGE = Path(vtune_jax.__file__).parent
OF_THE_MACHINE = {
    "process_index", "process_count", "devices", "device_count", "local_devices", "local_device_count"
}  # fmt: skip


def questions(text):
    """The functions of jax in a source text that tell devices and processes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
            yield from {node.attr} & OF_THE_MACHINE
        elif isinstance(node, ast.ImportFrom) and node.module == "jax":
            yield from {alias.name for alias in node.names} & OF_THE_MACHINE


OTHERS = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "machine")


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_machines_room_asks_for_devices_and_processes(path):
    assert list(questions(path.read_text())) == []


def test_a_question_would_be_seen():
    text = "import jax\nfrom jax import devices\nfirst = jax.process_index() == 0\nx.devices()\n"
    assert sorted(questions(text)) == ["devices", "process_index"]


def test_a_single_process_leads_and_has_all_rows():
    assert hosts.leads()
    assert hosts.shard() == (0, 1)


def test_provenance_names_every_version_and_the_devices():
    here = Provenance.here()
    assert set(here.versions) == {"python", *PACKAGES}
    assert here.versions["vtune-jax"] == vtune_jax.__version__
    assert re.search(r", [1-9]\d* x \w+", here.machine)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_machines_room_makes_shardings(path):
    text = path.read_text()
    assert not re.search(r"NamedSharding|PartitionSpec|SingleDeviceSharding|with_sharding_constraint", text)
